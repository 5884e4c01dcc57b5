"""Where the questions' databases are: a folder of SQLite files, or a database server."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.execution import Executor, Result, database_path
from chatmetrics.components.nl2sql.schema import Schema


class Databases(Protocol):
    """Runs untrusted queries on databases by name, read-only and within bounds; not for use by several threads."""

    def __enter__(self) -> Self:
        """Get ready."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of processes and connections."""

    def another(self) -> Self:
        """The same for use by another process: it shares no connection and can be pickled before it is used."""

    def check(self, db_id: str) -> None:
        """Raise `InputError` when the database cannot be used."""

    def execute(self, db_id: str, queries: Sequence[str]) -> list[Result]:
        """Run queries one after the other, each within the bounds."""

    def schema(self, db_id: str) -> str:
        """The schema for people to read, as DDL."""


class SqliteDatabases:
    """A folder of SQLite files, `<db_id>/<db_id>.sqlite` or `<db_id>.sqlite`.

    Args:
        folder: that folder.
        query_seconds: seconds that a query may take.

    Raises:
        InputError: there is no such folder.
    """

    def __init__(self, folder: Path, query_seconds: float) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder of databases")
        self._folder = folder
        self._query_seconds = query_seconds
        self._executor = Executor(query_seconds)
        self._paths: dict[str, Path] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.close()

    def another(self) -> Self:
        """The same with a worker process of its own."""
        return type(self)(self._folder, self._query_seconds)

    def check(self, db_id: str) -> None:
        """Find the database's file.

        Raises:
            InputError: it is missing.
        """
        self._paths[db_id] = database_path(self._folder, db_id)

    def execute(self, db_id: str, queries: Sequence[str]) -> list[Result]:
        """Run queries in the worker process; see `Executor.execute_all`."""
        if db_id not in self._paths:
            self.check(db_id)
        return self._executor.execute_all(self._paths[db_id], queries)

    def schema(self, db_id: str) -> str:
        """The schema as in a prompt.

        Raises:
            InputError: the database cannot be read.
        """
        return Schema.from_sqlite(self._paths[db_id]).render("ddl")


def open_databases(where: str, query_seconds: float) -> Databases:
    """The databases at `where`: a folder of SQLite files, or an SQLAlchemy URL.

    Raises:
        InputError: there is no such folder, or the URL cannot be used.
    """
    if "://" not in where:
        return SqliteDatabases(Path(where), query_seconds)
    # Imported here because SQLite needs no SQLAlchemy.
    from chatmetrics.components.nl2sql.server_databases import ServerDatabases

    return ServerDatabases(where, query_seconds)
