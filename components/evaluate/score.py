"""Judging all predictions, question by question."""

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Literal

from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.hardness import hardness_of
from chatmetrics.components.evaluate.judge import Excerpt, Judgement, judge, not_judged
from chatmetrics.components.evaluate.overlap import TrainingData
from chatmetrics.components.evaluate.predictions import Prediction, question_keys
from chatmetrics.components.nl2sql.databases import Databases
from chatmetrics.components.nl2sql.execution import FailureMode
from chatmetrics.components.nl2sql.scenario import scenarios_of
from chatmetrics.components.progress import track

THREADS = 2  # one reads and compares while the other's queries run

Verdict = Literal["strict", "official"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A prediction with its judgement."""

    prediction: Prediction
    judgement: Judgement

    def correct(self, verdict: Verdict) -> bool:
        """Whether it is right by that verdict."""
        return self.judgement.strict if verdict == "strict" else self.judgement.official


@dataclass(frozen=True, slots=True)
class Item:
    """A question with its gold result and what every system gave, by the system's name."""

    number: int
    id: str
    db_id: str
    question: str
    sql: str
    split: str
    scenarios: tuple[str, ...]
    hardness: str
    seen: str
    gold: Excerpt
    outcomes: dict[str, Outcome]

    @property
    def scored(self) -> bool:
        """Whether it counts: a question whose gold query fails says nothing about a system."""
        return self.gold.failure == FailureMode.OK


def score(
    predictions: Mapping[str, Sequence[Prediction]], databases: Databases, training: TrainingData | None = None
) -> tuple[list[Item], dict[str, int]]:
    """Run all queries and compare. The gold query of a question is run once for all systems.

    Args:
        predictions: by system; the questions need not be the same.
        databases: where the queries run.
        training: what the systems may have been trained on.

    Returns:
        All questions in the order of the first system's, those about a missing database with a gold query that fails;
        and how many are about each of these.

    Raises:
        InputError: none of the databases is there.
    """
    asked: dict[tuple[str, str, str, int], dict[str, Prediction]] = {}
    for system, answers in predictions.items():
        for key, answer in zip(question_keys(answers), answers, strict=True):
            asked.setdefault(key, {})[system] = answer
    missing = missing_databases(databases, [db_id for db_id, _, _, _ in asked])
    with ThreadPoolExecutor(THREADS) as pool:
        items = pool.map(
            lambda number, answers: _item(number, answers, databases, missing, training), count(1), asked.values()
        )
        return list(track(items, "scoring", len(asked), "questions")), missing


def missing_databases(databases: Databases, db_ids: Sequence[str]) -> dict[str, int]:
    """How many of the questions are about each database that is not there.

    Raises:
        InputError: none is there.
    """
    problems: dict[str, InputError] = {}
    for db_id in dict.fromkeys(db_ids):
        try:
            databases.check(db_id)
        except InputError as error:
            problems[db_id] = error
    if db_ids and len(problems) == len(set(db_ids)):
        raise next(iter(problems.values()))
    return {db_id: sum(name == db_id for name in db_ids) for db_id in problems}


def _item(
    number: int,
    answers: dict[str, Prediction],
    databases: Databases,
    missing: Collection[str],
    training: TrainingData | None,
) -> Item:
    first = next(iter(answers.values()))
    if first.db_id in missing:
        gold, judgements = not_judged(f"the database {first.db_id!r} is missing", len(answers))
    else:
        gold, judgements = judge(
            first.question,
            first.gold,
            [answer.predicted for answer in answers.values()],
            lambda queries: databases.execute(first.db_id, queries),
        )
    return Item(
        number=number,
        id=first.id or str(number),
        db_id=first.db_id,
        question=first.question,
        sql=first.gold,
        split=first.split,
        scenarios=scenarios_of(first.gold),
        hardness=hardness_of(first.gold),
        seen=training.seen(first.question, first.gold) if training else "",
        gold=gold,
        outcomes=dict(zip(answers, map(Outcome, answers.values(), judgements), strict=True)),
    )
