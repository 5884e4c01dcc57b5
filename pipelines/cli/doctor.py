"""The verb `doctor`: whether a cluster has all that a run needs, before anything is spent."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from chatmetrics.pipelines.cli.cluster import (
    DEFAULT_NAMESPACE,
    HostOption,
    NamespaceOption,
    PoolOption,
    PoolsOption,
    SetOption,
    Verbs,
    access_from,
)

if TYPE_CHECKING:
    from rich.console import Console

    from chatmetrics.pipelines.doctor.findings import Finding

EXAMPLE = "Example: chatmetrics doctor hotel-demo --kfp-host http://localhost:8888 --gpu-pool A100"
STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}


def doctor(
    recipe: Annotated[
        str, typer.Argument(metavar="[RECIPE]", help="A recipe file, or a shipped one's name; else the defaults.")
    ] = "",
    gpu_pool: PoolOption = "",
    overrides: SetOption = None,
    host: HostOption = "",
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
    pools: PoolsOption = None,
    deploy_namespace: Annotated[
        str, typer.Option(help="Where models are to be served; the recipe's, else the runs' namespace.")
    ] = "",
) -> None:
    """Look at a cluster before a run: a line for each thing it needs, ok or what to do. Nothing is started."""
    from rich.console import Console

    from chatmetrics.pipelines.cluster_settings import ClusterSettings
    from chatmetrics.pipelines.doctor.diagnose import diagnose, summary
    from chatmetrics.pipelines.doctor.setup import Setup
    from chatmetrics.pipelines.pools import find_pool, load_pools
    from chatmetrics.pipelines.recipe import load_recipe, load_section

    loaded = load_recipe(recipe, overrides or ()) if recipe else None
    settings = loaded.cluster if loaded else load_section("cluster", ClusterSettings, "", overrides or ())
    pool = find_pool(gpu_pool, load_pools(pools)) if gpu_pool else None
    if loaded and loaded.deploy.enabled and not deploy_namespace:
        deploy_namespace = loaded.deploy.namespace
    setup = Setup(access_from(host, namespace), settings, loaded, gpu_pool, pool, deploy_namespace)
    console = Console(file=sys.stdout)
    findings = {}
    for name, finding in diagnose(setup):
        findings[name] = finding
        _show(name, finding, console)
    print(summary(findings))


def _show(name: str, finding: "Finding", console: "Console") -> None:
    from rich.text import Text

    from chatmetrics.pipelines.doctor.diagnose import report_line

    line = report_line(name, finding)
    text = Text(line)
    text.stylize(STYLES[finding.verdict], 0, len(line) if finding.verdict == "skipped" else line.index(" "))
    console.print(text, soft_wrap=True)


VERBS: Verbs = {"doctor": (doctor, EXAMPLE)}
