"""Reading SQL with sqlglot, once for all that is asked about a query."""

from functools import lru_cache
from itertools import accumulate

import sqlglot
from sqlglot import exp

# Beyond some thousands of parentheses in one another sqlglot's compiled parser overflows the stack of the process.
DEEPEST = 1000


@lru_cache(maxsize=256)
def parse(sql: str) -> exp.Expr:
    """The syntax tree of one SQLite statement; it is shared, so copy it before changing anything.

    Raises:
        SqlglotError: it cannot be parsed.
        RecursionError: it is nested too deeply.
    """
    if sql.count("(") > DEEPEST and max(accumulate((c == "(") - (c == ")") for c in sql)) > DEEPEST:
        raise RecursionError(f"more than {DEEPEST} parentheses in one another")
    return sqlglot.parse_one(sql, read="sqlite")


def first_select(query: exp.Expr) -> exp.Select | None:
    """The leftmost SELECT of a query: what a set operation begins with, parentheses taken off."""
    while isinstance(query, exp.SetOperation | exp.Subquery):
        query = query.this
    return query if isinstance(query, exp.Select) else None
