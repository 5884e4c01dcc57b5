"""Whether a prompt's schema shows all names that a query uses."""

from sqlglot.errors import SqlglotError

from chatmetrics.components.nl2sql.binding.scopes import unresolved
from chatmetrics.components.nl2sql.databases.addresses import SQLITE
from chatmetrics.components.nl2sql.schema import Schema
from chatmetrics.components.nl2sql.sql.dialect import Dialect
from chatmetrics.components.nl2sql.sql.parsing import parse
from chatmetrics.components.nl2sql.sqlite_compiler import unknown_name


def name_not_shown(schema: Schema, sql: str) -> str:
    """A message on the first name in a query that a schema does not show; empty if it shows all names.

    SQLite itself resolves the names of its dialect, `unresolved` those of others. A query that cannot be compiled or
    parsed counts as shown; running it reports the error.
    """
    if schema.dialect == SQLITE:
        return unknown_name(schema, sql)
    try:
        problems = unresolved(parse(sql, schema.dialect), schema, Dialect(schema.dialect))
    except (SqlglotError, RecursionError):
        return ""
    unknown = next((problem for problem in problems if problem.kind != "ambiguous"), None)
    return f"no such {'table' if unknown.kind == 'table' else 'column'}: {unknown.name}" if unknown else ""
