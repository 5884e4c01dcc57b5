"""Judgement of all predictions, question by question, in several processes."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Literal

from chatmetrics.components.console import track
from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.evaluate.hardness import hardness_of
from chatmetrics.components.evaluate.judge import Excerpt, Judgement, agreement_of, judge, not_judged
from chatmetrics.components.evaluate.overlap import TrainingData
from chatmetrics.components.evaluate.predictions import Prediction, question_keys
from chatmetrics.components.nl2sql.databases import Databases
from chatmetrics.components.nl2sql.execution import FailureMode
from chatmetrics.components.nl2sql.query_type import query_types_of

MAX_PROCESSES = 4
QUESTIONS_PER_BATCH = 32  # adjacent questions are often about one database, which is then opened only once

Verdict = Literal["strict", "official"]


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """A prediction with its judgement, and the share of its sampled answers that agree with it, if there are any."""

    prediction: Prediction
    judgement: Judgement
    agreement: float | None = None

    def correct(self, verdict: Verdict) -> bool:
        """Whether the answer is right by a verdict."""
        return self.judgement.strict if verdict == "strict" else self.judgement.official


@dataclass(frozen=True, slots=True)
class Item:
    """A question with its gold result and the answers of all systems, by the system's name."""

    number: int
    id: str
    db_id: str
    question: str
    sql: str
    split: str
    query_types: tuple[str, ...]
    hardness: str
    seen: str
    gold: Excerpt
    answers: dict[str, ScoredAnswer]

    @property
    def scored(self) -> bool:
        """Whether the question counts: it does not if its gold query fails."""
        return self.gold.failure == FailureMode.OK


def score(
    predictions: Mapping[str, Sequence[Prediction]], databases: Databases, training: TrainingData | None = None
) -> tuple[list[Item], dict[str, int]]:
    """Run all gold and predicted queries and compare their results. A gold query is run once for all systems.

    Args:
        predictions: by system; the systems may have answered different questions.
        databases: the databases of the questions.
        training: data that the systems may have been trained on.

    Returns:
        All questions in the order of the first system, and the number of questions for each missing database. A
        question about a missing database has a gold query that fails.

    Raises:
        InputError: all databases are missing.
        ServiceError: a scoring process was killed.
    """
    asked: dict[tuple[str, str, str, int], dict[str, Prediction]] = {}
    for system, answers in predictions.items():
        for key, answer in zip(question_keys(answers), answers, strict=True):
            asked.setdefault(key, {})[system] = answer
    missing = missing_databases(databases, [db_id for db_id, _, _, _ in asked])
    scorer = _Scorer(databases.another(), missing, training)
    numbered = list(enumerate(asked.values(), start=1))
    batches = [numbered[i : i + QUESTIONS_PER_BATCH] for i in range(0, len(numbered), QUESTIONS_PER_BATCH)]
    return list(track(_scored(scorer, batches), "scoring", len(numbered), "questions")), missing


def missing_databases(databases: Databases, db_ids: Sequence[str]) -> dict[str, int]:
    """Number of questions for each missing database.

    Raises:
        InputError: all databases are missing.
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


class _Scorer:
    """Scores questions in one process."""

    def __init__(self, databases: Databases, missing: Collection[str], training: TrainingData | None) -> None:
        self._databases, self._missing, self._training = databases, missing, training

    def item(self, number: int, answers: dict[str, Prediction]) -> Item:
        """Judge the answers of all systems to one question."""
        first = next(iter(answers.values()))
        if first.db_id in self._missing:
            gold, judgements = not_judged(f"the database {first.db_id!r} is missing", len(answers))
        else:
            gold, judgements = judge(
                first.question,
                first.gold,
                [answer.predicted for answer in answers.values()],
                lambda queries: self._databases.execute(first.db_id, queries),
            )
        return Item(
            number=number,
            id=first.id or str(number),
            db_id=first.db_id,
            question=first.question,
            sql=first.gold,
            split=first.split,
            query_types=query_types_of(first.gold),
            hardness=hardness_of(first.gold),
            seen=self._training.seen(first.question, first.gold) if self._training else "",
            gold=gold,
            answers={
                system: ScoredAnswer(answer, judgement, self._agreement(answer, judgement))
                for (system, answer), judgement in zip(answers.items(), judgements, strict=True)
            },
        )

    def _agreement(self, answer: Prediction, judgement: Judgement) -> float | None:
        if not answer.sampled_answers:
            return None
        if judgement.result.failure != FailureMode.OK:
            return 0.0
        return agreement_of(
            answer.question,
            answer.predicted,
            answer.sampled_answers,
            lambda queries: self._databases.execute(answer.db_id, queries),
        )


Batch = list[tuple[int, dict[str, Prediction]]]
_scorer: _Scorer  # set in each scoring process


def _scored(scorer: _Scorer, batches: Sequence[Batch]) -> Iterator[Item]:
    """Score the batches in several processes, since Python uses one core per process; items come in order."""
    # Forking is fastest, but on other systems than Linux some system libraries do not support it.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    processes = max(1, min(MAX_PROCESSES, os.cpu_count() or 1, len(batches)))
    with ProcessPoolExecutor(processes, context, initializer=_start, initargs=(scorer,)) as pool:
        try:
            for items in pool.map(_score_batch, batches):
                yield from items
        except BrokenProcessPool as error:
            raise ServiceError("a scoring process was killed, most likely because it ran out of memory") from error


def _start(scorer: _Scorer) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()
    global _scorer
    _scorer = scorer


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # returns when the parent has ended; a killed parent cannot stop its children itself
    os._exit(1)


def _score_batch(batch: Batch) -> list[Item]:
    return [_scorer.item(number, answers) for number, answers in batch]
