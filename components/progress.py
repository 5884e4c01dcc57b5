"""Progress for work that takes longer than two seconds: plain lines, fit for a pod's log and for a terminal."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 2.0


class Progress:
    """Prints `label: done/total unit, rate, time left`, at most once every two seconds and once at the end.

    Lines go to standard error, flushed, so that a runner that reads a pipe can follow them.

    Args:
        label: what is being done.
        total: how many there are to do.
        unit: what is counted.
        begun: how many were done before, at another time, and say nothing of the rate.
    """

    def __init__(self, label: str, total: int, unit: str, begun: int = 0) -> None:
        self._label, self._total, self._unit, self._begun = label, total, unit, begun
        self._started = self._printed = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        """Say that `done` of the total are done; `note` is appended, for example a loss."""
        now = time.monotonic()
        finished = done >= self._total and now - self._started >= SECONDS_BETWEEN_LINES
        if not finished and now - self._printed < SECONDS_BETWEEN_LINES:
            return
        self._printed = now
        rate = (done - self._begun) / max(now - self._started, 1e-9)
        left = f", {duration((self._total - done) / rate)} left" if self._begun < done < self._total else ""
        suffix = f", {note}" if note else ""
        print(
            f"{self._label}: {done}/{self._total} {self._unit}, {rate:.1f}/s{left}{suffix}", file=sys.stderr, flush=True
        )


def duration(seconds: float) -> str:
    """A duration for people, in the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def track(items: Iterable[Item], label: str, total: int, unit: str) -> Iterator[Item]:
    """Yield the items and print progress as they are consumed."""
    progress = Progress(label, total, unit)
    for done, item in enumerate(items, start=1):
        yield item
        progress.update(done)
