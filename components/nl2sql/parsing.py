"""Reading SQL with sqlglot, once for all that is asked about a query."""

from functools import lru_cache

import sqlglot
from sqlglot import exp


@lru_cache(maxsize=256)
def parse(sql: str) -> exp.Expr:
    """The syntax tree of one SQLite statement; it is shared, so copy it before changing anything.

    Raises:
        SqlglotError: it cannot be parsed.
        RecursionError: it is nested too deeply.
    """
    return sqlglot.parse_one(sql, read="sqlite")
