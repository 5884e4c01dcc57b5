"""Spider's hardness levels, by the rules of the official script (`eval_hardness` in taoyds/test-suite-sql-eval)."""

from collections.abc import Iterator
from functools import lru_cache

from sqlglot import exp
from sqlglot.errors import SqlglotError

from chatmetrics.components.nl2sql.sql.parsing import first_select, parse

LEVELS = ("easy", "medium", "hard", "extra")
UNPARSED = "unparsed"
AGGREGATES = (exp.Max, exp.Min, exp.Count, exp.Sum, exp.Avg)


@lru_cache(maxsize=256)
def hardness_of(sql: str) -> str:
    """Spider's hardness level of a query: "easy", "medium", "hard" or "extra"; "unparsed" if sqlglot cannot parse it.

    The official script counts three components in the first SELECT: clauses, nested queries, and others. Its quirks
    are kept: NOT before a condition counts as an aggregate, and so do AND and OR in HAVING.
    """
    try:
        query = parse(sql)
        select = first_select(query)
        if select is None:
            return UNPARSED
        nested = _nested(select) + isinstance(query, exp.SetOperation)
        return _level(_clauses(select), nested, _others(select))
    except (SqlglotError, RecursionError):
        return UNPARSED


def _level(clauses: int, nested: int, others: int) -> str:
    """The level by the counts of the three components, in the order of the official script's rules."""
    if nested == 0:
        if clauses <= 1 and others == 0:
            return "easy"
        if (clauses <= 1 and others <= 2) or (clauses <= 2 and others < 2):
            return "medium"
        if (clauses <= 2 and others > 2) or (clauses == 3 and others <= 2):
            return "hard"
    return "hard" if nested <= 1 and clauses <= 1 and others == 0 else "extra"


def _clauses(select: exp.Select) -> int:
    """Component 1: WHERE, GROUP BY, ORDER BY, LIMIT, joins, OR, LIKE."""
    parts = [part for condition in _all_conditions(select) for part in _parts(condition)]
    ors = sum(isinstance(part, exp.Or) for part in parts)
    likes = sum(isinstance(_without_not(part), exp.Like) for part in parts)
    present = sum(bool(select.args.get(name)) for name in ("where", "group", "order", "limit"))
    return present + _joins(select) + ors + likes


def _nested(select: exp.Select) -> int:
    """Component 2: queries on the right of a condition's operator."""
    units = [unit for condition in _all_conditions(select) for unit in _units(condition)]
    return sum(len(list(_compared_queries(_without_not(unit)))) for unit in units)


def _others(select: exp.Select) -> int:
    """The others: one each for more than one aggregate, selected column, WHERE condition, GROUP BY column."""
    where, having = (_units(clause.this) if (clause := select.args.get(name)) else [] for name in ("where", "having"))
    group, order = select.args.get("group"), select.args.get("order")
    keys = [key.this for key in order.expressions] if order else []
    aggregates = (
        sum(_begins_with_aggregate(column) for column in select.selects)
        + sum(isinstance(unit, AGGREGATES) for key in keys for unit in _operands(key))
        + sum(isinstance(condition, exp.Not) for condition in (*where, *having))
        + max(0, len(having) - 1)
    )
    grouped = len(group.expressions) if group else 0
    return sum(count > 1 for count in (aggregates, len(select.selects), len(where), grouped))


def _joins(select: exp.Select) -> int:
    return len(select.args.get("joins") or ())


def _all_conditions(select: exp.Select) -> Iterator[exp.Expr]:
    """The conditions of ON, WHERE and HAVING."""
    for join in select.args.get("joins") or ():
        if on := join.args.get("on"):
            yield on
    for name in ("where", "having"):
        if clause := select.args.get(name):
            yield clause.this


def _parts(condition: exp.Expr) -> Iterator[exp.Expr]:
    """The ANDs, ORs and single conditions of a condition, from left to right, without those of nested queries."""
    stack = [condition]
    while stack:
        node = stack.pop()
        if isinstance(node, exp.Paren) and not isinstance(node.this, exp.Query):
            stack.append(node.this)
            continue
        yield node
        if isinstance(node, exp.And | exp.Or):
            stack += [node.right, node.left]


def _units(condition: exp.Expr) -> list[exp.Expr]:
    """The single conditions of a condition, joined by AND and OR."""
    return [part for part in _parts(condition) if not isinstance(part, exp.And | exp.Or)]


def _without_not(condition: exp.Expr) -> exp.Expr:
    return condition.this if isinstance(condition, exp.Not) else condition


def _compared_queries(condition: exp.Expr) -> Iterator[exp.Expr]:
    """The queries on the right of the operator; the official parser does not allow them on the left."""
    for name, value in condition.args.items():
        parts = value if isinstance(value, list) else [value]
        if name != "this" or isinstance(condition, exp.Exists):
            yield from (part for part in parts if isinstance(part, exp.Query | exp.Subquery))


def _begins_with_aggregate(column: exp.Expr) -> bool:
    expression = column.unalias()
    while isinstance(expression, exp.Binary):
        expression = expression.left
    return isinstance(expression, AGGREGATES)


def _operands(key: exp.Expr) -> Iterator[exp.Expr]:
    yield from (key.left, key.right) if isinstance(key, exp.Binary) else (key,)
