"""The databases that /ask queries: SQLite files, and databases on servers."""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.nl2sql.databases.addresses import dialect_at, is_address
from chatmetrics.components.nl2sql.databases.databases import open_databases
from chatmetrics.components.nl2sql.databases.execution import Result
from chatmetrics.components.nl2sql.databases.stored_values import StoredValues
from chatmetrics.components.nl2sql.descriptions import Descriptions
from chatmetrics.components.nl2sql.schema import Schema
from chatmetrics.components.serve.pod.sql_executors import ExecutorPool
from chatmetrics.components.serve.release import QueryBounds, Release

log = logging.getLogger(__name__)
SCHEMA_SECONDS = 300.0  # after which a server's schema is read again, since nothing tells that it has changed
VALUES_SECONDS = 3600.0  # and its values, which takes longer


class AskedDatabase(Protocol):
    """A database for questions.

    Attributes:
        name: its name in requests and prompts.
        errors_are_public: whether clients see the text of its errors; that of a server contains its address.
    """

    name: str
    errors_are_public: bool

    def version(self) -> object:
        """Something that changes when the schema has to be read again. Raises `OSError` if it is not available."""

    def schema(self, sample_values: int = 0, descriptions: Descriptions | None = None) -> Schema:
        """Read the schema.

        Args:
            sample_values: maximum number of distinct values of each column of a table.
            descriptions: what is known about the database that it does not contain.

        Raises:
            InputError: it cannot be read.
            ServiceError: the connection was lost.
        """

    def values(self, schema: Schema) -> StoredValues:
        """The values of the database, as long as they are up to date: models with the same schema share them.

        Args:
            schema: what `schema` returned.

        Raises:
            OSError: the database is not available.
        """

    async def execute(self, sql: str) -> Result:
        """Run a query.

        Raises:
            InputError: the database is not available.
            ServiceError: the connection was lost.
        """


class FileDatabase:
    """An SQLite file, whose queries run in the processes of a pool."""

    errors_are_public = True

    def __init__(self, name: str, path: Path, pool: ExecutorPool) -> None:
        self.name, self._path, self._pool = name, path, pool
        self._values = _KeptValues(path)

    def version(self) -> object:
        """The state of the file."""
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino

    def schema(self, sample_values: int = 0, descriptions: Descriptions | None = None) -> Schema:
        """Read it from the file."""
        return Schema.from_sqlite(self._path, sample_values, descriptions)

    def values(self, schema: Schema) -> StoredValues:
        """Those of this state of the file."""
        return self._values.get(schema, self.version())

    async def execute(self, sql: str) -> Result:
        """Run a query in a process of the pool."""
        return await self._pool.execute(self._path, sql)


class ServerDatabase:
    """A database on a server, with up to `parallel` connections, which are kept.

    Args:
        name: its name in requests and prompts.
        address: its address.
        bounds: limits of queries.
        slots: taken by each query, so that all databases together run `parallel` at once.
    """

    errors_are_public = False

    def __init__(self, name: str, address: str, bounds: QueryBounds, slots: asyncio.Semaphore) -> None:
        self.name, self._address, self._bounds, self._slots = name, address, bounds, slots
        self._databases = open_databases(address, bounds.seconds, max_rows=bounds.max_rows, connections=bounds.parallel)
        # DuckDB's file has one process, which answers one query after the other.
        self._turn = asyncio.Semaphore(1 if dialect_at(address) == "duckdb" else bounds.parallel)
        self._running: set[asyncio.Task[Result]] = set()
        self._values = _KeptValues(address)

    def version(self) -> object:
        """The time, in steps of `SCHEMA_SECONDS`."""
        return int(time.monotonic() / SCHEMA_SECONDS)

    def schema(self, sample_values: int = 0, descriptions: Descriptions | None = None) -> Schema:
        """Read it from the server's catalog."""
        known = {self.name: descriptions} if descriptions else {}
        with open_databases(self._address, self._bounds.seconds, known) as databases:
            return databases.structure(self.name, sample_values)

    def values(self, schema: Schema) -> StoredValues:
        """Those of the last `VALUES_SECONDS`."""
        return self._values.get(schema, int(time.monotonic() / VALUES_SECONDS))

    async def execute(self, sql: str) -> Result:
        """Run a query; also to its end if the client disconnects, because its connection is needed again."""
        task = asyncio.ensure_future(self._execute(sql))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _execute(self, sql: str) -> Result:
        async with self._turn, self._slots:
            [result] = await asyncio.to_thread(self._databases.execute, self.name, [sql])
            return result


class _KeptValues:
    """The values of a database for each schema that models have of it, whose private columns may differ.

    Args:
        where: the database's file or address.
    """

    def __init__(self, where: Path | str) -> None:
        self._where = where
        self._version: object = None
        self._by_schema: dict[Schema, StoredValues] = {}

    def get(self, schema: Schema, version: object) -> StoredValues:
        """The values of this version; those of other versions are dropped."""
        if version != self._version:
            self._version, self._by_schema = version, {}
        return self._by_schema.setdefault(schema, StoredValues(schema, self._where))


def open_all(release: Release) -> dict[str, AskedDatabase]:
    """The databases of a release, by name.

    A server that is not available is a warning: its questions are answered when it is.

    Raises:
        InputError: An SQLite file cannot be read or has another name, or an address cannot be used.
    """
    pool, slots = ExecutorPool(release.query), asyncio.Semaphore(release.query.parallel)
    found: dict[str, AskedDatabase] = {}
    for name, where in release.databases.items():
        if is_address(where):
            found[name] = ServerDatabase(name, where, release.query, slots)
            with _warned(name):
                found[name].schema()
            continue
        path = Path(where)
        found[name] = FileDatabase(name, path, pool)
        for item in found[name].schema().omitted:
            log.warning("database %s: %s", name, item.message)
        if path.stem != name:
            raise InputError(
                f"database {name}: its file is {path.name}; rename it to {name}{path.suffix}, because prompts contain "
                "the file's name"
            )
    return found


@contextmanager
def _warned(name: str) -> Iterator[None]:
    try:
        yield
    except (InputError, ServiceError) as error:
        log.warning("database %s is not available yet: %s", name, error)
