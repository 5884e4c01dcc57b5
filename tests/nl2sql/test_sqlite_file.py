"""A database to which another process writes is read as it was at one moment, or not at all."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chatmetrics.components.nl2sql.databases.execution import Executor, FailureMode
from chatmetrics.components.nl2sql.schema import Schema
from chatmetrics.components.nl2sql.sqlite_file import WrittenDatabaseError

SECONDS = 1.5
PATIENCE = 120  # seconds more until something could be read: a busy machine reads between two writes rarely

# Transactions of this writer move amounts between accounts. They touch pages at both ends of the table, and the sum
# stays 0.
WRITER = """
import sqlite3, sys, time
path, journal, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
connection = sqlite3.connect(path, isolation_level=None)
connection.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, amount INTEGER, padding TEXT, kind TEXT)")
connection.execute(
    "INSERT INTO account WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 4000) "
    "SELECT x, 0, printf('%.500c', 'x'), 'kind 0' FROM n"
)
connection.execute("PRAGMA journal_mode = " + journal)
connection.execute("PRAGMA cache_size = 20")  # spills, so that pages are written before a transaction ends
connection.execute("PRAGMA synchronous = OFF")
print("ready", flush=True)
number = 0
while True:
    number += 1
    connection.execute("BEGIN")
    connection.execute("UPDATE account SET amount = amount - ?, kind = ? WHERE id <= 2000", (number, f"kind {number}"))
    connection.execute("UPDATE account SET amount = amount + ?, kind = ? WHERE id > 2000", (number, f"kind {number}"))
    connection.execute("ROLLBACK" if number % 5 == 0 else "COMMIT")
    if journal == "WAL":
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    time.sleep(seconds)
"""


@contextmanager
def written(path: Path, journal: str, seconds: float) -> Iterator[Path]:
    """A database to which another process writes, with pauses of `seconds`."""
    command = [sys.executable, "-c", WRITER, str(path), journal, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        try:
            yield path
        finally:
            writer.kill()


@pytest.mark.parametrize("journal", ["DELETE", "TRUNCATE", "PERSIST", "WAL"])
def test_a_query_never_sees_a_part_of_a_transaction(tmp_path: Path, journal: str) -> None:
    sums: list[object] = []
    deadline = time.monotonic() + SECONDS
    with written(tmp_path / "bank.sqlite", journal, 0.05) as path, Executor() as executor:
        while time.monotonic() < deadline + (not sums) * PATIENCE:
            try:
                result = executor.execute(path, "SELECT SUM(amount), COUNT(DISTINCT kind) FROM account")
            except WrittenDatabaseError:
                continue
            assert result.failure is FailureMode.OK, result.message
            sums += result.rows
    assert set(sums) == {(0, 1)}


def test_the_values_of_a_schema_are_from_one_moment(tmp_path: Path) -> None:
    found = 0
    with written(tmp_path / "bank.sqlite", "DELETE", 0.05) as path:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline + (not found) * PATIENCE:
            try:
                schema = Schema.from_sqlite(path, sample_values=3)
            except WrittenDatabaseError:
                continue
            [kind] = [column for column in schema.tables[0].columns if column.name == "kind"]
            assert len(kind.samples) == 1
            found += 1
    assert found


def test_a_database_that_is_written_all_the_time_is_an_error_that_names_it(tmp_path: Path) -> None:
    with written(tmp_path / "bank.sqlite", "DELETE", 0.0) as path, Executor() as executor:
        slow = "SELECT COUNT(*) FROM account a, account b WHERE a.amount > b.amount"
        with pytest.raises(WrittenDatabaseError, match=r"bank\.sqlite .*close its writers"):
            executor.execute(path, slow)


def test_a_database_that_was_just_written_is_read(tmp_path: Path) -> None:
    with written(tmp_path / "bank.sqlite", "DELETE", 3600.0) as path, Executor() as executor:
        assert executor.execute(path, "SELECT SUM(amount) FROM account").rows == [(0,)]
