"""The command `run`: a whole recipe on this machine."""

import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from chatmetrics.components import console
from chatmetrics.pipelines.cli.options import RECIPES, CacheOption, RecipeArgument, SetOption

app = typer.Typer()


@app.command(epilog="Example: chatmetrics run hotel-demo --set train.learning_rate=1e-4", rich_help_panel=RECIPES)
def run(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    work_dir: Annotated[Path, typer.Option(help="Folder of all results; the same command resumes from it")] = Path(
        "runs"
    ),
    models_uri: Annotated[
        str, typer.Option(help="file:// or s3:// URI to publish the model to; default: WORK_DIR/models")
    ] = "",
    cache: CacheOption = True,
    ask_question: Annotated[
        bool, typer.Option("--ask/--no-ask", help="Ask the served model the recipe's question at the end")
    ] = True,
) -> None:
    """Run a recipe on this machine: preprocess, distill, train, merge, convert, evaluate, gate; then ask the model.

    Without a teacher in the recipe there is no distill step.
    """
    from rich.console import Console

    from chatmetrics.pipelines.local import closing_lines
    from chatmetrics.pipelines.local import run as local
    from chatmetrics.pipelines.recipe import load_recipe

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    output = Console(file=sys.stdout)
    try:
        loaded = load_recipe(recipe, overrides or ())
        finished = local.run(loaded, work_dir, models_uri, output, cache)
        if finished.dataset:
            closing_lines.show_distillation(finished.dataset, output)
        if finished.report:
            closing_lines.show_scores(finished.report, output)
        if finished.error:
            raise finished.error
        closing_lines.show_model(finished.manifest_uri, output)
        if loaded.deploy.enabled:
            print("deploy: skipped on this machine; `chatmetrics submit` and `chatmetrics deploy` use a cluster")
        if loaded.question and ask_question and finished.dataset:
            closing_lines.answer_question(loaded, finished.manifest_uri, finished.dataset, output)
    except KeyboardInterrupt:
        console.info(f"interrupted; the same command resumes: chatmetrics {shlex.join(sys.argv[1:])}")
        raise typer.Exit(130) from None
