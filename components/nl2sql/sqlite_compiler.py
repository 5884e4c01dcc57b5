"""What SQLite's compiler makes of a query, by a schema: the names that do not resolve, and the compiled program."""

import sqlite3
import threading
import unicodedata
from functools import lru_cache

from chatmetrics.components.nl2sql.identifiers import quoted
from chatmetrics.components.nl2sql.schema import Schema, Table

_UNKNOWN = ("no such table", "no such column")
_UNRESOLVED = (*_UNKNOWN, "ambiguous column name", "cannot join using column")
_REFUSED = (sqlite3.SQLITE_PRAGMA, sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH)


def unknown_name(schema: Schema, sql: str) -> str:
    """SQLite's message on the first name in a query that a schema does not have; empty if it has all names.

    SQLite itself resolves the names: it compiles the query, without running it, on empty tables with the schema's
    columns. A query that cannot be compiled for any other reason counts as resolved; running it reports the error.
    """
    error = _compile_error(schema, sql)
    return error if error.startswith(_UNKNOWN) else ""


def unresolved_name(schema: Schema, sql: str) -> str:
    """SQLite's message on the first name in a query that does not resolve, or that is ambiguous; empty if all do."""
    error = _compile_error(schema, sql)
    return error if error.startswith(_UNRESOLVED) else ""


def _compile_error(schema: Schema, sql: str) -> str:
    try:
        _connections.of(schema.tables).execute(f"EXPLAIN {sql}")
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        return str(error)
    return ""


def program_of(schema: Schema, sql: str) -> list[tuple[object, ...]] | None:
    """The program that SQLite compiles a query to on empty tables; None if it cannot be compiled.

    Equal programs return equal rows, whatever the tables contain. Names of aliases and result columns are not part of
    it.
    """
    try:
        rows = _connections.of(schema.tables).execute(f"EXPLAIN {sql}").fetchall()
    except (sqlite3.Error, sqlite3.Warning, ValueError):
        return None
    # An Explain instruction is a comment about the query plan, with aliases; so is the last column.
    return [row[1:7] for row in rows if row[1] != "Explain"]


def _empty_tables(tables: tuple[Table, ...]) -> sqlite3.Connection:
    """A database in memory with the tables, views as tables, and with the hidden columns of virtual tables."""
    connection = sqlite3.connect(":memory:")
    for table in tables:
        columns = dict.fromkeys(map(_shown, table.column_names))
        connection.execute(f"CREATE TABLE {_shown(table.name)} ({', '.join(columns)})")
    # Some PRAGMAs take effect when they are compiled.
    connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_DENY if action in _REFUSED else sqlite3.SQLITE_OK)
    return connection


class _Connections(threading.local):
    """Each thread's own connections, by tables.

    SQLite calls the authorizer, which needs Python's interpreter lock, while it holds the lock of the connection. Two
    threads that share a connection can therefore wait for each other forever.
    """

    def __init__(self) -> None:
        self.of = lru_cache(maxsize=64)(_empty_tables)


_connections = _Connections()


def _shown(name: str) -> str:
    """A name as prompts show it: in Unicode's NFC, in which a name in another form does not exist."""
    return unicodedata.normalize("NFC", quoted(name))
