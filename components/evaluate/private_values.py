"""Removes the values of private columns from the copy of a database that is published with a model."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

from chatmetrics.components.nl2sql.descriptions import ColumnNames
from chatmetrics.components.nl2sql.identifiers import quoted

# What can be a value in a statement: a text, a longer number, or a comment.
_LITERAL = re.compile(r"'[^']|\b\d{4,}\b|--|/\*")


class PrivateValueError(Exception):
    """The values cannot be removed; the message says why."""


def names_private(sql: str, private: ColumnNames) -> bool:
    """Whether the text of a query contains the name of a private column."""
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", sql.lower()) for _, name in private)


def remove_private_values(path: Path, private: ColumnNames) -> None:
    """Replace the values of columns in an SQLite file by NULL or, where a column is NOT NULL, by numbers.

    Args:
        path: the file, which is changed.
        private: the columns; those that do not exist are ignored.

    Raises:
        PrivateValueError: values could remain: a private column is part of a key or of a view, is computed, or has a
            statement with a literal; or the database has virtual tables, which keep copies of values.
    """
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            _remove(connection, private)
    except sqlite3.Error as error:
        raise PrivateValueError(f"its values cannot be replaced ({error})") from error


def _remove(connection: sqlite3.Connection, private: ColumnNames) -> None:
    existing = _existing(connection, private)
    if not existing:
        return
    if connection.execute("SELECT 1 FROM sqlite_master WHERE sql LIKE 'CREATE VIRTUAL%'").fetchone():
        raise PrivateValueError("it has virtual tables, which can keep copies of the values")
    _check_texts(connection, {(table.lower(), name.lower()) for table, name in existing})
    connection.execute("PRAGMA ignore_check_constraints = ON")
    for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {quoted(trigger)}")
    connection.execute("BEGIN")
    for table, column in existing:
        _remove_column(connection, table, column)
    connection.execute("COMMIT")
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE name GLOB 'sqlite_stat*'").fetchall():
        connection.execute(f"DROP TABLE {quoted(name)}")  # it has samples of values
    connection.execute("VACUUM")  # deleted values remain in a file's free pages


def _existing(connection: sqlite3.Connection, private: ColumnNames) -> list[tuple[str, str]]:
    """The private columns that exist.

    Raises:
        PrivateValueError: one of them is a column of a view, is computed, or is part of a key.
    """
    tables = connection.execute("SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
    referenced = {
        (str(target).lower(), str(column or "").lower())
        for table, kind in tables
        if kind == "table"
        for _, _, target, _, column, *_ in connection.execute(f"PRAGMA foreign_key_list({quoted(table)})")
    }
    found = []
    for table, kind in tables:
        keys = {str(row[3]).lower() for row in connection.execute(f"PRAGMA foreign_key_list({quoted(table)})")}
        for _, name, _, _, _, primary, hidden in connection.execute(f"PRAGMA table_xinfo({quoted(table)})"):
            column = table.lower(), name.lower()
            if column not in private:
                continue
            if kind == "view" or hidden:
                raise PrivateValueError(f"{table}.{name} is computed from other columns")
            if primary or name.lower() in keys or column in referenced:
                raise PrivateValueError(f"{table}.{name} is part of a key")
            found.append((table, name))
    return found


def _check_texts(connection: sqlite3.Connection, private: ColumnNames) -> None:
    """Refuse statements that could contain a value, such as CHECK (pin IN (4711)).

    Raises:
        PrivateValueError: there is one.
    """
    for name, sql in connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"):
        if names_private(sql, private) and _LITERAL.search(sql):
            raise PrivateValueError(f"the statement of {name} could contain a value")


def _remove_column(connection: sqlite3.Connection, table: str, column: str) -> None:
    name, where = quoted(column), quoted(table)
    before = connection.execute(f"SELECT count(*) FROM {where}").fetchone()  # noqa: S608
    update = f"UPDATE OR ABORT {where} SET {name} ="  # noqa: S608 (whatever the column itself says about conflicts)
    try:
        connection.execute(f"{update} NULL")
        is_removed = f"{name} IS NULL"
    except sqlite3.IntegrityError:  # it is NOT NULL
        row = _row_number(connection, table)
        connection.execute(f"{update} -{row}")  # negative, so that no value of a unique column is met on the way
        is_removed = f"{name} = -{row}"
    after = connection.execute(f"SELECT count(*) FROM {where} WHERE {is_removed}").fetchone()  # noqa: S608
    if before != after:
        raise PrivateValueError(f"values of {table}.{column} remain")


def _row_number(connection: sqlite3.Connection, table: str) -> str:
    """The name of a table's row number, which a column can hide."""
    columns = {str(row[1]).lower() for row in connection.execute(f"PRAGMA table_xinfo({quoted(table)})")}
    free = [name for name in ("rowid", "oid", "_rowid_") if name not in columns]
    if not free:
        raise PrivateValueError(f"columns of {table} hide the number of a row")
    return free[0]
