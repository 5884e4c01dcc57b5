"""Scoring systems on the same questions: files of predictions, a student and its base as served, remote models."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.examination import examine
from chatmetrics.components.evaluate.overlap import TrainingData
from chatmetrics.components.evaluate.page import html_report, markdown_report
from chatmetrics.components.evaluate.predictions import (
    Prediction,
    question_keys,
    read_predictions,
    write_records,
)
from chatmetrics.components.evaluate.report import Report, summarize
from chatmetrics.components.evaluate.sampling import sample, spread
from chatmetrics.components.evaluate.score import Item, missing_databases, score
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.nl2sql.databases import Databases, open_databases
from chatmetrics.components.nl2sql.examination import Marks
from chatmetrics.components.nl2sql.example import Example, read_examples
from chatmetrics.components.storage.files import atomic_file
from chatmetrics.components.storage.manifest import fetch, weights_of
from chatmetrics.components.storage.mirror import pull_folder

STUDENT, BASE = "student", "base"


def evaluate(
    settings: EvaluateSettings,
    dataset: Path,
    databases: str,
    student: Path,
    base: Path | None,
    output: Path,
    loss: Path | None,
) -> Report:
    """Ask the models every question of dev.jsonl, run gold and predicted SQL, and write the report.

    Args:
        settings: how they are asked, and the gate.
        dataset: folder that preprocess wrote.
        databases: see `databases_of`.
        student: GGUF file.
        base: GGUF file; None, or `score_base` off, leaves the comparison out.
        output: folder for the report, see `write_report`, predictions-<system>.jsonl and the student's entrance
            examination, see `examine`.
        loss: PNG of the training's loss curve, to go into the report.

    Returns:
        The report; `passed` says whether the gate was met, which is not an error here.

    Raises:
        InputError: the dataset or a database cannot be used, or the gate's split has no questions.
        ServiceError: a model cannot be served.
        StorageError: the output cannot be written.
    """
    # Imported here, as below, because scoring files of predictions needs no client.
    from chatmetrics.components.evaluate.asking import ask_gguf

    files = {STUDENT: student, BASE: base if settings.score_base else None}
    with _located(dataset, databases) as where, open_databases(where, settings.timeout_seconds) as opened:
        examples, missing = _examples(dataset, opened, settings)
        predictions = {name: ask_gguf(name, gguf, examples, settings) for name, gguf in files.items() if gguf}
        for name, answers in predictions.items():
            write_records(output / f"predictions-{name}.jsonl", (answer.fields for answer in answers))
        items, _ = score(predictions, opened, _training_of(dataset))
        marks = examine(examples, items, STUDENT, where, settings, output)
        return write_report(student.stem, items, missing, settings, opened, output, loss, marks)


def evaluate_endpoint(
    settings: EvaluateSettings, dataset: Path, databases: str, endpoint: str, model: str, output: Path
) -> Report:
    """Ask a remote model every question of dev.jsonl and report; an interrupted run asks only what is missing.

    Args:
        settings: how it is asked.
        dataset: folder that preprocess wrote.
        databases: see `databases_of`.
        endpoint: base URL of Ollama, llama.cpp's server or, ending in /v1, anything that speaks OpenAI's protocol.
        model: the model's name there.
        output: folder for the report and predictions-<model>.jsonl, which can be compared with other systems'.

    Raises:
        InputError: the dataset or a database cannot be used.
        ServiceError: the endpoint is not there, or refused; what was answered is kept for the next run.
        StorageError: the output cannot be written.
    """
    from chatmetrics.components.evaluate.asking import ask_endpoint, connect

    name = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in model) or "model"
    journal = output / f"answers-{name}.partial.jsonl"
    with _located(dataset, databases) as where, open_databases(where, settings.timeout_seconds) as opened:
        examples, missing = _examples(dataset, opened, settings)
        client = connect(endpoint, model)
        answers = ask_endpoint(name, client, f"{endpoint} {model}", examples, settings, journal)
        write_records(output / f"predictions-{name}.jsonl", (answer.fields for answer in answers))
        items, _ = score({name: answers}, opened, _training_of(dataset))
        report = write_report(name, items, missing, settings, opened, output)
    journal.unlink(missing_ok=True)
    return report


def evaluate_predictions(
    settings: EvaluateSettings,
    files: Mapping[str, Path],
    databases: str,
    output: Path,
    training: Sequence[Path] = (),
) -> Report:
    """Score predictions that others made, without any model.

    Args:
        settings: verdict, sample, bounds and prices.
        files: one file a system, by the name that it gets in the report.
        databases: a folder of SQLite files, or an SQLAlchemy URL.
        output: folder for the report, see `write_report`.
        training: files that the systems may have been trained on.

    Raises:
        InputError: a file or all databases cannot be used.
        StorageError: the output cannot be written.
    """
    predictions = {name: read_predictions(path) for name, path in files.items()}
    seen = TrainingData.read(*training) if training else None
    with open_databases(databases, settings.timeout_seconds) as opened:
        items, missing = score(_sampled(predictions, settings), opened, seen)
        _say_missing(missing)
        return write_report(", ".join(files), items, missing, settings, opened, output)


def write_report(
    name: str,
    items: Sequence[Item],
    missing: dict[str, int],
    settings: EvaluateSettings,
    databases: Databases,
    output: Path,
    loss: Path | None = None,
    examination: Marks | None = None,
) -> Report:
    """Write report.json, report.md, report.html and items.jsonl, print the headline, and return the report.

    items.jsonl has one line an item and system, in the order of the predictions: the fields of the prediction, then
    `official`, `strict`, `failure`, `reasons`, `scenarios` and `hardness`; with several systems also `system`.

    Raises:
        InputError: there is nothing to report.
        StorageError: a file cannot be written.
    """
    if not items:
        raise InputError("no questions are left: nothing can be evaluated")
    report = summarize(name, items, missing, settings, examination)
    asked = dict.fromkeys(item.db_id for item in items if item.db_id not in missing)
    schemas = {db_id: databases.schema(db_id) for db_id in asked}
    pages = {
        "report.json": report.model_dump_json(indent=2),
        "report.md": markdown_report(report),
        "report.html": html_report(report, items, loss, schemas),
    }
    for file_name, text in pages.items():
        with atomic_file(output / file_name) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    several = len(report.systems) > 1
    write_records(
        output / "items.jsonl",
        (_record(item, system, several) for system in report.systems for item in _in_order(items, system)),
    )
    print(report.headline, file=sys.stderr, flush=True)
    return report


def databases_of(dataset: Path, databases: str) -> str:
    """Where a dataset's databases are: `databases`, or, when that is empty, the folder that the dataset's card names.

    Raises:
        InputError: neither names one.
    """
    if not dataset.is_dir():
        raise InputError(f"{dataset}: no such folder; give the one that preprocess wrote")
    card = dataset / "dataset_card.json"
    try:
        named = databases or json.loads(card.read_text(encoding="utf-8"))["databases"]
        # Relative names are relative to the dataset, so that it can be moved with the databases inside it.
        return str(named) if databases or "://" in named else str(dataset / named)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{card} does not say where the databases are: name their folder") from error


@contextmanager
def _located(dataset: Path, databases: str) -> Iterator[str]:
    """Where a dataset's databases are; those that are in a bucket are copied here for as long as the block lasts."""
    where = databases_of(dataset, databases)
    with TemporaryDirectory(prefix="databases-") as folder:
        if where.startswith("s3://"):
            asked = {example.db_id for example in read_examples(dataset / "dev.jsonl")}
            pull_folder(where, Path(folder), lambda key: key.endswith(".sqlite") and Path(key).stem in asked)
            where = folder
        yield where


def fetch_model(manifest_uri: str, folder: Path) -> Path:
    """Bring a published model into `folder` and return its GGUF file.

    Raises:
        InputError: it has none.
        StorageError: it is not there, or damaged.
    """
    return folder / weights_of(fetch(manifest_uri, folder), manifest_uri).name


def _in_order(items: Sequence[Item], system: str) -> list[Item]:
    """The questions of one system, in the order of its predictions."""
    own = [item for item in items if system in item.outcomes]
    return sorted(own, key=lambda item: item.outcomes[system].prediction.number)


def _record(item: Item, system: str, several: bool) -> dict[str, object]:
    outcome = item.outcomes[system]
    judgement = outcome.judgement
    return {
        **({"system": system} if several else {}),
        **outcome.prediction.fields,
        "official": judgement.official,
        "strict": judgement.strict,
        "failure": judgement.failure,
        "reasons": judgement.reasons,
        "scenarios": item.scenarios,
        "hardness": item.hardness,
    }


def _examples(dataset: Path, databases: Databases, settings: EvaluateSettings) -> tuple[list[Example], dict[str, int]]:
    """The examples to ask, whose database is there, and for every missing one how many questions are not asked."""
    questions = read_examples(dataset / "dev.jsonl")
    missing = missing_databases(databases, [example.db_id for example in questions])
    _say_missing(missing)
    answerable = [example for example in questions if example.db_id not in missing]
    examples = spread(sample(answerable, lambda example: example.sql, settings.sample, settings.seed), settings.limit)
    if not examples:
        raise InputError("dev.jsonl has no questions: nothing can be evaluated")
    _check_gate(examples, settings)
    return examples, missing


def _say_missing(missing: Mapping[str, int]) -> None:
    for db_id, count in missing.items():
        said = f"warning: {count} questions are left out: the database {db_id!r} is missing"
        print(said, file=sys.stderr, flush=True)


def _sampled(
    predictions: Mapping[str, Sequence[Prediction]], settings: EvaluateSettings
) -> dict[str, list[Prediction]]:
    """The predictions for the questions that the sample draws, the same ones for every system."""
    keys = {system: question_keys(answers) for system, answers in predictions.items()}
    every = list(dict.fromkeys(key for found in keys.values() for key in found))
    drawn = set(spread(sample(every, lambda key: key[2], settings.sample, settings.seed), settings.limit))
    return {
        system: [answer for key, answer in zip(keys[system], answers, strict=True) if key in drawn]
        for system, answers in predictions.items()
    }


def _training_of(dataset: Path) -> TrainingData | None:
    path = dataset / "train.jsonl"
    return TrainingData.read(path) if path.is_file() else None


def _check_gate(examples: Sequence[Example], settings: EvaluateSettings) -> None:
    """Fail before a model is loaded, not after an hour of questions."""
    splits = {example.split for example in examples}
    if settings.gate_split and settings.gate_split not in splits:
        raise InputError(f"gate_split: no question is in '{settings.gate_split}', only in {', '.join(sorted(splits))}")
