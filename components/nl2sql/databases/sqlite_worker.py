"""Worker process for untrusted SQL. `execution.Executor` starts it as a script; it uses the standard library only.

What does not depend on SQLite is imported by DuckDB's worker.

It reads one JSON request per line from standard input: a database and queries. For each query it writes one line to
standard output: a JSON object with the columns or the error, a tab, and the rows as JSON. All limits of a query are
enforced here, except that the parent kills a worker that does not answer in time. Errors are reported by SQLite's names
and classified by the parent.
"""

import json
import resource
import signal
import sqlite3
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any

# Everything else is refused, for example ATTACH, writes and transactions.
ALLOWED_ACTIONS = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}
REFUSED_FUNCTIONS = {"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer"}
VALUE_BYTES = 8
INSTRUCTIONS_BETWEEN_CLOCK_CHECKS = 10_000
# A query that cannot be interrupted ends the worker this long after its time limit, even if the parent has died and
# cannot kill it.
SECONDS_AFTER_LIMIT = 5
# Answers are collected for this long, since waking the parent takes longer than most queries.
SECONDS_BETWEEN_WRITES = 0.02
BYTES_PER_WRITE = 1 << 16


class TooLargeError(Exception):
    """A result exceeds the limit on rows or bytes."""


class ReadOnlyDatabase:
    """A connection that allows only reading. `refused` tells whether the last query tried anything else."""

    def __init__(self, uri: str, value_bytes: int) -> None:
        self._uri, self._value_bytes = uri, value_bytes
        self._open()

    def _open(self) -> None:
        self.refused = False
        self._deadline = 0.0
        # Without isolation_level=None, the sqlite3 module would begin transactions itself.
        self.connection = sqlite3.connect(self._uri, uri=True, isolation_level=None, cached_statements=0)
        # Bytes that are not UTF-8 stay visible and distinct; by default they would fail the whole query.
        self.connection.text_factory = partial(str, encoding="utf-8", errors="backslashreplace")
        # Sorts and temporary tables stay in memory, within the process's memory limit, and never use a file.
        self.connection.execute("PRAGMA temp_store = MEMORY")
        self._connect_virtual_tables()
        self.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, self._value_bytes)
        self.connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        self.connection.set_progress_handler(self._is_overdue, INSTRUCTIONS_BETWEEN_CLOCK_CHECKS)
        self.connection.set_authorizer(self._authorize)

    def start(self, sql: str, seconds: float) -> sqlite3.Cursor:
        """Run one statement. It is interrupted after `seconds`, including the time to fetch rows."""
        if self.refused:
            # VACUUM, for example, resets the schema before it is refused, and virtual tables have to connect again.
            self.connection.close()
            self._open()
        self._deadline = time.monotonic() + seconds
        return self.connection.execute(sql)

    def _connect_virtual_tables(self) -> None:
        """Connect virtual tables in advance, since the authorizer would refuse it as a CREATE TABLE."""
        # Errors are ignored here (a missing module, a damaged file): a query that is affected reports them. One table
        # that cannot be connected must not keep the others from it.
        stored: list[tuple[str]] = []
        with suppress(sqlite3.Error):
            query = "SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage = 0"
            stored = self.connection.execute(query).fetchall()
        for name in ("json_each", "json_tree", *(row[0] for row in stored)):
            quoted = name.replace('"', '""')
            with suppress(sqlite3.Error):
                self.connection.execute(f'SELECT 1 FROM "{quoted}" LIMIT 0')  # noqa: S608

    def _is_overdue(self) -> bool:
        return time.monotonic() > self._deadline

    def _authorize(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        is_allowed = action in ALLOWED_ACTIONS
        if action == sqlite3.SQLITE_FUNCTION:
            is_allowed = (second or "").lower() not in REFUSED_FUNCTIONS
        elif action == sqlite3.SQLITE_PRAGMA:
            is_allowed = first == "data_version" and second is None  # needed by full-text search
        self.refused |= not is_allowed
        return sqlite3.SQLITE_OK if is_allowed else sqlite3.SQLITE_DENY


def fetch(cursor: Iterable[tuple[Any, ...]], max_rows: int, max_bytes: int) -> list[tuple[Any, ...]]:
    """Read all rows. Raises `TooLargeError` beyond `max_rows` or `max_bytes`; every value counts `VALUE_BYTES`."""
    rows: list[tuple[Any, ...]] = []
    size = 0
    for row in cursor:
        rows.append(row)
        size += VALUE_BYTES * len(row) + sum(len(value) for value in row if isinstance(value, str | bytes))
        if len(rows) > max_rows:
            raise TooLargeError(f"more than {max_rows} rows")
        if size > max_bytes:
            raise TooLargeError(f"a result of more than {max_bytes} bytes")
    return rows


def encode_blob(value: bytes) -> dict[str, str]:
    """The JSON form of a blob, the only kind of SQLite value that JSON lacks."""
    return {"blob": value.hex()}


ENCODER = json.JSONEncoder(default=encode_blob)


def answer(database: ReadOnlyDatabase, sql: str, limits: dict[str, Any]) -> str:
    """Run one query. Returns its columns and rows, or its error with SQLite's name, as one line."""
    started = time.monotonic()
    try:
        cursor = database.start(sql, limits["query_seconds"])
        if cursor.description is None:
            return failure("EMPTY", "there is no statement that returns rows", started)
        columns = [column[0] for column in cursor.description]
        rows = ENCODER.encode(fetch(cursor, limits["max_rows"], limits["max_bytes"]))
        return f"{json.dumps({'columns': columns, 'seconds': time.monotonic() - started})}\t{rows}\n"
    except sqlite3.Error as error:
        name = "REFUSED" if database.refused else getattr(error, "sqlite_errorname", type(error).__name__)
        return failure(name, str(error), started)
    except UnicodeError as error:
        return failure("ENCODING", str(error), started)
    except (MemoryError, TooLargeError) as error:
        return failure("MEMORY", str(error) or "out of memory", started)


def failure(error: str, message: str, started: float) -> str:
    """The answer to a query that failed."""
    seconds = time.monotonic() - started
    return f"{json.dumps({'error': error, 'message': message, 'seconds': seconds})}\t[]\n"


def answer_all(database: ReadOnlyDatabase, queries: list[str], limits: dict[str, Any], collect: bool) -> None:
    """Write the answers to the queries.

    Args:
        database: the queries' database.
        queries: untrusted texts.
        limits: see `execution.Executor`.
        collect: whether several answers may be written at once. If a query then ends this process, answers to queries
            before it are lost, so the parent asks again without.
    """
    collected: list[str] = []
    size, written = 0, time.monotonic()
    for sql in queries:
        signal.alarm(int(limits["query_seconds"]) + SECONDS_AFTER_LIMIT)
        line = answer(database, sql, limits)
        signal.alarm(0)
        collected.append(line)
        size += len(line)
        if not collect or size > BYTES_PER_WRITE or time.monotonic() - written > SECONDS_BETWEEN_WRITES:
            write(collected)
            size, written = 0, time.monotonic()
    write(collected)


def write(lines: list[str]) -> None:
    """Write the lines, which are ASCII, and empty the list."""
    sys.stdout.write("".join(lines))
    sys.stdout.flush()
    lines.clear()


def limit_process(memory: int) -> None:
    """Limit this process to `memory` bytes of address space, and to no files.

    The parent handles Ctrl-C; this process ends when the parent closes the pipe.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Serve requests until standard input closes."""
    limits = json.loads(sys.argv[1])
    limit_process(limits["memory"])
    database, opened = None, ""
    print("ready", flush=True)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # Opening a database takes longer than most queries, so it stays open until another or a changed file is used.
        if database is None or opened != request["version"]:
            if database is not None:
                database.connection.close()
            database = None
            try:
                database, opened = ReadOnlyDatabase(request["uri"], limits["max_bytes"]), request["version"]
            except sqlite3.Error as error:
                name = getattr(error, "sqlite_errorname", type(error).__name__)
                write([failure(name, str(error), time.monotonic())] * len(request["queries"]))
                continue
        answer_all(database, request["queries"], limits, request["collect"])


if __name__ == "__main__":
    main()
