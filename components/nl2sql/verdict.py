"""Whether two results answer a question the same way: strictly, as a careful person would judge."""

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

# Wide enough for the noise of summing in another order, far below what ROUND or a wrong row would change.
RELATIVE_TOLERANCE = 1e-9
ABSOLUTE_TOLERANCE = 1e-9
SORTED_DIGITS = 12


class StrictVerdict:
    """Says of any number of predicted results whether they answer one question as its gold query does.

    Args:
        question: the words that were asked, for the order of the columns; may be empty.
        sql: the gold query.
        gold: what it returned.
        execute: runs queries on the question's database; one more is run where the order of rows alone is in doubt.
    """

    def __init__(self, question: str, sql: str, gold: Result, execute: Execute) -> None:
        self.ordered = is_ordered(sql)
        self._question, self._sql, self._gold, self._execute = question, sql, gold, execute
        self._keys: Result | None = None

    def is_right(self, predicted: Result) -> bool:
        """Whether it is the gold result, columns in another order included where the question leaves that open."""
        return self.is_same(predicted) or self.is_same_rearranged(predicted)

    def is_same(self, predicted: Result) -> bool:
        """Whether it is the gold result with the columns as they stand there."""
        return self._is_same(predicted, any_columns=False)

    def is_same_rearranged(self, predicted: Result) -> bool:
        """Whether it is the gold result in any order of the columns, and the question leaves that order open."""
        return not question_fixes_columns(self._question, self._sql) and self._is_same(predicted, any_columns=True)

    def order_keys(self) -> Result:
        """What the gold query orders its rows by, see `order_keys_of`; nothing where that cannot be told."""
        if self._keys is None:
            keys = order_keys_of(self._sql)
            self._keys = self._execute([keys])[0] if keys else Result()
        return self._keys

    def _is_same(self, predicted: Result, any_columns: bool) -> bool:
        if same_result(self._gold, predicted, self.ordered, None, any_columns):
            return True
        if not self.ordered or not same_result(self._gold, predicted, False, None, any_columns):
            return False
        # Right but for the order of the rows: only now is it worth a query to know which of them tie.
        return same_result(self._gold, predicted, True, self.order_keys(), any_columns)


def same_result(
    gold: Result, predicted: Result, ordered: bool, order_keys: Result | None = None, any_columns: bool = False
) -> bool:
    """Say whether the predicted result is the gold one.

    Rows are compared with their duplicates, columns by value only (names do not count). Numbers are equal within a
    relative 1e-9 if one of them is a float, so 1 equals 1.0; '1' does not equal 1.

    Args:
        gold: what the gold query returned.
        predicted: what the predicted query returned.
        ordered: whether the order of the rows counts, see `is_ordered`.
        order_keys: what `order_keys_of` the gold query returned: rows that tie there may change places.
        any_columns: whether the columns may stand in another order, see `question_fixes_columns`.
    """
    if gold.failure != FailureMode.OK or predicted.failure != FailureMode.OK:
        return False
    if len(gold.columns) != len(predicted.columns) or len(gold.rows) != len(predicted.rows):
        return False
    if _same_in_this_column_order(gold, predicted, ordered, order_keys):
        return True
    rearranged = _rearranged(gold, predicted) if any_columns and gold.rows else None
    return rearranged is not None and _same_in_this_column_order(gold, rearranged, ordered, order_keys)


def _rearranged(gold: Result, predicted: Result) -> Result | None:
    """The predicted result with its columns where the gold ones are; None where no order makes the rows the same."""
    order = column_order(*([tuple(map(_sortable, row)) for row in result.rows] for result in (gold, predicted)))
    if order is None:
        return None
    return Result(predicted.columns, [tuple(row[index] for index in order) for row in predicted.rows])


def _same_in_this_column_order(gold: Result, predicted: Result, ordered: bool, order_keys: Result | None) -> bool:
    if gold.rows == predicted.rows:
        return True
    if not ordered:
        return _same_rows(gold.rows, predicted.rows)
    sizes = _tie_sizes(order_keys.rows if order_keys else [], len(gold.rows))
    stops = list(accumulate(sizes, initial=0))
    return all(_same_rows(gold.rows[i:j], predicted.rows[i:j]) for i, j in pairwise(stops))


def is_ordered(sql: str) -> bool:
    """Whether a query orders its own rows: ORDER BY outside all parentheses, so not in a subquery or a window."""
    if "order" not in sql.lower():
        return False
    depth = 0
    try:
        tokens = sqlglot.tokenize(sql, read="sqlite")
    except SqlglotError:
        return False  # such a text gives no rows either
    for token in tokens:
        depth += (token.token_type == TokenType.L_PAREN) - (token.token_type == TokenType.R_PAREN)
        if token.token_type == TokenType.ORDER_BY and depth == 0:
            return True
    return False


def order_keys_of(sql: str) -> str:
    """A query for the values that `sql` orders by, row for row, which tell its ties.

    Returns:
        The empty string where that is not simply the same query with another SELECT list: no ORDER BY, DISTINCT, a
        set operation, what sqlglot cannot parse.
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
    """What an ORDER BY term stands for: a position or an alias means a column of the SELECT list."""
    if isinstance(key, exp.Literal) and key.is_int and 0 < int(key.name) <= len(query.selects):
        return query.selects[int(key.name) - 1].unalias().copy()
    is_name = isinstance(key, exp.Column) and not key.table
    for column in query.selects:
        if is_name and isinstance(column, exp.Alias) and column.alias == key.name:
            return column.unalias().copy()
    return key.copy()


def _tie_sizes(keys: list[Row], count: int) -> list[int]:
    """Lengths of the runs of equal keys; without keys for exactly these rows, no row ties with another."""
    if len(keys) != count:
        return [1] * count
    return [len(list(run)) for _, run in groupby(keys)]


def _same_rows(gold: list[Row], predicted: list[Row]) -> bool:
    """Compare as multisets."""
    if Counter(gold) == Counter(predicted):
        return True
    # Only float noise can still be forgiven. Sorting pairs the rows up, rounded so that noise does not change the
    # order; each value is then compared exactly or within the tolerance.
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
    # Two integers are identifiers or counts as often as quantities: no tolerance.
    if {type(gold), type(predicted)} in ({float}, {float, int}):
        return math.isclose(gold, predicted, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)
    return type(gold) is type(predicted) and bool(gold == predicted)
