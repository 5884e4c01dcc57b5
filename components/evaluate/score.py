"""Running gold and predicted SQL, and who was right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatmetrics.components.evaluate.predictions import Prediction
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.execution import Executor, FailureMode, Result, database_path
from chatmetrics.components.nl2sql.verdict import is_ordered, order_keys_of, same_result
from chatmetrics.components.progress import track

ROWS_KEPT = 5


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The beginning of a result, as much as a report shows."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    row_count: int
    failure: FailureMode
    message: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """A prediction with what became of it: `excerpt.failure` is `OK` only when it is correct."""

    prediction: Prediction
    excerpt: Excerpt

    @property
    def correct(self) -> bool:
        """Whether it returned what the gold query returns."""
        return self.excerpt.failure == FailureMode.OK


@dataclass(frozen=True, slots=True)
class Item:
    """A question with its gold result and what every model gave, by the model's name."""

    example: Example
    gold: Excerpt
    outcomes: dict[str, Outcome]

    @property
    def scored(self) -> bool:
        """Whether it counts: a question whose gold query fails says nothing about a model."""
        return self.gold.failure == FailureMode.OK


def score(
    examples: Sequence[Example], predictions: Mapping[str, Sequence[Prediction]], databases: Path, timeout: float
) -> list[Item]:
    """Run all queries read-only and compare.

    Args:
        examples: the questions with their gold SQL.
        predictions: for each model its predictions, in the order of the examples.
        databases: folder of SQLite files.
        timeout: seconds for a query.

    Raises:
        InputError: a database is missing or is not one.
    """
    items = []
    with Executor(timeout=timeout) as executor:
        for index, example in enumerate(track(examples, "scoring", len(examples), "questions")):
            database = database_path(databases, example.db_id)
            asked = {model: answers[index] for model, answers in predictions.items()}
            items.append(_score_one(executor, database, example, asked))
    return items


def _score_one(executor: Executor, database: Path, example: Example, asked: Mapping[str, Prediction]) -> Item:
    gold = executor.execute(database, example.sql)
    outcomes = {}
    for model, prediction in asked.items():
        result = executor.execute(database, prediction.predicted)
        if result.failure == FailureMode.OK and not _is_right(executor, database, example.sql, gold, result):
            result.failure = FailureMode.WRONG_RESULT
        outcomes[model] = Outcome(prediction, _excerpt(result))
    return Item(example, _excerpt(gold), outcomes)


def _is_right(executor: Executor, database: Path, sql: str, gold: Result, predicted: Result) -> bool:
    ordered = is_ordered(sql)
    if same_result(gold, predicted, ordered):
        return True
    if not ordered or not same_result(gold, predicted, ordered=False):
        return False
    # Right but for the order: only now is it worth a query to know which rows tie.
    keys = order_keys_of(sql)
    return bool(keys) and same_result(gold, predicted, ordered, executor.execute(database, keys))


def _excerpt(result: Result) -> Excerpt:
    return Excerpt(result.columns, result.rows[:ROWS_KEPT], len(result.rows), result.failure, result.message)
