"""What kind of query a SQL text is: the query types that accuracy is reported by."""

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

from sqlglot import exp
from sqlglot.errors import SqlglotError

from chatmetrics.components.nl2sql.parsing import parse

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
# Of several query types that a query bears, the first of these is the one that it stands under in a dataset.
_MOST_TELLING_FIRST = (
    *("window function", "set operation", "subquery", "larger join", "2-3 table join", "aggregate", "single table"),
)
_COMPLEX = frozenset(QUERY_TYPES) - {"single table", "aggregate"}
_SMALLER_JOIN = 3  # tables


def query_type_of(sql: str) -> str:
    """Name the most telling query type of a SQLite query: one of `QUERY_TYPES`, or "unparsed".

    That is the first that it bears of: window function, set operation, subquery, larger join, 2-3 table join,
    aggregate, single table.
    """
    borne = query_types_of(sql)
    return next((name for name in _MOST_TELLING_FIRST if name in borne), UNPARSED)


@lru_cache(maxsize=256)
def query_types_of(sql: str) -> tuple[str, ...]:
    """Name all query types that a SQLite query bears, in the order of `QUERY_TYPES`.

    - single table: no FROM has more than one table, and all of them name the same one;
    - 2-3 table join, larger join: by the FROM that combines the most tables, a comma counting as a join;
    - subquery: a SELECT inside another one, or a common table expression;
    - aggregate: an aggregate function outside a window, or GROUP BY;
    - window function: an OVER clause;
    - set operation: UNION, INTERSECT or EXCEPT.

    Returns:
        Names of `QUERY_TYPES`; ("unparsed",) for what is not one query that sqlglot can parse.
    """
    try:
        query = parse(sql)
        nodes = list(query.walk())
    except (SqlglotError, RecursionError):
        return (UNPARSED,)
    if not isinstance(query, exp.Query):
        return (UNPARSED,)
    borne = set(_borne(nodes))
    return tuple(name for name in QUERY_TYPES if name in borne) or ("single table",)


def is_complex(sql: str) -> bool:
    """Whether a query is what published tests draw: several tables, a subquery, a window, a set operation."""
    return not _COMPLEX.isdisjoint(query_types_of(sql))


def _borne(nodes: list[exp.Expr]) -> Iterator[str]:
    # By identity, since sqlglot takes two equal queries for the same.
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
    """Whether anything but set operations and parentheses stands around a SELECT."""
    node = select.parent
    while isinstance(node, exp.SetOperation) or (isinstance(node, exp.Subquery) and node.parent_select is None):
        node = node.parent
    return node is not None
