"""Worker process for untrusted SQL on a DuckDB file. `duckdb_databases.DuckDBDatabases` starts it as a script.

It reads one JSON request per line from standard input: a file, a query and the most rows of its result. For each it
writes one line to standard output: a JSON object with the columns or the error, a tab, and the rows as JSON. DuckDB's
own limits do not hold for all functions (one `repeat` took 15 GB under a limit of 200 MB), so the process has a limit
on its address space, and the parent kills it if it does not answer in time. Errors are reported by DuckDB's classes
and classified by the parent.
"""

import json
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import duckdb

from chatmetrics.components.nl2sql.databases.values import plain

ROWS_PER_FETCH = 1000
VALUE_BYTES = 8
SECONDS_AFTER_LIMIT = 5  # a query that cannot be interrupted ends the worker, even if the parent has died
SECONDS_BETWEEN_INTERRUPTS = 0.1
# DuckDB's documentation, "Securing DuckDB". The order matters: the last one locks the others.
SETTINGS = (
    "TimeZone = 'UTC'",
    "threads = 1",
    "max_temp_directory_size = '0B'",
    "autoinstall_known_extensions = false",
    "autoload_known_extensions = false",
    "python_enable_replacements = false",
    "enable_external_access = false",
    "lock_configuration = true",
)


class TooLargeError(Exception):
    """A result exceeds the limit on rows or bytes."""


def open_file(path: str, limits: dict[str, Any]) -> duckdb.DuckDBPyConnection:
    """Open a file that queries cannot change, and nothing else."""
    connection = duckdb.connect(path, read_only=True)
    for setting in (f"memory_limit = '{limits['memory'] // 4}B'", *SETTINGS):
        connection.execute(f"SET GLOBAL {setting}")
    return connection


@contextmanager
def interrupted_after(connection: duckdb.DuckDBPyConnection, seconds: float) -> Iterator[float]:
    """Interrupt the connection's query after `seconds`, repeatedly, since it has no effect before the query begins."""
    done = threading.Event()

    def watch() -> None:
        pause = seconds
        while not done.wait(pause):
            connection.interrupt()
            pause = SECONDS_BETWEEN_INTERRUPTS

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield time.monotonic() + seconds
    finally:
        done.set()
        watcher.join()


def fetch(connection: duckdb.DuckDBPyConnection, limits: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Read all rows. Raises `TooLargeError` beyond the limits; every value counts `VALUE_BYTES`."""
    rows: list[tuple[Any, ...]] = []
    size = 0
    while batch := connection.fetchmany(ROWS_PER_FETCH):
        for row in batch:
            values = tuple(map(plain, row))
            size += VALUE_BYTES * len(values) + sum(len(value) for value in values if isinstance(value, str | bytes))
            rows.append(values)
        if len(rows) > limits["max_rows"]:
            raise TooLargeError(f"more than {limits['max_rows']} rows")
        if size > limits["max_bytes"]:
            raise TooLargeError(f"a result of more than {limits['max_bytes']} bytes")
    return rows


def answer(connection: duckdb.DuckDBPyConnection, sql: str, limits: dict[str, Any]) -> str:
    """Run one query. Returns its columns and rows, or its error with the name of its class, as one line."""
    started = time.monotonic()
    try:
        with interrupted_after(connection, limits["query_seconds"]):
            connection.execute(sql)
            columns = [column[0] for column in connection.description or ()]
            rows = json.dumps(fetch(connection, limits), default=encode_blob)
        return f"{json.dumps({'columns': columns, 'seconds': time.monotonic() - started})}\t{rows}\n"
    except (duckdb.Error, MemoryError, TooLargeError, ValueError, TypeError, OverflowError, RecursionError) as error:
        return failure(type(error).__name__, str(error), started)


def encode_blob(value: bytes) -> dict[str, str]:
    """The JSON form of a blob."""
    return {"blob": value.hex()}


def failure(error: str, message: str, started: float) -> str:
    """The answer to a query that failed."""
    seconds = time.monotonic() - started
    return f"{json.dumps({'error': error, 'message': message, 'seconds': seconds})}\t[]\n"


def main() -> None:
    """Serve requests until standard input closes."""
    limits = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory"], limits["memory"]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection, opened = None, ""
    print("ready", flush=True)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            if connection is None or opened != request["version"]:
                if connection is not None:
                    connection.close()
                connection, opened = open_file(request["path"], limits), request["version"]
        except duckdb.Error as error:
            connection = None
            found = failure("CannotOpen", str(error), time.monotonic())
        else:
            signal.alarm(int(limits["query_seconds"]) + SECONDS_AFTER_LIMIT)
            found = answer(connection, request["sql"], limits | {"max_rows": request["max_rows"]})
            signal.alarm(0)
        sys.stdout.write(found)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
