"""Files of predictions in the forms of benchmarks: records, BIRD's object of answers, and one query in each line."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.predictions import Prediction, prediction_of
from chatmetrics.components.nl2sql.record_files import field_name, read_records, read_text

# Between query and database in BIRD's predictions (bird-bench/mini_dev, evaluation_utils.py).
BIRD_SEPARATOR = "\t----- bird -----\t"
QUERIES = (".sql", ".txt")  # suffixes of files with one query in each line


@dataclass(frozen=True, slots=True)
class Gold:
    """A question that predictions are about.

    Attributes:
        db_id: name of the database.
        sql: the gold query.
        question: text of the question; empty if unknown.
        id: file and number of the question.
    """

    db_id: str
    sql: str
    question: str
    id: str


def read_predictions(path: Path, gold: Sequence[Gold] | None = None) -> list[Prediction]:
    """Read the predictions of one system.

    Args:
        path: records with `db_id`, `gold` and `predicted` as JSON, JSONL or CSV (see `prediction_of`), BIRD's object of
            answers by number, or a query in each line, with or without a tab and the database.
        gold: the questions that they are about, in the same order; needed by the last two forms.

    Raises:
        InputError: the file cannot be read, a record lacks a field, or there are other questions.
    """
    answers = _queries(path, None if gold is None else len(gold)) if path.suffix.lower() in QUERIES else _bird(path)
    if answers is None:
        records = enumerate(read_records(path))
        predictions = [prediction_of(record.content, record.where, number) for number, record in records]
    elif gold is None:
        raise InputError(
            f"{path}: has no gold queries; name those that it is about by --gold FILE: gold.sql or dev.json"
        )
    else:
        predictions = _paired(path, answers, gold)
    if not predictions:
        raise InputError(f"{path}: contains no predictions")
    return predictions


def read_gold(path: Path) -> list[Gold]:
    """Read the questions that predictions are about: Spider's or BIRD's questions, or a gold query in each line.

    Raises:
        InputError: the file cannot be read, or a question has no query or database.
    """
    if path.suffix.lower() in QUERIES:
        lines = enumerate(_lines(path), start=1)
        parts = [(number, *line.rpartition("\t")) for number, line in lines if line.strip()]
        for number, sql, _, db_id in parts:
            if not sql.strip() or not db_id.strip():
                raise InputError(f"{path}:{number}: not a query, a tab and the name of its database")
        return [Gold(db_id.strip(), sql.strip(), "", f"{path.stem}:{number - 1}") for number, sql, _, db_id in parts]
    return [
        _question(read.content, read.where, f"{path.stem}:{number}") for number, read in enumerate(read_records(path))
    ]


def _question(record: Any, where: str, id: str) -> Gold:
    if not isinstance(record, dict):
        raise InputError(f"{where}: not an object with the fields db_id and query")
    texts = {}
    for key, names in {"db_id": ("db_id",), "sql": ("query", "sql"), "question": ("question",)}.items():
        field = field_name(record, names)
        texts[key] = record[field].strip() if field and isinstance(record[field], str) else ""
        if not texts[key] and key != "question":
            raise InputError(f"{where}: the field '{names[0]}' is missing, empty or not a string")
    return Gold(texts["db_id"], texts["sql"], texts["question"], id)


def _lines(path: Path) -> list[str]:
    return read_text(path, str(path)).removesuffix("\n").split("\n")


def _queries(path: Path, expected: int | None) -> list[tuple[str, str, str]]:
    """The query in each line, the database after a tab if there is one, and the line.

    An empty line is a question without SQL, unless the other lines are as many as the questions.
    """
    lines = list(enumerate(_lines(path), start=1))
    if len(lines) != expected:
        lines = [(number, line) for number, line in lines if line.strip()]
    parts = [(line.partition("\t"), f"{path}:{number}") for number, line in lines]
    return [(sql.strip(), db_id.strip(), where) for (sql, _, db_id), where in parts]


def _bird(path: Path) -> list[tuple[str, str, str]] | None:
    """The queries of BIRD's object of answers by number, with database and place; None if it is no such object."""
    text = read_text(path, str(path))
    if not text.lstrip().startswith("{"):
        return None
    try:
        answers = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not all(key.isdecimal() for key in answers):
        return None
    if sorted(map(int, answers)) != list(range(len(answers))):
        raise InputError(f"{path}: the numbers of its answers are not 0 to {len(answers) - 1}")
    found = []
    for number in range(len(answers)):
        answer, where = answers[str(number)], f"{path}[{number}]"
        if not isinstance(answer, str):
            raise InputError(f"{where}: not a string but {type(answer).__name__}")
        sql, _, db_id = answer.partition(BIRD_SEPARATOR)
        found.append((sql.strip(), db_id.strip(), where))
    return found


def _paired(path: Path, answers: Sequence[tuple[str, str, str]], gold: Sequence[Gold]) -> list[Prediction]:
    if len(answers) != len(gold):
        raise InputError(f"{path}: has {len(answers)} queries, and there are {len(gold)} gold queries")
    predictions = []
    for number, ((sql, db_id, where), asked) in enumerate(zip(answers, gold, strict=True)):
        if db_id and db_id != asked.db_id:
            raise InputError(f"{where}: is about {db_id}, but its gold query is about {asked.db_id}")
        record = {"id": asked.id, "db_id": asked.db_id, "question": asked.question, "gold": asked.sql, "predicted": sql}
        predictions.append(prediction_of(record, where, number))
    return predictions
