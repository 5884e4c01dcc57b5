"""A pool of SQL executors for several threads."""

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chatmetrics.components.nl2sql.execution import Executor, Result
from chatmetrics.components.serve.release import QueryBounds


class ExecutorPool:
    """Creates executors when they are needed and reuses them."""

    def __init__(self, bounds: QueryBounds) -> None:
        self._bounds = bounds
        self._idle: queue.SimpleQueue[Executor] = queue.SimpleQueue()

    def execute(self, path: Path, sql: str) -> Result:
        """Run a query in the calling thread.

        The thread that runs the query also returns the executor to the pool. When a client disconnects, the thread
        still runs, and no other request may use its executor and read its rows.
        """
        with self._borrowed() as executor:
            return executor.execute(path, sql)

    @contextmanager
    def _borrowed(self) -> Iterator[Executor]:
        try:
            executor = self._idle.get_nowait()
        except queue.Empty:
            executor = Executor(self._bounds.seconds, self._bounds.memory_mib, self._bounds.max_rows)
        try:
            yield executor
        finally:
            self._idle.put(executor)
