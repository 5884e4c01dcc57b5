"""SQL parsing with sqlglot, with a cache for the several uses of one query."""

from functools import lru_cache
from itertools import accumulate

import sqlglot
from sqlglot import exp

from chatmetrics.components.nl2sql.statements import single_statement

# At some thousands of nested parentheses, sqlglot's compiled parser overflows the process's stack.
MAX_DEPTH = 1000


@lru_cache(maxsize=256)
def parse(sql: str) -> exp.Expr:
    """The syntax tree of one SQLite statement. It is cached and shared: copy it before changing it.

    Raises:
        SqlglotError: the statement cannot be parsed.
        RecursionError: the statement is nested too deeply.
    """
    if sql.count("(") > MAX_DEPTH and _depth(sql) > MAX_DEPTH:
        raise RecursionError(f"more than {MAX_DEPTH} nested parentheses")
    return sqlglot.parse_one(single_statement(sql), read="sqlite")


def _depth(sql: str) -> int:
    """Greatest number of nested parentheses; those in strings count too."""
    return max(accumulate((character == "(") - (character == ")") for character in sql))


def first_select(query: exp.Expr) -> exp.Select | None:
    """The leftmost SELECT of a query, inside any parentheses and set operations."""
    while isinstance(query, exp.SetOperation | exp.Subquery):
        query = query.this
    return query if isinstance(query, exp.Select) else None
