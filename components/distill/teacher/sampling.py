"""Samples answers from the teacher concurrently, with retries, a rate limit and a cap on the cost."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tenacity import AsyncRetrying, RetryCallState, stop_after_attempt, wait_exponential_jitter

from chatmetrics.components import console
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.distill.teacher.client import Teacher
from chatmetrics.components.distill.teacher.failures import BusyError, RefusedError, UnavailableError
from chatmetrics.components.distill.teacher.ledger import Ledger, WithdrawnError
from chatmetrics.components.distill.teacher.rate_limit import RateLimit
from chatmetrics.components.distill.teacher.request import Request, TeacherAnswer
from chatmetrics.components.errors import InputError, ServiceError

MIN_FAILURES_IN_A_ROW = 5  # requests without an answer after which the run ends, or `concurrency` if that is more
POLL_SECONDS = 1.0  # between two looks at what other processes have recorded
MAX_DOUBLINGS = 3  # of this pause, while processes near a shared cap only give way to each other
BUSY_PER_ATTEMPT = 5  # times that a teacher may be busy, per attempt, before the request counts as unanswered


@dataclass
class SamplingResult:
    """Outcome of a set of requests.

    Attributes:
        answers: answers by `Request.key`, including those of earlier runs.
        wanted: number of requests that an answer is wanted to, including those that earlier runs sent.
        not_sent: number of requests that were not sent because a cap was reached.
        unanswered: number of requests that were refused or have no answer after all attempts, by the last reason.
            Requests that an earlier call with this ledger found to be refused do not count again.
    """

    answers: Mapping[str, TeacherAnswer] = field(default_factory=dict)
    wanted: int = 0
    not_sent: int = 0
    unanswered: Counter[str] = field(default_factory=Counter)


def ask(
    settings: DistillSettings, endpoint: str, requests: Sequence[Request], ledger: Ledger, label: str
) -> SamplingResult:
    """Send the requests that the ledger has no answer to, concurrently.

    Args:
        settings: concurrency, attempts, prices and caps.
        endpoint: the teacher's base URL.
        requests: the requests; equal ones are sent once.
        ledger: has the answers of earlier runs, and records those of this one.
        label: label of the progress lines.

    Raises:
        InputError: a cap was reached, and `at_cap` is "fail".
        ServiceError: the teacher does not answer, or no request can succeed; the answers received so far are kept.
        StorageError: the ledger cannot be written.
    """
    wanted = {request.key(settings): request for request in requests}
    known = {*ledger.answers, *ledger.refused}
    missing = [request for key, request in wanted.items() if key not in known]
    result = SamplingResult()
    if missing:
        result = asyncio.run(_SamplingRun(settings, endpoint, ledger, label, missing).run())
    result.answers, result.wanted = ledger.answers.only(wanted), len(wanted)
    _report(settings, ledger, result)
    return result


def _report(settings: DistillSettings, ledger: Ledger, result: SamplingResult) -> None:
    for reason, count in result.unanswered.most_common():
        console.info(f"distill: {count} requests have no answer: {reason}")
    if result.not_sent:
        caps = (("budget", settings.budget), ("budget_tokens", settings.budget_tokens))
        names = " and ".join(f"distill.{name} ({cap:g})" for name, cap in caps if cap)
        message = (
            f"the cap is reached: {result.not_sent} requests were not sent; {ledger.spending().sentence}; raise {names}"
        )
        if settings.at_cap == "fail":
            raise InputError(message)
        console.warning(f"{message}; continuing with the answers received so far")


class _CapReachedError(Exception):
    """The request would exceed a cap, and no request is in flight whose actual cost may turn out lower."""


class _SamplingRun:
    """Sends a set of requests, in one event loop.

    Each worker takes one request after the other from a shared iterator. For each request:

        _ask       up to `attempts` attempts, with exponential backoff in between
        _attempt   one attempt; repeated while the teacher is busy, which does not count as an attempt
        _send      waits for the rate limit and the caps, and records the request in the ledger
        _exchange  sends it, and records the answer or the failure
    """

    def __init__(
        self, settings: DistillSettings, endpoint: str, ledger: Ledger, label: str, missing: Sequence[Request]
    ) -> None:
        self._settings, self._endpoint, self._ledger = settings, endpoint, ledger
        self._missing = missing
        self._progress = console.Progress(label, len(missing), "answers")
        self._result = SamplingResult()
        self._done = self._failures_in_a_row = 0
        self._of_others: list[Request] = []  # requests that another process is sending
        self._over_cap: set[str] = set()
        self._is_ending = False
        self._sending: set[asyncio.Task[Any] | None] = set()
        self._rate_limit = RateLimit(settings)
        self._settled = asyncio.Condition()  # notified whenever a request is no longer in flight
        self._backoff = wait_exponential_jitter(
            multiplier=settings.backoff_seconds, max=settings.max_backoff_seconds, jitter=settings.backoff_seconds
        )

    async def run(self) -> SamplingResult:
        """Send all requests, or wait for the answers that other processes get to them."""
        missing = list(self._missing)
        if self._ledger.is_shared:
            # Processes that start together begin at different requests.
            start = random.randrange(len(missing))
            missing = missing[start:] + missing[:start]
        doublings = 0
        while missing:
            done = self._done
            await self._send_all(missing)
            doublings = 0 if self._done > done else min(doublings + 1, MAX_DOUBLINGS)
            missing = await self._left_by_others(POLL_SECONDS * 2**doublings)
        # Another process may have got an answer meanwhile.
        self._result.not_sent = len(self._over_cap - set(self._ledger.answers))
        return self._result

    async def _send_all(self, requests: Sequence[Request]) -> None:
        """Send requests with `concurrency` workers."""
        remaining = iter(requests)
        count = min(self._settings.concurrency, len(requests))
        workers = [asyncio.create_task(self._work(remaining)) for _ in range(count)]
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

    async def _left_by_others(self, pause: float) -> list[Request]:
        """Wait for the requests that other processes were sending; returns those that still have no answer."""
        waiting = {request.key(self._settings): request for request in self._of_others}
        self._of_others = []
        while waiting:
            self._progress.update(self._done, f"waiting for {len(waiting)} answers that another process gets")
            # At random, so that two processes that gave way to each other do not meet again.
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            await self._ledger.refresh()
            for key in [key for key in waiting if key in self._ledger.answers]:
                del waiting[key]
                self._done += 1
            in_flight = await self._ledger.sent_by_others(list(waiting))
            if left := [request for key, request in waiting.items() if key not in in_flight]:
                self._of_others = [request for key, request in waiting.items() if key in in_flight]
                return left
        return []

    async def _end(self, workers: Sequence[asyncio.Task[None]]) -> None:
        """Send no more requests, but wait for the answers to those in flight, which will be billed."""
        self._is_ending = True
        for worker in workers:
            if worker not in self._sending:
                worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, remaining: Iterator[Request]) -> None:
        async with Teacher(self._endpoint, self._settings) as teacher:
            for request in remaining:
                if await self._is_elsewhere(request):
                    continue
                is_done = await self._ask(teacher, request)
                if self._is_ending:
                    return
                self._done += is_done
                self._progress.update(self._done, self._ledger.spending_line())

    async def _is_elsewhere(self, request: Request) -> bool:
        """Whether another process has an answer, or is sending the request; then it is looked at again later."""
        key = request.key(self._settings)
        if key in self._ledger.answers:
            self._done += 1
            return True
        if await self._ledger.sent_by_others([key]):
            self._of_others.append(request)
            return True
        return False

    async def _ask(self, teacher: Teacher, request: Request) -> bool:
        """Send a request until it is answered, or count it as unanswered; false if another process sends it."""
        attempts = AsyncRetrying(
            retry=self._may_retry,
            stop=stop_after_attempt(self._settings.attempts),
            wait=self._backoff,
            reraise=True,
        )
        try:
            await attempts(self._attempt, teacher, request)
            self._failures_in_a_row = 0
        except _CapReachedError:
            self._over_cap.add(request.key(self._settings))
        except WithdrawnError:
            self._of_others.append(request)
            return False
        except UnavailableError as error:
            self._give_up(error.reason, "does not answer")
        except RefusedError as error:
            self._ledger.refused.add(request.key(self._settings))
            # If the teacher has answered others, the fault is in this request.
            self._give_up(f"refused, {error}", "" if self._ledger.answers else "refuses all requests")
        return True

    def _may_retry(self, state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        return isinstance(error, UnavailableError) and not self._is_ending

    def _give_up(self, reason: str, problem: str) -> None:
        """Count an unanswered request; too many in a row with a problem of the teacher end the run."""
        self._result.unanswered[reason] += 1
        self._failures_in_a_row += bool(problem)
        limit = max(MIN_FAILURES_IN_A_ROW, self._settings.concurrency)
        if self._failures_in_a_row >= limit and not self._is_ending:
            raise ServiceError(
                f"{self._endpoint} {problem} ({reason}); the answers received so far are kept, run again"
            ) from None

    async def _attempt(self, teacher: Teacher, request: Request) -> None:
        """One attempt. If the teacher is busy, try again, but not forever: it may be about this very request."""
        for _ in range(BUSY_PER_ATTEMPT * self._settings.attempts):
            try:
                return await self._send(teacher, request)
            except BusyError as error:
                busy = error
                if self._is_ending:
                    break
        raise UnavailableError(busy.reason)

    async def _send(self, teacher: Teacher, request: Request) -> None:
        await self._wait_for_turn(request)
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
        sent = self._rate_limit.now()
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
        self._rate_limit.speed_up()

    def _slow_down(self, sent: float, busy: BusyError) -> None:
        self._rate_limit.slow_down(sent, busy.wait)
        attempts, longest = self._settings.attempts, self._settings.request_seconds
        if busy.wait is not None and busy.wait > longest:
            problem = f"asks to wait {busy.wait:.0f} s ({busy.reason}), longer than distill.request_seconds"
        elif self._rate_limit.pauses > attempts:
            problem = f"accepts no requests ({busy.reason}), even after {attempts} pauses"
        else:
            return
        raise ServiceError(
            f"{self._endpoint} {problem}; the answers received so far are kept, run again later or lower "
            "distill.concurrency"
        ) from None

    async def _wait_for_turn(self, request: Request) -> None:
        """Wait until the rate limit and the caps allow the request."""
        while True:
            await self._rate_limit.pause()
            # While the condition is held, no request can settle unnoticed between the checks and wait().
            async with self._settled:
                may_send = self._ledger.in_flight < self._rate_limit.concurrency
                if may_send and self._ledger.fits(request):
                    return
                if self._ledger.in_flight:
                    # Requests in flight count at their maximum cost; most will turn out cheaper and leave room.
                    await self._settled.wait()
                    continue
            if not await self._ledger.others_are_sending():
                raise _CapReachedError
            await asyncio.sleep(POLL_SECONDS)
            await self._ledger.refresh()
