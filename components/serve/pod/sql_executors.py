"""ExecutorPool of SQL for several threads."""

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chatmetrics.components.nl2sql.execution import Executor, Result
from chatmetrics.components.serve.release import QueryBounds


class ExecutorPool:
    """Made when they are needed and used again."""

    def __init__(self, bounds: QueryBounds) -> None:
        self._bounds = bounds
        self._idle: queue.SimpleQueue[Executor] = queue.SimpleQueue()

    def execute(self, path: Path, sql: str) -> Result:
        """Run a query, in whichever thread this is.

        An executor is borrowed and given back here, by the thread that uses it: a client that leaves ends the waiting
        for the thread and not the thread, and nobody else may read the rows that still come.
        """
        with self._one() as executor:
            return executor.execute(path, sql)

    @contextmanager
    def _one(self) -> Iterator[Executor]:
        """An executor that nobody else uses meanwhile."""
        try:
            executor = self._idle.get_nowait()
        except queue.Empty:
            executor = Executor(self._bounds.seconds, self._bounds.memory_mib, self._bounds.rows)
        try:
            yield executor
        finally:
            self._idle.put(executor)
