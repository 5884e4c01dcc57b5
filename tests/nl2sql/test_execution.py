"""Untrusted SQL runs within limits, gets the right failure mode and changes nothing."""

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.databases.execution import Executor, FailureMode, database_path
from tests.waiting import wait_until

TIMEOUT = 1.0
# The time limit, the grace before the kill, and the time that starting a process takes on a busy machine.
BOUND = TIMEOUT + 4.0

ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
# A single SQLite instruction, which no progress handler can interrupt: the process has to be killed.
UNINTERRUPTIBLE = "SELECT instr(printf('%.8000000c', 'a'), printf('%.4000000c', 'a') || 'b')"

HOSTILE = {
    "drop": ("DROP TABLE hotel", FailureMode.REFUSED),
    "insert": ("INSERT INTO hotel VALUES (9, 'x', 1.0)", FailureMode.REFUSED),
    "update": ("UPDATE hotel SET name = 'x'", FailureMode.REFUSED),
    "delete returning": ("WITH x AS (SELECT 1) DELETE FROM hotel RETURNING id", FailureMode.REFUSED),
    "create": ("CREATE TABLE x (a)", FailureMode.REFUSED),
    "create temporary": ("CREATE TEMP TABLE x AS SELECT * FROM hotel", FailureMode.REFUSED),
    "attach": ("ATTACH '{folder}/attached.db' AS x", FailureMode.REFUSED),
    "pragma": ("PRAGMA writable_schema = 1", FailureMode.REFUSED),
    "pragma as a table": ("SELECT * FROM pragma_table_info('hotel')", FailureMode.REFUSED),
    "vacuum": ("VACUUM", FailureMode.REFUSED),
    "vacuum into": ("VACUUM INTO '{folder}/copy.db'", FailureMode.REFUSED),
    "load extension": ("SELECT load_extension('{folder}/evil.so')", FailureMode.REFUSED),
    "transaction": ("BEGIN EXCLUSIVE", FailureMode.REFUSED),
    "explain a write": ("EXPLAIN DELETE FROM hotel", FailureMode.REFUSED),
    "several statements": ("SELECT 1; DROP TABLE hotel", FailureMode.REFUSED),
    "endless recursion": (f"{ENDLESS} SELECT count(*) FROM n", FailureMode.TIMED_OUT),
    "endless rows": (f"{ENDLESS} SELECT x FROM n", {FailureMode.OVER_MEMORY, FailureMode.TIMED_OUT}),
    "cross join": ("SELECT count(*) FROM many a, many b, many c, many d", FailureMode.TIMED_OUT),
    "cross join of rows": (
        "SELECT * FROM many a, many b, many c",
        {FailureMode.OVER_MEMORY, FailureMode.TIMED_OUT},
    ),
    "sort that would spill": (
        "SELECT a.id FROM many a, many b, many c ORDER BY randomblob(100)",
        {FailureMode.OVER_MEMORY, FailureMode.TIMED_OUT},
    ),
    "one endless instruction": (UNINTERRUPTIBLE, FailureMode.TIMED_OUT),
    "randomblob": ("SELECT randomblob(1e9)", FailureMode.OVER_MEMORY),
    "zeroblob": ("SELECT zeroblob(2000000000)", FailureMode.OVER_MEMORY),
    "many blobs": ("SELECT zeroblob(30000000) FROM many", FailureMode.OVER_MEMORY),
    "doubling text": (
        "WITH RECURSIVE n(x) AS (SELECT 'a' UNION ALL SELECT x || x FROM n) SELECT length(x) FROM n",
        FailureMode.OVER_MEMORY,
    ),
    "group_concat": (
        "SELECT group_concat(printf('%.1000c', 'a')) FROM many a, many b, many c",
        {FailureMode.OVER_MEMORY, FailureMode.TIMED_OUT},
    ),
    "deep parentheses": ("SELECT " + "(" * 50_000 + "1" + ")" * 50_000, FailureMode.DOES_NOT_PARSE),
    "deep subqueries": ("SELECT " + "(SELECT " * 3_000 + "1" + ")" * 3_000, FailureMode.DOES_NOT_PARSE),
    "deep sums": ("SELECT " + "1+" * 100_000 + "1", FailureMode.DOES_NOT_PARSE),
    "megabytes": ("SELECT '" + "x" * 5_000_000 + "'", FailureMode.DOES_NOT_PARSE),
    "nul byte": ("SELECT 1\0; DROP TABLE hotel", FailureMode.DOES_NOT_PARSE),
    "lone surrogate": ("SELECT '\ud800'", FailureMode.DOES_NOT_PARSE),
    "no sql": (" \n", FailureMode.NO_SQL),
    "comment only": ("-- nothing", FailureMode.NO_SQL),
    "misspelt": ("SELEC name FROM hotel", FailureMode.DOES_NOT_PARSE),
    "unknown table": ("SELECT * FROM motel", FailureMode.UNKNOWN_NAME),
    "unknown column": ("SELECT stars FROM hotel", FailureMode.UNKNOWN_NAME),
    "unknown function": ("SELECT year(name) FROM hotel", FailureMode.EXECUTION_ERROR),
    "ambiguous": ("SELECT id FROM hotel, many", FailureMode.EXECUTION_ERROR),
    "placeholder": ("SELECT * FROM hotel WHERE id = ?", FailureMode.EXECUTION_ERROR),
}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("a # folder? 100%") / "hotel.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE hotel (id INTEGER PRIMARY KEY, name TEXT, rating REAL)")
        rows = [(1, "浦东香格里拉", 4.8), (2, "Peace Hotel", None)]
        connection.executemany("INSERT INTO hotel VALUES (?, ?, ?)", rows)
        connection.execute("INSERT INTO hotel VALUES (3, CAST(x'4361E9' AS TEXT), 4.0)")
        connection.execute("CREATE TABLE many (id INTEGER)")
        connection.executemany("INSERT INTO many VALUES (?)", ((number,) for number in range(1000)))
        connection.execute("CREATE VIRTUAL TABLE review USING fts5(body)")
        connection.execute("INSERT INTO review VALUES ('a quiet room')")
    connection.close()
    return path


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with Executor(query_seconds=TIMEOUT, memory_mib=256) as executor:
        yield executor


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_sql_gets_its_failure_mode_in_time_and_changes_nothing(
    name: str, database: Path, executor: Executor
) -> None:
    sql, expected = HOSTILE[name]
    before = _hashes(database.parent)
    started = time.monotonic()

    result = executor.execute(database, sql.replace("{folder}", str(database.parent)))

    assert time.monotonic() - started < BOUND
    assert result.failure in (expected if isinstance(expected, set) else {expected})
    assert result.rows == [] and result.message
    assert _hashes(database.parent) == before
    assert executor.execute(database, "SELECT count(*) FROM hotel").rows == [(3,)]
    # VACUUM, for example, makes a connection forget its virtual tables before it is refused.
    assert executor.execute(database, "SELECT body FROM review WHERE review MATCH 'quiet'").rows == [("a quiet room",)]


def test_the_worker_has_no_environment(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    with Executor() as executor:
        executor.execute(database, "SELECT 1")
        children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
        workers = [pid for path in children for pid in path.read_text().split()]
        environments = [Path(f"/proc/{pid}/environ").read_bytes() for pid in workers]
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in workers]
    found = [env for env, command in zip(environments, commands, strict=True) if b"sqlite_worker.py" in command]
    assert found and not any(b"s3cret" in environment for environment in found)


def test_a_query_that_fails_does_not_affect_the_other_queries(database: Path, executor: Executor) -> None:
    count = "SELECT count(*) FROM hotel"
    queries = [count, UNINTERRUPTIBLE, "", "SELECT zeroblob(2000000000)", count, "SELECT id FROM many", "SELEC", count]
    results = executor.execute_all(database, queries)
    assert [result.failure for result in results] == [
        FailureMode.OK,
        FailureMode.TIMED_OUT,
        FailureMode.NO_SQL,
        FailureMode.OVER_MEMORY,
        FailureMode.OK,
        FailureMode.OK,
        FailureMode.DOES_NOT_PARSE,
        FailureMode.OK,
    ]
    assert results[0].rows == results[4].rows == results[7].rows == [(3,)]
    assert results[5].rows == [(number,) for number in range(1000)]
    assert executor.execute_all(database, []) == []


@pytest.mark.parametrize("position", [0, 1, 150, 299])
@pytest.mark.parametrize("culprit", [UNINTERRUPTIBLE, "SELECT zeroblob(2000000000)"])
def test_a_query_that_ends_the_worker_is_found_among_hundreds(
    culprit: str, position: int, database: Path, executor: Executor
) -> None:
    queries = [f"SELECT {number}, name FROM hotel WHERE id = 2" for number in range(300)]
    expected = [[(number, "Peace Hotel")] for number in range(300)]
    queries[position], expected[position] = culprit, []

    results = executor.execute_all(database, queries)

    assert [result.rows for result in results] == expected
    failures = {number: result.failure for number, result in enumerate(results) if result.failure != FailureMode.OK}
    assert failures == {position: FailureMode.TIMED_OUT if culprit == UNINTERRUPTIBLE else FailureMode.OVER_MEMORY}


def test_a_worker_that_the_kernel_ends_in_the_middle_loses_no_answer(database: Path) -> None:
    slow = "SELECT count(*) FROM many a, many b WHERE a.id < 300"  # long enough for the signal to arrive
    with Executor(query_seconds=10) as executor:
        executor.execute(database, "SELECT 1")
        pid = executor._worker._process.pid  # type: ignore[union-attr]
        Timer(0.15, os.kill, (pid, signal.SIGKILL)).start()
        results = executor.execute_all(database, [slow] * 100)
    assert [result.rows for result in results] == [[(300_000,)]] * 100


def test_a_worker_ends_after_its_parent_was_killed(database: Path) -> None:
    script = (
        "import os, signal, threading, sys\n"
        "from pathlib import Path\n"
        "from chatmetrics.components.nl2sql.databases.execution import Executor\n"
        "executor = Executor(query_seconds=1.0)\n"
        "executor.execute(Path(sys.argv[1]), 'SELECT 1')\n"
        "print(executor._worker._process.pid, flush=True)\n"
        "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()\n"
        "executor.execute(Path(sys.argv[1]), sys.argv[2])\n"
    )
    command = [sys.executable, "-c", script, str(database), UNINTERRUPTIBLE]
    worker = Path("/proc") / subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout.strip()
    assert worker.is_dir(), "the worker must be busy when its parent is killed"
    wait_until(lambda: not _is_running(worker), 120)


def test_values_keep_their_types(database: Path, executor: Executor) -> None:
    result = executor.execute(database, "SELECT 1 AS a, 0.5 AS b, '1' AS a, NULL, x'00ff', 1e999, 9223372036854775807;")

    assert result.failure is FailureMode.OK
    assert result.columns[:3] == ("a", "b", "a")
    assert result.rows == [(1, 0.5, "1", None, b"\x00\xff", float("inf"), 9223372036854775807)]
    assert isinstance(result.rows[0][0], int)
    assert 0 < result.seconds < TIMEOUT


def test_chinese_and_text_that_is_not_utf8(database: Path, executor: Executor) -> None:
    assert executor.execute(database, "SELECT id FROM hotel WHERE name LIKE '浦东%'").rows == [(1,)]
    assert executor.execute(database, "SELECT name FROM hotel WHERE id = 3").rows == [("Ca\\xe9",)]


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT sum(value) FROM json_each('[1, 2, 3]')", [(6,)]),
        ("SELECT body FROM review WHERE review MATCH 'quiet'", [("a quiet room",)]),
        ("SELECT row_number() OVER (ORDER BY rating DESC) FROM hotel LIMIT 1", [(1,)]),
        ("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 3) SELECT max(x) FROM n", [(3,)]),
        ("SELECT name FROM sqlite_master WHERE name = 'hotel'", [("hotel",)]),
        ("VALUES (1)", [(1,)]),
    ],
)
def test_every_kind_of_read_is_allowed(
    sql: str, rows: list[tuple[object, ...]], database: Path, executor: Executor
) -> None:
    assert executor.execute(database, sql).rows == rows


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1;;",
        "SELECT 1 ; ; ;",
        "SELECT 1;\n;\n",
        "SELECT 1; -- one",
        "SELECT 1 -- one;\n;;",
        "SELECT 1; /* x */ ;",
        "SELECT 1; /* ; */ -- ;",
        "SELECT 1; /* never closed",
        "; SELECT 1",
        "-- one\n;;\nSELECT 1;;",
    ],
)
def test_an_empty_statement_does_not_count(sql: str, database: Path, executor: Executor) -> None:
    result = executor.execute(database, sql)
    assert (result.rows, result.failure) == ([(1,)], FailureMode.OK)


@pytest.mark.parametrize(
    ("sql", "value"),
    [("SELECT ';;';;", ";;"), ('SELECT 1 AS ";;" ;;', 1), ("SELECT 1 AS [;];;", 1), ("SELECT 1 AS `;`;;", 1)],
)
def test_a_quoted_semicolon_ends_no_statement(sql: str, value: object, database: Path, executor: Executor) -> None:
    assert executor.execute(database, sql).rows == [(value,)]


@pytest.mark.parametrize(
    ("sql", "failure"),
    [
        ("SELECT 1;; SELECT 2", FailureMode.REFUSED),
        ("SELECT 1; -- one\nSELECT 2;", FailureMode.REFUSED),
        ("SELECT 1; /* x */ x", FailureMode.REFUSED),
        (";; ;", FailureMode.NO_SQL),
        ("; -- nothing", FailureMode.NO_SQL),
    ],
)
def test_more_or_less_than_one_statement_is_not_run(
    sql: str, failure: FailureMode, database: Path, executor: Executor
) -> None:
    assert executor.execute(database, sql).failure is failure


@pytest.mark.parametrize("piece", [";", "; ", "--", "/*", "[", "'", "\"';", "$$;", "'';", "--\n;", "$a$;$b$;"])
def test_a_megabyte_of_semicolons_is_read_in_linear_time(piece: str, database: Path, executor: Executor) -> None:
    # In quadratic time, one of these would take hours.
    executor.execute(database, (piece * 1_000_000)[:1_000_000])


def test_row_limit(database: Path) -> None:
    with Executor(max_rows=1000) as executor:
        assert len(executor.execute(database, "SELECT id FROM many").rows) == 1000
        assert executor.execute(database, "SELECT a.id FROM many a, hotel").failure is FailureMode.OVER_MEMORY


def test_a_changed_database_is_read_again(tmp_path: Path, executor: Executor) -> None:
    path = tmp_path / "growing.sqlite"
    for expected in ([(1,)], [(2,)]):
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS t (a)")
            connection.execute("INSERT INTO t VALUES (1)")
        connection.close()
        assert executor.execute(path, "SELECT count(*) FROM t").rows == expected


def test_a_worker_that_was_killed_is_replaced(database: Path) -> None:
    with Executor() as executor:
        executor.execute(database, "SELECT 1")
        executor.close()
        assert executor.execute(database, "SELECT 2").rows == [(2,)]


def test_an_unusable_database_is_an_error_that_names_it(tmp_path: Path, executor: Executor) -> None:
    missing, text, open_for_writing = tmp_path / "missing.sqlite", tmp_path / "text.sqlite", tmp_path / "wal.sqlite"
    text.write_text("CREATE TABLE t (a);")
    writer = sqlite3.connect(open_for_writing)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("CREATE TABLE t (a)")
    writer.commit()
    for path, problem in ((missing, "No such file"), (text, "not an SQLite"), (open_for_writing, "close its writers")):
        with pytest.raises(InputError, match=problem) as caught:
            executor.execute(path, "SELECT 1")
        assert str(path) in str(caught.value)
    writer.close()


def test_databases_are_found_in_both_layouts_and_nowhere_else(tmp_path: Path) -> None:
    nested, flat = tmp_path / "databases" / "a" / "a.sqlite", tmp_path / "databases" / "b.sqlite"
    nested.parent.mkdir(parents=True)
    for path in (nested, flat, tmp_path / "outside.sqlite"):
        path.touch()

    assert database_path(tmp_path / "databases", "a") == nested
    assert database_path(tmp_path / "databases", "b") == flat
    for name in ("../outside", "..", "", "a/a", str(tmp_path / "outside"), "c", "a\0"):
        with pytest.raises(InputError):
            database_path(tmp_path / "databases", name)


def _hashes(folder: Path) -> dict[str, str]:
    """The hash of every file below the folder, by name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _is_running(process: Path) -> bool:
    """Whether a process, given by its folder in /proc, is running and not a zombie."""
    try:
        return ") Z" not in (process / "stat").read_text()
    except FileNotFoundError:
        return False
