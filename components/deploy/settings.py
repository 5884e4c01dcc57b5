"""The recipe's `deploy` section."""

from pathlib import Path

from pydantic import Field, JsonValue

from chatmetrics.components.settings import Settings

# Where the step's pod mounts the deployer's secret. The pod's own service account has no right to deploy.
CREDENTIALS = Path("/var/run/secrets/chatmetrics-deployer")


class DeploySettings(Settings):
    """The release that serves the published model, and the chart's values."""

    enabled: bool = Field(False, description="Whether a run on a cluster ends with deploying the model")
    release: str = Field(
        "chatmetrics",
        pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$",
        max_length=48,
        description="Name of the Helm release and of its Service; the next model of a release replaces the last",
    )
    namespace: str = Field(
        "chatmetrics",
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        max_length=63,
        description="Namespace of the release; it must exist",
    )
    model: str = Field(
        "",
        pattern=r"^([a-z0-9][a-z0-9._-]*)?$",
        description="Name that clients use for the model; empty is the name in its manifest, which is the recipe's",
    )
    values: dict[str, JsonValue] = Field(
        {},
        description="Values of the chart helm/chatmetrics-ollama. The model and the memory that it needs are added, "
        "and in a run the image and the access to S3 as well",
    )
    timeout_minutes: float = Field(
        20.0,
        gt=0,
        description="Time for fetching the model, loading it and the acceptance test, after which the old version is "
        "restored. It should be longer than the chart's rollout.startupSeconds",
    )
    secret: str = Field(
        "chatmetrics-deployer",
        min_length=1,
        description="Kubernetes secret with the token of the account that deploys, in the runs' namespace, as "
        "helm/deployer.yaml creates it; only this step's pod mounts it",
    )
