"""The command `estimate`: memory, hours and cost of a recipe's training, before anything is started."""

import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chatmetrics.components import console
from chatmetrics.components.errors import InputError
from chatmetrics.pipelines.cli.options import RECIPES, PoolsOption, RecipeArgument, SetOption, matching_pools
from chatmetrics.pipelines.cli.output import output_console

if TYPE_CHECKING:
    from rich.table import Table

    from chatmetrics.components.train.estimate.sizes import Sizes
    from chatmetrics.components.train.estimate.workload import Workload
    from chatmetrics.pipelines.estimate import Estimate
    from chatmetrics.pipelines.pools import Pool
    from chatmetrics.pipelines.recipe import Recipe
    from chatmetrics.pipelines.step_estimates import Questions

app = typer.Typer()


@app.command(
    epilog="Example: chatmetrics estimate spider-7b --gpu-pool V100 --dataset dataset", rich_help_panel=RECIPES
)
def estimate(
    recipe: RecipeArgument,
    gpu_pool: Annotated[
        list[str] | None,
        typer.Option(
            "--gpu-pool", help="GPU pool to estimate for; may be repeated; default: all", autocompletion=matching_pools
        ),
    ] = None,
    overrides: SetOption = None,
    pools: PoolsOption = None,
    dataset: Annotated[
        Path | None,
        typer.Option(help="Dataset whose tokens are counted: the folder that preprocess wrote; default: like Spider's"),
    ] = None,
) -> None:
    """Estimate training on GPU pools: memory by part, hours and cost; and what the pods of the steps take.

    Nothing is started.
    """
    from chatmetrics.pipelines import estimate as estimation
    from chatmetrics.pipelines.base_sizes import base_sizes
    from chatmetrics.pipelines.pools import find_pool, load_pools
    from chatmetrics.pipelines.recipe import load_recipe

    known = load_pools(pools)
    chosen = {name: find_pool(name, known) for name in gpu_pool or known}
    loaded = load_recipe(recipe, overrides or ())
    base = _checked_base(loaded)
    sizes = base_sizes(loaded)
    workloads = {name: _workload(loaded, pool, sizes, dataset) if dataset else None for name, pool in chosen.items()}
    estimates = {name: estimation.estimate(loaded, pool, sizes, workloads[name]) for name, pool in chosen.items()}
    output_console().print(_table(estimates))
    print(base)
    if not dataset:
        assumed = next(iter(estimates.values())).workload
        print(
            f"No --dataset: hours are for {assumed.examples:,} questions of "
            f"{assumed.tokens / assumed.examples:.0f} tokens, and memory for the most tokens that the settings allow."
        )
    _print_steps(loaded, sizes, known, dataset)
    for name in gpu_pool or ():
        estimation.check_fits(loaded, name, known, sizes, workloads[name])


def _checked_base(recipe: "Recipe") -> str:
    """Check a base model that is on this machine, and return a line about it. Of others, only GGUF is downloaded."""
    from chatmetrics.components.base_model.references import as_folder
    from chatmetrics.components.storage.store import local_path
    from chatmetrics.pipelines.quantization_check import check_quantization

    check_quantization(recipe)
    reference = as_folder(recipe.base_model)
    if reference.startswith("s3://") or not local_path(reference).exists():
        return (
            f"Base model: not checked, because it is not on this machine; chatmetrics doctor --base-model {reference}"
        )
    if [path.name for path in local_path(reference).glob("*")] == ["config.json"]:
        return "Base model: not checked, because only its config.json is on this machine"
    try:
        from chatmetrics.components.base_model.check import check_base_model

        return f"Base model: {check_base_model(local_path(reference))}"
    except ModuleNotFoundError as error:
        return f"Base model: not checked, because {error.name} is not installed; install chatmetrics[train]"


def _workload(recipe: "Recipe", pool: "Pool", sizes: "Sizes", dataset: Path) -> "Workload":
    """Count the examples and tokens of an epoch of the dataset."""
    try:
        from chatmetrics.components.train.estimate.counting import count_workload
    except ModuleNotFoundError as error:
        raise InputError(f"--dataset: counting tokens needs {error.name}; install chatmetrics[train]") from error
    if not (dataset / "train.jsonl").is_file():
        raise InputError(f"--dataset {dataset}: it has no train.jsonl; give the folder that preprocess wrote")
    return count_workload(pool.fitted(recipe.train), dataset, _tokenizer(recipe), sizes.attention_tokens)


def _tokenizer(recipe: "Recipe") -> Path:
    from chatmetrics.components.base_model.references import local_tokenizer

    if recipe.preprocess.tokenizer:
        return local_tokenizer(recipe.preprocess.tokenizer, recipe.preprocess.tokenizer_revision)
    return local_tokenizer(recipe.base_model, recipe.revision)


def _print_steps(recipe: "Recipe", sizes: "Sizes", pools: "dict[str, Pool]", dataset: Path | None) -> None:
    """Print what the pods of the steps after train take, and warn of a step that its time limit would end."""
    from rich.table import Table

    from chatmetrics.components.train.estimate.memory import GIB
    from chatmetrics.pipelines.pools import step_pools
    from chatmetrics.pipelines.step_estimates import step_estimates

    questions = _questions(recipe, dataset) if dataset else None
    found = step_estimates(recipe, sizes, step_pools(recipe, pools), questions)
    table = Table(box=None, pad_edge=False)
    for column in ("pod", "cores", "memory, GiB", "disk, GiB", "hours at most"):
        table.add_column(column, justify="left" if column == "pod" else "right", no_wrap=True)
    for step, it in found.items():
        hours = f"{it.hours:.2f}" if it.hours else "see above"
        table.add_row(step, f"{it.cores:g}", f"{it.memory / GIB:.1f}", f"{it.disk / GIB:.1f}", hours)
    print()
    output_console().print(table)
    limits = {"merge": "step_hours", "convert": "step_hours", "evaluate": "evaluate_hours"}
    for step, it in found.items():
        name = limits.get(step.partition(" ")[0], "")
        limit = getattr(recipe.cluster, name) if name else math.inf
        if it.hours > limit:
            console.warning(
                f"{step} may take {it.hours:.1f} hours, more than cluster.{name} ({limit:g}); raise it"
                + (
                    ", set evaluate.score_base to false or evaluate.limit to fewer questions"
                    if step == "evaluate"
                    else ""
                )
            )


def _questions(recipe: "Recipe", dataset: Path) -> "Questions":
    """Count the questions that evaluate asks, and their tokens."""
    from chatmetrics.components.nl2sql.example import read_examples
    from chatmetrics.components.nl2sql.prompts.template import dataset_template
    from chatmetrics.components.nl2sql.prompts.token_counter import load_counter
    from chatmetrics.pipelines.step_estimates import Questions

    examples = read_examples(dataset / f"{recipe.evaluate.questions}.jsonl")
    counter = load_counter(_tokenizer(recipe), dataset_template(dataset))
    answers = sum(counter.count_text(example.output) for example in examples)
    prompts = sum(counter.count(example) for example in examples) - answers
    number = max(1, len(examples))
    return Questions(len(examples), prompts / number, answers / number)


def _table(estimates: "dict[str, Estimate]") -> "Table":
    from rich.table import Table

    from chatmetrics.components.train.estimate.memory import GIB

    table = Table(box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    for name in estimates:
        table.add_column(name, justify="right", no_wrap=True)

    def row(label: str, value: "Callable[[Estimate], str]") -> None:
        table.add_row(label, *map(value, estimates.values()))

    def gib_row(label: str, size: "Callable[[Estimate], float]") -> None:
        row(f"{label}, GiB", lambda it: f"{size(it) / GIB:.2f}")

    row("precision", lambda it: it.settings.precision)
    row("batch size x accumulation", _batches)
    row("gradient checkpointing", lambda it: "yes" if it.settings.gradient_checkpointing else "no")
    for field in fields(next(iter(estimates.values())).memory):
        gib_row(field.name, lambda it, name=field.name: getattr(it.memory, name))  # type: ignore[misc]
    gib_row("total", lambda it: it.memory.total)
    gib_row("available", lambda it: it.available)
    row("spare, GiB", lambda it: f"{it.spare / GIB:.2f}" if it.spare >= 0 else f"exceeded by {-it.spare / GIB:.2f}")
    row("optimizer steps", lambda it: f"{it.steps:,}")
    row("tokens per example", lambda it: f"{it.workload.tokens / it.workload.examples:.0f}")
    row("computed tokens per example", lambda it: f"{it.workload.computed_tokens / it.workload.examples:.0f}")
    if any(it.settings.processes > 1 for it in estimates.values()):
        row("waiting for the slowest GPU", lambda it: f"{it.waiting:.0%}")
    row("hours", lambda it: f"{it.hours:.2f}" if it.pool.peak_tflops else "unknown")
    row("cost", lambda it: f"{it.cost:.2f}" if it.pool.peak_tflops else "unknown")
    return table


def _batches(it: "Estimate") -> str:
    processes = f" x {it.settings.processes} GPUs" if it.settings.processes > 1 else ""
    return f"{it.settings.batch_size} x {it.settings.gradient_accumulation}{processes}"
