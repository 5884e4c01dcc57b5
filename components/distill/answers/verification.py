"""Verifies samples by executing them: against the gold query's result, or by majority if there is no gold query."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from chatmetrics.components import console
from chatmetrics.components.distill.answers.samples import Sample, by_question
from chatmetrics.components.distill.answers.verified import RejectionReason, Verified
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.databases.databases import Databases
from chatmetrics.components.nl2sql.databases.execution import FailureMode, Result
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.verdict import StrictVerdict, is_ordered

MAX_THREADS = 4  # each has its own process that runs queries
MIN_MAJORITY = 2  # samples
MAX_CACHED_ROWS = 1000  # larger results are not cached, because thousands of them would not fit into memory
_CREATED = re.compile(r"^CREATE TABLE (.+?) \((?: -- .*)?$", re.MULTILINE)
# If the samples of a question fail for different reasons, the first of these is reported for the question:
# it belongs to the sample that came closest to passing.
_CLOSEST_FIRST = (RejectionReason.WRONG_RESULT, RejectionReason.FAILS, RejectionReason.CUT, RejectionReason.NO_SQL)


def verify(
    questions: Sequence[Example], samples: Iterable[Sample], databases: Databases, settings: DistillSettings
) -> list[Verified]:
    """Verify the samples of each question; returns one result per question, in the same order.

    Args:
        questions: the questions; `sql` is the gold query, or empty.
        samples: all samples of these questions.
        databases: runs the queries; several databases are used concurrently.
        settings: the settings of verification.
    """
    answered = by_question(samples)
    if settings.verification == "none":
        return [_unverified(question, answered.get(question.id, [])) for question in questions]
    by_database: dict[str, list[Example]] = {}
    for question in questions:
        by_database.setdefault(question.db_id, []).append(question)
    found: dict[str, Verified] = {}
    progress = console.Progress("verifying", len(questions), "questions")
    for verified in _verify_concurrently(by_database, answered, databases, settings):
        found[verified.question.id] = verified
        progress.update(len(found))
    return [found[question.id] for question in questions]


def rows_in(databases: Databases, db_id: str, tables: Sequence[str]) -> list[bool]:
    """Whether each table has a row; the names are quoted as in SQL."""
    queries = [f"SELECT 1 FROM {name} LIMIT 1" for name in tables]  # noqa: S608
    return [bool(result.rows) for result in databases.execute(db_id, queries)]


def is_empty(result: Result) -> bool:
    """Whether a result has no rows, or only NULLs, which is what an aggregate over no rows returns."""
    return all(value is None for row in result.rows for value in row)


def _unverified(question: Example, samples: Sequence[Sample]) -> Verified:
    return _verified(question, samples, {sample.number: RejectionReason.NO_SQL for sample in samples if not sample.sql})


def _verified(
    question: Example,
    samples: Sequence[Sample],
    rejected: Mapping[int, RejectionReason],
    reason: RejectionReason | None = None,
) -> Verified:
    """All samples that are not rejected pass; `reason` defaults to that of the sample that came closest."""
    passing = tuple(sample for sample in samples if sample.number not in rejected)
    if not passing and reason is None:
        reason = next((name for name in _CLOSEST_FIRST if name in rejected.values()), RejectionReason.NO_ANSWER)
    repaired = sum(sample.is_repaired for sample in samples)
    return Verified(question, passing, rejected, None if passing else reason, repaired)


def _all_rejected(question: Example, samples: Sequence[Sample], reason: RejectionReason) -> Verified:
    return _verified(question, samples, {sample.number: reason for sample in samples}, reason if samples else None)


def _verify_concurrently(
    by_database: Mapping[str, Sequence[Example]],
    answered: Mapping[str, Sequence[Sample]],
    databases: Databases,
    settings: DistillSettings,
) -> Iterator[Verified]:
    """Verify all questions, each database in one thread; yields results as they are ready."""
    done: SimpleQueue[Verified | None] = SimpleQueue()

    def verify_database(db_id: str) -> None:
        try:
            with databases.another() as own:
                for verified in _verify_database(own, db_id, by_database[db_id], answered, settings):
                    done.put(verified)
        finally:
            done.put(None)

    pool = ThreadPoolExecutor(MAX_THREADS)
    try:
        # Databases with the most questions first, so that no long task starts last.
        ordered = sorted(by_database, key=lambda db_id: -len(by_database[db_id]))
        futures = [pool.submit(verify_database, db_id) for db_id in ordered]
        for _ in futures:
            yield from iter(done.get, None)
        for future in futures:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _verify_database(
    databases: Databases,
    db_id: str,
    questions: Sequence[Example],
    answered: Mapping[str, Sequence[Sample]],
    settings: DistillSettings,
) -> Iterator[Verified]:
    problem = _problem(databases, db_id)
    queries = _Queries(databases, db_id)
    # The gold query and all samples see one state of the database.
    with databases.snapshot([] if problem else [db_id]):
        for question in questions:
            samples = answered.get(question.id, [])
            if settings.bind_names and not problem:
                samples = [sample.bound(databases.structure(db_id)) for sample in samples]
            if problem or not samples:
                yield _all_rejected(question, samples, problem or RejectionReason.NO_ANSWER)
            elif question.sql:
                yield _against_gold(question, samples, queries, settings.allow_empty)
            else:
                yield _by_majority(question, samples, queries, settings)


def _problem(databases: Databases, db_id: str) -> RejectionReason | None:
    """Why no query can be verified on a database; None if it can be used."""
    try:
        databases.check(db_id)
        tables = _CREATED.findall(databases.schema(db_id))
        is_populated = any(rows_in(databases, db_id, tables))
    except InputError as error:
        console.info(f"distill: {error}: answers to its questions cannot be verified")
        return RejectionReason.NO_DATABASE
    return None if is_populated else RejectionReason.UNPOPULATED


class _Queries:
    """Runs queries on one database and caches their results."""

    def __init__(self, databases: Databases, db_id: str) -> None:
        self._databases, self._db_id = databases, db_id
        self._cache: dict[str, Result] = {}

    def __call__(self, queries: Sequence[str]) -> list[Result]:
        new = [sql for sql in dict.fromkeys(queries) if sql not in self._cache]
        ran = dict(zip(new, self._databases.execute(self._db_id, new), strict=True)) if new else {}
        self._cache |= {sql: result for sql, result in ran.items() if len(result.rows) <= MAX_CACHED_ROWS}
        return [ran[sql] if sql in ran else self._cache[sql] for sql in queries]


def _run(samples: Sequence[Sample], queries: _Queries) -> list[tuple[Sample, Result]]:
    with_sql = [sample for sample in samples if sample.sql]
    return list(zip(with_sql, queries([sample.sql for sample in with_sql]), strict=True))


def _failures(samples: Sequence[Sample], ran: Iterable[tuple[Sample, Result]]) -> dict[int, RejectionReason]:
    without = {
        sample.number: RejectionReason.CUT if sample.is_cut else RejectionReason.NO_SQL
        for sample in samples
        if not sample.sql
    }
    return without | {
        sample.number: RejectionReason.FAILS for sample, result in ran if result.failure != FailureMode.OK
    }


def _against_gold(question: Example, samples: Sequence[Sample], queries: _Queries, allow_empty: bool) -> Verified:
    gold = queries([question.sql])[0]
    if gold.failure != FailureMode.OK:
        return _all_rejected(question, samples, RejectionReason.GOLD_FAILS)
    if is_empty(gold) and not allow_empty:
        return _all_rejected(question, samples, RejectionReason.GOLD_EMPTY)
    verdict = StrictVerdict(question.question, question.sql, gold, queries)
    ran = _run(samples, queries)
    wrong = {
        sample.number: RejectionReason.WRONG_RESULT
        for sample, result in ran
        if not verdict.is_right(sample.sql, result)
    }
    return _verified(question, samples, wrong | _failures(samples, ran))


def _by_majority(
    question: Example, samples: Sequence[Sample], queries: _Queries, settings: DistillSettings
) -> Verified:
    ran = [(sample, result) for sample, result in _run(samples, queries) if not sample.is_cut]
    failures = _failures(samples, ran) | {sample.number: RejectionReason.CUT for sample in samples if sample.is_cut}
    groups = sorted(_groups(question.question, ran, queries), key=len, reverse=True)
    if not groups:
        return _verified(question, samples, failures)
    largest, *others = groups
    is_majority = len(largest) >= MIN_MAJORITY and len(largest) / len(samples) >= settings.min_agreement
    if not is_majority or (others and len(others[0]) == len(largest)):
        return _none_passes(question, samples, failures, RejectionReason.NO_MAJORITY)
    if is_empty(largest[0][1]) and not settings.allow_empty:
        return _none_passes(question, samples, failures, RejectionReason.EMPTY_MAJORITY)
    outvoted = {sample.number: RejectionReason.OUTVOTED for group in others for sample, _ in group}
    return _verified(question, samples, failures | outvoted)


def _none_passes(
    question: Example, samples: Sequence[Sample], failures: Mapping[int, RejectionReason], reason: RejectionReason
) -> Verified:
    return _verified(question, samples, {sample.number: reason for sample in samples} | dict(failures), reason)


Group = list[tuple[Sample, Result]]


def _groups(question: str, ran: Sequence[tuple[Sample, Result]], queries: _Queries) -> list[Group]:
    """Group samples that return the same result.

    A sample with ORDER BY only agrees with others that have one, unless there is at most one row.
    """
    found: list[tuple[StrictVerdict, Group]] = []
    for sample, result in ran:
        if result.failure != FailureMode.OK:
            continue
        orders = is_ordered(sample.sql)
        for verdict, group in found:
            if (len(result.rows) < 2 or orders == verdict.ordered) and verdict.is_right(sample.sql, result):
                group.append((sample, result))
                break
        else:
            found.append((StrictVerdict(question, sample.sql, result, queries), [(sample, result)]))
    return [group for _, group in found]
