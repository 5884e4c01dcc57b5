"""Execution of untrusted SQL on a database server: one reading statement, in a read-only transaction."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Self

import sqlalchemy
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.nl2sql.databases.addresses import PLACEHOLDER, dialect_at
from chatmetrics.components.nl2sql.databases.catalogs import CatalogDatabases, Rows
from chatmetrics.components.nl2sql.databases.execution import MAX_ROWS, MEBIBYTE, FailureMode, Result
from chatmetrics.components.nl2sql.databases.query_check import Rules, check_query
from chatmetrics.components.nl2sql.databases.server_dialects import ServerDialect, dialect_of
from chatmetrics.components.nl2sql.databases.values import plain
from chatmetrics.components.nl2sql.descriptions import Descriptions
from chatmetrics.components.nl2sql.sql.statements import single_statement
from chatmetrics.components.redaction import hide, one_line

ROWS_PER_FETCH = 1000
MAX_BYTES = 32 * MEBIBYTE
VALUE_BYTES = 8
SCHEMA_SECONDS = 60.0  # for one query of the catalog
SAMPLE_SECONDS = 5.0  # for the sample values of one column
SECONDS_BETWEEN_CANCELS = 0.2
SECONDS_TO_CANCEL = 2.0
# By SQLAlchemy's name, the only driver that is used: others accept several statements, or cannot cancel one.
DRIVERS = {"postgresql": "psycopg", "mysql": "pymysql", "mariadb": "pymysql"}
EXAMPLES = "postgresql+psycopg://HOST/{db_id} or mysql+pymysql://HOST/{db_id}"  # a user would be hidden in messages


@dataclass
class _Database:
    """A database of a server.

    Attributes:
        engine: its connections.
        server: the kind of server.
        rules: what a query may use.
        snapshot: name of the state that its queries see; empty for the newest one.
        held: the connection whose transaction has the state that its queries see, if it has no name.
    """

    engine: sqlalchemy.Engine
    server: ServerDialect
    rules: Rules
    snapshot: str = ""
    held: sqlalchemy.Connection | None = None

    @contextmanager
    def transaction(self, seconds: float) -> Iterator[sqlalchemy.Connection]:
        """Context manager: a connection in a transaction that only reads, rolled back at the end unless it is held."""
        if self.held is None:
            with self.engine.connect() as connection:
                self.server.begin(connection, seconds, self.snapshot)
                yield connection
            return
        if self.held.invalidated:  # by a query that had to be ended: the others see a newer state
            self.held.rollback()
        if not self.held.in_transaction():
            self.server.begin(self.held, seconds)
        yield self.held

    def forget_snapshot(self) -> None:
        """Let queries see the newest state again."""
        self.snapshot, self.held = "", None


class ServerDatabases(CatalogDatabases):
    """Databases behind an SQLAlchemy URL, for example postgresql+psycopg://reader@host/{db_id}.

    The databases are protected from changes: only text that parses as one reading statement and calls only functions
    that compute is sent, in a read-only transaction that is rolled back. An account that may do more than read tables
    is refused too. The time limit is our own, so a query cannot change it.

    Args:
        url: `{db_id}` in it is replaced by the name of a question's database; without it, all questions are about one
            database.
        query_seconds: time limit of a query with all its rows. The server's is set, and it is enforced from here too.
        descriptions: foreign keys, and descriptions of columns, that the databases do not contain, by database.
        max_rows: a result with more rows counts as over memory.
        connections: number of threads that may run queries on a database at once.

    Attributes:
        dialect: dialect of the server, as sqlglot names it.

    Raises:
        InputError: the dialect or the driver is not supported, or the driver is not installed.
    """

    def __init__(
        self,
        url: str,
        query_seconds: float,
        descriptions: Mapping[str, Descriptions] = MappingProxyType({}),
        max_rows: int = MAX_ROWS,
        connections: int = 1,
    ) -> None:
        super().__init__(descriptions)
        try:
            self._url = sqlalchemy.make_url(url)
            self._url = self._url.set(drivername=_drivername(self._url))
            if self._url.password is None and self._url.drivername.endswith("+pymysql"):
                # libpq reads PGPASSWORD itself; PyMySQL does not read what MySQL's own programs do.
                self._url = self._url.set(password=os.environ.get("MYSQL_PWD"))
            hide(str(self._url.password or ""))
            self._url.get_dialect().import_dbapi()
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise InputError(f"databases: the SQLAlchemy URL cannot be used: {one_line(error)}") from error
        self.dialect = dialect_at(url)
        self._query_seconds = query_seconds
        self._max_rows, self._connections = max_rows, connections
        self._databases: dict[str, _Database] = {}
        self._opening = threading.Lock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for database in self._databases.values():
            database.engine.dispose()

    def another(self) -> Self:
        """Copy with its own connections."""
        url = self._url.render_as_string(hide_password=False)
        return type(self)(url, self._query_seconds, self._descriptions or {}, self._max_rows, self._connections)

    def check(self, db_id: str) -> None:
        """Connect to the database, and try a write, which the server has to refuse.

        Raises:
            InputError: the server or the database is not available, or the account may do more than read tables.
        """
        self._open(db_id)

    def execute(self, db_id: str, queries: Sequence[str]) -> list[Result]:
        """Run queries, each in its own transaction.

        Raises:
            InputError: as `check`.
            ServiceError: the connection was lost.
        """
        database = self._open(db_id)
        return [self._execute(database, sql) for sql in queries]

    def _read(self, db_id: str, sql: str) -> Rows:
        result = self._run(self._open(db_id), sql, SCHEMA_SECONDS, MAX_ROWS)
        if result.failure != FailureMode.OK:
            raise InputError(f"database {db_id!r}: the schema cannot be read: {result.message}")
        return result.rows

    def _sample(self, db_id: str, sql: str) -> Rows:
        return self._run(self._open(db_id), sql, SAMPLE_SECONDS, MAX_ROWS).rows

    def _no_tables(self, db_id: str) -> InputError:
        return InputError(f"database {db_id!r} has no tables that {self._url.username!r} may read")

    def _open(self, db_id: str) -> _Database:
        """The database; when it is first used, it is checked that the account may only read."""
        if db_id not in self._databases:
            with self._opening:  # one thread at a time, so that a database has one pool of connections
                if db_id not in self._databases:
                    self._databases[db_id] = self._opened(db_id)
        return self._databases[db_id]

    def _opened(self, db_id: str) -> _Database:
        name = (self._url.database or "").replace(PLACEHOLDER, db_id)
        # Connections that are kept for long are tested before they are used.
        engine = sqlalchemy.create_engine(
            self._url.set(database=name),
            pool_size=self._connections,
            max_overflow=1,  # for a snapshot
            pool_pre_ping=self._connections > 1,
        )
        try:
            server = dialect_of(engine)
            server.prepare(engine)
            with engine.connect() as connection:
                powers, rules = server.powers(connection), server.rules(connection)
            written = self._write(engine, server)
        except SQLAlchemyError as error:
            engine.dispose()
            reason = error.orig if isinstance(error, DBAPIError) else error
            raise InputError(f"database {db_id!r} cannot be opened: {one_line(reason)}") from error
        if powers:
            engine.dispose()
            raise InputError(
                f"database {db_id!r}: the user {self._url.username!r} has the rights of {', '.join(powers)}, with "
                "which a query could read files of the server or change its settings; use one that may only read tables"
            )
        if written:
            engine.dispose()
            raise InputError(f"database {db_id!r}: {server.title} does not refuse a write in a read-only transaction")
        return _Database(engine, server, rules)

    def _write(self, engine: sqlalchemy.Engine, server: ServerDialect) -> bool:
        """Try a write, as a query is run; return whether the server allowed it."""
        with engine.connect() as connection:
            server.begin(connection, self._query_seconds)
            forbidden, undo = server.forbidden_write
            try:
                connection.exec_driver_sql(forbidden)
            except DBAPIError:
                connection.rollback()
                return False
            connection.exec_driver_sql(undo)
            connection.rollback()
        return True

    def account(self, db_id: str) -> str:
        """One line for people: the server, and what the account may do beyond reading.

        Raises:
            InputError: as `check`.
        """
        database = self._open(db_id)
        with database.engine.connect() as connection:
            found = str(connection.exec_driver_sql("SELECT version()").scalar())
            rights = "; ".join(database.server.beyond_reading(connection))
        version = found.partition(",")[0].partition(" on ")[0].removeprefix("PostgreSQL ")
        may = f"may also, outside of our transactions: {rights}" if rights else "may only read"
        return f"{database.server.title} {version}; a write is refused; {self._url.username} {may}"

    @contextmanager
    def snapshot(self, db_ids: Iterable[str]) -> Iterator[None]:
        """Context manager: all queries on these databases see one state of each, whatever others write meanwhile.

        Raises:
            InputError: as `check`.
            ServiceError: the connection was lost.
        """
        with ExitStack() as stack:
            for db_id in db_ids:
                database = self._open(db_id)
                try:
                    database.snapshot, database.held = stack.enter_context(database.server.snapshot(database.engine))
                except DBAPIError as error:
                    reason = one_line(error.orig)
                    raise ServiceError(f"database {db_id!r}: no snapshot can be taken: {reason}") from error
                stack.callback(database.forget_snapshot)
            yield

    def _execute(self, database: _Database, sql: str) -> Result:
        started, sql = time.monotonic(), single_statement(sql)
        checked = check_query(sql, database.server.name, database.rules)
        result = checked.refusal or self._run(database, checked.sql, self._query_seconds, self._max_rows)
        result.seconds = time.monotonic() - started
        return result

    def _run(self, database: _Database, sql: str, seconds: float, max_rows: int) -> Result:
        late = Result(failure=FailureMode.TIMED_OUT, message=f"not complete after {seconds} s")
        watch: _Watch | None = None
        try:
            with database.transaction(seconds) as connection:
                options = connection.execution_options(**database.server.single_statement)
                watch = _Watch(connection, database.server.canceler(database.engine, connection), seconds)
                with watch:
                    cursor = options.exec_driver_sql(sql)
                    rows = _fetch(cursor, watch.deadline, max_rows)
                if rows is None:
                    # A driver would read the rest of the rows to free the connection.
                    connection.invalidate()
        except TimeoutError:
            return late
        except DBAPIError as error:
            if watch and watch.is_ended:
                return late
            if error.connection_invalidated:
                raise ServiceError(f"the connection to the database was lost: {one_line(error.orig)}") from error
            return database.server.failure_of(error.orig)
        except (ValueError, RecursionError, OverflowError) as error:  # a value that the driver cannot read
            message = f"a value cannot be read: {type(error).__name__}: {one_line(error)}"
            return Result(failure=FailureMode.EXECUTION_ERROR, message=message)
        if rows is None:
            return Result(failure=FailureMode.OVER_MEMORY, message="the result is too large")
        return Result(columns=tuple(cursor.keys()), rows=rows)


def _drivername(url: sqlalchemy.URL) -> str:
    """SQLAlchemy's name of the server and its driver.

    Raises:
        InputError: one of them is not supported.
    """
    server, _, driver = url.drivername.partition("+")
    if server not in DRIVERS:
        raise InputError(f"databases: {server} is not supported: name {EXAMPLES}, or a folder of SQLite files")
    if driver not in ("", DRIVERS[server]):
        raise InputError(f"databases: the driver {driver} is not supported: write {server}+{DRIVERS[server]}://")
    return f"{server}+{DRIVERS[server]}"


class _Watch:
    """Context manager: cancels the connection's query after `seconds`, and ends the connection if that has no effect.

    The server's own time limit can be changed in a query, starts again at each FETCH, or does not fire. Some functions
    notice no cancel request: then the connection is ended from here, and the server's process when it notices that.
    A server, and a proxy before it, handles a cancel request some time after it has been sent, perhaps during another
    query: a connection for which one was sent is closed, not used again.

    Attributes:
        deadline: the time at which the query is canceled, on the monotonic clock.
        is_ended: whether the connection was ended.
    """

    def __init__(self, connection: sqlalchemy.Connection, cancel: Callable[[], None], seconds: float) -> None:
        self._connection, self._cancel, self._seconds = connection, cancel, seconds
        self._driver_error = connection.dialect.loaded_dbapi.Error
        self._file = os.dup(_file_of(connection))
        self._done, self._canceled = threading.Event(), threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self.deadline, self.is_ended = 0.0, False

    def __enter__(self) -> Self:
        self.deadline = time.monotonic() + self._seconds
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._watcher.join()
        os.close(self._file)
        # An error that is not the driver's leaves rows unread.
        is_unread = error is not None and not isinstance(error, DBAPIError)
        if self._canceled.is_set() or is_unread or time.monotonic() > self.deadline:
            self._connection.invalidate()

    def _watch(self) -> None:
        pause = self._seconds
        while not self._done.wait(pause):
            self._canceled.set()
            if time.monotonic() > self.deadline + SECONDS_TO_CANCEL:
                self.is_ended = True
                with suppress(OSError), socket.socket(fileno=os.dup(self._file)) as connected:
                    connected.shutdown(socket.SHUT_RDWR)
                return
            with suppress(self._driver_error):  # the query's own connection reports a server that is gone
                self._cancel()  # repeated, because it has no effect between two requests
            pause = SECONDS_BETWEEN_CANCELS


def _file_of(connection: sqlalchemy.Connection) -> int:
    """The file descriptor of the connection's socket: psycopg's, or PyMySQL's, which has no public name."""
    driver: Any = connection.connection.dbapi_connection
    return int(driver.fileno() if hasattr(driver, "fileno") else driver._sock.fileno())


def _fetch(cursor: sqlalchemy.CursorResult[Any], deadline: float, max_rows: int) -> list[tuple[Any, ...]] | None:
    """All rows; None if they exceed `max_rows` or `MAX_BYTES`. Raises `TimeoutError` after the deadline."""
    rows: list[tuple[Any, ...]] = []
    size = 0
    count = 1
    while batch := cursor.fetchmany(count):
        if time.monotonic() > deadline:
            raise TimeoutError
        for row in batch:
            values = tuple(map(plain, row))
            size += sum(VALUE_BYTES + (len(value) if isinstance(value, str | bytes) else 0) for value in values)
            rows.append(values)
        if len(rows) > max_rows or size > MAX_BYTES:
            return None
        # Few rows at a time, where they are large.
        count = min(2 * count, ROWS_PER_FETCH, 1 + MAX_BYTES * len(rows) // (8 * size))
    return rows
