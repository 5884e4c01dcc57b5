"""Query types of SQL queries, by which accuracy is reported."""

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

from sqlglot import exp
from sqlglot.errors import SqlglotError

from chatmetrics.components.nl2sql.sql.parsing import parse

QUERY_TYPES = (
    "single table",
    "2-3 table join",
    "larger join",
    "subquery",
    "aggregate",
    "window function",
    "set operation",
)
UNPARSED = "unparsed"
# A query can have several query types. The first of these that applies is its type in a dataset.
_MOST_SPECIFIC_FIRST = (
    *("window function", "set operation", "subquery", "larger join", "2-3 table join", "aggregate", "single table"),
)
_COMPLEX = frozenset(QUERY_TYPES) - {"single table", "aggregate"}
_SMALLER_JOIN = 3  # tables


def query_type_of(sql: str, dialect: str = "sqlite") -> str:
    """The most specific query type of a query in a dialect, as sqlglot names it: one of `QUERY_TYPES`, or "unparsed".

    It is the first that applies of: window function, set operation, subquery, larger join, 2-3 table join, aggregate,
    single table.
    """
    found = query_types_of(sql, dialect)
    return next((name for name in _MOST_SPECIFIC_FIRST if name in found), UNPARSED)


@lru_cache(maxsize=256)
def query_types_of(sql: str, dialect: str = "sqlite") -> tuple[str, ...]:
    """All query types of a query in a dialect, as sqlglot names it, in the order of `QUERY_TYPES`.

    - single table: no FROM clause has more than one table, and all name the same table;
    - 2-3 table join, larger join: by the FROM clause with the most tables; a comma counts as a join;
    - subquery: a SELECT inside another one, or a common table expression;
    - aggregate: an aggregate function outside a window, or GROUP BY;
    - window function: an OVER clause;
    - set operation: UNION, INTERSECT or EXCEPT.

    Returns:
        Names of `QUERY_TYPES`; ("unparsed",) if sqlglot cannot parse the text as one query.
    """
    try:
        query = parse(sql, dialect)
        nodes = list(query.walk())
    except (SqlglotError, RecursionError):
        return (UNPARSED,)
    if not isinstance(query, exp.Query):
        return (UNPARSED,)
    found = set(_find_query_types(nodes))
    return tuple(name for name in QUERY_TYPES if name in found) or ("single table",)


def is_complex(sql: str) -> bool:
    """Whether a query has several tables, a subquery, a window function or a set operation.

    Published evaluations draw such queries.
    """
    return not _COMPLEX.isdisjoint(query_types_of(sql))


def _find_query_types(nodes: list[exp.Expr]) -> Iterator[str]:
    # Keyed by identity, since sqlglot's expressions compare by content.
    joins: Counter[int] = Counter()
    tables: set[str] = set()
    for node in nodes:
        match node:
            case exp.Join():
                joins[id(node.parent_select)] += 1
            case exp.Table():
                tables.add(node.name.lower())
            case exp.Select() if _is_nested(node):
                yield "subquery"
            case exp.Group():
                yield "aggregate"
            case exp.AggFunc() if not isinstance(node.parent, exp.Window):
                yield "aggregate"
            case exp.Window():
                yield "window function"
            case exp.SetOperation():
                yield "set operation"
    combined = 1 + max(joins.values(), default=0)
    if combined > _SMALLER_JOIN:
        yield "larger join"
    elif combined > 1:
        yield "2-3 table join"
    elif len(tables) == 1:
        yield "single table"


def _is_nested(select: exp.Select) -> bool:
    """Whether a SELECT is inside anything other than set operations and parentheses."""
    node = select.parent
    while isinstance(node, exp.SetOperation) or (isinstance(node, exp.Subquery) and node.parent_select is None):
        node = node.parent
    return node is not None
