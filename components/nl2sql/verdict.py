"""The strict verdict: whether two results answer a question the same way, as a careful person would judge."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby, pairwise
from operator import itemgetter
from typing import Any

import sqlglot
from sqlglot import TokenType
from sqlglot.errors import SqlglotError

from chatmetrics.components.nl2sql.databases.execution import FailureMode, Result
from chatmetrics.components.nl2sql.sql.columns import column_order, question_fixes_columns
from chatmetrics.components.nl2sql.ties import OrderedQuery

Row = tuple[Any, ...]
Execute = Callable[[Sequence[str]], Sequence[Result]]

# Large enough for the rounding noise of summing in another order, and far smaller than the effect of ROUND or a wrong
# row.
RELATIVE_TOLERANCE = 1e-9
ABSOLUTE_TOLERANCE = 1e-9
SORTED_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Ties:
    """Which rows may be in which place of an ordered result.

        runs    [a b] [c d e] [f g]      skipped 1, count 5
        places     0   1 2 3   4         LIMIT 5 OFFSET 1

    Attributes:
        runs: rows that tie, run by run in the query's order.
        skipped: number of rows that OFFSET skips.
        count: number of rows in the result.
    """

    runs: list[list[Row]]
    skipped: int
    count: int

    @classmethod
    def of(cls, ranked: Sequence[Row], skipped: int, count: int) -> "Ties":
        """Read them from rows that are ordered by rank, followed by their ranks; see `OrderedQuery.rankings`."""
        runs = [[row[:-1] for row in run] for _, run in groupby(ranked, key=itemgetter(-1))]
        return cls(runs, skipped, count)

    def allow(self, rows: list[Row]) -> bool:
        """Whether a result, of `count` rows, has rows that tie in any order, and the runs in the query's order."""
        stops = list(accumulate(map(len, self.runs), initial=-self.skipped))
        if stops[-1] < self.count:
            return False
        for run, (start, stop) in zip(self.runs, pairwise(stops), strict=True):
            part = rows[max(start, 0) : max(min(stop, self.count), 0)]
            if not (_same_rows(run, part) if len(run) == len(part) else _contains(run, part)):
                return False
        return True


class StrictVerdict:
    """Judges whether predicted results answer a question as its gold query does.

    Args:
        question: text of the question, which decides whether the order of columns counts; may be empty.
        sql: the gold query.
        gold: the gold query's result.
        execute: runs queries on the question's database. One more query is run if only the order of rows is in doubt.
    """

    def __init__(self, question: str, sql: str, gold: Result, execute: Execute) -> None:
        self.ordered = is_ordered(sql)
        self._question, self._sql, self._gold, self._execute = question, sql, gold, execute

    def is_right(self, sql: str, predicted: Result) -> bool:
        """Whether the result of `sql` equals the gold one, with any order of columns if the question leaves it open."""
        return self.is_same(sql, predicted) or self.is_same_rearranged(sql, predicted)

    def is_same(self, sql: str, predicted: Result) -> bool:
        """Whether the result of `sql` equals the gold one, with its columns in the gold query's order."""
        return self._is_same(sql, predicted, any_columns=False)

    def is_same_rearranged(self, sql: str, predicted: Result) -> bool:
        """Whether it equals the gold result in any order of columns, and the question leaves that order open."""
        return not question_fixes_columns(self._question, self._sql) and self._is_same(sql, predicted, any_columns=True)

    def is_cut_in_tie(self, predicted: Result) -> bool:
        """Whether its rows are not the gold ones but tie with them, and the gold query's LIMIT keeps only some."""
        is_other = self._depends_on_ties(predicted) and self._has_other_rows(predicted)
        return is_other and same_result(self._gold, predicted, True, self.ties)

    def needs_unknown_ties(self, predicted: Result) -> bool:
        """Whether it could be right if certain rows tied, but the rows that tie cannot be determined."""
        return self._depends_on_ties(predicted) and self.ties is None

    @cached_property
    def ties(self) -> Ties | None:
        """The rows that tie in the gold query's order; None if they cannot be determined.

        They are determined by a query that also returns the gold query's rows. If these are not the gold result's, in
        its order except for ties, the query is not used.
        """
        return self._find_ties(all_rows=False)

    def _find_ties(self, all_rows: bool) -> Ties | None:
        """The ties of the gold result; with `all_rows` those of the gold query without LIMIT and OFFSET."""
        query, gold = self._ordered_query, self._gold
        if query is None or query.skipped is None:
            return None
        last_place = None if all_rows else query.skipped + len(gold.rows)
        for sql in query.rankings(gold.columns, last_place):
            ranked = self._execute([sql])[0]
            if ranked.failure == FailureMode.OK:
                ties = Ties.of(ranked.rows, query.skipped, len(gold.rows))
                is_complete = query.is_limited or len(ranked.rows) == len(gold.rows)
                if is_complete and ties.allow(gold.rows):
                    return replace(ties, skipped=0, count=len(ranked.rows)) if all_rows else ties
            elif ranked.failure not in (FailureMode.DOES_NOT_PARSE, FailureMode.EXECUTION_ERROR):
                break
        return None

    @cached_property
    def _ties_without_limit(self) -> Ties | None:
        return self._find_ties(all_rows=True)

    @cached_property
    def _ordered_query(self) -> OrderedQuery | None:
        return OrderedQuery(self._sql) if self.ordered else None

    def _is_same(self, sql: str, predicted: Result, any_columns: bool) -> bool:
        if same_result(self._gold, predicted, self.ordered, None, any_columns):
            return True
        if not self._depends_on_ties(predicted) or not same_result(self._gold, predicted, True, self.ties, any_columns):
            return False
        return not self._has_other_rows(predicted) or self._is_same_without_limit(sql)

    def _depends_on_ties(self, predicted: Result) -> bool:
        """Whether only the order of rows differs, or LIMIT may have cut other rows."""
        if self._ordered_query is None or predicted.failure != FailureMode.OK or predicted.rows == self._gold.rows:
            return False
        is_alike = len(predicted.columns) == len(self._gold.columns) and len(predicted.rows) == len(self._gold.rows)
        return is_alike and (self._ordered_query.is_limited or not self._has_other_rows(predicted))

    def _has_other_rows(self, predicted: Result) -> bool:
        return not same_result(self._gold, predicted, False, None, any_columns=True)

    def _is_same_without_limit(self, sql: str) -> bool:
        """Whether a query answers the question without LIMIT too, and skips as many rows.

        With LIMIT alone, a query that orders by something else could be right by accident.
        """
        query, gold = OrderedQuery(sql) if is_ordered(sql) else None, self._ordered_query
        if query is None or gold is None or not query.is_limited or query.skipped != gold.skipped:
            return False
        predicted, ties = self._execute([query.without_limit])[0], self._ties_without_limit
        return (
            ties is not None
            and predicted.failure == FailureMode.OK
            and len(predicted.rows) == ties.count
            and ties.allow(predicted.rows)
        )


def same_result(
    gold: Result, predicted: Result, ordered: bool, ties: Ties | None = None, any_columns: bool = False
) -> bool:
    """Whether the predicted result equals the gold one.

    Duplicate rows count; column names do not. Numbers are equal within a relative 1e-9 if one of them is a float, so 1
    equals 1.0. '1' does not equal 1.

    Args:
        gold: result of the gold query.
        predicted: result of the predicted query.
        ordered: whether the order of rows counts, see `is_ordered`.
        ties: the rows that tie in the gold query's order and may change places.
        any_columns: whether the columns may be in another order, see `question_fixes_columns`.
    """
    if gold.failure != FailureMode.OK or predicted.failure != FailureMode.OK:
        return False
    if len(gold.columns) != len(predicted.columns) or len(gold.rows) != len(predicted.rows):
        return False
    if _same_with_these_columns(gold, predicted, ordered, ties):
        return True
    rearranged = _rearranged(gold, predicted) if any_columns and gold.rows else None
    return rearranged is not None and _same_with_these_columns(gold, rearranged, ordered, ties)


def _rearranged(gold: Result, predicted: Result) -> Result | None:
    """The predicted result with its columns in the gold result's order; None if no order makes the rows equal."""
    order = column_order(*([tuple(map(_sortable, row)) for row in result.rows] for result in (gold, predicted)))
    if order is None:
        return None
    return Result(predicted.columns, [tuple(row[index] for index in order) for row in predicted.rows])


def _same_with_these_columns(gold: Result, predicted: Result, ordered: bool, ties: Ties | None) -> bool:
    if gold.rows == predicted.rows:
        return True
    if not ordered:
        return _same_rows(gold.rows, predicted.rows)
    if ties is None or ties.count != len(gold.rows):
        return all(all(map(_same_value, *pair)) for pair in zip(gold.rows, predicted.rows, strict=True))
    return ties.allow(predicted.rows)


def comparable_rows(result: Result) -> tuple[object, ...]:
    """What two results have in common if they have the same rows in any order, with numbers that are nearly equal."""
    rows = Counter(tuple(_sort_key(row)) for row in result.rows)
    return len(result.columns), frozenset(rows.items())


def is_ordered(sql: str) -> bool:
    """Whether a query orders its rows: it has ORDER BY outside all parentheses, not in a subquery or a window."""
    if "order" not in sql.lower():
        return False
    depth = 0
    try:
        tokens = sqlglot.tokenize(sql, read="sqlite")
    except SqlglotError:
        return False  # such a text returns no rows either
    for token in tokens:
        depth += (token.token_type == TokenType.L_PAREN) - (token.token_type == TokenType.R_PAREN)
        if token.token_type == TokenType.ORDER_BY and depth == 0:
            return True
    return False


def _same_rows(gold: list[Row], predicted: list[Row]) -> bool:
    """Compare rows as multisets."""
    if Counter(gold) == Counter(predicted):
        return True
    # The rows may still be equal within the tolerance. Sorting pairs them; the sort key is rounded, so that rounding
    # noise does not change the order. Each pair of values is then compared exactly or within the tolerance.
    pairs = zip(sorted(gold, key=_sort_key), sorted(predicted, key=_sort_key), strict=True)
    return all(all(map(_same_value, *pair)) for pair in pairs)


def _contains(run: list[Row], part: list[Row]) -> bool:
    """Whether a multiset of rows contains another one. Values are rounded, as they are to sort rows."""
    return Counter(tuple(_sort_key(row)) for row in part) <= Counter(tuple(_sort_key(row)) for row in run)


def _sort_key(row: Row) -> list[tuple[str, Any]]:
    return [_sortable(value) for value in row]


def _sortable(value: Any) -> tuple[str, Any]:
    if value is None:
        return "none", 0
    if isinstance(value, float):
        return "number", float(f"{value:.{SORTED_DIGITS}g}")
    return "number" if isinstance(value, int) else type(value).__name__, value


def _same_value(gold: Any, predicted: Any) -> bool:
    # No tolerance for two integers, since they may be ids or counts.
    if {type(gold), type(predicted)} in ({float}, {float, int}):
        return math.isclose(gold, predicted, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)
    return type(gold) is type(predicted) and bool(gold == predicted)
