"""The values in a database's text columns, read for an index of them.

Whoever has the database builds the index when a question first needs it: preprocess, distill, `ask` and a serving pod.
So it is not published, and no value of a database gets into a bucket. All read the same rows, within the same limits.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Lock

from chatmetrics.components import console
from chatmetrics.components.nl2sql.databases.addresses import is_address
from chatmetrics.components.nl2sql.databases.databases import open_databases
from chatmetrics.components.nl2sql.databases.execution import Executor, FailureMode, Result, database_path
from chatmetrics.components.nl2sql.identifiers import quoted
from chatmetrics.components.nl2sql.linking.found_values import ColumnName, FoundValue
from chatmetrics.components.nl2sql.linking.values import MAX_BYTES, ValueIndex
from chatmetrics.components.nl2sql.schema import SAMPLED_ROWS, Column, Schema, Table

MOST_VALUES = 10_000  # distinct ones of a column
LONGEST_VALUE = 100  # characters
QUERY_SECONDS = 30.0  # for the values of one column
SECONDS_WORTH_A_LINE = 1.0
NAMED = 3  # columns in a message

# Types of columns with text, in PostgreSQL, MariaDB, MySQL and DuckDB; the first two show the values of enumerations.
# In SQLite, any column can contain text.
_TEXT = re.compile(
    r"(?:(?:var|n|nvar)?char|character|bpchar|citext|(?:tiny|medium|long)?text|string|enum\b|set\b|.*\(')(?:.*[^\]])?",
    re.IGNORECASE | re.DOTALL,
)

Execute = Callable[[Sequence[str]], Sequence[Result]]


class StoredValues:
    """The values in one database, which are read and indexed when `find` is first called.

    Args:
        schema: the database's schema. Private columns and views are not read.
        where: its SQLite file, or the address of a server, of a DuckDB file, or of a list.
        max_bytes: the maximum size of the index.
    """

    def __init__(self, schema: Schema, where: Path | str, max_bytes: int = MAX_BYTES) -> None:
        self._schema, self._where, self._max_bytes = schema, where, max_bytes
        self._index: ValueIndex | None = None
        self._lock = Lock()
        self._skipped: list[str] = []

    def find(self, question: str) -> list[FoundValue]:
        """The values that a question names; see `ValueIndex.find`.

        Raises:
            InputError: the database is not available.
            ServiceError: the connection was lost.
        """
        with self._lock:
            self._index = self._index or self._built()
        return self._index.find(question)

    def _built(self) -> ValueIndex:
        started, name = time.monotonic(), self._schema.db_id
        self._skipped = []
        names = (each for table in self._schema.tables for each in (table.name, *table.column_names))
        with _queries(self._where, name) as execute:
            index = ValueIndex(self._values(execute), names, self._max_bytes)
        if self._skipped:
            more = ", ..." if len(self._skipped) > NAMED else ""
            console.warning(
                f"{name}: the values of {', '.join(self._skipped[:NAMED])}{more} cannot be read, so questions are not "
                "compared with them"
            )
        if index.incomplete:
            console.warning(
                f"{name}: only {index.number:,} values fit into the {self._max_bytes >> 20} MiB of a value index; not "
                f"all of column {'.'.join(index.incomplete)} and those after it are compared with questions"
            )
        if (seconds := time.monotonic() - started) >= SECONDS_WORTH_A_LINE:
            console.info(f"{name}: indexed {index.number:,} values in {seconds:.1f} s")
        return index

    def _values(self, execute: Execute) -> Iterator[tuple[ColumnName, list[str]]]:
        for table in self._schema.tables:
            for column in table.columns:
                if table.kind or column.private or not _may_have_text(column, self._schema.dialect):
                    continue
                [result] = execute([_query(table, column, self._schema.dialect)])
                if result.failure != FailureMode.OK:  # its message may contain a value
                    self._skipped.append(f"{table.name}.{column.name} ({result.failure})")
                elif result.rows:
                    # As a prompt shows a value.
                    yield (table.name, column.name), [" ".join(str(value).split()) for (value,) in result.rows]


def stored_values(schema: Schema, where: str) -> StoredValues:
    """The values of a database in a folder of SQLite files, or at an address; see `open_databases`.

    Raises:
        InputError: the folder has no such database.
    """
    return StoredValues(schema, where if is_address(where) else database_path(Path(where), schema.db_id))


@contextmanager
def _queries(where: Path | str, db_id: str) -> Iterator[Execute]:
    """Context manager: what runs queries on the database, with the same limits for training and serving."""
    if is_address(str(where)):
        with open_databases(str(where), QUERY_SECONDS) as databases:
            yield partial(databases.execute, db_id)
        return
    with Executor(QUERY_SECONDS) as executor:
        yield partial(executor.execute_all, Path(where))


def _may_have_text(column: Column, dialect: str) -> bool:
    return dialect == "sqlite" or bool(_TEXT.fullmatch(column.type))


def _query(table: Table, column: Column, dialect: str) -> str:
    """The query for a column's values; a bound on rows, not on time, so that training and serving find the same."""
    name, source = quoted(column.name, dialect), quoted(table.name, dialect)
    if dialect == "sqlite":
        # Only comparisons need the column's own collation, which may be missing.
        return (
            f"SELECT DISTINCT value COLLATE BINARY FROM (SELECT {name} AS value FROM {source} LIMIT {SAMPLED_ROWS}) "  # noqa: S608
            f"WHERE typeof(value) = 'text' AND length(value) BETWEEN 1 AND {LONGEST_VALUE} LIMIT {MOST_VALUES}"
        )
    text = "CHAR" if dialect == "mysql" else "VARCHAR"
    return (
        f"SELECT DISTINCT value FROM (SELECT CAST({name} AS {text}) AS value FROM "  # noqa: S608
        f"(SELECT {name} FROM {source} LIMIT {SAMPLED_ROWS}) AS first_rows) AS texts "
        f"WHERE CHAR_LENGTH(value) BETWEEN 1 AND {LONGEST_VALUE} ORDER BY value LIMIT {MOST_VALUES}"
    )
