"""The commands that serve a model in a cluster: deploy, rollback, endpoint. The step deploy does the same in a run."""

import shlex
import signal
from typing import TYPE_CHECKING, Annotated

import typer

from chatmetrics.pipelines.cli.options import CLUSTER, RecipeOption, SetOption

if TYPE_CHECKING:
    from chatmetrics.components.deploy.endpoint import Endpoint
    from chatmetrics.components.deploy.settings import DeploySettings

ReleaseOption = Annotated[str, typer.Option("--release", help="Helm release; default: the recipe's, or chatmetrics")]
ReleaseNamespaceOption = Annotated[
    str,
    typer.Option(
        "--namespace", "-n", help="Kubernetes namespace of the release; default: the recipe's, or chatmetrics"
    ),
]
TimeoutOption = Annotated[
    float,
    typer.Option("--timeout", help="Minutes until the old version is restored; default: the recipe's, or 20", min=0),
]
CREDENTIALS = (
    "Credentials come from the kubeconfig (KUBECONFIG) and, for reading the manifest, from AWS_*. Needs helm 3 or 4 on "
    "the PATH, or CHATMETRICS_HELM."
)
LOCAL_PORT = 8080
FIRST_TOKEN = "default"  # name of the client that the chart creates a token for

app = typer.Typer()


def _epilog(example: str) -> str:
    return f"Example: {example}\n\n{CREDENTIALS}"


@app.command(
    epilog=_epilog("chatmetrics deploy s3://mlpipeline/chatmetrics/models/hotel-demo/VERSION"), rich_help_panel=CLUSTER
)
def deploy(
    manifest: Annotated[
        str, typer.Argument(metavar="MANIFEST", help="manifest.json of a published model, or its s3:// folder")
    ],
    recipe: RecipeOption = "",
    overrides: SetOption = None,
    release: ReleaseOption = "",
    namespace: ReleaseNamespaceOption = "",
    timeout: TimeoutOption = 0.0,
    sha256: Annotated[
        str, typer.Option(help="sha256 of the manifest that passed the gate, from the run's scores.json")
    ] = "",
) -> None:
    """Serve a published model in a cluster. If that fails, the old version keeps serving.

    Without a recipe, the release keeps its values.
    """
    from chatmetrics.components.deploy import deploy as rollouts

    _interrupt_at_sigterm()
    settings = _settings(recipe, overrides, release, namespace, timeout)
    deployed = rollouts.deploy(settings, manifest, sha256, keep_values=not recipe)
    if deployed.smoke:
        print(f"asked:    {deployed.smoke}")
    _show(deployed.endpoint)


@app.command(epilog=_epilog("chatmetrics rollback"), rich_help_panel=CLUSTER)
def rollback(
    revision: Annotated[int, typer.Option(help="Helm revision; default: the last one that served something else")] = 0,
    recipe: RecipeOption = "",
    release: ReleaseOption = "",
    namespace: ReleaseNamespaceOption = "",
    timeout: TimeoutOption = 0.0,
) -> None:
    """Return to the model, values and chart that served before. The model is still on the volume."""
    from chatmetrics.components.deploy import deploy as rollouts

    _interrupt_at_sigterm()
    _show(rollouts.rollback(_settings(recipe, None, release, namespace, timeout), revision))


@app.command(epilog=_epilog("chatmetrics endpoint --namespace chatmetrics"), rich_help_panel=CLUSTER)
def endpoint(recipe: RecipeOption = "", release: ReleaseOption = "", namespace: ReleaseNamespaceOption = "") -> None:
    """Show the address of a release, its models, and how to get access."""
    from chatmetrics.components.deploy import deploy as rollouts

    _show(rollouts.endpoint(_settings(recipe, None, release, namespace, 0.0)))


def _settings(
    recipe: str, overrides: list[str] | None, release: str, namespace: str, timeout: float
) -> "DeploySettings":
    from chatmetrics.components.deploy.settings import DeploySettings
    from chatmetrics.pipelines.recipe import load_recipe, load_section

    given = {"release": release, "namespace": namespace, "timeout_minutes": timeout}
    chosen = [*(overrides or ()), *(f"deploy.{key}={value}" for key, value in given.items() if value)]
    if recipe:
        return load_recipe(recipe, chosen).deployment()
    return load_section("deploy", DeploySettings, "", chosen)


def _show(found: "Endpoint") -> None:
    kubectl = f"kubectl -n {shlex.quote(found.namespace)}"
    print(f"release:  {found.release} in {found.namespace}, revision {found.revision}, {found.ready} pods ready")
    for name, uri in found.models.items():
        print(f"model:    {name}, {uri}")
    print(f"endpoint: {found.url} (inside the cluster)")
    if found.token_secret:
        key = f"-o jsonpath='{{.data.{FIRST_TOKEN}}}' | base64 -d"
        print(f"token:    {kubectl} get secret {found.token_secret} {key}")
    print(f"forward:  {kubectl} port-forward service/{found.service} {LOCAL_PORT}:{found.port}")
    token = "CHATMETRICS_TOKEN=TOKEN " if found.token_secret else ""
    print(f"ask:      {token}chatmetrics ask QUESTION --db FILE --endpoint http://127.0.0.1:{LOCAL_PORT}")


def _interrupt_at_sigterm() -> None:
    """Treat SIGTERM as Ctrl-C, which restores the old version."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
