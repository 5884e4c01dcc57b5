"""Access to the databases of a dataset: a folder of SQLite files, servers, or DuckDB files."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Protocol, Self

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.databases.addresses import is_address, listed_at
from chatmetrics.components.nl2sql.databases.execution import MAX_ROWS, Executor, Result, database_path
from chatmetrics.components.nl2sql.descriptions import Descriptions
from chatmetrics.components.nl2sql.schema import Schema
from chatmetrics.components.nl2sql.sqlite_file import BrokenDatabaseError, check_complete


class Databases(Protocol):
    """Runs untrusted queries on databases by name, read-only and within limits. Not thread-safe."""

    def __enter__(self) -> Self:
        """Prepare for queries; by default, nothing is needed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End processes and close connections."""

    def another(self) -> Self:
        """Copy for another process. It shares no connection and can be pickled until it is first used."""

    def check(self, db_id: str) -> None:
        """Raise `BrokenDatabaseError` if the database cannot be used, `InputError` if it does not exist."""

    def execute(self, db_id: str, queries: Sequence[str]) -> list[Result]:
        """Run queries one after the other, each within the limits."""

    def snapshot(self, db_ids: Iterable[str]) -> AbstractContextManager[None]:
        """Context manager: all queries on these databases see one state of each, where the server can do that.

        By default, nothing is kept, because nobody can write to a file that is read, or a result would not count.
        """
        return nullcontext()

    def schema(self, db_id: str) -> str:
        """The schema as DDL, in the form of a prompt.

        Raises:
            InputError: as `structure`.
        """
        return self.structure(db_id).render("ddl")

    def structure(self, db_id: str, sample_values: int = 0) -> Schema:
        """The tables and foreign keys: what prompts show, and what the names of a query are bound to.

        Args:
            db_id: name of the database.
            sample_values: maximum number of distinct values of each column of a table.

        Raises:
            InputError: the database cannot be read.
        """


class SqliteDatabases(Databases):
    """A folder of SQLite files, `<db_id>/<db_id>.sqlite` or `<db_id>.sqlite`.

    Args:
        folder: the folder.
        query_seconds: time limit of a query.
        descriptions: foreign keys, and descriptions of columns, that the files do not contain, by database.
        max_rows: a result with more rows counts as over memory.

    Raises:
        InputError: the folder does not exist.
    """

    dialect = "sqlite"

    def __init__(
        self,
        folder: Path,
        query_seconds: float,
        descriptions: Mapping[str, Descriptions] = MappingProxyType({}),
        max_rows: int = MAX_ROWS,
    ) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder of databases")
        self._folder = folder
        self._descriptions = descriptions
        self._query_seconds = query_seconds
        self._max_rows = max_rows
        self._executor = Executor(query_seconds, max_rows=max_rows)
        self._paths: dict[str, Path] = {}
        self._schemas: dict[str, Schema] = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.close()

    def another(self) -> Self:
        """Copy with its own worker process."""
        copy = type(self)(self._folder, self._query_seconds, self._descriptions or {}, self._max_rows)
        copy._paths, copy._schemas = dict(self._paths), dict(self._schemas)
        return copy

    def check(self, db_id: str) -> None:
        """Find the database's file, and read its schema.

        Raises:
            InputError: it is missing.
            BrokenDatabaseError: it cannot be used.
        """
        path = database_path(self._folder, db_id)
        check_complete(path)
        try:
            self._schemas[db_id] = Schema.from_sqlite(path, descriptions=self._descriptions.get(db_id))
        except InputError as error:
            raise BrokenDatabaseError(str(error)) from error
        self._paths[db_id] = path

    def execute(self, db_id: str, queries: Sequence[str]) -> list[Result]:
        """Run queries in the worker process; see `Executor.execute_all`."""
        if db_id not in self._paths:
            self.check(db_id)
        return self._executor.execute_all(self._paths[db_id], queries)

    def structure(self, db_id: str, sample_values: int = 0) -> Schema:
        """The tables and foreign keys in the file; see `Databases.structure`."""
        if sample_values:
            path = database_path(self._folder, db_id)
            return Schema.from_sqlite(path, sample_values, self._descriptions.get(db_id))
        if db_id not in self._schemas:
            self.check(db_id)
        return self._schemas[db_id]


def open_databases(
    where: str,
    query_seconds: float,
    descriptions: Mapping[str, Descriptions] = MappingProxyType({}),
    max_rows: int = MAX_ROWS,
    connections: int = 1,
) -> Databases:
    """Open the databases at `where`: a folder of SQLite files, the address of a server or of DuckDB files, or a list.

    Args:
        where: the folder, an SQLAlchemy URL, duckdb:///PATH, or a list as text, see `addresses`.
        query_seconds: time limit of a query.
        descriptions: what is known about databases that they do not contain, see `SqliteDatabases`.
        max_rows: a result with more rows counts as over memory.
        connections: number of threads that may run queries on a server's database at once.

    Raises:
        InputError: the folder does not exist, or the URL cannot be used.
    """
    if not is_address(where):
        return SqliteDatabases(Path(where), query_seconds, descriptions, max_rows)
    if listed := listed_at(where):
        from chatmetrics.components.nl2sql.databases.listed_databases import ListedDatabases

        return ListedDatabases(listed, query_seconds, descriptions, max_rows, connections)
    # Imported here because SQLite needs neither SQLAlchemy nor DuckDB.
    if where.startswith("duckdb:"):
        from chatmetrics.components.nl2sql.databases.duckdb_databases import DuckDBDatabases

        return DuckDBDatabases(where, query_seconds, descriptions, max_rows)
    from chatmetrics.components.nl2sql.databases.server_databases import ServerDatabases

    return ServerDatabases(where, query_seconds, descriptions, max_rows, connections)
