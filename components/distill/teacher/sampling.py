"""Asking a teacher many things at once: no more often than needed, no faster than it likes, no dearer than allowed."""

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tenacity import AsyncRetrying, RetryCallState, stop_after_attempt, wait_exponential_jitter

from chatmetrics.components.console import Progress
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.distill.teacher.client import Teacher
from chatmetrics.components.distill.teacher.failures import BusyError, RefusedError, UnavailableError
from chatmetrics.components.distill.teacher.ledger import Ledger
from chatmetrics.components.distill.teacher.rate_limit import RateLimit
from chatmetrics.components.distill.teacher.request import Request, TeacherAnswer
from chatmetrics.components.errors import InputError, ServiceError

FEWEST_IN_A_ROW = 5
BUSY_TIMES = 5  # as many for each attempt: then the teacher means this request, not the number of them


@dataclass
class SamplingResult:
    """What came of the requests.

    Attributes:
        answers: by `Request.key`, those of earlier runs too.
        not_sent: requests that the cap did not let out.
        unanswered: number of requests without an answer after all attempts, or refused, by the last reason; one that an
            earlier call with this ledger found to be refused is not among them.
    """

    answers: dict[str, TeacherAnswer] = field(default_factory=dict)
    not_sent: int = 0
    unanswered: Counter[str] = field(default_factory=Counter)


def ask(
    settings: DistillSettings, endpoint: str, requests: Sequence[Request], ledger: Ledger, label: str
) -> SamplingResult:
    """Ask the teacher whatever the ledger has no answer to, several things at a time.

    Args:
        settings: how often, how fast and for how much.
        endpoint: the teacher's base URL.
        requests: what is to be known; equal ones are asked once.
        ledger: has the answers of earlier runs and gets those of this one.
        label: of the progress lines.

    Raises:
        InputError: the cap is reached, and `at_cap` says that this is an error.
        ServiceError: the teacher lets nobody in, or does not answer; what was answered is kept.
        StorageError: the ledger cannot be written.
    """
    wanted = {request.key(settings): request for request in requests}
    known = {*ledger.answers, *ledger.refused}
    missing = [request for key, request in wanted.items() if key not in known]
    asked = asyncio.run(_SamplingRun(settings, endpoint, ledger, label, missing).run()) if missing else SamplingResult()
    asked.answers = {key: ledger.answers[key] for key in wanted if key in ledger.answers}
    _say(settings, ledger, asked)
    return asked


def _say(settings: DistillSettings, ledger: Ledger, asked: SamplingResult) -> None:
    for reason, count in asked.unanswered.most_common():
        print(f"distill: {count} requests have no answer: {reason}", file=sys.stderr, flush=True)
    if asked.not_sent:
        caps = (("budget", settings.budget), ("budget_tokens", settings.budget_tokens))
        names = " and ".join(f"distill.{name} ({cap:g})" for name, cap in caps if cap)
        said = (
            f"the cap is reached: {asked.not_sent} requests were not sent; {ledger.spending().sentence}; raise {names}"
        )
        if settings.at_cap == "fail":
            raise InputError(said)
        print(f"warning: {said}; going on with what was answered", file=sys.stderr, flush=True)


class _CapReachedError(Exception):
    """A request would not fit under the cap, and none is in flight whose cost may turn out lower."""


class _SamplingRun:
    """One pass over the missing requests, in one event loop."""

    def __init__(
        self, settings: DistillSettings, endpoint: str, ledger: Ledger, label: str, missing: Sequence[Request]
    ) -> None:
        self._settings, self._endpoint, self._ledger = settings, endpoint, ledger
        self._missing = missing
        self._progress = Progress(label, len(missing), "answers")
        self._asked = SamplingResult()
        self._done = self._in_a_row = 0
        self._is_over = False
        self._sending: set[asyncio.Task[Any] | None] = set()
        self._pace = RateLimit(settings)
        self._settled = asyncio.Condition()
        self._backoff = wait_exponential_jitter(
            multiplier=settings.backoff_seconds, max=settings.max_backoff_seconds, jitter=settings.backoff_seconds
        )

    async def run(self) -> SamplingResult:
        """Ask with as many workers as the settings allow at once."""
        left = iter(self._missing)
        count = min(self._settings.concurrency, len(self._missing))
        workers = [asyncio.create_task(self._work(left)) for _ in range(count)]
        try:
            await asyncio.gather(*workers)
        except ServiceError:
            await self._end(workers)
            raise
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await self._ledger.flush()
        return self._asked

    async def _end(self, workers: Sequence[asyncio.Task[None]]) -> None:
        """Send no more, and wait for what is on its way: it will be billed."""
        self._is_over = True
        for worker in workers:
            if worker not in self._sending:
                worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, left: Iterator[Request]) -> None:
        async with Teacher(self._endpoint, self._settings) as teacher:
            for request in left:
                await self._ask(teacher, request)
                if self._is_over:
                    return
                self._done += 1
                self._progress.update(self._done, self._ledger.spending_line())

    async def _ask(self, teacher: Teacher, request: Request) -> None:
        """Ask until there is an answer, or note why there is none."""
        attempts = AsyncRetrying(
            retry=self._may_try_again,
            stop=stop_after_attempt(self._settings.attempts),
            wait=self._backoff,
            reraise=True,
        )
        try:
            await attempts(self._attempt, teacher, request)
            self._in_a_row = 0
        except _CapReachedError:
            self._asked.not_sent += 1
        except UnavailableError as error:
            self._give_up(error.reason, "does not answer")
        except RefusedError as error:
            self._ledger.refused.add(request.key(self._settings))
            self._give_up(f"refused, {error}", "" if self._ledger.answers else "refuses what is asked")

    def _may_try_again(self, state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        return isinstance(error, UnavailableError) and not self._is_over

    def _give_up(self, reason: str, complaint: str) -> None:
        """Note a request without an answer; too many in a row are an error, should there be a complaint."""
        self._asked.unanswered[reason] += 1
        self._in_a_row += bool(complaint)
        if self._in_a_row >= max(FEWEST_IN_A_ROW, self._settings.concurrency) and not self._is_over:
            raise ServiceError(
                f"{self._endpoint} {complaint} ({reason}); what was answered is kept, run again"
            ) from None

    async def _attempt(self, teacher: Teacher, request: Request) -> None:
        """One attempt; that a teacher is busy with others is none."""
        for _ in range(BUSY_TIMES * self._settings.attempts):
            try:
                return await self._send(teacher, request)
            except BusyError as error:
                busy = error
                if self._is_over:
                    break
        raise UnavailableError(busy.reason)

    async def _send(self, teacher: Teacher, request: Request) -> None:
        await self._wait_for_room(request)
        task = asyncio.current_task()
        self._sending.add(task)
        try:
            async with self._ledger.sent(request) as id:
                await self._exchange(teacher, request, id)
        finally:
            self._sending.discard(task)
            async with self._settled:
                self._settled.notify_all()

    async def _exchange(self, teacher: Teacher, request: Request, id: str) -> None:
        sent = self._pace.now()
        try:
            answer = await teacher.ask(request)
        except BusyError as error:
            await self._ledger.failed(id, error.reason, is_free=True)
            self._slow_down(sent, error)
            raise
        except UnavailableError as error:
            await self._ledger.failed(id, error.reason, error.is_free)
            raise
        except (RefusedError, ServiceError) as error:
            await self._ledger.failed(id, str(error), is_free=True)
            raise
        await self._ledger.answered(id, request, answer)
        self._pace.speed_up()

    def _slow_down(self, sent: float, busy: BusyError) -> None:
        self._pace.slow_down(sent, busy.wait)
        attempts, longest = self._settings.attempts, self._settings.request_seconds
        if busy.wait is not None and busy.wait > longest:
            said = f"wants to be left alone for {busy.wait:.0f} s ({busy.reason}), longer than distill.request_seconds"
        elif self._pace.pauses > attempts:
            said = f"takes no request ({busy.reason}), after {attempts} pauses as long as it wants"
        else:
            return
        raise ServiceError(
            f"{self._endpoint} {said}; what was answered is kept, run again later or lower distill.concurrency"
        ) from None

    async def _wait_for_room(self, request: Request) -> None:
        """Wait as long as the teacher wants to be left alone, and until pace and cap let the request out."""
        while True:
            await self._pace.pause()
            # Nothing settles unnoticed while this is held.
            async with self._settled:
                if self._ledger.in_flight < self._pace.at_once:
                    if self._ledger.fits(request):
                        return
                    if not self._ledger.in_flight:
                        raise _CapReachedError
                # What is in flight counts as dear as it can be; most of it will be cheaper.
                await self._settled.wait()
