"""What a round learns from a report on the previous student's answers to the training questions."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from chatmetrics.components import console
from chatmetrics.components.distill.answers.samples import Sample
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import Example

# Of evaluate's reports: the student's name, and the file of the training questions that a sample leaves out.
STUDENT, NOT_DRAWN = "student", "not-drawn.jsonl"

Key = tuple[str, str]  # database and question; an id can differ from round to round


def failing(answers: Path, settings: DistillSettings, questions: Sequence[Example]) -> set[str]:
    """Ids of the questions that the student fails, is unsure of, or was not trained on.

    A question that it was trained on and not asked, because only a sample was, is not among them.

    Raises:
        InputError: the report cannot be read.
    """
    try:
        not_drawn = {(item["db_id"], item["question"]) for item in _lines(answers / NOT_DRAWN)}
        passing = {
            key
            for key, item in _items(answers)
            if item["strict"] and item.get("agreement", 1.0) >= settings.min_student_agreement
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_a_report(answers, error) from error
    known = passing | not_drawn
    failing = {question.id for question in questions if _key(question) not in known}
    asked = len(questions) - sum(_key(question) in not_drawn for question in questions)
    console.info(f"distill: the student fails or is unsure of {len(failing)} of {asked} questions")
    return failing


def own_samples(answers: Path, questions: Sequence[Example]) -> list[Sample]:
    """The student's answers to the questions, as samples: the greedy one has number 0, sampled ones follow.

    Raises:
        InputError: the report cannot be read, or has no answer to any of the questions.
    """
    try:
        answered = {
            key: [str(item["predicted"]), *map(str, item.get("sampled_answers", ()))] for key, item in _items(answers)
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_a_report(answers, error) from error
    samples = [
        Sample(question, number, sql, reasoning="", tokens=0, is_cut=False)
        for question in questions
        for number, sql in enumerate(answered.get(_key(question), ()))
    ]
    if not samples:
        raise InputError(f"{answers}: has no answer to any training question of the dataset; give the report on them")
    return samples


def _key(question: Example) -> Key:
    return question.db_id, question.question


def _items(answers: Path) -> Iterator[tuple[Key, dict[str, Any]]]:
    """The student's items in a report."""
    for item in _lines(answers / "items.jsonl", must_exist=True):
        if item.get("system", STUDENT) == STUDENT:
            yield (item["db_id"], item["question"]), item


def _lines(path: Path, must_exist: bool = False) -> list[dict[str, Any]]:
    """The records of a file; none if it does not exist and need not."""
    if not must_exist and not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _not_a_report(answers: Path, error: Exception) -> InputError:
    return InputError(f"{answers / 'items.jsonl'}: not a report on a student's answers ({error})")
