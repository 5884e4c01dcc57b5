"""How many requests a teacher takes at once, and when it wants to be left alone."""

import asyncio
import random

from chatmetrics.components.distill.settings import DistillSettings

JITTER_SECONDS = 0.25


class RateLimit:
    """Half as many requests at once when the teacher is busy, slowly more while it is not.

    Source: additive increase and multiplicative decrease, as in TCP (RFC 5681, 3.1).

    Attributes:
        pauses: in a row, without an answer in between.
    """

    def __init__(self, settings: DistillSettings) -> None:
        self._settings = settings
        self._at_once = float(settings.concurrency)
        self._resume_at = 0.0
        self.pauses = 0

    @property
    def at_once(self) -> int:
        """Requests that may be in flight."""
        return int(self._at_once)

    @staticmethod
    def now() -> float:
        """The event loop's time, in seconds."""
        return asyncio.get_running_loop().time()

    def slow_down(self, sent: float, wait: float | None) -> None:
        """Take note that a request which was sent at a time came too early.

        Args:
            sent: as `now` said.
            wait: seconds to leave the teacher alone, at least; None where it did not say.
        """
        if sent >= self._resume_at:  # else it is one of those for which the pace was slowed down already
            self.pauses += 1
            self._at_once = max(1.0, self._at_once / 2)
        doubled = self._settings.backoff_seconds * 2 ** (self.pauses - 1)
        wait = max(wait or 0.0, min(self._settings.max_backoff_seconds, doubled))
        self._resume_at = max(self._resume_at, self.now() + wait)

    def speed_up(self) -> None:
        """Take note of an answer."""
        self.pauses = 0
        self._at_once = min(float(self._settings.concurrency), self._at_once + 1 / self._at_once)

    async def pause(self) -> None:
        """Leave the teacher alone for as long as it wants."""
        while (wait := self._resume_at - self.now()) > 0:
            await asyncio.sleep(wait + random.uniform(0, JITTER_SECONDS))
