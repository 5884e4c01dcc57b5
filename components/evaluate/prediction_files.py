"""Files of predictions in the forms of benchmarks: records, BIRD's object of answers, and one query in each line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.predictions import Prediction, prediction_of
from chatmetrics.components.nl2sql.record_files import FileRecord, field_name, read_records, read_text, text_of

# Between query and database in BIRD's predictions (bird-bench/mini_dev, evaluation_utils.py).
BIRD_SEPARATOR = "\t----- bird -----\t"


@dataclass(frozen=True, slots=True)
class Gold:
    """A question that predictions are about.

    Attributes:
        db_id: name of the database.
        sql: the gold query.
        question: text of the question; empty if unknown.
        id: file and number of the question.
        difficulty: how hard a person called the question; empty if unknown.
    """

    db_id: str
    sql: str
    question: str
    id: str
    difficulty: str = ""


@dataclass(frozen=True, slots=True)
class _Answer:
    """A query without its question; the database is empty if it is not named."""

    sql: str
    db_id: str
    where: str


def read_predictions(path: Path, gold: Sequence[Gold] | None = None) -> list[Prediction]:
    """Read the predictions of one system.

    Args:
        path: records with `db_id`, `gold` and `predicted` as JSON, JSONL or CSV (see `prediction_of`), BIRD's object of
            answers by number, or a query in each line, with or without a tab and the database.
        gold: the questions that they are about, in the same order; needed by the last two forms.

    Raises:
        InputError: the file cannot be read, a record lacks a field, or there are other questions.
    """
    if (lines := _lines_of_queries(path)) is not None:
        return _paired(path, _queries(path, lines, None if gold is None else len(gold)), gold)
    records = list(read_records(path))
    if len(records) == 1 and _is_bird(records[0].content):
        return _paired(path, _bird(path, records[0].content), gold)
    predictions = [prediction_of(read.content, read.where, number) for number, read in enumerate(records)]
    if not predictions:
        raise InputError(f"{path}: contains no predictions")
    return predictions


def read_gold(path: Path) -> list[Gold]:
    """Read the questions that predictions are about: Spider's or BIRD's questions, or a gold query in each line.

    Raises:
        InputError: the file cannot be read, or a question has no query or database.
    """
    if (lines := _lines_of_queries(path)) is not None:
        return [_gold(line, path, number) for number, line in enumerate(lines, start=1) if line.strip()]
    return [_question(read, f"{path.stem}:{number}") for number, read in enumerate(read_records(path))]


def _gold(line: str, path: Path, number: int) -> Gold:
    sql, _, db_id = line.rpartition("\t")
    if not sql.strip() or not db_id.strip():
        raise InputError(f"{path}:{number}: not a query, a tab and the name of its database")
    return Gold(db_id.strip(), sql.strip(), "", f"{path.stem}:{number - 1}")


def _question(read: FileRecord, id: str) -> Gold:
    if not isinstance(read.content, dict):
        raise InputError(f"{read.where}: not an object with the fields db_id and query")
    question = read.content.get(field_name(read.content, ["question"]) or "")
    text = question.strip() if isinstance(question, str) else ""
    difficulty = read.content.get(field_name(read.content, ["difficulty"]) or "")
    level = difficulty.strip() if isinstance(difficulty, str) else ""
    return Gold(text_of(read, ["db_id"]), text_of(read, ["query", "sql"]), text, id, level)


def _lines_of_queries(path: Path) -> list[str] | None:
    """The lines of a file with a query in each; None if it has another form."""
    suffix = path.suffix.lower()
    if suffix not in (".sql", ".txt"):
        return None
    text = read_text(path, str(path))
    if suffix == ".txt" and text.lstrip()[:1] in ("[", "{"):
        return None
    return text.removesuffix("\n").split("\n")


def _queries(path: Path, lines: Sequence[str], expected: int | None) -> list[_Answer]:
    """The query in each line, and the database after a tab if there is one.

    An empty line is a question without SQL, unless the other lines are as many as the questions.
    """
    numbered = list(enumerate(lines, start=1))
    if len(numbered) != expected:
        numbered = [(number, line) for number, line in numbered if line.strip()]
    return [_answer(line, "\t", f"{path}:{number}") for number, line in numbered]


def _is_bird(content: Any) -> bool:
    return isinstance(content, dict) and bool(content) and all(key.isdecimal() for key in content)


def _bird(path: Path, answers: dict[str, Any]) -> list[_Answer]:
    """The queries of BIRD's object of answers by number, in the order of the numbers."""
    if sorted(map(int, answers)) != list(range(len(answers))):
        raise InputError(f"{path}: the numbers of its answers are not 0 to {len(answers) - 1}")
    found = []
    for number in range(len(answers)):
        answer, where = answers.get(str(number)), f"{path}[{number}]"
        if not isinstance(answer, str):
            raise InputError(f"{where}: not a string but {type(answer).__name__}")
        found.append(_answer(answer, BIRD_SEPARATOR, where))
    return found


def _answer(text: str, separator: str, where: str) -> _Answer:
    sql, _, db_id = text.partition(separator)
    return _Answer(sql.strip(), db_id.strip(), where)


def _paired(path: Path, answers: Sequence[_Answer], gold: Sequence[Gold] | None) -> list[Prediction]:
    if gold is None:
        raise InputError(
            f"{path}: has no gold queries; name those that it is about by --gold FILE: gold.sql or dev.json"
        )
    if not answers:
        raise InputError(f"{path}: contains no predictions")
    if len(answers) != len(gold):
        raise InputError(f"{path}: has {len(answers)} queries, and there are {len(gold)} gold queries")
    predictions = []
    for number, (answer, asked) in enumerate(zip(answers, gold, strict=True)):
        if answer.db_id and answer.db_id != asked.db_id:
            raise InputError(f"{answer.where}: is about {answer.db_id}, but its gold query is about {asked.db_id}")
        record = {"id": asked.id, "db_id": asked.db_id, "question": asked.question, "gold": asked.sql}
        record |= {"difficulty": asked.difficulty} if asked.difficulty else {}
        predictions.append(prediction_of(record | {"predicted": answer.sql}, answer.where, number))
    return predictions
