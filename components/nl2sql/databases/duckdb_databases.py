"""DuckDB files. Untrusted SQL runs in a worker process, whose memory and time are limited from outside."""

import json
import re
import signal
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.databases.addresses import PLACEHOLDER
from chatmetrics.components.nl2sql.databases.catalogs import CatalogDatabases, Rows
from chatmetrics.components.nl2sql.databases.execution import (
    DECODER,
    GRACE_SECONDS,
    MAX_ROWS,
    MEBIBYTE,
    FailureMode,
    Result,
)
from chatmetrics.components.nl2sql.databases.query_check import SYNTAX, Rules, check_query, words
from chatmetrics.components.nl2sql.databases.worker_process import WorkerProcess
from chatmetrics.components.nl2sql.descriptions import Descriptions
from chatmetrics.components.nl2sql.sql.statements import single_statement
from chatmetrics.components.nl2sql.sqlite_file import BrokenDatabaseError
from chatmetrics.components.redaction import one_line

PREFIX = "duckdb:///"
WORKER = Path(__file__).with_name("duckdb_worker.py")
MEMORY = 2048 * MEBIBYTE  # address space of the worker, of which DuckDB itself may use a quarter
MAX_BYTES = 32 * MEBIBYTE

# All functions that compute. DuckDB does not tell those apart from others, so others are left out by name: functions
# that wait, change or read the state of the session, show settings, or run the text of another query. Table functions
# are listed, because most of them read files.
_FUNCTIONS = """
    SELECT DISTINCT lower(function_name) FROM duckdb_functions()
    WHERE function_type IN ('scalar', 'aggregate', 'window', 'macro')
    OR (function_type = 'table_macro' AND NOT internal) OR (function_type = 'table' AND function_name IN
    ('range', 'generate_series', 'unnest', 'json_each', 'json_tree', 'repeat', 'repeat_row', 'regexp_split_to_table'))
"""
_REFUSED = re.compile(
    r"sleep_ms|setseed|nextval|currval|write_log|current_setting|getvariable|getenv|stats|txid_current|in_search_path"
    r"|current_(?:query|connection_id|transaction_id).*|pg_(?!typeof$|size_pretty$).*|duckdb_.*|has_.*|inet_.*"
    r"|json_(?:de)?serialize_.*|json_execute_.*|read_.*|.*_scan|parse_duckdb_log_message|get_block_size"
)
_GRAMMAR = words(
    """
    array columns exclude grouping_id if ifnull list_value map percentile_cont percentile_disc rename replace reservoir
    struct try try_cast
    """
)
# Views of DuckDB itself, with settings and paths.
_NAMES = re.compile(r"duckdb_\w+|pragma_\w+|pg_settings")
# By the class of DuckDB's exception.
_FAILURES = {
    "ParserException": FailureMode.DOES_NOT_PARSE,
    "SyntaxException": FailureMode.DOES_NOT_PARSE,
    "CatalogException": FailureMode.UNKNOWN_NAME,
    "InterruptException": FailureMode.TIMED_OUT,
    "OutOfMemoryException": FailureMode.OVER_MEMORY,
    "MemoryError": FailureMode.OVER_MEMORY,
    "TooLargeError": FailureMode.OVER_MEMORY,
    "PermissionException": FailureMode.REFUSED,
}
_UNKNOWN_NAME = re.compile(r"Referenced (?:column|table) .* not found|does not have a column named", re.DOTALL)


class DuckDBDatabases(CatalogDatabases):
    """DuckDB files at an address such as duckdb:///warehouse/{db_id}.duckdb, or duckdb:////data/{db_id}.duckdb.

    Args:
        address: the path after duckdb:///, in which `{db_id}` is replaced by the name of a question's database.
        query_seconds: time limit of a query with all its rows.
        descriptions: foreign keys, and descriptions of columns, that the files do not contain, by database.
        max_rows: a result with more rows counts as over memory.

    Raises:
        InputError: DuckDB is not installed.
    """

    dialect = "duckdb"

    def __init__(
        self,
        address: str,
        query_seconds: float,
        descriptions: Mapping[str, Descriptions] = MappingProxyType({}),
        max_rows: int = MAX_ROWS,
    ) -> None:
        super().__init__(descriptions)
        if find_spec("duckdb") is None:
            raise InputError("databases: DuckDB is not installed: pip install duckdb")
        self._address, self._query_seconds, self._max_rows = address, query_seconds, max_rows
        self._worker: WorkerProcess | None = None
        self._rules: Rules | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def another(self) -> Self:
        """Copy with its own worker process."""
        return type(self)(self._address, self._query_seconds, self._descriptions or {}, self._max_rows)

    def check(self, db_id: str) -> None:
        """Open the file.

        Raises:
            InputError: it is missing.
            BrokenDatabaseError: it cannot be used.
        """
        self._read(db_id, "SELECT 1")

    def execute(self, db_id: str, queries: Sequence[str]) -> list[Result]:
        """Run queries in the worker process, each within the limits.

        Raises:
            InputError: as `check`.
        """
        rules = self._allowed(db_id)
        checked = [check_query(single_statement(sql), self.dialect, rules) for sql in queries]
        ran = iter(self._run(db_id, [each.sql for each in checked if each.refusal is None], self._max_rows))
        return [each.refusal or next(ran) for each in checked]

    def _allowed(self, db_id: str) -> Rules:
        """What a query may use."""
        if self._rules is None:
            names = {str(name) for (name,) in self._read(db_id, _FUNCTIONS)}
            allowed = frozenset(name for name in names if not _REFUSED.fullmatch(name)) | SYNTAX | _GRAMMAR
            self._rules = Rules(allowed, names=_NAMES)
        return self._rules

    def _read(self, db_id: str, sql: str) -> Rows:
        [result] = self._run(db_id, [sql], MAX_ROWS)
        if result.failure != FailureMode.OK:
            raise BrokenDatabaseError(f"{self._path(db_id)}: cannot be read as a DuckDB database ({result.message})")
        return result.rows

    def _sample(self, db_id: str, sql: str) -> Rows:
        return self._run(db_id, [sql], MAX_ROWS)[0].rows

    def _no_tables(self, db_id: str) -> InputError:
        return BrokenDatabaseError(f"{self._path(db_id)}: the database has no tables")

    def _path(self, db_id: str) -> Path:
        if db_id in ("", ".", "..") or Path(db_id).name != db_id:
            raise InputError(f"{db_id!r} is not the name of a database: use a name without slashes")
        return Path(self._address.removeprefix(PREFIX).replace(PLACEHOLDER, db_id))

    def _run(self, db_id: str, queries: list[str], max_rows: int) -> list[Result]:
        path = self._path(db_id)
        try:
            status = path.stat()
        except OSError as error:
            raise InputError(f"database {db_id!r} is missing: {path}: {error.strerror}") from error
        version = f"{path} {status.st_mtime_ns} {status.st_size} {status.st_ino}"
        return [self._ask(path, version, sql, max_rows) for sql in queries]

    def _ask(self, path: Path, version: str, sql: str, max_rows: int) -> Result:
        """The result of one query; if it ends the worker, the next one gets a new one."""
        limits = {"query_seconds": self._query_seconds, "memory": MEMORY, "max_bytes": MAX_BYTES}
        worker = self._worker = self._worker or WorkerProcess(WORKER, limits, has_packages=True)
        try:
            worker.write_line(
                json.dumps({"path": str(path), "version": version, "sql": sql, "max_rows": max_rows}).encode()
            )
            line = worker.read_line(self._query_seconds + GRACE_SECONDS)
        except TimeoutError:
            self._end()
            message = f"killed after {self._query_seconds} s"
            return Result(failure=FailureMode.TIMED_OUT, message=message, seconds=self._query_seconds)
        except (EOFError, BrokenPipeError):
            status = worker.wait()
            self._end()
            # Where memory is short, DuckDB may abort; the kernel sends SIGKILL when the machine itself is.
            is_memory = status in (-signal.SIGKILL, -signal.SIGABRT)
            failure = FailureMode.OVER_MEMORY if is_memory else FailureMode.EXECUTION_ERROR
            return Result(failure=failure, message=f"the worker process ended with status {status}")
        result = _result(path, line)
        if result.failure == FailureMode.OVER_MEMORY:
            self._end()  # the next query should have the full limit
        return result

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.kill()
        self._worker = None


def _result(path: Path, line: bytes) -> Result:
    head, _, rows = line.partition(b"\t")
    answer = json.loads(head)
    if "error" not in answer:
        found = list(map(tuple, DECODER.decode(rows.decode())))
        return Result(columns=tuple(answer["columns"]), rows=found, seconds=answer["seconds"])
    error, message = answer["error"], one_line(answer["message"])
    if error == "CannotOpen":
        raise BrokenDatabaseError(f"{path}: cannot be opened as a DuckDB database ({message})")
    failure = _FAILURES.get(error, FailureMode.EXECUTION_ERROR)
    if error == "BinderException" and _UNKNOWN_NAME.search(message):
        failure = FailureMode.UNKNOWN_NAME
    return Result(failure=failure, message=message, seconds=answer["seconds"])
