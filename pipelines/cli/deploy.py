"""The verbs that serve a model in a cluster: deploy, rollback, endpoint. They do by hand what the step deploy does."""

import shlex
import signal
from typing import TYPE_CHECKING, Annotated

import typer

from chatmetrics.pipelines.cli.cluster import SetOption, Verbs

if TYPE_CHECKING:
    from chatmetrics.components.deploy.endpoint import Endpoint
    from chatmetrics.components.deploy.settings import DeploySettings

RecipeOption = Annotated[str, typer.Option("--recipe", help="Take the settings from its sections deploy and cluster.")]
ReleaseOption = Annotated[str, typer.Option("--release", help="Of Helm; the recipe's, else chatmetrics.")]
NamespaceOption = Annotated[
    str, typer.Option("--namespace", "-n", help="Of the release; the recipe's, or chatmetrics.")
]
TimeoutOption = Annotated[float, typer.Option("--timeout", help="Minutes; then the old version is back.", min=0)]
LOCAL_PORT = 8080
FIRST_TOKEN = "default"  # the client that the chart makes a token for


def deploy(
    manifest: Annotated[str, typer.Argument(metavar="MANIFEST", help="A published model: s3://.../manifest.json.")],
    recipe: RecipeOption = "",
    overrides: SetOption = None,
    release: ReleaseOption = "",
    namespace: NamespaceOption = "",
    timeout: TimeoutOption = 0.0,
) -> None:
    """Serve a published model in a cluster; without success the old version goes on serving.

    Without a recipe, the release keeps the values that it has.
    """
    from chatmetrics.components.deploy.deploy import deploy

    _end_at_sigterm()
    settings = _settings(recipe, overrides, release, namespace, timeout)
    deployed = deploy(settings, manifest, keep_values=not recipe)
    if deployed.smoke:
        print(f"asked:    {deployed.smoke}")
    _show(deployed.endpoint)


def rollback(
    revision: Annotated[int, typer.Option(help="Of Helm; the last that served something else where left out.")] = 0,
    recipe: RecipeOption = "",
    release: ReleaseOption = "",
    namespace: NamespaceOption = "",
    timeout: TimeoutOption = 0.0,
) -> None:
    """Go back to the model, values and chart that served before; they are still on the volume."""
    from chatmetrics.components.deploy.deploy import rollback

    _end_at_sigterm()
    _show(rollback(_settings(recipe, None, release, namespace, timeout), revision))


def endpoint(recipe: RecipeOption = "", release: ReleaseOption = "", namespace: NamespaceOption = "") -> None:
    """Say where a release answers, with which models, and how to get in."""
    from chatmetrics.components.deploy.deploy import endpoint

    _show(endpoint(_settings(recipe, None, release, namespace, 0.0)))


AUTHENTICATION = (
    "Who we are comes from the kubeconfig (KUBECONFIG) and, for reading the manifest, from AWS_*. Needs helm 3 or 4 on "
    "the PATH, or CHATMETRICS_HELM."
)
VERBS: Verbs = {
    "deploy": (deploy, "Example: chatmetrics deploy s3://mlpipeline/chatmetrics/models/hotel-demo/VERSION"),
    "rollback": (rollback, "Example: chatmetrics rollback"),
    "endpoint": (endpoint, "Example: chatmetrics endpoint --namespace chatmetrics"),
}


def add_verbs(app: typer.Typer) -> None:
    """Make them verbs of the command, each with its example."""
    for name, (verb, example) in VERBS.items():
        app.command(name, epilog=f"{example}\n\n{AUTHENTICATION}", rich_help_panel="On a cluster")(verb)


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


def _end_at_sigterm() -> None:
    """A deployment that is ended brings the old version back, as it does at Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
