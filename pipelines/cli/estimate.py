"""The verb `estimate`: what training a recipe takes, before anything is spent."""

import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chatmetrics.components.errors import InputError
from chatmetrics.pipelines.cli.cluster import PoolsOption, RecipeArgument, SetOption, Verbs

if TYPE_CHECKING:
    from rich.table import Table

    from chatmetrics.components.train.estimate.sizes import Sizes
    from chatmetrics.components.train.estimate.workload import Workload
    from chatmetrics.pipelines.estimate import Estimate
    from chatmetrics.pipelines.pools import Pool
    from chatmetrics.pipelines.recipe import Recipe

WIDTH = 160
EXAMPLE = "Example: chatmetrics estimate spider-7b --gpu-pool V100 --dataset dataset"


def estimate(
    recipe: RecipeArgument,
    gpu_pool: Annotated[
        list[str] | None, typer.Option("--gpu-pool", help="Node pool, as often as you like; else all.")
    ] = None,
    overrides: SetOption = None,
    pools: PoolsOption = None,
    dataset: Annotated[
        Path | None, typer.Option(help="Folder that preprocess wrote, to count its tokens; else some like Spider's.")
    ] = None,
) -> None:
    """Say what training takes on a pool: memory by part, hours, cost. Nothing is started."""
    from rich.console import Console

    from chatmetrics.pipelines.base_sizes import base_sizes
    from chatmetrics.pipelines.estimate import check_fits
    from chatmetrics.pipelines.estimate import estimate as estimated
    from chatmetrics.pipelines.pools import find_pool, load_pools
    from chatmetrics.pipelines.recipe import load_recipe

    known = load_pools(pools)
    chosen = {name: find_pool(name, known) for name in gpu_pool or known}
    loaded = load_recipe(recipe, overrides or ())
    sizes = base_sizes(loaded)
    counted = {name: _counted(loaded, pool, sizes, dataset) if dataset else None for name, pool in chosen.items()}
    found = {name: estimated(loaded, pool, sizes, counted[name]) for name, pool in chosen.items()}
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH)
    console.print(_table(found))
    if not dataset:
        some = next(iter(found.values())).workload
        print(
            f"No --dataset: hours are those of {some.examples:,} questions of "
            f"{some.tokens / some.examples:.0f} tokens, and memory that of the most tokens that the settings allow."
        )
    for name in gpu_pool or ():
        check_fits(loaded, name, known, sizes, counted[name])


def _counted(recipe: "Recipe", pool: "Pool", sizes: "Sizes", dataset: Path) -> "Workload":
    from chatmetrics.components.storage.models import local_tokenizer

    try:
        from chatmetrics.components.train.estimate.workload import workload
    except ModuleNotFoundError as error:
        raise InputError(f"--dataset: counting tokens needs {error.name}; install chatmetrics[train]") from error
    if not (dataset / "train.jsonl").is_file():
        raise InputError(f"--dataset {dataset}: it holds no train.jsonl; give the folder that preprocess wrote")
    tokenizer = (
        local_tokenizer(recipe.preprocess.tokenizer, recipe.preprocess.tokenizer_revision)
        if recipe.preprocess.tokenizer
        else local_tokenizer(recipe.base_model, recipe.revision)
    )
    return workload(pool.fitted(recipe.train), dataset, tokenizer, sizes.attention_tokens)


def _table(found: "dict[str, Estimate]") -> "Table":
    from rich.table import Table

    from chatmetrics.components.train.estimate.memory import GIB

    table = Table(box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    for name in found:
        table.add_column(name, justify="right", no_wrap=True)

    def row(label: str, value: "Callable[[Estimate], str]") -> None:
        table.add_row(label, *map(value, found.values()))

    def gib(label: str, size: "Callable[[Estimate], float]") -> None:
        row(label, lambda it: f"{size(it) / GIB:.2f}")

    row("precision", lambda it: it.settings.precision)
    row("examples at once x accumulated", _batches)
    row("gradient checkpointing", lambda it: "yes" if it.settings.gradient_checkpointing else "no")
    for field in fields(next(iter(found.values())).memory):
        gib(f"GiB of {field.name}", lambda it, name=field.name: getattr(it.memory, name))  # type: ignore[misc]
    gib("GiB in all", lambda it: it.memory.total)
    gib("GiB there", lambda it: it.available)
    row("GiB to spare", lambda it: f"{it.spare / GIB:.2f}" if it.spare >= 0 else f"too much by {-it.spare / GIB:.2f}")
    row("optimizer steps", lambda it: f"{it.steps:,}")
    row("tokens of an example", lambda it: f"{it.workload.tokens / it.workload.examples:.0f}")
    row("of them computed", lambda it: f"{it.workload.computed_tokens / it.workload.examples:.0f}")
    row("hours", lambda it: f"{it.hours:.2f}" if it.pool.peak_tflops else "unknown")
    row("cost", lambda it: f"{it.cost:.2f}" if it.pool.peak_tflops else "unknown")
    return table


def _batches(it: "Estimate") -> str:
    processes = f" x {it.settings.processes} GPUs" if it.settings.processes > 1 else ""
    return f"{it.settings.batch_size} x {it.settings.gradient_accumulation}{processes}"


VERBS: Verbs = {"estimate": (estimate, EXAMPLE)}
