"""The recipe's section `deploy`."""

from pathlib import Path

from pydantic import Field, JsonValue

from chatmetrics.components.settings import Settings

# Where the step's pod has the deployer's secret; the pod's own service account may do nothing of the kind.
CREDENTIALS = Path("/var/run/secrets/chatmetrics-deployer")


class DeploySettings(Settings):
    """Where a published model is served, and how the chart is set."""

    enabled: bool = Field(False, description="Whether a run on a cluster ends by deploying the model.")
    release: str = Field(
        "chatmetrics",
        pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$",
        max_length=48,
        description="Of Helm, and the Service's name: what the next model replaces.",
    )
    namespace: str = Field(
        "chatmetrics", pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63, description="It must exist."
    )
    model: str = Field(
        "",
        pattern=r"^([a-z0-9][a-z0-9._-]*)?$",
        description="Name that clients say; empty is that in the manifest, which is the recipe's.",
    )
    values: dict[str, JsonValue] = Field(
        {}, description="Of the chart helm/chatmetrics-ollama; the model is put in, and how much memory it needs."
    )
    timeout_minutes: float = Field(
        20.0, gt=0, description="Fetching, loading and the acceptance test; then the old version is brought back."
    )
    secret: str = Field(
        "chatmetrics-deployer",
        min_length=1,
        description="Kubernetes secret with the token of the account that deploys; only this step's pod has it.",
    )
