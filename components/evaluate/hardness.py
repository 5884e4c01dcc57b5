"""Spider's hardness levels, counted as the official script does (`eval_hardness` in taoyds/test-suite-sql-eval)."""

from collections.abc import Iterable, Iterator

from sqlglot import exp
from sqlglot.errors import SqlglotError

from chatmetrics.components.nl2sql.parsing import parse

LEVELS = ("easy", "medium", "hard", "extra")
UNPARSED = "unparsed"
AGGREGATES = (exp.Max, exp.Min, exp.Count, exp.Sum, exp.Avg)


def hardness_of(sql: str) -> str:
    """Spider's level of a query: "easy", "medium", "hard" or "extra"; "unparsed" where sqlglot cannot parse it.

    The official script counts three kinds of parts in its own parse of the first SELECT. What it counts in an odd way
    is counted so here: NOT before a condition as an aggregate, AND and OR in HAVING too.
    """
    try:
        query = parse(sql)
        select, is_set_operation = _first_select(query)
        if select is None:
            return UNPARSED
        return _level(_clauses(select), _nested(select) + is_set_operation, _others(select))
    except (SqlglotError, RecursionError):
        return UNPARSED


def _first_select(query: exp.Expr) -> tuple[exp.Select | None, bool]:
    is_set_operation = isinstance(query, exp.SetOperation)
    while isinstance(query, exp.SetOperation | exp.Subquery):
        query = query.this
    return (query if isinstance(query, exp.Select) else None), is_set_operation


def _level(clauses: int, nested: int, others: int) -> str:
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
    conditions = [*_join_conditions(select), *_conditions(select, "where"), *_conditions(select, "having")]
    ors = sum(isinstance(node, exp.Or) for part in _condition_roots(select) for node in _connectors(part))
    likes = sum(isinstance(_without_not(condition), exp.Like) for condition in conditions)
    present = sum(bool(select.args.get(name)) for name in ("where", "group", "order", "limit"))
    return present + _joins(select) + ors + likes


def _nested(select: exp.Select) -> int:
    """Component 2: queries that a condition compares with."""
    conditions = [*_join_conditions(select), *_conditions(select, "where"), *_conditions(select, "having")]
    return sum(len(list(_compared_queries(_without_not(condition)))) for condition in conditions)


def _others(select: exp.Select) -> int:
    """More than one aggregate, selected column, WHERE condition, GROUP BY column."""
    where, having = _conditions(select, "where"), _conditions(select, "having")
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


def _condition_roots(select: exp.Select) -> Iterator[exp.Expr]:
    for join in select.args.get("joins") or ():
        if on := join.args.get("on"):
            yield on
    for name in ("where", "having"):
        if clause := select.args.get(name):
            yield clause.this


def _connectors(condition: exp.Expr) -> Iterator[exp.Expr]:
    """AND and OR of a condition, not those of queries inside it."""
    stack = [condition]
    while stack:
        node = stack.pop()
        if isinstance(node, exp.Paren):
            stack.append(node.this)
        elif isinstance(node, exp.And | exp.Or):
            yield node
            stack += [node.right, node.left]


def _leaves(condition: exp.Expr) -> list[exp.Expr]:
    stack, found = [condition], []
    while stack:
        node = stack.pop()
        if isinstance(node, exp.Paren) and not isinstance(node.this, exp.Query):
            stack.append(node.this)
        elif isinstance(node, exp.And | exp.Or):
            stack += [node.right, node.left]
        else:
            found.append(node)
    return found


def _conditions(select: exp.Select, clause: str) -> list[exp.Expr]:
    found = select.args.get(clause)
    return _leaves(found.this) if found else []


def _join_conditions(select: exp.Select) -> Iterable[exp.Expr]:
    ons = (join.args.get("on") for join in select.args.get("joins") or ())
    return [leaf for on in ons if on for leaf in _leaves(on)]


def _without_not(condition: exp.Expr) -> exp.Expr:
    return condition.this if isinstance(condition, exp.Not) else condition


def _compared_queries(condition: exp.Expr) -> Iterator[exp.Expr]:
    """The queries right of the operator; the official parser knows none on its left."""
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
