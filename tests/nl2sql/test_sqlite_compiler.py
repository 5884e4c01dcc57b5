"""The names of a query are resolved by SQLite from several threads at once, as /ask does."""

import subprocess
import sys

# A deadlock cannot be interrupted, so the threads have a process of their own.
THREADS = """
from concurrent.futures import ThreadPoolExecutor
from chatmetrics.components.nl2sql.schema import Column, Schema, Table
from chatmetrics.components.nl2sql.sqlite_compiler import program_of, unknown_name, unresolved_name

schema = Schema("hotel", (Table("hotel", tuple(Column(f"c{number}", "TEXT") for number in range(20))),))
queries = [f"SELECT c{number}, COUNT(*) FROM hotel AS a GROUP BY c{number} ORDER BY 2" for number in range(20)]
wrong = "SELECT city FROM hotel"

def resolve(number):
    assert unresolved_name(schema, queries[number % 20]) == ""
    assert unresolved_name(schema, wrong) == unknown_name(schema, wrong) == "no such column: city"
    assert program_of(schema, queries[number % 20])

with ThreadPoolExecutor(8) as pool:
    list(pool.map(resolve, range(4000)))
"""


def test_threads_do_not_block_each_other() -> None:
    command = [sys.executable, "-c", THREADS]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
