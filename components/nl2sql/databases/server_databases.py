"""Execution of untrusted SQL on a database server: one reading statement, in a read-only transaction."""

import datetime
import decimal
import json
import re
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

import sqlalchemy
import sqlglot
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.schema import CreateTable
from sqlglot import exp
from sqlglot.errors import SqlglotError

from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.nl2sql.databases.execution import MAX_ROWS, MEBIBYTE, FailureMode, Result
from chatmetrics.components.nl2sql.schema import Column, ForeignKey, Schema, Table
from chatmetrics.components.nl2sql.sql.statements import single_statement
from chatmetrics.components.redaction import hide, one_line

PLACEHOLDER = "{db_id}"
ROWS_PER_FETCH = 1000
MAX_BYTES = 32 * MEBIBYTE
VALUE_BYTES = 8
WRITES = (exp.Insert, exp.Update, exp.Delete, exp.Merge, exp.DDL, exp.Command, exp.Into, exp.Lock)
# SQLAlchemy's name. Servers differ in what protects them and in what gets around it: DuckDB reads files in any query,
# MySQL runs the text of some comments. So there are no others until their protection is tested.
SUPPORTED = "postgresql"
# Functions that read files, open connections, run other SQL, change settings, or affect other sessions. They are
# searched in the text, not in the parsed statement, because a server may read quotes otherwise than sqlglot. A column
# may have the same name: a call has a parenthesis after the name, or a comment before the parenthesis.
REFUSED_FUNCTIONS = re.compile(
    r"\b(set_config|setval|nextval|dblink\w*|crosstab\w*|connectby\w*|xpath_table|ts_stat|ts_rewrite|\w+_to_xml\w*"
    r"|load_file|get_lock"
    # all functions of PostgreSQL for large objects (its documentation, chapter 33)
    r"|lo_(?:import|export|creat|create|unlink|open|close|get|put|from_bytea|lseek|lseek64|tell|tell64|truncate|truncate64)"
    r"|loread|lowrite"
    r"|pg_(?:read|ls|stat_file|file|reload|rotate|terminate|cancel|switch|create|drop|promote|advisory|try_advisory|notify"
    r"|logical|replication|import|export|start|stop|backup|wal|walfile|hba|ident|config|current_logfile)\w*)"
    r"(?=[\"`\]]?\s*(?:\(|/\*|--|#))",
    re.IGNORECASE,
)
# Views that show the server's configuration.
REFUSED_VIEWS = re.compile(r"\bpg_(config|file_settings|hba_file_rules|ident_file_mappings)\b", re.IGNORECASE)
ESCAPED_NAME = re.compile(r"u&\s*\"", re.IGNORECASE)  # U&"pg\005fread_file", which would hide a name
# Roles with which a query could read files of the server, or start programs there.
POWERFUL_ROLE = """
    SELECT CASE WHEN rolname = current_user THEN 'superuser' ELSE rolname END FROM pg_roles
    WHERE (rolname = current_user AND rolsuper) OR (pg_has_role(current_user, oid, 'USAGE') AND rolname IN
    ('pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program'))
    ORDER BY rolname = current_user DESC
"""
SECONDS_BETWEEN_CANCELS = 0.2
# By SQLSTATE or its prefix (PostgreSQL's documentation, appendix A).
FAILURES = {
    "42601": FailureMode.DOES_NOT_PARSE,
    "42P01": FailureMode.UNKNOWN_NAME,
    "42703": FailureMode.UNKNOWN_NAME,
    "57014": FailureMode.TIMED_OUT,
    "25006": FailureMode.REFUSED,
    "42501": FailureMode.REFUSED,
    "53": FailureMode.OVER_MEMORY,
    "54": FailureMode.OVER_MEMORY,
}


class ServerDatabases:
    """Databases behind an SQLAlchemy URL, for example postgresql+psycopg://reader@host/{db_id}.

    The databases are protected from changes: only text that parses as one reading statement is sent, in a read-only
    transaction that is rolled back, and functions that are known to do more than compute are refused. A superuser is
    refused too: use a role that has only the right to read. The time limit is our own, so a query cannot change it.

    Args:
        url: `{db_id}` in it is replaced by the name of a question's database; without it, all questions are about one
            database.
        query_seconds: time limit of a query with all its rows. The server's is set, and it is enforced from here too.

    Raises:
        InputError: the dialect is not PostgreSQL's, or its driver is not installed.
    """

    dialect = "postgres"

    def __init__(self, url: str, query_seconds: float) -> None:
        try:
            self._url = sqlalchemy.make_url(url)
            hide(str(self._url.password or ""))
            if (backend := self._url.get_backend_name()) != SUPPORTED:
                raise InputError(
                    f"databases: {backend} is not supported: name a PostgreSQL server, {SUPPORTED}+psycopg://USER@HOST/"
                    "{db_id}, or a folder of SQLite files"
                )
            self._url.get_dialect().import_dbapi()
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise InputError(f"databases: the SQLAlchemy URL cannot be used: {one_line(error)}") from error
        self._query_seconds = query_seconds
        self._engines: dict[str, sqlalchemy.Engine] = {}
        self._structures: dict[str, Schema] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for engine in self._engines.values():
            engine.dispose()

    def another(self) -> Self:
        """Copy with its own connections."""
        return type(self)(self._url.render_as_string(hide_password=False), self._query_seconds)

    def check(self, db_id: str) -> None:
        """Connect to the database.

        Raises:
            InputError: the server or the database is not available, or the role may do more than use SQL.
        """
        try:
            with self._engine(db_id).connect() as connection:
                role = connection.exec_driver_sql(POWERFUL_ROLE).scalar()
        except SQLAlchemyError as error:
            raise InputError(f"database {db_id!r} cannot be opened: {one_line(error)}") from error
        if role:
            raise InputError(
                f"database {db_id!r}: the user {self._url.username!r} has the rights of {role}, with which a query "
                "could read files of the server; use a role that may only read tables"
            )

    def execute(self, db_id: str, queries: Sequence[str]) -> list[Result]:
        """Run queries, each in its own transaction.

        Raises:
            ServiceError: the connection was lost.
        """
        return [self._execute(self._engine(db_id), sql) for sql in queries]

    def schema(self, db_id: str) -> str:
        """CREATE TABLE statements of the tables that are visible to the role.

        Raises:
            InputError: the schema cannot be read.
        """
        engine = self._engine(db_id)
        with _schema_errors(db_id):
            tables = _reflected(engine).sorted_tables
            return "\n".join(f"{str(CreateTable(table).compile(engine)).strip()};" for table in tables)

    def structure(self, db_id: str) -> Schema:
        """The tables, views and foreign keys that are visible to the role.

        Raises:
            InputError: the schema cannot be read.
        """
        if db_id not in self._structures:
            with _schema_errors(db_id):
                tables = _reflected(self._engine(db_id), views=True).tables
            self._structures[db_id] = _structure(db_id, list(tables.values()))
        return self._structures[db_id]

    def _engine(self, db_id: str) -> sqlalchemy.Engine:
        if db_id not in self._engines:
            name = (self._url.database or "").replace(PLACEHOLDER, db_id)
            self._engines[db_id] = sqlalchemy.create_engine(self._url.set(database=name), pool_size=1)
        return self._engines[db_id]

    def _execute(self, engine: sqlalchemy.Engine, sql: str) -> Result:
        started, sql = time.monotonic(), single_statement(sql)
        result = self._rejection(sql) or self._run(engine, sql)
        result.seconds = time.monotonic() - started
        return result

    def _rejection(self, sql: str) -> Result | None:
        """The result of a text that is not sent to the server; None for a text that is sent."""
        try:
            statements = sqlglot.parse(sql, read=self.dialect)
        except (SqlglotError, RecursionError) as error:
            return Result(failure=FailureMode.DOES_NOT_PARSE, message=one_line(error))
        found = [statement for statement in statements if statement is not None]
        if not found:
            return Result(failure=FailureMode.NO_SQL, message="there is no statement")
        if len(found) > 1:
            return Result(failure=FailureMode.REFUSED, message="several statements")
        if not isinstance(found[0], exp.Query) or found[0].find(*WRITES):
            return Result(failure=FailureMode.REFUSED, message="not a statement that only reads")
        if name := REFUSED_FUNCTIONS.search(sql) or REFUSED_VIEWS.search(sql) or ESCAPED_NAME.search(sql):
            return Result(failure=FailureMode.REFUSED, message=f"{name[0]!r} is not permitted in a query")
        return None

    def _run(self, engine: sqlalchemy.Engine, sql: str) -> Result:
        try:
            with engine.connect() as connection:
                connection = connection.execution_options(postgresql_readonly=True)
                milliseconds = max(1, round(1000 * self._query_seconds))
                connection.exec_driver_sql(f"SET LOCAL statement_timeout = {milliseconds}")
                with _canceled_after(connection, self._query_seconds) as deadline:
                    # A server-side cursor accepts a single statement and sends rows only as they are fetched.
                    cursor = connection.execution_options(stream_results=True, no_parameters=True).exec_driver_sql(sql)
                    rows = _fetch(cursor, deadline)
                connection.rollback()
        except TimeoutError:
            return Result(failure=FailureMode.TIMED_OUT, message=f"not complete after {self._query_seconds} s")
        except DBAPIError as error:
            if error.connection_invalidated:
                raise ServiceError(f"the connection to the database was lost: {one_line(error.orig)}") from error
            return Result(failure=_failure_of(error), message=one_line(error.orig))
        if rows is None:
            return Result(failure=FailureMode.OVER_MEMORY, message="the result is too large")
        return Result(columns=tuple(cursor.keys()), rows=rows)


@contextmanager
def _canceled_after(connection: sqlalchemy.Connection, seconds: float) -> Iterator[float]:
    """Cancel the connection's queries after `seconds`; yields that time, on the monotonic clock.

    The server's own time limit can be changed in a query, and starts again at each FETCH. A server, and a proxy before
    it, handles a cancel request some time after it has been sent, perhaps during another query: a connection for which
    one was sent is closed, not used again.
    """
    done, canceled = threading.Event(), threading.Event()
    driver, driver_error = connection.connection.dbapi_connection, connection.dialect.loaded_dbapi.Error
    # psycopg's `cancel` blocks all threads of the process until the server has answered; `cancel_safe` does not.
    cancel = getattr(driver, "cancel_safe", None) or getattr(driver, "cancel", None)

    def watch() -> None:
        pause = seconds
        while cancel and not done.wait(pause):
            canceled.set()
            with suppress(driver_error):  # the query's own connection reports a server that is gone
                cancel()  # repeated, because it has no effect between two requests
            pause = SECONDS_BETWEEN_CANCELS

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield time.monotonic() + seconds
    finally:
        done.set()
        watcher.join()
        if canceled.is_set():
            connection.invalidate()


@contextmanager
def _schema_errors(db_id: str) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise InputError(f"database {db_id!r}: the schema cannot be read: {one_line(error)}") from error


def _reflected(engine: sqlalchemy.Engine, views: bool = False) -> sqlalchemy.MetaData:
    tables = sqlalchemy.MetaData()
    tables.reflect(engine, views=views)
    return tables


def _structure(db_id: str, found: Sequence[sqlalchemy.Table]) -> Schema:
    """The tables of the default schema, and the foreign keys between them."""
    own = {table.name: table for table in found if table.schema is None}
    tables = (
        Table(name, tuple(Column(column.name, "", int(column.primary_key)) for column in table.columns))
        for name, table in own.items()
    )
    keys = (
        ForeignKey(name, element.parent.name, constraint.referred_table.name, element.column.name, number)
        for name, table in own.items()
        for number, constraint in enumerate(
            sorted(table.foreign_key_constraints, key=lambda constraint: tuple(constraint.column_keys)), start=1
        )
        if constraint.referred_table.schema is None and constraint.referred_table.name in own
        for element in constraint.elements
    )
    return Schema(db_id, tuple(tables), tuple(keys))


def _fetch(cursor: sqlalchemy.CursorResult[Any], deadline: float) -> list[tuple[Any, ...]] | None:
    """All rows; None if they exceed `MAX_ROWS` or `MAX_BYTES`. Raises `TimeoutError` after the deadline."""
    rows: list[tuple[Any, ...]] = []
    size = 0
    while batch := cursor.fetchmany(ROWS_PER_FETCH):
        if time.monotonic() > deadline:
            raise TimeoutError
        for row in batch:
            values = tuple(map(_plain, row))
            size += sum(VALUE_BYTES + (len(value) if isinstance(value, str | bytes) else 0) for value in values)
            rows.append(values)
        if len(rows) > MAX_ROWS or size > MAX_BYTES:
            cursor.close()
            return None
    return rows


def _plain(value: Any) -> Any:
    """A value as SQLite represents it: None, int, float, str or bytes."""
    match value:
        case None | int() | float() | str() | bytes():
            return value
        case decimal.Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case memoryview() | bytearray():
            return bytes(value)
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case datetime.timedelta() | uuid.UUID():
            return str(value)
        case _:
            return json.dumps(value, default=str, sort_keys=True, ensure_ascii=False)


def _failure_of(error: DBAPIError) -> FailureMode:
    state = str(getattr(error.orig, "sqlstate", "") or "")
    return next((mode for begin, mode in FAILURES.items() if state.startswith(begin)), FailureMode.EXECUTION_ERROR)
