"""The engine as requests use it: in turn, in time, once more after a restart, and to the end of each answer."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import closing
from typing import Any, NoReturn, TypeVar

from starlette.exceptions import HTTPException

from chatmetrics.components.serve.pod.engine.client import Answer, EngineClient, EngineError
from chatmetrics.components.serve.pod.engine.queue import Place
from chatmetrics.components.serve.pod.metrics import Metrics
from chatmetrics.components.serve.pod.pod_state import PodState

TIMED_OUT = "the answer was not complete in time: request fewer tokens, or ask the operator to raise requestSeconds"
CLOSED = "Ollama closed the connection; try again later"
STALL_SECONDS = 30.0  # without a token, after which Ollama is believed to hang
SECONDS_BETWEEN_LOOKS = 0.1
LEAST_SECONDS = 1.0  # for an answer; nothing is waited for until later before the deadline
Json = dict[str, Any]
Result = TypeVar("Result")
log = logging.getLogger(__name__)


class Engine:
    """Requests to Ollama.

    Args:
        client: The connections to it.
        state: Told of answers and of late answers that stop; tells whether the models are loaded after a restart.
        metrics: Where retries are counted.
        seconds: Maximum duration of an answer, including the wait for a slot.
    """

    def __init__(self, client: EngineClient, state: PodState, metrics: Metrics, seconds: float) -> None:
        self._client, self._state, self._metrics, self._seconds = client, state, metrics, seconds

    def deadline(self) -> float:
        """Time of the event loop's clock at which a request that begins now must be answered."""
        return asyncio.get_running_loop().time() + self._seconds

    async def json(self, method: str, path: str, body: Json | None = None) -> Json:
        """Ollama's answer to a request that needs no model.

        Raises:
            HTTPException: Ollama failed or refused.
        """
        try:
            with closing(await self._client.send(method, path, body)) as answer:
                content = await answer.read()
        except EngineError as error:
            _unavailable(error)
        if answer.status != 200:
            raise HTTPException(502, f"Ollama refused {path} ({answer.status}); see its log")
        found: Json = json.loads(content)
        return found

    async def whole(self, path: str, body: Json, deadline: float) -> tuple[Answer, bytes]:
        """A complete answer, and its body. If the engine is restarted meanwhile, it is asked once more.

        Raises:
            HTTPException: The deadline passed, or the connection failed.
        """

        async def asked() -> tuple[Answer, bytes]:
            with closing(await self._client.send("POST", path, body)) as answer:
                return answer, await answer.read()

        return await in_time(self.retried(asked, deadline), deadline)

    async def opened(self, path: str, body: Json, deadline: float, place: Place) -> Answer:
        """The beginning of a streamed answer; Ollama sends it with the first token.

        If it is late, it is read to its end in the background: see `read_to_end`.

        Raises:
            HTTPException: The deadline passed, or the connection failed.
        """
        opening = asyncio.ensure_future(self.retried(lambda: self._client.send("POST", path, body), deadline))
        try:
            done, _ = await asyncio.wait([opening], timeout=max(0.0, deadline - asyncio.get_running_loop().time()))
        except asyncio.CancelledError:
            self.read_to_end(opening, place)
            raise
        if not done:
            self.read_to_end(opening, place)
            raise HTTPException(504, TIMED_OUT)
        return opening.result()

    async def rest(self, answer: Answer, deadline: float) -> bytes:
        """The body of an answer that is an error.

        Raises:
            HTTPException: The deadline passed, or the connection failed.
        """
        try:
            with closing(answer):
                return await in_time(answer.read(), deadline)
        except EngineError as error:
            _unavailable(error)

    async def lines(
        self, path: str, body: Json, deadline: float, place: Place
    ) -> AsyncGenerator[tuple[int, bytes], None]:
        """The status of an answer with each of its lines; there is one line if `body` does not ask for a stream.

        Raises:
            HTTPException: The deadline passed, or the connection failed.
        """
        if not body["stream"]:
            whole, content = await self.whole(path, body, deadline)
            yield whole.status, content
            return
        answer = await self.opened(path, body, deadline, place)
        is_late = True
        try:
            while line := await in_time(answer.line(), deadline):
                yield answer.status, line
            is_late = False
        except EngineError as error:
            is_late = False
            raise HTTPException(502, CLOSED) from error
        finally:
            if is_late:
                self.read_to_end(answer, place)
            else:
                answer.close()

    def read_to_end(self, answer: Answer | asyncio.Future[Answer], place: Place) -> None:
        """Read a streamed answer to its end in the background and discard it. Until then, `place` is kept.

        If the connection of a streamed answer is closed between two tokens, Ollama 0.34.0 can block forever and answer
        no more requests: GenerateHandler and ChatHandler send to a channel that streamResponse no longer reads.
        """
        place.keep_until(self._read_to_end(answer, place))

    async def retried(self, action: Callable[[], Awaitable[Result]], deadline: float) -> Result:
        """Do something with Ollama, and once more, when the models are loaded again, if it raises EngineError.

        Raises:
            HTTPException: It failed twice, Ollama was not restarted before the deadline, or the pod is shutting down.
        """
        try:
            return await action()
        except EngineError as error:
            log.warning("Ollama: %s; its request is sent again when the models are loaded", error)
            failed = time.monotonic()
            while self._state.confirmed_at < failed:
                if self._state.draining or deadline - asyncio.get_running_loop().time() < LEAST_SECONDS:
                    _unavailable(error)
                await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        self._metrics.retries.inc()
        try:
            return await action()
        except EngineError as error:
            _unavailable(error)

    async def _read_to_end(self, answer: Answer | asyncio.Future[Answer], place: Place) -> None:
        try:
            async with asyncio.timeout(STALL_SECONDS):
                opened = await answer if isinstance(answer, asyncio.Future) else answer
            with closing(opened):
                part = b"x"
                while part:
                    async with asyncio.timeout(STALL_SECONDS):
                        part = await opened.part()
                    self._state.note_answer(place.model)
        except TimeoutError:
            self._state.note_timeout(place.model)
        except EngineError as error:
            log.warning("Ollama: %s", error)
        except HTTPException:
            pass  # logged where it was raised


async def turn(place: Place, model: str, deadline: float) -> None:
    """Wait for a slot of the engine, for an answer of this model.

    Raises:
        HTTPException: The deadline passed.
    """
    if place.take_slot(model):
        return
    try:
        # Nothing could be answered in the rest of the time.
        async with asyncio.timeout_at(deadline - LEAST_SECONDS):
            await place.slot(model)
    except TimeoutError as error:
        message = "too many requests are being answered; try again later"
        raise HTTPException(503, message, {"Retry-After": "1"}) from error


async def in_time(action: Awaitable[Result], deadline: float) -> Result:
    """Await something until `deadline`, a time of the event loop's clock.

    Raises:
        HTTPException: The deadline passed.
    """
    try:
        async with asyncio.timeout_at(deadline):
            return await action
    except TimeoutError as error:
        raise HTTPException(504, TIMED_OUT) from error


def _unavailable(error: EngineError) -> NoReturn:
    log.warning("Ollama: %s", error)
    raise HTTPException(502, f"Ollama does not respond: {error}; try again later") from error
