"""Adapts the number of concurrent requests to what the teacher accepts, and pauses when it asks for that."""

import asyncio
import random

from chatmetrics.components.distill.settings import DistillSettings

JITTER_SECONDS = 0.25


class RateLimit:
    """Halves the number of concurrent requests when the teacher is busy, and raises it slowly while it is not.

    Source: additive increase and multiplicative decrease, as in TCP (RFC 5681, 3.1).

    Attributes:
        pauses: number of consecutive pauses without an answer in between.
    """

    def __init__(self, settings: DistillSettings) -> None:
        self._settings = settings
        self._concurrency = float(settings.concurrency)
        self._resume_at = 0.0
        self.pauses = 0

    @property
    def concurrency(self) -> int:
        """Requests that may be in flight."""
        return int(self._concurrency)

    @staticmethod
    def now() -> float:
        """The event loop's time, in seconds."""
        return asyncio.get_running_loop().time()

    def slow_down(self, sent: float, wait: float | None) -> None:
        """Record that the teacher was too busy for a request.

        Args:
            sent: when the request was sent, from `now`.
            wait: minimum seconds to pause; None if the teacher did not say.
        """
        # Requests that were in flight when the last pause began do not count again.
        if sent >= self._resume_at:
            self.pauses += 1
            self._concurrency = max(1.0, self._concurrency / 2)
        doubled = self._settings.backoff_seconds * 2 ** (self.pauses - 1)
        wait = max(wait or 0.0, min(self._settings.max_backoff_seconds, doubled))
        self._resume_at = max(self._resume_at, self.now() + wait)

    def speed_up(self) -> None:
        """Record an answer."""
        self.pauses = 0
        self._concurrency = min(float(self._settings.concurrency), self._concurrency + 1 / self._concurrency)

    async def pause(self) -> None:
        """Wait until requests may be sent again."""
        while (wait := self._resume_at - self.now()) > 0:
            await asyncio.sleep(wait + random.uniform(0, JITTER_SECONDS))
