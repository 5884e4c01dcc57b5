"""The processes that run the models' queries: a fixed number, so that their memory is bounded."""

import asyncio
import time
from pathlib import Path

from chatmetrics.components.nl2sql.databases.execution import Executor, FailureMode, Result
from chatmetrics.components.serve.release import QueryBounds

IDLE_SECONDS = 60.0
ENDED_BY = (FailureMode.TIMED_OUT, FailureMode.OVER_MEMORY)  # after these, a process keeps memory


class ExecutorPool:
    """Runs up to `parallel` queries at once, in processes that are reused, and closed when they are idle.

    Args:
        bounds: Limits of queries.
        idle_seconds: Time without a query after which a process is closed.
    """

    def __init__(self, bounds: QueryBounds, idle_seconds: float = IDLE_SECONDS) -> None:
        self._bounds, self._idle_seconds = bounds, idle_seconds
        self._slots = asyncio.Semaphore(bounds.parallel)
        self._idle: list[tuple[float, Executor]] = []
        self._running: set[asyncio.Task[Result]] = set()

    async def execute(self, path: Path, sql: str) -> Result:
        """Run a query.

        If the caller is canceled, for example because its client disconnected, the query still runs to its end, and
        no other request gets its process and reads its rows.
        """
        task = asyncio.ensure_future(self._execute(path, sql))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _execute(self, path: Path, sql: str) -> Result:
        async with self._slots:
            executor = self._idle.pop()[1] if self._idle else self._new()
            is_usable = False
            try:
                result = await asyncio.to_thread(executor.execute, path, sql)
                is_usable = result.failure not in ENDED_BY
                return result
            finally:
                if is_usable:
                    self._idle.append((time.monotonic(), executor))
                    asyncio.get_running_loop().call_later(self._idle_seconds, self._close_idle)
                else:
                    executor.close()

    def _new(self) -> Executor:
        return Executor(self._bounds.seconds, self._bounds.memory_mib, self._bounds.max_rows)

    def _close_idle(self) -> None:
        since = time.monotonic() - self._idle_seconds
        idle = [executor for used, executor in self._idle if used <= since]
        self._idle = [item for item in self._idle if item[0] > since]
        for executor in idle:
            executor.close()
