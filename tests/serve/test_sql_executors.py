"""Queries of /ask run in a bounded number of processes, which are closed when they are idle or were interrupted."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from chatmetrics.components.nl2sql.databases.execution import FailureMode
from chatmetrics.components.serve.pod.sql_executors import ExecutorPool
from chatmetrics.components.serve.release import QueryBounds
from tests.serve.pods import hotel_database
from tests.waiting import wait_until

COUNT = "SELECT count(*) FROM hotel"
SLOW = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 300000) SELECT max(x) FROM n"
ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"

Check = Callable[[ExecutorPool, Path], Awaitable[None]]


def workers() -> int:
    """Number of this process's workers for SQL."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    commands = []
    for pid in {pid for path in children for pid in path.read_text().split()}:
        with suppress(FileNotFoundError):
            commands.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    return sum(b"sqlite_worker.py" in command for command in commands)


def run(check: Check, folder: Path, idle_seconds: float = 60.0) -> None:
    async def checked() -> None:
        bounds = QueryBounds(seconds=4.0, memory_mib=256, parallel=2)
        await check(ExecutorPool(bounds, idle_seconds), hotel_database(folder / "hotel.sqlite"))

    asyncio.run(checked())


@pytest.fixture(autouse=True)
def no_workers_of_others() -> None:
    with suppress(AssertionError):  # those that stay are only counted
        wait_until(lambda: not workers(), 10)


def test_no_more_queries_run_at_once_than_permitted(tmp_path: Path) -> None:
    before = workers()

    async def check(pool: ExecutorPool, path: Path) -> None:
        asked = [asyncio.ensure_future(pool.execute(path, SLOW)) for _ in range(6)]
        most = 0
        while not all(task.done() for task in asked):
            most = max(most, workers() - before)
            await asyncio.sleep(0.01)
        assert [task.result().rows for task in asked] == [[(300_000,)]] * 6
        assert most == 2

    run(check, tmp_path)


def test_a_process_is_closed_after_an_interrupted_query_and_when_it_is_idle(tmp_path: Path) -> None:
    before = workers()

    async def check(pool: ExecutorPool, path: Path) -> None:
        assert (await pool.execute(path, ENDLESS)).failure is FailureMode.TIMED_OUT
        assert workers() == before
        assert (await pool.execute(path, COUNT)).rows == [(2,)]
        assert workers() == before + 1
        await asyncio.sleep(1.5)
        assert workers() == before

    run(check, tmp_path, idle_seconds=1.0)


def test_a_canceled_query_keeps_its_process_to_its_end(tmp_path: Path) -> None:
    async def check(pool: ExecutorPool, path: Path) -> None:
        canceled = [asyncio.ensure_future(pool.execute(path, SLOW)) for _ in range(2)]
        await asyncio.sleep(0.1)
        for task in canceled:
            task.cancel()
        results = await asyncio.gather(*(pool.execute(path, COUNT) for _ in range(8)))
        assert [result.rows for result in results] == [[(2,)]] * 8

    run(check, tmp_path)
