"""The verdicts on a predicted query, and the reasons for which the official and the strict one differ."""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

from chatmetrics.components.evaluate.official import (
    official_gold,
    official_prediction,
    order_matters,
    same_official_result,
)
from chatmetrics.components.nl2sql.databases.execution import FailureMode, Result
from chatmetrics.components.nl2sql.schema import NOT_SHOWN
from chatmetrics.components.nl2sql.verdict import Execute, StrictVerdict, same_result

ROWS_KEPT = 5
CHARACTERS_KEPT = 200


class Reason(StrEnum):
    """Why the two verdicts differ, or why a question is weak evidence."""

    EMPTY = "both results are empty"
    COLUMN_ORDER = "columns in another order"
    DISTINCT = "DISTINCT"
    ROW_ORDER = "rows in another order"
    TIED_ROWS = "tied rows in another order"
    TIED_LIMIT = "LIMIT cuts rows that tie"
    TIES_UNKNOWN = "unknown which rows tie"
    ORDER_NOT_ASKED = "row order compared for an unordered gold query"
    TOLERANCE = "numbers within tolerance"
    REWRITTEN = "the official evaluator rewrites the query"
    GOLD_FAILS = "the gold query fails"
    NO_DATABASE = "the database is missing"
    BROKEN_DATABASE = "the database cannot be read"


class Excerpt(NamedTuple):
    """The beginning of a result, as shown in the report."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    row_count: int
    failure: FailureMode
    message: str
    seconds: float = 0.0

    @classmethod
    def of(cls, result: Result) -> "Excerpt":
        """Keep the first rows and the beginnings of long values, since thousands of excerpts are in memory."""
        rows = [tuple(map(_beginning, row)) for row in result.rows[:ROWS_KEPT]]
        columns = tuple(map(_beginning, result.columns))
        return cls(columns, rows, len(result.rows), result.failure, _beginning(result.message), result.seconds)

    def without_values(self) -> "Excerpt":
        """Without what may be a value of a private column: rows, messages, and names of columns, as of PIVOT's."""
        columns = tuple(f"column {number}" for number, _ in enumerate(self.columns, start=1))
        return self._replace(columns=columns, rows=[], message=NOT_SHOWN if self.message else "")


def _beginning(value: Any) -> Any:
    if isinstance(value, str) and len(value) > CHARACTERS_KEPT:
        return f"{value[:CHARACTERS_KEPT]}… ({len(value)} characters)"
    return value[:CHARACTERS_KEPT] if isinstance(value, bytes) else value


class Judgement(NamedTuple):
    """The verdicts on a predicted query. `failure` is OK if and only if the strict verdict is right."""

    official: bool
    strict: bool
    bird: bool
    failure: FailureMode
    reasons: tuple[Reason, ...]
    result: Excerpt


def judge(question: str, gold: str, predicted: Sequence[str], execute: Execute) -> tuple[Excerpt, list[Judgement]]:
    """Run a gold query and all predictions for it, and judge the predictions.

    Args:
        question: text of the question, which decides whether the order of columns counts; may be empty.
        gold: the gold query.
        predicted: untrusted texts, one per system.
        execute: runs queries on the question's database, read-only and within limits.

    Returns:
        The gold query's result, and a judgement of each prediction.
    """
    texts = queries_of(gold, predicted)
    results = dict(zip(texts, execute(texts), strict=True))
    case = _Case(question, gold, results, execute)
    return Excerpt.of(results[gold]), [case.judge(sql) for sql in predicted]


def queries_of(gold: str, predicted: Iterable[str]) -> list[str]:
    """The distinct queries that `judge` runs, in its order, without those that find tied rows."""
    texts = dict.fromkeys([gold, official_gold(gold)])
    texts |= dict.fromkeys(text for sql in predicted for text in (sql, official_prediction(sql)))
    return list(texts)


def agreement_of(question: str, sql: str, sampled_answers: Sequence[str], execute: Execute) -> float:
    """The share of sampled queries that return the same result as the greedy one. A failing query never agrees.

    Args:
        question: as in `judge`.
        sql: the greedy query.
        sampled_answers: untrusted texts, sampled for the same question.
        execute: as in `judge`.
    """
    [greedy] = execute([sql])
    verdict = StrictVerdict(question, sql, greedy, execute)
    # One query at a time, so that only two results are in memory.
    agrees = {sampled: verdict.is_right(sampled, execute([sampled])[0]) for sampled in dict.fromkeys(sampled_answers)}
    return sum(agrees[sampled] for sampled in sampled_answers) / len(sampled_answers)


def not_judged(message: str, count: int, reason: Reason) -> tuple[Excerpt, list[Judgement]]:
    """The gold result and judgements of `count` predictions whose database is missing or broken."""
    nothing = Excerpt((), [], 0, FailureMode.EXECUTION_ERROR, message)
    return nothing, [Judgement(False, False, False, nothing.failure, (reason,), nothing)] * count


class _Case:
    """A gold query with the results of all predictions for it."""

    def __init__(self, question: str, gold: str, results: dict[str, Result], execute: Execute) -> None:
        self._sql, self._results = gold, results
        self._gold, self._official_gold = results[gold], results[official_gold(gold)]
        self._official_ordered = order_matters(official_gold(gold))
        self._strict = StrictVerdict(question, gold, self._gold, execute)

    def judge(self, sql: str) -> Judgement:
        """Judge one prediction."""
        result = self._results[sql]
        if self._gold.failure != FailureMode.OK:
            return Judgement(False, False, False, result.failure, (Reason.GOLD_FAILS,), Excerpt.of(result))
        official, same_columns = self._is_official(sql), self._strict.is_same(sql, result)
        strict = same_columns or self._strict.is_same_rearranged(sql, result)
        reasons = dict.fromkeys(self._weaknesses(result, strict, official, same_columns))
        if official and not strict:
            reasons |= dict.fromkeys(self._leniencies(sql))
        elif strict and not official and Reason.TIED_LIMIT not in reasons:
            reasons[self._severity(sql)] = None
        failure = FailureMode.WRONG_RESULT if result.failure == FailureMode.OK and not strict else result.failure
        return Judgement(official, strict, self._is_bird(result), failure, tuple(reasons), Excerpt.of(result))

    def _is_bird(self, predicted: Result) -> bool:
        """BIRD's execution accuracy: whether the two sets of rows are equal (`calculate_ex` in bird-bench/mini_dev)."""
        if predicted.failure != FailureMode.OK or not predicted.columns:
            return False
        return predicted.rows == self._gold.rows or _set_of(predicted.rows) == self._gold_set

    @cached_property
    def _gold_set(self) -> set[Any]:
        return _set_of(self._gold.rows)

    def _is_official(self, sql: str) -> bool:
        gold, predicted = _official_rows(self._official_gold), _official_rows(self._results[official_prediction(sql)])
        if gold is None or predicted is None or not sql.strip():
            return False
        return same_official_result(gold, predicted, self._official_ordered)

    def _weaknesses(self, predicted: Result, strict: bool, official: bool, same_columns: bool) -> Iterable[Reason]:
        """Why a verdict is weak evidence."""
        if (strict or official) and not self._gold.rows and not predicted.rows:
            yield Reason.EMPTY
        if strict and not same_columns:
            yield Reason.COLUMN_ORDER
        if self._strict.is_cut_in_tie(predicted):
            yield Reason.TIED_LIMIT
        if not strict and self._strict.needs_unknown_ties(predicted):
            yield Reason.TIES_UNKNOWN

    def _leniencies(self, sql: str) -> Iterable[Reason]:
        """Why the official verdict is right although the strict one is wrong."""
        gold, predicted = self._gold, self._results[sql]
        if predicted.failure == FailureMode.NO_SQL:
            return  # the official evaluator treats it as a query without rows; `EMPTY` already tells
        if (gold.rows or predicted.rows) and not same_result(gold, predicted, False, None, any_columns=True):
            yield self._rewriting(sql)
        gold, predicted = self._official_gold, self._results[official_prediction(sql)]
        if gold.rows and not same_result(gold, predicted, False):
            yield Reason.COLUMN_ORDER
        if self._strict.ordered and not same_result(gold, predicted, True, self._strict.ties, any_columns=True):
            yield Reason.ROW_ORDER

    def _severity(self, sql: str) -> Reason:
        """Why the official verdict is wrong although the strict one is right."""
        gold, predicted = self._official_gold, self._results[official_prediction(sql)]
        if not same_result(gold, predicted, False, None, any_columns=True):
            return self._rewriting(sql)
        if self._official_ordered and not same_result(gold, predicted, True, None, any_columns=True):
            return Reason.TIED_ROWS if self._strict.ordered else Reason.ORDER_NOT_ASKED
        return Reason.TOLERANCE

    def _rewriting(self, sql: str) -> Reason:
        """How the official evaluator changed the queries."""
        is_distinct = any("distinct" in text.lower() for text in (self._sql, sql))
        return Reason.DISTINCT if is_distinct else Reason.REWRITTEN


def _set_of(rows: Sequence[tuple[Any, ...]]) -> set[Any]:
    try:
        return set(rows)
    except TypeError:  # an array or a JSON value of a server
        return {repr(row) for row in rows}


def _official_rows(result: Result) -> list[tuple[Any, ...]] | None:
    """The rows that the official evaluator gets; None for an error. Text without a statement returns no rows there."""
    return result.rows if result.failure in (FailureMode.OK, FailureMode.NO_SQL) else None
