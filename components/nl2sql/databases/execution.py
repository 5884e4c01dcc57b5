"""Execution of untrusted SQL on SQLite: read-only, in a worker process, with limits on time, memory and rows."""

import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.databases.worker_process import WorkerProcess
from chatmetrics.components.nl2sql.sql.statements import single_statement
from chatmetrics.components.nl2sql.sqlite_file import BrokenDatabaseError, FileVersion, read_unchanged

MEBIBYTE = 1024 * 1024
MAX_SQL_CHARACTERS = 1_000_000
MAX_ROWS = 100_000  # default limit of a result
# The worker interrupts a query at its time limit. If it does not answer this much later, it is killed.
GRACE_SECONDS = 0.5
# A result exists in memory several times (values, JSON, bytes), so it may use only this fraction of the memory limit.
RESULT_SHARE = 16
WORKER = Path(__file__).with_name("sqlite_worker.py")
DECODER = json.JSONDecoder(object_hook=lambda value: bytes.fromhex(value["blob"]) if "blob" in value else value)


class FailureMode(StrEnum):
    """Outcome of a query. `WRONG_RESULT` is set by a comparison, never by execution."""

    OK = "ok"
    WRONG_RESULT = "wrong result"
    DOES_NOT_PARSE = "does not parse"
    UNKNOWN_NAME = "unknown table or column"
    EXECUTION_ERROR = "other execution error"
    TIMED_OUT = "timed out"
    OVER_MEMORY = "over memory"
    REFUSED = "refused"
    NO_SQL = "no SQL given"


FAILURE_OF_ERROR = {
    "EMPTY": FailureMode.NO_SQL,
    "REFUSED": FailureMode.REFUSED,
    "ENCODING": FailureMode.DOES_NOT_PARSE,
    "MEMORY": FailureMode.OVER_MEMORY,
    "SQLITE_NOMEM": FailureMode.OVER_MEMORY,
    "SQLITE_TOOBIG": FailureMode.OVER_MEMORY,
    "SQLITE_FULL": FailureMode.OVER_MEMORY,
    "SQLITE_INTERRUPT": FailureMode.TIMED_OUT,
}
SYNTAX_MESSAGES = (
    "syntax error",
    "incomplete input",
    "unrecognized token",
    "parser stack overflow",
    "Expression tree is too large",
    "null character",
)


@dataclass
class Result:
    """The rows of a query, or its failure. Values are None, int, float, str or bytes.

    Equal results of one call may share the list of rows: copy it before changing it.
    """

    columns: tuple[str, ...] = ()
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    failure: FailureMode = FailureMode.OK
    message: str = ""
    seconds: float = 0.0


def database_path(databases: Path, db_id: str) -> Path:
    """Find a database by name, in Spider's layout (`<db_id>/<db_id>.sqlite`) or flat (`<db_id>.sqlite`).

    Raises:
        InputError: the database does not exist, or `db_id` is a path that would lead out of the folder.
        BrokenDatabaseError: there is something else than a file, or it cannot be reached.
    """
    if db_id in ("", ".", "..") or Path(db_id).name != db_id:
        raise InputError(f"{db_id!r} is not the name of a database: use a name without slashes")
    candidates = (databases / db_id / f"{db_id}.sqlite", databases / f"{db_id}.sqlite")
    for path in candidates:
        try:
            if path.is_file():
                # SQLite's other files, such as a write-ahead log, are next to the file itself and not next to a link.
                return path.resolve() if path.is_symlink() else path
            if path.exists() or path.is_symlink():
                raise BrokenDatabaseError(f"database {db_id!r} cannot be read: {path} is not a file")
        except OSError as error:
            raise BrokenDatabaseError(f"database {db_id!r} cannot be read: {path}: {error.strerror}") from error
    raise InputError(f"database {db_id!r} is missing: expected {candidates[0]} or {candidates[1]}")


class Executor:
    """Runs queries on SQLite files in one worker process, which is killed and restarted when it exceeds a limit.

    Databases are opened read-only and immutable, behind an authorizer that allows only reading. Not thread-safe.

    Args:
        query_seconds: time limit of a query, including reading its rows.
        memory_mib: address space of the worker; the text and blobs of a result may take a sixteenth of it.
        max_rows: a result with more rows counts as over memory.
    """

    def __init__(self, query_seconds: float = 5.0, memory_mib: int = 512, max_rows: int = MAX_ROWS) -> None:
        self._query_seconds = query_seconds
        memory = memory_mib * MEBIBYTE
        self._limits = {
            "query_seconds": query_seconds,
            "memory": memory,
            "max_rows": max_rows,
            "max_bytes": memory // RESULT_SHARE,
        }
        self._worker: WorkerProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker; the next query starts a new one."""
        if self._worker is not None:
            self._worker.kill()
        self._worker = None

    def execute(self, database: Path, sql: str) -> Result:
        """Run one statement and read all its rows. No SQL can change the database.

        Args:
            database: an SQLite file.
            sql: untrusted text.

        Raises:
            InputError: the database is missing, is not an SQLite file, or is being written to.
        """
        return self.execute_all(database, [sql])[0]

    def execute_all(self, database: Path, queries: Sequence[str]) -> list[Result]:
        """Run several statements on one database, one after the other. This is faster than one call per statement.

        Args:
            database: an SQLite file.
            queries: untrusted texts. Each has the full time limit, and the failure of one does not affect the others.

        Raises:
            InputError: as `execute`.
        """
        queries = list(map(single_statement, queries))
        sent = [sql for sql in queries if _rejection(sql) is None]
        answers = iter(read_unchanged(database, lambda version: self._answers(version, sent)))
        return [_rejection(sql) or next(answers) for sql in queries]

    def _answers(self, version: FileVersion, sent: list[str]) -> list[Result]:
        """Results of queries that are sent to the worker."""
        answered: list[Result] = []
        # An exchange ends early when a query ends the worker; the rest is sent to a new one.
        while len(answered) < len(sent):
            results, is_known = self._exchange(version, sent[len(answered) :], collect=len(sent) > 1)
            if not is_known:
                # Answers to queries before the one that ended the worker may be lost. One at a time shows which it is.
                results += self._exchange(version, sent[len(answered) + len(results) :], collect=False)[0]
            answered += results
        return answered

    def _exchange(self, version: FileVersion, queries: list[str], collect: bool) -> tuple[list[Result], bool]:
        """Results of all queries, or of those up to the one that ended the worker.

        Args:
            version: the database.
            queries: what is sent to the worker.
            collect: whether the worker may write several answers at once, which is faster.

        Returns:
            The results, and whether they include the failure of the query that ended the worker, if one did.
        """
        worker = self._worker = self._worker or WorkerProcess(WORKER, self._limits)
        results: list[Result] = []
        decode = _Decoder()
        try:
            # The worker reads the whole request before it answers, so neither waits for the other.
            worker.write_line(
                json.dumps(
                    {"uri": version.uri, "version": str(version), "queries": queries, "collect": collect}
                ).encode()
            )
            for _ in queries:
                results.append(decode(worker.read_line(self._query_seconds + GRACE_SECONDS)))
                if results[-1].failure == FailureMode.OVER_MEMORY:
                    self.close()  # its memory is fragmented, and the next query should have the full limit
                    break
        except TimeoutError:
            self.close()
            message = f"killed after {self._query_seconds} s"
            results.append(Result(failure=FailureMode.TIMED_OUT, message=message, seconds=self._query_seconds))
        except (EOFError, BrokenPipeError):
            status = worker.wait()
            self.close()
            # The kernel sends SIGKILL when the machine itself is out of memory.
            failure = FailureMode.OVER_MEMORY if status == -signal.SIGKILL else FailureMode.EXECUTION_ERROR
            results.append(Result(failure=failure, message=f"the worker process ended with status {status}"))
        else:
            return results, True
        return (results[:-1], False) if collect else (results, True)


def _rejection(sql: str) -> Result | None:
    """The result of a text that is not sent to the worker; None for a text that is sent."""
    if not sql.strip():
        return Result(failure=FailureMode.NO_SQL, message="there is no statement")
    if len(sql) > MAX_SQL_CHARACTERS:
        message = f"{len(sql)} characters of SQL, at most {MAX_SQL_CHARACTERS} are run"
        return Result(failure=FailureMode.DOES_NOT_PARSE, message=message)
    return None


class _Decoder:
    """Decodes the worker's answers. Equal rows, as of right predictions, are decoded once and shared."""

    def __init__(self) -> None:
        self._rows: dict[bytes, list[tuple[Any, ...]]] = {}

    def __call__(self, line: bytes) -> Result:
        head, _, encoded = line.partition(b"\t")
        answer = json.loads(head)
        if "error" in answer:
            failure = _failure_mode(answer["error"], answer["message"])
            return Result(failure=failure, message=answer["message"], seconds=answer["seconds"])
        rows = self._rows.get(encoded)
        if rows is None:
            rows = self._rows[encoded] = list(map(tuple, DECODER.decode(encoded.decode())))
        return Result(columns=tuple(answer["columns"]), rows=rows, seconds=answer["seconds"])


def _failure_mode(error: str, message: str) -> FailureMode:
    """Classify an error by SQLite's name for it; the general SQLITE_ERROR is classified by its message."""
    if error in FAILURE_OF_ERROR:
        return FAILURE_OF_ERROR[error]
    if "one statement at a time" in message:
        return FailureMode.REFUSED
    if message.startswith(("no such table", "no such column")):
        return FailureMode.UNKNOWN_NAME
    if any(fragment in message for fragment in SYNTAX_MESSAGES):
        return FailureMode.DOES_NOT_PARSE
    return FailureMode.EXECUTION_ERROR
