"""Scoring a student, and its base model on the same questions, as they would be served."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.page import html_report, markdown_report
from chatmetrics.components.evaluate.predictions import Prediction, predict, write_predictions
from chatmetrics.components.evaluate.report import MODELS, Report, summarize
from chatmetrics.components.evaluate.score import score
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.nl2sql.example import Example, read_examples
from chatmetrics.components.nl2sql.execution import database_path
from chatmetrics.components.storage.files import atomic_file
from chatmetrics.components.storage.manifest import fetch


def evaluate(
    settings: EvaluateSettings,
    dataset: Path,
    databases: Path,
    student: Path,
    base: Path | None,
    output: Path,
    loss: Path | None,
) -> Report:
    """Ask the models every question of dev.jsonl, run gold and predicted SQL, and write the report.

    Args:
        settings: how they are asked, and the gate.
        dataset: folder that preprocess wrote.
        databases: folder of SQLite files, `<db_id>/<db_id>.sqlite` or `<db_id>.sqlite`.
        student: GGUF file.
        base: GGUF file; None, or `score_base` off, leaves the comparison out.
        output: folder for report.json, report.html, report.md and predictions-<model>.jsonl.
        loss: PNG of the training's loss curve, to go into the report.

    Returns:
        The report; `passed` says whether the gate was met, which is not an error here.

    Raises:
        InputError: the dataset or a database cannot be used, or the gate's split has no questions.
        ServiceError: a model cannot be served.
        StorageError: the output cannot be written.
    """
    questions = read_examples(dataset / "dev.jsonl")
    answerable, missing = _with_database(questions, databases)
    examples = _spread(answerable, settings.limit)
    _check_gate(examples, settings)
    files = {"student": student, "base": base if settings.score_base else None}
    predictions: dict[str, list[Prediction]] = {}
    for model in MODELS:
        if gguf := files[model]:
            predictions[model] = predict(model, gguf, examples, settings)
            write_predictions(output / f"predictions-{model}.jsonl", predictions[model])
    items = score(examples, predictions, databases, settings.timeout_seconds)
    report = summarize(student.stem, items, missing, settings)
    pages = {
        "report.json": report.model_dump_json(indent=2),
        "report.md": markdown_report(report),
        "report.html": html_report(report, items, loss),
    }
    for name, text in pages.items():
        with atomic_file(output / name) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    print(report.headline, file=sys.stderr, flush=True)
    return report


def databases_folder(dataset: Path, databases: str) -> Path:
    """The folder named by `databases`, or, when that is empty, the one that the dataset's card names.

    Raises:
        InputError: neither names a folder that exists.
    """
    card = dataset / "dataset_card.json"
    try:
        # Relative names are relative to the dataset, so that it can be moved with the databases inside it.
        folder = Path(databases) if databases else dataset / json.loads(card.read_text(encoding="utf-8"))["databases"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{card} does not say where the databases are: name their folder") from error
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of databases")
    return folder


def fetch_model(manifest_uri: str, folder: Path) -> Path:
    """Bring a published model into `folder` and return its GGUF file.

    Raises:
        InputError: it has none.
        StorageError: it is not there, or damaged.
    """
    names = [file.name for file in fetch(manifest_uri, folder).files if file.name.endswith(".gguf")]
    if not names:
        raise InputError(f"{manifest_uri} has no GGUF file; the convert step publishes one")
    return folder / names[0]


def _spread(examples: list[Example], limit: int) -> list[Example]:
    """At most `limit` examples, evenly spaced: neighbours often ask about the same database, or are one split."""
    if limit == 0 or limit >= len(examples):
        return examples
    return [examples[index * len(examples) // limit] for index in range(limit)]


def _with_database(examples: Sequence[Example], databases: Path) -> tuple[list[Example], dict[str, int]]:
    """The examples whose database is there, and for every missing one how many questions are not asked."""
    problems: dict[str, InputError] = {}
    for db_id in dict.fromkeys(example.db_id for example in examples):
        try:
            database_path(databases, db_id)
        except InputError as error:
            problems[db_id] = error
    found = [example for example in examples if example.db_id not in problems]
    if not found:
        raise next(iter(problems.values()), InputError("dev.jsonl has no questions: nothing can be evaluated"))
    missing = {db_id: sum(example.db_id == db_id for example in examples) for db_id in problems}
    for db_id, count in missing.items():
        print(f"evaluate: {count} questions are not asked: {problems[db_id]}", file=sys.stderr, flush=True)
    return found, missing


def _check_gate(examples: Sequence[Example], settings: EvaluateSettings) -> None:
    """Fail before a model is loaded, not after an hour of questions."""
    splits = {example.split for example in examples}
    if settings.gate_split and settings.gate_split not in splits:
        raise InputError(f"gate_split: no question is in '{settings.gate_split}', only in {', '.join(sorted(splits))}")
