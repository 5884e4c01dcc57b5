"""The `chatmetrics` command. It imports what a verb needs when the verb runs, so that `--help` is quick."""

import errno
import shlex
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from chatmetrics.components.errors import InputError, StorageError, UserError
from chatmetrics.pipelines.cli import cluster as cli_cluster
from chatmetrics.pipelines.cli import deploy as cli_deploy
from chatmetrics.pipelines.cli import doctor as cli_doctor
from chatmetrics.pipelines.cli import estimate as cli_estimate
from chatmetrics.pipelines.cli import images as cli_images
from chatmetrics.pipelines.cli.cluster import PoolOption, PoolsOption, RecipeArgument, SetOption

EXIT_CODES = (
    "Exit codes: 0 ok; 1 a bug, or a step that broke; 2 wrong usage; 3 an input that cannot be used; "
    "4 the student is below the gate; 5 a service that did not start or answer; 6 storage or disk; "
    "130 (Ctrl-C) or 143 (SIGTERM) interrupted, to be continued by the same command."
)
if TYPE_CHECKING:
    from chatmetrics.components.serve.settings import AskSettings

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}

app = typer.Typer(
    help="Distil an NL2SQL ability into a small local model, and serve it.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeOption = Annotated[str, typer.Option("--recipe", help="Take the settings from this recipe; else the defaults.")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")]
BaseModelOption = Annotated[
    str, typer.Option("--base-model", help="A folder, URI or Hub name; the recipe's where left out.")
]


@app.command(epilog="Example: chatmetrics run hotel-demo --set train.learning_rate=1e-4")
def run(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    work_dir: Annotated[Path, typer.Option(help="Everything is written here; a later run goes on from it.")] = Path(
        "runs"
    ),
    models_uri: Annotated[str, typer.Option(help="Publish to this file:// or s3:// URI, not WORK_DIR/models.")] = "",
    cache: Annotated[bool, typer.Option(help="Take over the results of steps that have not changed.")] = True,
    ask_question: Annotated[bool, typer.Option("--ask/--no-ask", help="Ask the recipe's question at the end.")] = True,
) -> None:
    """Run a recipe on this machine: preprocess, distill, train, merge, convert, evaluate, gate; then ask the model.

    Without a teacher in the recipe there is no distill step.
    """
    from rich.console import Console

    from chatmetrics.pipelines.local import closing_lines as ending
    from chatmetrics.pipelines.local import run as local
    from chatmetrics.pipelines.recipe import load_recipe

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(file=sys.stdout)
    try:
        loaded = load_recipe(recipe, overrides or ())
        finished = local.run(loaded, work_dir, models_uri, console, cache)
        if finished.dataset:
            ending.show_distillation(finished.dataset, console)
        if finished.report:
            ending.show_scores(finished.report, console)
        if finished.error:
            raise finished.error
        ending.show_model(finished.manifest_uri, console)
        if loaded.deploy.enabled:
            print(
                "deploy: a run on this machine serves here; `chatmetrics submit` and `chatmetrics deploy` use a cluster"
            )
        if loaded.question and ask_question and finished.dataset:
            ending.answer_question(loaded.question, finished.manifest_uri, finished.dataset, loaded.serve, console)
    except KeyboardInterrupt:
        _say(f"interrupted; the same command goes on from where it was: chatmetrics {shlex.join(sys.argv[1:])}")
        raise typer.Exit(130) from None


@app.command("compile", epilog="Example: chatmetrics compile spider-7b -o pipeline.yaml")
def compile_recipe(
    recipe: RecipeArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The YAML file to write.")],
    overrides: SetOption = None,
    gpu_pool: PoolOption = "A100",
    pools: PoolsOption = None,
) -> None:
    """Compile a recipe to a Kubeflow Pipelines package, with the recipe's values as the parameters' defaults."""
    from chatmetrics.pipelines.cluster.package import compile_package, note_unpinned
    from chatmetrics.pipelines.pools import find_pool, load_pools
    from chatmetrics.pipelines.recipe import load_recipe

    pool = find_pool(gpu_pool, load_pools(pools))
    loaded = load_recipe(recipe, overrides or (), as_written=True)
    compile_package(loaded, output, pool)
    note_unpinned(pool.image, loaded)


@app.command(epilog="Example: chatmetrics preprocess -o dataset --base-model base --set preprocess.source=spider")
def preprocess(
    output: OutputOption, base_model: BaseModelOption = "", recipe: RecipeOption = "", overrides: SetOption = None
) -> None:
    """Turn questions, SQL and databases into a dataset; the base model counts the tokens."""
    from chatmetrics.components.preprocess.preprocess import preprocess
    from chatmetrics.components.preprocess.settings import PreprocessSettings
    from chatmetrics.pipelines.recipe import load_section

    settings = load_section("preprocess", PreprocessSettings, recipe, overrides or ())
    if not settings.tokenizer:
        tokenizer, revision = _base_model(base_model, recipe)
        settings = settings.model_copy(update={"tokenizer": tokenizer, "tokenizer_revision": revision})
    preprocess(settings, output)


@app.command(
    epilog="Example: chatmetrics distill dataset -o distilled --set distill.base_url=https://api.deepseek.com/v1 "
    "--set distill.model=deepseek-reasoner --set distill.budget=200 --dry-run"
)
def distill(
    dataset: Annotated[Path, typer.Argument(help="Folder that preprocess wrote.")],
    output: OutputOption,
    ledger: Annotated[
        str,
        typer.Option(
            help="Folder or s3:// URI of answers and payments, asked only once; OUTPUT-ledger where left out."
        ),
    ] = "",
    databases: Annotated[str, typer.Option(help="Folder of SQLite files; else the dataset's own.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Ask a few questions, which are kept, and say what all would cost.")
    ] = False,
    answers: Annotated[
        Path | None, typer.Option(help="Report on a student and the training questions, for a round after the first.")
    ] = None,
    round_number: Annotated[int, typer.Option("--round", help="Number of the round.", min=1)] = 1,
    recipe: RecipeOption = "",
    overrides: SetOption = None,
) -> None:
    """Ask a teacher the dataset's questions, check its answers, and make a dataset of those that are right."""
    from chatmetrics.components.distill.distill import distill
    from chatmetrics.components.distill.dry_run import estimate
    from chatmetrics.components.distill.settings import DistillSettings
    from chatmetrics.pipelines.recipe import load_section

    if (round_number > 1) != (answers is not None):
        raise InputError("--answers and --round belong together: from round 2 on, and only then")
    settings = load_section("distill", DistillSettings, recipe, overrides or ())
    ledger = ledger or str(output.with_name(f"{output.name}-ledger"))
    if dry_run:
        print(estimate(settings, dataset, ledger, databases))
    else:
        distill(settings, dataset, output, ledger, databases, answers, round_number)


@app.command(epilog="Example: chatmetrics train dataset -o adapter --base-model base --set train.epochs=3")
def train(
    dataset: Annotated[Path, typer.Argument(help="Folder that preprocess wrote.")],
    output: OutputOption,
    base_model: BaseModelOption = "",
    checkpoints: Annotated[
        Path | None, typer.Option(help="Where an interrupted run is resumed; OUTPUT-checkpoints where left out.")
    ] = None,
    recipe: RecipeOption = "",
    overrides: SetOption = None,
) -> None:
    """Train a LoRA adapter of a base model on a dataset."""
    from chatmetrics.components.train.launch import train
    from chatmetrics.components.train.settings import TrainSettings
    from chatmetrics.pipelines.recipe import load_section

    settings = load_section("train", TrainSettings, recipe, overrides or ())
    base, revision = _base_model(base_model, recipe)
    train(settings, dataset, base, output, checkpoints or output.with_name(f"{output.name}-checkpoints"), revision)


@app.command(epilog="Example: chatmetrics merge adapter -o merged --base-model base")
def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder that train wrote.")],
    output: OutputOption,
    base_model: BaseModelOption = "",
    recipe: RecipeOption = "",
    overrides: SetOption = None,
) -> None:
    """Merge an adapter into its base model, and compare the two."""
    from chatmetrics.components.merge.merge import merge
    from chatmetrics.components.merge.settings import MergeSettings
    from chatmetrics.pipelines.recipe import load_section

    settings = load_section("merge", MergeSettings, recipe, overrides or ())
    base, revision = _base_model(base_model, recipe)
    merge(settings, base, adapter, output, revision)


@app.command(epilog="Example: chatmetrics convert merged -o gguf --set convert.quantization=Q8_0")
def convert(
    model: Annotated[str, typer.Argument(help="A Hugging Face model: folder, URI or Hub name.")],
    output: OutputOption,
    name: Annotated[str, typer.Option(help="First part of the file's name.")] = "model",
    recipe: RecipeOption = "",
    overrides: SetOption = None,
) -> None:
    """Convert a model to GGUF and quantize it."""
    from chatmetrics.components.convert.convert import convert
    from chatmetrics.components.convert.settings import ConvertSettings
    from chatmetrics.components.storage.models import local_model
    from chatmetrics.pipelines.recipe import load_section

    settings = load_section("convert", ConvertSettings, recipe, overrides or ())
    print(convert(settings, local_model(model), output, name).gguf)


@app.command(
    epilog="Example: chatmetrics evaluate --predictions mine.json --databases spider/database --out report; or: "
    "chatmetrics evaluate dataset --student student.gguf --base base.gguf --out report; or: "
    "chatmetrics evaluate dataset --endpoint https://api.deepseek.com/v1 --model deepseek-reasoner --out report"
)
def evaluate(
    output: Annotated[Path, typer.Option("--out", "--output", "-o", help="Folder to write the report in.")],
    dataset: Annotated[Path | None, typer.Argument(help="Folder that preprocess wrote, for asking a model.")] = None,
    predictions: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]FILE", help="JSON or JSONL of db_id, gold, predicted; once for each system."),
    ] = None,
    student: Annotated[Path | None, typer.Option(help="GGUF file to serve and ask.")] = None,
    base: Annotated[Path | None, typer.Option(help="GGUF file of the base model, asked the same questions.")] = None,
    endpoint: Annotated[
        str, typer.Option(help="URL of a model to ask: Ollama, llama.cpp, or OpenAI's protocol where it ends in /v1.")
    ] = "",
    model: Annotated[str, typer.Option(help="The model's name at the endpoint.")] = "",
    databases: Annotated[
        str, typer.Option(help="Folder of <db_id>/<db_id>.sqlite, or an SQLAlchemy URL; else the dataset's own.")
    ] = "",
    training: Annotated[
        list[Path] | None, typer.Option(help="Training questions, to score unseen ones apart; may be repeated.")
    ] = None,
    loss: Annotated[Path | None, typer.Option(help="Loss curve for the report: ADAPTER/loss.png.")] = None,
    sample: Annotated[str, typer.Option(metavar="KIND:NUMBER", help="Draw questions, as in complex:100.")] = "",
    seed: Annotated[int, typer.Option(help="Decides what --sample draws.", min=0)] = 0,
    recipe: RecipeOption = "",
    overrides: SetOption = None,
) -> None:
    """Score systems by what their SQL returns: files of predictions, GGUF models, or a remote model.

    A local student below the recipe's gate ends with exit code 4.
    """
    from chatmetrics.components.errors import GateError
    from chatmetrics.components.evaluate import evaluate as work
    from chatmetrics.components.evaluate.settings import EvaluateSettings
    from chatmetrics.pipelines.recipe import load_section

    _check_one_of({"--predictions": predictions, "--student": student, "--endpoint": endpoint})
    drawn = [f"evaluate.sample={sample}", f"evaluate.seed={seed}"] if sample else []
    settings = load_section("evaluate", EvaluateSettings, recipe, [*(overrides or ()), *drawn])
    if predictions:
        if not databases:
            raise InputError("--databases is missing: give the folder of SQLite files, or an SQLAlchemy URL")
        report = work.evaluate_predictions(settings, _named(predictions), databases, output, training or ())
    elif dataset is None:
        raise InputError("DATASET is missing: give the folder that preprocess wrote, whose questions are asked")
    elif student:
        report = work.evaluate(settings, dataset, databases, student, base, output, loss)
    else:
        report = work.evaluate_endpoint(settings, dataset, databases, endpoint, model, output)
    if not report.passed:
        raise GateError(f"{' and '.join(report.gate_reasons)}; see {output / 'report.html'}")
    print(output / "report.html", report.headline, sep="\n")


@app.command(epilog="Example: chatmetrics serve runs/models/hotel-demo/VERSION/manifest.json --port 11434")
def serve(
    model: Annotated[str, typer.Argument(help="A published model's manifest.json (path or URI), or a GGUF file.")],
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 11434,
    recipe: RecipeOption = "",
    overrides: SetOption = None,
) -> None:
    """Serve a published model on this machine, speaking OpenAI's and Ollama's protocols."""
    from chatmetrics.components.serve.local.serve import serve
    from chatmetrics.components.serve.settings import ServeSettings
    from chatmetrics.pipelines.recipe import load_section

    serve(load_section("serve", ServeSettings, recipe, overrides or ()), model, port)


@app.command(epilog='Example: chatmetrics ask "上海有多少家酒店？" --db hotel.sqlite')
def ask(
    question: Annotated[str, typer.Argument(help="In any language the model knows.")],
    database: Annotated[Path, typer.Option("--db", help="SQLite file; it is only read.")],
    endpoint: Annotated[str, typer.Option(help="Ollama's, or chatmetrics serve's.")] = "http://127.0.0.1:11434",
    model: Annotated[str, typer.Option(help="The model's name there; may be left out when it is the only one.")] = "",
    manifest: Annotated[
        str, typer.Option(help="Manifest of the model, which says how the schema goes into the prompt.")
    ] = "",
    schema: Annotated[str, typer.Option(help="none, ddl or m-schema, as in training; the manifest's is better.")] = "",
    token: Annotated[
        str, typer.Option(envvar="CHATMETRICS_TOKEN", show_envvar=True, help="Of an endpoint in a cluster.")
    ] = "",
) -> None:
    """Ask a served model a question about a database: prints the SQL and its rows."""
    from rich.console import Console

    from chatmetrics.components.serve.ask import ask, table

    answer = ask(question, database, endpoint, model, _ask_settings(manifest, schema), token)
    print(answer.sql)
    Console().print(table(answer))


cli_cluster.add_verbs(app, cli_cluster.VERBS | cli_doctor.VERBS | cli_estimate.VERBS)
cli_deploy.add_verbs(app)
app.add_typer(cli_images.app, name="images", rich_help_panel="On a cluster")


def _check_one_of(options: dict[str, object]) -> None:
    given = [name for name, value in options.items() if value]
    if len(given) != 1:
        raise InputError(f"give one of {', '.join(options)}" + (f", not {' and '.join(given)}" if given else ""))


def _named(files: list[str]) -> dict[str, Path]:
    """Systems by name: as given, else named for their files."""
    named: dict[str, Path] = {}
    for text in files:
        name, separator, path = text.partition("=")
        name, file = (name, Path(path)) if separator and not Path(text).exists() else (Path(text).stem, Path(text))
        if name in named:
            raise InputError(f"--predictions {text}: there is a system {name!r} already; write NAME=FILE")
        named[name] = file
    return named


def _base_model(given: str, recipe: str) -> tuple[str, str]:
    """Return the base model and its revision: the given one, else the recipe's."""
    from chatmetrics.pipelines.recipe import load_recipe

    if given:
        return given, ""
    if not recipe:
        raise InputError("no base model: give --base-model, or --recipe to take its own")
    loaded = load_recipe(recipe)
    return loaded.base_model, loaded.revision


def _ask_settings(manifest: str, schema: str) -> "AskSettings":
    """Return how a question becomes a prompt: as the manifest says, `schema` taking precedence."""
    from chatmetrics.components.serve.ask import published_settings
    from chatmetrics.components.serve.settings import AskSettings
    from chatmetrics.components.storage.manifest import read_manifest
    from chatmetrics.pipelines.recipe import load_section

    if schema or not manifest:
        return load_section("ask", AskSettings, "", [f"ask.schema={schema}"] if schema else ())
    return published_settings(read_manifest(manifest))


def main() -> NoReturn:
    """Run the command line; what a person can mend is one line and an exit code that means something."""
    sys.excepthook = _report_bug
    try:
        app_command = typer.main.get_command(app)
        app_command()
    except UserError as error:
        _fail(str(error), error.exit_status)
    except OSError as error:
        _fail_of_os_error(error)
    sys.exit(0)


def _fail_of_os_error(error: OSError) -> NoReturn:
    where = f"{error.filename}: " if error.filename else ""
    kind = StorageError if error.errno in DISK_ERRORS else InputError
    _fail(f"{where}{error.strerror or error}", kind.exit_status)


def _report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Replace Python's traceback by one line and a file that holds it; Python then exits with 1."""
    path = Path(tempfile.gettempdir()) / f"chatmetrics-error-{time.strftime('%Y%m%d-%H%M%S')}.log"
    path.write_text("".join(traceback.format_exception(kind, error, trace)), "utf-8")
    _say(f"error: unexpected {kind.__name__}: {' '.join(str(error).split())[:300]}; traceback: {path}")


def _fail(message: str, exit_status: int) -> NoReturn:
    _say(f"error: {message}")
    sys.exit(exit_status)


def _say(message: str) -> None:
    typer.secho(message, fg=typer.colors.RED, err=True)
