"""Worker process for untrusted SQL on a DuckDB file. `duckdb_databases.DuckDBDatabases` starts it as a script.

It reads one JSON request per line from standard input: a file, a query and the most rows of its result. For each it
writes one line to standard output: a JSON object with the columns or the error, a tab, and the rows as JSON. DuckDB's
own limits do not hold for all functions (one `repeat` took 15 GB under a limit of 200 MB), so the process has a limit
on its address space, and the parent kills it if it does not answer in time. Errors are reported by DuckDB's classes
and classified by the parent.
"""

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import duckdb

from chatmetrics.components.nl2sql.databases.sqlite_worker import (
    ENCODER,
    SECONDS_AFTER_LIMIT,
    TooLargeError,
    failure,
    fetch,
    limit_process,
)
from chatmetrics.components.nl2sql.databases.values import plain

ROWS_PER_FETCH = 1000
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


def plain_rows(connection: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    """The rows of the connection's query, see `values.py`."""
    while batch := connection.fetchmany(ROWS_PER_FETCH):
        for row in batch:
            yield tuple(map(plain, row))


def answer(connection: duckdb.DuckDBPyConnection, sql: str, limits: dict[str, Any]) -> str:
    """Run one query. Returns its columns and rows, or its error with the name of its class, as one line."""
    started = time.monotonic()
    try:
        with interrupted_after(connection, limits["query_seconds"]):
            connection.execute(sql)
            columns = [column[0] for column in connection.description or ()]
            rows = ENCODER.encode(fetch(plain_rows(connection), limits["max_rows"], limits["max_bytes"]))
        return f"{json.dumps({'columns': columns, 'seconds': time.monotonic() - started})}\t{rows}\n"
    except (duckdb.Error, MemoryError, TooLargeError, ValueError, TypeError, OverflowError, RecursionError) as error:
        return failure(type(error).__name__, str(error), started)


def main() -> None:
    """Serve requests until standard input closes."""
    limits = json.loads(sys.argv[1])
    limit_process(limits["memory"])
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
