"""The strict verdict: whether two results answer a question the same way, as a careful person would judge."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any

import sqlglot
from sqlglot import TokenType, exp
from sqlglot.errors import SqlglotError

from chatmetrics.components.nl2sql.columns import column_order, question_fixes_columns
from chatmetrics.components.nl2sql.execution import FailureMode, Result
from chatmetrics.components.nl2sql.parsing import parse

Row = tuple[Any, ...]
Execute = Callable[[Sequence[str]], Sequence[Result]]

# Large enough for the rounding noise of summing in another order, and far smaller than the effect of ROUND or a wrong
# row.
RELATIVE_TOLERANCE = 1e-9
ABSOLUTE_TOLERANCE = 1e-9
SORTED_DIGITS = 12


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
        self._keys: Result | None = None

    def is_right(self, predicted: Result) -> bool:
        """Whether it equals the gold result. The order of columns may differ if the question leaves it open."""
        return self.is_same(predicted) or self.is_same_rearranged(predicted)

    def is_same(self, predicted: Result) -> bool:
        """Whether it equals the gold result, with its columns in the gold query's order."""
        return self._is_same(predicted, any_columns=False)

    def is_same_rearranged(self, predicted: Result) -> bool:
        """Whether it equals the gold result in any order of columns, and the question leaves that order open."""
        return not question_fixes_columns(self._question, self._sql) and self._is_same(predicted, any_columns=True)

    def order_keys(self) -> Result:
        """Values that the gold query orders its rows by, see `order_keys_of`; empty if they cannot be determined."""
        if self._keys is None:
            keys = order_keys_of(self._sql)
            self._keys = self._execute([keys])[0] if keys else Result()
        return self._keys

    def _is_same(self, predicted: Result, any_columns: bool) -> bool:
        if same_result(self._gold, predicted, self.ordered, None, any_columns):
            return True
        if not self.ordered or not same_result(self._gold, predicted, False, None, any_columns):
            return False
        # Only the order of the rows differs. One more query finds the rows that tie and may be in any order.
        return same_result(self._gold, predicted, True, self.order_keys(), any_columns)


def same_result(
    gold: Result, predicted: Result, ordered: bool, order_keys: Result | None = None, any_columns: bool = False
) -> bool:
    """Whether the predicted result equals the gold one.

    Duplicate rows count; column names do not. Numbers are equal within a relative 1e-9 if one of them is a float, so 1
    equals 1.0. '1' does not equal 1.

    Args:
        gold: result of the gold query.
        predicted: result of the predicted query.
        ordered: whether the order of rows counts, see `is_ordered`.
        order_keys: result of the query `order_keys_of(gold)`. Rows with equal keys tie and may be in any order.
        any_columns: whether the columns may be in another order, see `question_fixes_columns`.
    """
    if gold.failure != FailureMode.OK or predicted.failure != FailureMode.OK:
        return False
    if len(gold.columns) != len(predicted.columns) or len(gold.rows) != len(predicted.rows):
        return False
    if _same_with_these_columns(gold, predicted, ordered, order_keys):
        return True
    rearranged = _rearranged(gold, predicted) if any_columns and gold.rows else None
    return rearranged is not None and _same_with_these_columns(gold, rearranged, ordered, order_keys)


def _rearranged(gold: Result, predicted: Result) -> Result | None:
    """The predicted result with its columns in the gold result's order; None if no order makes the rows equal."""
    order = column_order(*([tuple(map(_sortable, row)) for row in result.rows] for result in (gold, predicted)))
    if order is None:
        return None
    return Result(predicted.columns, [tuple(row[index] for index in order) for row in predicted.rows])


def _same_with_these_columns(gold: Result, predicted: Result, ordered: bool, order_keys: Result | None) -> bool:
    if gold.rows == predicted.rows:
        return True
    if not ordered:
        return _same_rows(gold.rows, predicted.rows)
    # Compare run by run: rows that tie are compared as a multiset, and the runs must be in the gold query's order.
    #
    #     keys    5  5  4  3  3  3
    #     runs   [0  1][2][3  4  5]     sizes 2, 1, 3; stops 0, 2, 3, 6
    sizes = _tie_sizes(order_keys.rows if order_keys else [], len(gold.rows))
    stops = list(accumulate(sizes, initial=0))
    return all(_same_rows(gold.rows[i:j], predicted.rows[i:j]) for i, j in pairwise(stops))


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


def order_keys_of(sql: str) -> str:
    """A query that returns the values `sql` orders by, row by row; rows with equal values tie.

    It is the same query with another SELECT list: `SELECT name FROM hotel ORDER BY rating` gives
    `SELECT rating FROM hotel ORDER BY rating`.

    Returns:
        The empty string if there is no such query: without ORDER BY, with DISTINCT, for a set operation, and for text
        that sqlglot cannot parse.
    """
    try:
        query = parse(sql)
    except (SqlglotError, RecursionError):
        return ""
    if not isinstance(query, exp.Select) or query.args.get("distinct") or not query.args.get("order"):
        return ""
    keys = [_selected(query, term.this) for term in query.args["order"].expressions]
    return query.select(*keys, append=False).sql(dialect="sqlite")


def _selected(query: exp.Select, key: exp.Expr) -> exp.Expr:
    """The expression of an ORDER BY term. A position or an alias refers to a column of the SELECT list."""
    if isinstance(key, exp.Literal) and key.is_int and 0 < int(key.name) <= len(query.selects):
        return query.selects[int(key.name) - 1].unalias().copy()
    is_name = isinstance(key, exp.Column) and not key.table
    for column in query.selects:
        if is_name and isinstance(column, exp.Alias) and column.alias == key.name:
            return column.unalias().copy()
    return key.copy()


def _tie_sizes(keys: list[Row], count: int) -> list[int]:
    """Lengths of the runs of equal keys. If there is not one key per row, no rows tie."""
    if len(keys) != count:
        return [1] * count
    return [len(list(run)) for _, run in groupby(keys)]


def _same_rows(gold: list[Row], predicted: list[Row]) -> bool:
    """Compare rows as multisets."""
    if Counter(gold) == Counter(predicted):
        return True
    # The rows may still be equal within the tolerance. Sorting pairs them; the sort key is rounded, so that rounding
    # noise does not change the order. Each pair of values is then compared exactly or within the tolerance.
    pairs = zip(sorted(gold, key=_sort_key), sorted(predicted, key=_sort_key), strict=True)
    return all(all(map(_same_value, *pair)) for pair in pairs)


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
