"""Judgement of all predictions, question by question, in several processes."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

from chatmetrics.components import console
from chatmetrics.components.console import track
from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.evaluate.hardness import hardness_of
from chatmetrics.components.evaluate.judge import (
    Excerpt,
    Judgement,
    Reason,
    agreement_of,
    judge,
    not_judged,
    queries_of,
)
from chatmetrics.components.evaluate.overlap import TrainingData
from chatmetrics.components.evaluate.predictions import Prediction, question_keys
from chatmetrics.components.evaluate.vote import elected
from chatmetrics.components.nl2sql.binding.binder import BoundQuery, bind_names
from chatmetrics.components.nl2sql.binding.edit import Repair
from chatmetrics.components.nl2sql.databases.databases import Databases
from chatmetrics.components.nl2sql.databases.execution import FailureMode, Result
from chatmetrics.components.nl2sql.schema import Schema
from chatmetrics.components.nl2sql.sql.query_type import query_types_of
from chatmetrics.components.nl2sql.sqlite_file import BrokenDatabaseError

MAX_PROCESSES = 4
QUESTIONS_PER_BATCH = 32  # adjacent questions are often about one database, which is then opened only once
# Queries are run ahead in messages of this many, twice as many, and so on, until their results have this many rows.
QUERIES_AT_FIRST = 8
ROWS_AHEAD = 20_000
# SQLite's messages of a damaged file, which no query can cause.
DAMAGED = ("database disk image is malformed", "file is not a database", "disk I/O error", "unable to open database")

NOT_SCORED = (Reason.NO_DATABASE, Reason.BROKEN_DATABASE, Reason.GOLD_FAILS)

Verdict = Literal["strict", "official", "bird"]
VERDICTS: tuple[Verdict, ...] = ("strict", "official", "bird")


class BoundAnswer(NamedTuple):
    """An answer with its names bound to the schema: the query, what was repaired, and its own judgement."""

    sql: str
    repairs: tuple[Repair, ...]
    judgement: Judgement


class VotedAnswer(NamedTuple):
    """The answer that the greedy one and the sampled ones elect, with names bound.

    Attributes:
        sql: the query.
        judgement: its own judgement.
        first_right: number of the first of these answers that is right by each verdict, from 1 on; 0 if none is.
    """

    sql: str
    judgement: Judgement
    first_right: dict[Verdict, int]


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """A prediction with its judgement.

    Attributes:
        prediction: the prediction.
        judgement: the verdicts on its SQL as it is.
        agreement: the share of its sampled answers that agree with it, if there are any.
        bound: the answer with its names bound to the schema; None if nothing was repaired.
        voted: the answer that it and its sampled answers elect; None without sampled answers.
    """

    prediction: Prediction
    judgement: Judgement
    agreement: float | None = None
    bound: BoundAnswer | None = None
    voted: VotedAnswer | None = None

    @property
    def with_names_bound(self) -> "ScoredAnswer":
        """The answer whose judgement is that of the bound query."""
        return replace(self, judgement=self.bound.judgement) if self.bound else self

    @property
    def by_vote(self) -> "ScoredAnswer":
        """The answer whose judgement is that of the elected query."""
        return replace(self, judgement=self.voted.judgement) if self.voted else self.with_names_bound

    def correct(self, verdict: Verdict) -> bool:
        """Whether the answer is right by a verdict."""
        return bool(getattr(self.judgement, verdict))


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
    difficulty: str = ""
    held_out: bool = False  # whether the question is in a held-out set, whose name is the split
    chose_adapter: bool = False  # whether early stopping measured it, so that it favors the adapter that was kept

    def counted(self, bind_names: bool, by_vote: bool) -> "Item":
        """The question with the judgements that count: of the answers as they are, with names bound, or by vote."""
        if not (bind_names or by_vote):
            return self
        answers = {
            name: answer.by_vote if by_vote else answer.with_names_bound for name, answer in self.answers.items()
        }
        return replace(self, answers=answers)

    @property
    def not_scored(self) -> str:
        """Why the question does not count; empty if it does."""
        reasons = {reason for answer in self.answers.values() for reason in answer.judgement.reasons}
        return next((reason.value for reason in NOT_SCORED if reason in reasons), "")

    @property
    def scored(self) -> bool:
        """Whether the question counts: it does not if its gold query fails."""
        return self.gold.failure == FailureMode.OK

    @property
    def lacks_database(self) -> bool:
        """Whether the question's database is missing or cannot be read."""
        return self.not_scored in (Reason.NO_DATABASE, Reason.BROKEN_DATABASE)


class MissingDatabase(NamedTuple):
    """A database that is missing, or that cannot be read because of a `problem`, and the number of its questions."""

    questions: int
    problem: str = ""


Missing = dict[str, MissingDatabase]


def score(
    predictions: Mapping[str, Sequence[Prediction]],
    databases: Databases,
    training: TrainingData | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> tuple[list[Item], Missing]:
    """Run all gold and predicted queries and compare their results. A gold query is run once for all systems.

    Args:
        predictions: by system; the systems may have answered different questions.
        databases: the databases of the questions.
        training: data that the systems may have been trained on.
        meanwhile: work for this process, which is idle while others score.

    Returns:
        All questions in the order of the first system, and the databases that are missing or cannot be read. A
        question about one of them has a gold query that fails.

    Raises:
        InputError: no database can be used.
        ServiceError: a scoring process was killed.
    """
    asked: dict[tuple[str, str, str, int], dict[str, Prediction]] = {}
    for system, answers in predictions.items():
        for key, answer in zip(question_keys(answers), answers, strict=True):
            asked.setdefault(key, {})[system] = answer
    missing = missing_databases(databases, [db_id for db_id, _, _, _ in asked])
    questions = list(asked.values())
    scorer = _Scorer(questions, databases.another(), missing, training)
    scored = zip(questions, _scored(scorer, len(questions), meanwhile), strict=True)
    items = (_item(number, answers, found) for number, (answers, found) in enumerate(scored, start=1))
    found = list(track(items, "scoring", len(questions), "questions"))
    return found, missing | _broken_meanwhile(found, missing)


def missing_databases(databases: Databases, db_ids: Sequence[str]) -> Missing:
    """The databases that are missing or cannot be read, with the number of their questions.

    Raises:
        InputError: no database can be used.
    """
    problems: dict[str, InputError] = {}
    for db_id in dict.fromkeys(db_ids):
        try:
            databases.check(db_id)
        except InputError as error:
            problems[db_id] = error
    if db_ids and len(problems) == len(set(db_ids)):
        raise next(iter(problems.values()))
    counts = Counter(db_ids)
    return {
        db_id: MissingDatabase(counts[db_id], str(error) if isinstance(error, BrokenDatabaseError) else "")
        for db_id, error in problems.items()
    }


def _broken_meanwhile(items: Sequence[Item], missing: Missing) -> Missing:
    """The databases that `missing_databases` found usable, but that a query found to be damaged."""
    problems = {item.db_id: item.gold.message for item in items if item.lacks_database and item.db_id not in missing}
    counts = Counter(item.db_id for item in items if item.lacks_database)
    return {db_id: MissingDatabase(counts[db_id], problem) for db_id, problem in problems.items()}


class _Score(NamedTuple):
    """What a scoring process finds about a question. Tuples are sent between processes faster than dataclasses."""

    gold: Excerpt
    judgements: list[Judgement]
    agreements: list[float | None]
    bound: list[BoundAnswer | None]
    voted: list[VotedAnswer | None]
    query_types: tuple[str, ...]
    hardness: str
    seen: str


def _item(number: int, answers: Mapping[str, Prediction], score: _Score) -> Item:
    first = next(iter(answers.values()))
    scored = map(ScoredAnswer, answers.values(), score.judgements, score.agreements, score.bound, score.voted)
    return Item(
        number=number,
        id=first.id or str(number),
        db_id=first.db_id,
        question=first.question,
        sql=first.gold,
        split=first.split,
        difficulty=first.difficulty,
        query_types=score.query_types,
        hardness=score.hardness,
        seen=score.seen,
        gold=score.gold,
        answers=dict(zip(answers, scored, strict=True)),
    )


class _Scorer:
    """Scores questions in one process."""

    def __init__(
        self,
        questions: Sequence[Mapping[str, Prediction]],
        databases: Databases,
        missing: Missing,
        training: TrainingData | None,
    ) -> None:
        self._questions, self._databases, self._training = questions, databases, training
        self._broken = {db_id: database.problem for db_id, database in missing.items()}
        self._schemas: dict[str, Schema | None] = {}  # None if it cannot be read
        # Of the batch, by database and query.
        self._results: dict[tuple[str, str], Result] = {}
        self._bound: dict[tuple[str, str], tuple[BoundQuery, ...]] = {}

    def batch(self, numbers: range) -> list[_Score]:
        """Judge the answers of all systems to these questions."""
        questions = [self._questions[number] for number in numbers]
        db_ids = dict.fromkeys(next(iter(answers.values())).db_id for answers in questions)
        self._bound = {}
        # The gold query and all answers see one state of the database.
        with self._databases.snapshot(db_id for db_id in db_ids if db_id not in self._broken):
            self._results = self._run(questions)
            return [self._score(list(answers.values())) for answers in questions]

    def _run(self, questions: Sequence[Mapping[str, Prediction]]) -> dict[tuple[str, str], Result]:
        """Results of the distinct queries of these questions.

        One message with many queries takes little longer than one with a single query. Queries with many rows are left
        to `_execute`, so that few large results are in memory.
        """
        wanted: dict[str, dict[str, None]] = {}
        for answers in questions:
            first = next(iter(answers.values()))
            if first.db_id not in self._broken:
                every = [sql for answer in answers.values() for ballot in self._ballots(answer) for sql in ballot]
                texts = queries_of(first.gold, [*(answer.predicted for answer in answers.values()), *every])
                wanted.setdefault(first.db_id, {}).update(dict.fromkeys(texts))
        results: dict[tuple[str, str], Result] = {}
        rows = 0
        for db_id, queries in wanted.items():
            texts, begin, size = list(queries), 0, QUERIES_AT_FIRST
            while begin < len(texts) and rows < ROWS_AHEAD:
                sent = texts[begin : begin + size]
                try:
                    found = self._databases.execute(db_id, sent)
                except InputError as error:
                    self._broken[db_id] = str(error)  # the file changed or vanished since it was checked
                    break
                results |= {(db_id, sql): result for sql, result in zip(sent, found, strict=True)}
                rows += sum(len(result.rows) for result in found)
                begin, size = begin + size, 2 * size
        return results

    def _execute(self, db_id: str, queries: Sequence[str]) -> list[Result]:
        """Results of queries about one question, most of which `_run` has run."""
        new = [sql for sql in queries if (db_id, sql) not in self._results]
        found = dict(zip(new, self._databases.execute(db_id, new), strict=True)) if new else {}
        return [found[sql] if sql in found else self._results[db_id, sql] for sql in queries]

    def _score(self, answers: Sequence[Prediction]) -> _Score:
        first = answers[0]
        ballots = [self._ballots(answer) for answer in answers]
        texts = dict.fromkeys(answer.predicted for answer in answers)
        texts |= dict.fromkeys(sql for found in ballots for ballot in found for sql in ballot)
        gold, found = self._judge(first, list(texts))
        judged = dict(zip(texts, found, strict=True))
        judgements = [judged[answer.predicted] for answer in answers]
        return _Score(
            gold=gold,
            judgements=judgements,
            agreements=[self._agreement(*pair) for pair in zip(answers, judgements, strict=True)],
            bound=[self._bound_answer(answer, judged) for answer in answers],
            voted=[self._voted(answer, ballot, judged) for answer, ballot in zip(answers, ballots, strict=True)],
            query_types=query_types_of(first.gold),
            hardness=hardness_of(first.gold),
            seen=self._training.seen(first.question, first.gold) if self._training else "",
        )

    def _ballots(self, answer: Prediction) -> list[list[str]]:
        """The queries of the greedy answer and of each sampled one, with their names bound."""
        return [
            [query.sql for query in self._bind(answer.db_id, sql)]
            for sql in (answer.predicted, *answer.sampled_answers)
        ]

    def _bound_answer(self, answer: Prediction, judged: Mapping[str, Judgement]) -> BoundAnswer | None:
        first = self._bind(answer.db_id, answer.predicted)[0]
        # The database may have a table that the schema does not show, such as those in which a full-text index is kept.
        runs = judged[answer.predicted].result.failure == FailureMode.OK
        return BoundAnswer(first.sql, first.repairs, judged[first.sql]) if first.repairs and not runs else None

    def _voted(
        self, answer: Prediction, ballots: Sequence[Sequence[str]], judged: Mapping[str, Judgement]
    ) -> VotedAnswer | None:
        if len(ballots) == 1 or answer.db_id in self._broken:
            return None
        sql = elected(ballots, lambda sql: self._execute(answer.db_id, [sql])[0])
        first_right = {
            verdict: next((n for n, (first, *_) in enumerate(ballots, start=1) if getattr(judged[first], verdict)), 0)
            for verdict in VERDICTS
        }
        return VotedAnswer(sql, judged[sql], first_right)

    def _bind(self, db_id: str, sql: str) -> tuple[BoundQuery, ...]:
        """A query with its names bound to the schema, see `bind_names`."""
        schema = self._schema(db_id)
        if schema is None:
            return (BoundQuery(sql),)
        if (db_id, sql) not in self._bound:
            self._bound[db_id, sql] = bind_names(sql, schema)
        return self._bound[db_id, sql]

    def _schema(self, db_id: str) -> Schema | None:
        if db_id not in self._schemas:
            self._schemas[db_id] = self._read_schema(db_id)
        return self._schemas[db_id]

    def _read_schema(self, db_id: str) -> Schema | None:
        if db_id in self._broken:
            return None
        try:
            return self._databases.structure(db_id)
        except InputError as error:
            console.warning(f"names are not bound: {error}")
            return None

    def _judge(self, first: Prediction, predicted: Sequence[str]) -> tuple[Excerpt, list[Judgement]]:
        """Judge the predictions for one question, unless its database is missing or cannot be read."""
        if first.db_id not in self._broken:
            try:
                execute = partial(self._execute, first.db_id)
                gold, judgements = judge(first.question, first.gold, predicted, execute)
            except InputError as error:
                self._broken[first.db_id] = str(error)
            else:
                if not gold.message.startswith(DAMAGED):
                    return self._shown(first.db_id, gold, judgements)
                self._broken[first.db_id] = f"database {first.db_id!r}: {gold.message}"
        if problem := self._broken[first.db_id]:
            return not_judged(problem, len(predicted), Reason.BROKEN_DATABASE)
        return not_judged(f"the database {first.db_id!r} is missing", len(predicted), Reason.NO_DATABASE)

    def _shown(self, db_id: str, gold: Excerpt, judgements: list[Judgement]) -> tuple[Excerpt, list[Judgement]]:
        """The results, without values where the database has private columns, which a query can show in many ways."""
        schema = self._schema(db_id)
        if schema is None or not schema.has_private:
            return gold, judgements
        return gold.without_values(), [each._replace(result=each.result.without_values()) for each in judgements]

    def _agreement(self, answer: Prediction, judgement: Judgement) -> float | None:
        if not answer.sampled_answers:
            return None
        if judgement.result.failure != FailureMode.OK:
            return 0.0
        execute = partial(self._execute, answer.db_id)
        return agreement_of(answer.question, answer.predicted, answer.sampled_answers, execute)


_scorer: _Scorer  # set in each scoring process


def _scored(scorer: _Scorer, count: int, meanwhile: Callable[[], None]) -> Iterator[_Score]:
    """Score the questions in several processes, since Python uses one core per process; scores come in order."""
    # Forking is fastest, but on other systems than Linux some system libraries do not support it.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    numbers = range(count)
    batches = [numbers[begin : begin + QUESTIONS_PER_BATCH] for begin in range(0, count, QUESTIONS_PER_BATCH)]
    processes = max(1, min(MAX_PROCESSES, os.cpu_count() or 1, len(batches)))
    with ProcessPoolExecutor(processes, context, initializer=_start, initargs=(scorer,)) as pool:
        try:
            scored = pool.map(_score_batch, batches)
            meanwhile()
            for scores in scored:
                yield from scores
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


def _score_batch(numbers: range) -> list[_Score]:
    return _scorer.batch(numbers)
