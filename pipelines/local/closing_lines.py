"""The last lines of a local run: the scores, where things are, and an answer from the served model."""

import shlex
from pathlib import Path

from rich.console import Console

from chatmetrics.components.console import note, warning
from chatmetrics.components.distill.distilled_dataset import DISTILLATION, Distillation
from chatmetrics.components.errors import UserError
from chatmetrics.components.evaluate.evaluate import BASE, STUDENT
from chatmetrics.components.evaluate.report import Report
from chatmetrics.components.evaluate.teacher_answers import TEACHER
from chatmetrics.components.nl2sql.databases.addresses import is_address, one_at
from chatmetrics.components.nl2sql.databases.execution import database_path
from chatmetrics.components.nl2sql.example import read_examples
from chatmetrics.components.serve.ask import (
    ask,
    note_long_question,
    note_repairs,
    published_descriptions,
    published_settings,
    table,
)
from chatmetrics.components.serve.local.serve import running
from chatmetrics.components.storage.dataset_databases import databases_of
from chatmetrics.components.storage.manifest import read_manifest
from chatmetrics.pipelines.recipe import Recipe


def show_distillation(dataset: Path, console: Console) -> None:
    """Print a summary of the teacher's answers, if the dataset was distilled."""
    path = dataset / DISTILLATION
    if path.is_file():
        _print(console, "", f"teacher: {Distillation.model_validate_json(path.read_bytes()).summary}")


def show_scores(folder: Path, console: Console) -> None:
    """Print a report's headline, the score of each split, the gate, and the path of the full report."""
    report = Report.model_validate_json((folder / "report.json").read_text("utf-8"))
    _print(console, "", report.headline)
    others = [name for name in (TEACHER, BASE) if name in report.systems]
    for split, score in report.systems[STUDENT].groups["split"].items():
        known = [(name, report.systems[name].groups["split"].get(split)) for name in others]
        against = "".join(f", {name} {other.accuracy:.1%}" for name, other in known if other)
        _print(console, f"  {split}: {score.correct} of {score.total} right, {score.accuracy:.1%}{against}")
    for threshold in report.thresholds:
        _print(console, f"  gate {'passed' if threshold.passed else 'missed'}: {threshold.sentence}")
    _print(console, f"report: {folder / 'report.html'}")


def show_model(manifest_uri: str, console: Console) -> None:
    """Print the URI of the published model and the command that serves it."""
    _print(console, f"model:  {manifest_uri}", f"serve:  chatmetrics serve {shlex.quote(manifest_uri)}")


def answer_question(recipe: Recipe, manifest_uri: str, dataset: Path, console: Console) -> None:
    """Serve a published model, ask it the recipe's question, and print the SQL and its rows.

    Raises:
        UserError: the model cannot be served.
    """
    question, name = recipe.question, recipe.question_database
    db_ids = {example.db_id for example in read_examples(dataset / "dev.jsonl")}
    named = {name} & db_ids if name else db_ids
    if len(named) != 1:
        reason = f"have no database {name!r}" if name else f"have {len(db_ids)} databases; set question_database"
        note(f"the recipe's question is not asked, because the dev questions {reason}: {question}")
        return
    where, db_id = databases_of(dataset, ""), named.pop()
    database = one_at(where, db_id) if is_address(where) else str(database_path(Path(where), db_id))
    prompt = published_settings(read_manifest(manifest_uri))
    descriptions = published_descriptions(manifest_uri)
    with running(recipe.serve, manifest_uri) as endpoint:
        answer = ask(question, database, endpoint, settings=prompt, descriptions=descriptions.get(db_id))
    _print(console, "", question, f"{answer.sql}  ({answer.seconds * 1000:.0f} ms)")
    note_long_question(answer)
    note_repairs(answer)
    try:
        console.print(table(answer))
    except UserError as error:
        warning(f"the model is published, but its answer to the recipe's question cannot be used: {error}")
    location = f"--manifest {shlex.quote(manifest_uri)} --db {shlex.quote(database)}"
    _print(console, f"ask:    chatmetrics ask {shlex.quote(question)} {location}")


def _print(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
