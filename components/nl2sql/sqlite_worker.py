"""The process in which untrusted SQL runs: started by `execution.Executor` as a script, standard library only.

It reads one JSON request a line from standard input: a database and queries. It writes one JSON answer a line and query
to standard output. The parent kills it when it overruns; everything else that bounds a query is here. Errors are
reported as SQLite names them and classified by the parent.
"""

import json
import resource
import signal
import sqlite3
import sys
import time
from contextlib import suppress
from functools import partial
from typing import Any

# ATTACH, every write, every transaction and the like are refused by not being here.
ALLOWED_ACTIONS = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}
REFUSED_FUNCTIONS = {"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer"}
VALUE_BYTES = 8
INSTRUCTIONS_BETWEEN_CLOCK_CHECKS = 10_000
# A query that cannot be interrupted ends with the worker, even if the parent is no longer there to kill it.
SECONDS_ALONE = 5


class TooLargeError(Exception):
    """A result exceeds the row or byte bound."""


class ReadOnlyDatabase:
    """A connection on which nothing but reading is possible, and a note of whether anything else was tried."""

    def __init__(self, uri: str, value_bytes: int) -> None:
        self.refused = False
        self._deadline = 0.0
        # Without isolation_level=None the sqlite3 module would itself begin a transaction.
        self.connection = sqlite3.connect(uri, uri=True, isolation_level=None, cached_statements=0)
        # Bytes that are not UTF-8 stay visible and distinct; the default would fail the whole query.
        self.connection.text_factory = partial(str, encoding="utf-8", errors="backslashreplace")
        # Sorts and temporary tables never spill into a file; the process's memory bound covers them.
        self.connection.execute("PRAGMA temp_store = MEMORY")
        self._connect_virtual_tables()
        self.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, value_bytes)
        self.connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        self.connection.set_progress_handler(self._is_overdue, INSTRUCTIONS_BETWEEN_CLOCK_CHECKS)
        self.connection.set_authorizer(self._authorize)

    def start(self, sql: str, seconds: float) -> sqlite3.Cursor:
        """Run one statement, to be interrupted after that many seconds, fetching included."""
        self.refused = False
        self._deadline = time.monotonic() + seconds
        return self.connection.execute(sql)

    def _connect_virtual_tables(self) -> None:
        """Touch what the authorizer would refuse later: connecting a virtual table looks like CREATE TABLE to it."""
        stored = "SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage = 0"
        # An error here (a module that is not built in, a damaged file) is the query's to report, if it meets it.
        with suppress(sqlite3.Error):
            for name in ("json_each", "json_tree", *(row[0] for row in self.connection.execute(stored))):
                quoted = name.replace('"', '""')
                self.connection.execute(f'SELECT 1 FROM "{quoted}" LIMIT 0')  # noqa: S608

    def _is_overdue(self) -> bool:
        return time.monotonic() > self._deadline

    def _authorize(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        is_allowed = action in ALLOWED_ACTIONS
        if action == sqlite3.SQLITE_FUNCTION:
            is_allowed = (second or "").lower() not in REFUSED_FUNCTIONS
        elif action == sqlite3.SQLITE_PRAGMA:
            is_allowed = first == "data_version" and second is None  # full-text search asks for it
        self.refused |= not is_allowed
        return sqlite3.SQLITE_OK if is_allowed else sqlite3.SQLITE_DENY


def fetch(cursor: sqlite3.Cursor, max_rows: int, max_bytes: int) -> list[tuple[Any, ...]]:
    """Read all rows; `TooLargeError` beyond so many rows or bytes, a value counting at least `VALUE_BYTES`."""
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
    """The JSON form of a blob; no other value of SQLite's needs one."""
    return {"blob": value.hex()}


ENCODER = json.JSONEncoder(default=encode_blob)


def answer(database: ReadOnlyDatabase, sql: str, limits: dict[str, Any]) -> str:
    """Run one query: its columns and rows, or its error with the name SQLite gives it, as one line of JSON."""
    try:
        cursor = database.start(sql, limits["query_seconds"])
        if cursor.description is None:
            return failure("EMPTY", "there is no statement that returns rows")
        columns = [column[0] for column in cursor.description]
        rows = fetch(cursor, limits["max_rows"], limits["max_bytes"])
        return ENCODER.encode({"columns": columns, "rows": rows})
    except sqlite3.Error as error:
        name = "REFUSED" if database.refused else getattr(error, "sqlite_errorname", type(error).__name__)
        return failure(name, str(error))
    except UnicodeError as error:
        return failure("ENCODING", str(error))
    except (MemoryError, TooLargeError) as error:
        return failure("MEMORY", str(error) or "out of memory")


def failure(error: str, message: str) -> str:
    """The answer to a query that gave no result."""
    return json.dumps({"error": error, "message": message})


def main() -> None:
    """Serve requests until standard input closes."""
    limits = json.loads(sys.argv[1])
    # Ctrl-C is the parent's to handle; this process ends when the parent closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory"], limits["memory"]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    database, opened = None, ""
    print("ready", flush=True)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # Opening costs more than most queries: a database stays open while it is the same, unchanged file.
        if database is None or opened != request["version"]:
            if database is not None:
                database.connection.close()
            database, opened = ReadOnlyDatabase(request["uri"], limits["max_bytes"]), request["version"]
        for sql in request["queries"]:
            signal.alarm(int(limits["query_seconds"]) + SECONDS_ALONE)
            print(answer(database, sql, limits), flush=True)
            signal.alarm(0)


if __name__ == "__main__":
    main()
