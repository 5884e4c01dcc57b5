"""Console output of steps and commands: notes, warnings and progress, as plain lines on standard error.

The lines are readable in a terminal and in a pod's log. A runner that reads them through a pipe recognizes them with
`is_notice` and `is_progress`; nothing else depends on their form.
"""

import re
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from chatmetrics.components.redaction import redacted

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 2.0
_NOTICE = re.compile(r"^(note|warning|error): ")
_PROGRESS = re.compile(r"^[\w .,()'-]+: \d[\d.]*/\d[\d.]* ")


def info(text: str) -> None:
    """Print a line about the work in progress, without secrets. It is written to the log; runners do not show it."""
    print(redacted(text), file=sys.stderr, flush=True)


def note(text: str) -> None:
    """Print something that a person should know, although nothing is wrong."""
    info(f"note: {text}")


def warning(text: str) -> None:
    """Print a probable problem that does not stop the work."""
    info(f"warning: {text}")


def error(text: object) -> None:
    """Print the reason for which a process fails."""
    info(f"error: {text}")


def is_notice(line: str) -> bool:
    """Whether a line was printed by `note`, `warning` or `error`."""
    return bool(_NOTICE.match(line))


def is_progress(line: str) -> bool:
    """Whether a line was printed by `Progress`."""
    return bool(_PROGRESS.match(line))


class Progress:
    """Prints `label: done/total unit, rate, time left`, at most every two seconds and once at the end.

    Args:
        label: name of the work.
        total: number of items.
        unit: name of the items.
        begun: number of items that were done earlier, for example before a restart. The rate excludes them.
    """

    def __init__(self, label: str, total: int, unit: str, begun: int = 0) -> None:
        self._label, self._total, self._unit, self._begun = label, total, unit, begun
        self._started = self._printed = time.monotonic()

    def update(self, done: int, remark: str = "") -> None:
        """Report that `done` of the total are done; `remark` is appended, for example a loss."""
        now = time.monotonic()
        finished = done >= self._total and now - self._started >= SECONDS_BETWEEN_LINES
        if not finished and now - self._printed < SECONDS_BETWEEN_LINES:
            return
        self._printed = now
        rate = (done - self._begun) / max(now - self._started, 1e-9)
        left = f", {duration((self._total - done) / rate)} left" if self._begun < done < self._total else ""
        suffix = f", {remark}" if remark else ""
        info(f"{self._label}: {done}/{self._total} {self._unit}, {rate:.1f}/s{left}{suffix}")


def duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours, depending on its length."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def track(items: Iterable[Item], label: str, total: int, unit: str) -> Iterator[Item]:
    """Yield the items and print progress as they are consumed."""
    progress = Progress(label, total, unit)
    for done, item in enumerate(items, start=1):
        yield item
        progress.update(done)
