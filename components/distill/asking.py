"""Asking a teacher many things at once: no more often than needed, no faster than it likes, no dearer than allowed."""

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from chatmetrics.components.distill.ledger import Ledger
from chatmetrics.components.distill.request import Answer, Request
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.distill.teacher import RefusedError, Teacher, UnavailableError
from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.progress import Progress

FEWEST_IN_A_ROW = 5
JITTER_SECONDS = 0.25


@dataclass
class Asked:
    """What came of the requests.

    Attributes:
        answers: by `Request.key`, those of earlier runs too.
        unsent: requests that the cap did not let out.
        given_up: number of requests without an answer after all attempts, or refused, by the last reason.
    """

    answers: dict[str, Answer] = field(default_factory=dict)
    unsent: int = 0
    given_up: Counter[str] = field(default_factory=Counter)


def ask(settings: DistillSettings, endpoint: str, requests: Sequence[Request], ledger: Ledger, label: str) -> Asked:
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
    missing = [request for key, request in wanted.items() if key not in ledger.answers]
    asked = __import__("uvloop").run(_Asking(settings, endpoint, ledger, label, missing).run()) if missing else Asked()
    asked.answers = {key: ledger.answers[key] for key in wanted if key in ledger.answers}
    _say(settings, ledger, asked)
    return asked


def _say(settings: DistillSettings, ledger: Ledger, asked: Asked) -> None:
    for reason, count in asked.given_up.most_common():
        print(f"distill: {count} requests have no answer: {reason}", file=sys.stderr, flush=True)
    if asked.unsent:
        caps = (("budget", settings.budget), ("budget_tokens", settings.budget_tokens))
        names = " and ".join(f"distill.{name} ({cap:g})" for name, cap in caps if cap)
        said = f"the cap is reached: {asked.unsent} requests were not sent; {ledger.spending().sentence}; raise {names}"
        if settings.at_cap == "fail":
            raise InputError(said)
        print(f"warning: {said}; going on with what was answered", file=sys.stderr, flush=True)


class _CapReachedError(Exception):
    """A request would not fit under the cap, and none is in flight whose cost may turn out lower."""


class _Asking:
    """One pass over the missing requests, in one event loop."""

    def __init__(
        self, settings: DistillSettings, endpoint: str, ledger: Ledger, label: str, missing: Sequence[Request]
    ) -> None:
        self._settings, self._endpoint, self._ledger = settings, endpoint, ledger
        self._missing = missing
        self._progress = Progress(label, len(missing), "answers")
        self._asked = Asked()
        self._done = self._in_a_row = 0
        self._resume_at = 0.0
        self._settled = asyncio.Condition()
        self._backoff = wait_exponential_jitter(
            settings.backoff_seconds, settings.longest_backoff_seconds, jitter=settings.backoff_seconds
        )

    async def run(self) -> Asked:
        """Ask with as many workers as the settings allow at once."""
        left = iter(self._missing)
        count = min(self._settings.concurrency, len(self._missing))
        workers = [asyncio.create_task(self._work(left)) for _ in range(count)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return self._asked

    async def _work(self, left: Iterator[Request]) -> None:
        async with Teacher(self._endpoint, self._settings) as teacher:
            for request in left:
                await self._ask(teacher, request)
                self._done += 1
                self._progress.update(self._done, self._ledger.spending_line())

    async def _ask(self, teacher: Teacher, request: Request) -> None:
        """Ask until there is an answer, or note why there is none."""
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(UnavailableError),
            stop=stop_after_attempt(self._settings.attempts),
            wait=self._pause_of,
            reraise=True,
        )
        try:
            await attempts(self._attempt, teacher, request)
            self._in_a_row = 0
        except _CapReachedError:
            self._asked.unsent += 1
        except UnavailableError as error:
            self._asked.given_up[error.reason] += 1
            self._in_a_row += 1
            if self._in_a_row >= max(FEWEST_IN_A_ROW, self._settings.concurrency):
                raise ServiceError(
                    f"{self._endpoint} does not answer ({error.reason}); what was answered is kept, run again"
                ) from None
        except RefusedError as error:
            if not self._ledger.answers:
                raise ServiceError(f"{self._endpoint} refuses what is asked ({error})") from None
            self._asked.given_up[f"refused, {error}"] += 1

    async def _attempt(self, teacher: Teacher, request: Request) -> None:
        await self._wait_for_room(request)
        id = await self._ledger.send(request)
        try:
            answer = await teacher.ask(request)
        except UnavailableError as error:
            await self._ledger.failed(id, error.reason, error.is_free)
            if error.wait is not None:
                self._resume_at = max(self._resume_at, asyncio.get_running_loop().time() + error.wait)
            raise
        except (RefusedError, ServiceError) as error:
            await self._ledger.failed(id, str(error), is_free=True)
            raise
        else:
            await self._ledger.answered(id, request, answer)
        finally:
            async with self._settled:
                self._settled.notify_all()

    async def _wait_for_room(self, request: Request) -> None:
        """Wait as long as the teacher wants to be left alone, and until the cap lets the request out."""
        while True:
            await self._wait_for_teacher()
            # Nothing settles unnoticed while this is held.
            async with self._settled:
                if self._ledger.fits(request):
                    return
                if not self._ledger.in_flight:
                    raise _CapReachedError
                # What is in flight counts as dear as it can be; most of it will be cheaper.
                await self._settled.wait()

    async def _wait_for_teacher(self) -> None:
        while (wait := self._resume_at - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(wait + random.uniform(0, JITTER_SECONDS))

    def _pause_of(self, state: RetryCallState) -> float:
        """Before the next attempt: where the teacher said how long, all wait for that anyway."""
        error = state.outcome.exception() if state.outcome else None
        return 0.0 if isinstance(error, UnavailableError) and error.wait is not None else self._backoff(state)
