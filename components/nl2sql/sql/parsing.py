"""SQL parsing with sqlglot, with a cache for the several uses of one query."""

import logging
from functools import lru_cache
from itertools import accumulate

import sqlglot
from sqlglot import exp
from sqlglot.errors import ParseError, SqlglotError

from chatmetrics.components.nl2sql.sql.statements import single_statement

# At some thousands of nested parentheses, or of FROM in a row, sqlglot's compiled parser overflows the process's stack;
# and some long texts take it quadratic time. No query that people write is as long.
MAX_DEPTH = 1000
MAX_CHARACTERS = 50_000

# sqlglot's warnings are about translating SQL, which nothing here does, and they would quote untrusted text.
logging.getLogger("sqlglot").setLevel(logging.ERROR)


@lru_cache(maxsize=256)
def parse(sql: str, dialect: str = "sqlite") -> exp.Expr:
    """The syntax tree of one statement, as from `parse_new`. It is cached and shared, so do not change it."""
    return parse_new(sql, dialect)


def parse_new(sql: str, dialect: str = "sqlite") -> exp.Expr:
    """A syntax tree of one statement, in a dialect that sqlglot names, which the caller may change.

    Raises:
        SqlglotError: the statement cannot be parsed.
        RecursionError: the statement is nested too deeply.
    """
    return _parse(single_statement(sql), dialect)


def is_query(sql: str, dialect: str = "sqlite") -> bool:
    """Whether a text is one query of a dialect of SQL, as sqlglot names it, and selects something."""
    try:
        select = first_select(parse(sql) if dialect == "sqlite" else _parse(sql, dialect))
    except (SqlglotError, RecursionError):
        return False
    return select is not None and bool(select.expressions)


def check_parsable(sql: str) -> None:
    """Raise `RecursionError` for a text so long or nested so deeply that sqlglot's parser could end the process."""
    if len(sql) > MAX_CHARACTERS:
        raise RecursionError(f"{len(sql)} characters of SQL, more than {MAX_CHARACTERS}")
    if sql.count("(") > MAX_DEPTH and _depth(sql) > MAX_DEPTH:
        raise RecursionError(f"more than {MAX_DEPTH} nested parentheses")


def _parse(sql: str, dialect: str) -> exp.Expr:
    check_parsable(sql)
    try:
        return sqlglot.parse_one(sql, read=dialect)
    except TypeError as error:  # sqlglot's bug with an operator that lacks an operand: a ->> .b
        raise ParseError(str(error)) from error


def _depth(sql: str) -> int:
    """Greatest number of nested parentheses; those in strings count too."""
    return max(accumulate((character == "(") - (character == ")") for character in sql))


def first_select(query: exp.Expr) -> exp.Select | None:
    """The leftmost SELECT of a query, inside any parentheses and set operations."""
    while isinstance(query, exp.SetOperation | exp.Subquery):
        query = query.this
    return query if isinstance(query, exp.Select) else None
