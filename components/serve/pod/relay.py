"""Streamed answers, which are read to their end even if the client disconnects."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chatmetrics.components.serve.pod import openai_api
from chatmetrics.components.serve.pod.connection import Peer
from chatmetrics.components.serve.pod.engine.client import Answer, EngineError
from chatmetrics.components.serve.pod.engine.engine import CLOSED, TIMED_OUT, Engine
from chatmetrics.components.serve.pod.engine.queue import Place
from chatmetrics.components.serve.pod.pod_state import PodState

KEPT_BYTES = 1 << 16  # at the end of a streamed answer, for its token counts
Json = dict[str, Any]


class Relay(Response):
    """A streamed answer of Ollama, passed on part by part. Starlette's StreamingResponse would add 0.5 ms.

    Args:
        engine: Reads a late answer to its end.
        answer: Ollama's response, whose body is still to be read.
        deadline: Time of the event loop's clock until which the answer must be complete.
        ending: Called with the last bytes of the answer; returns an error message, or an empty string.
        place: The request's place in the queue.
        state: Told of each part.
        translated: Translates the parts into OpenAI's events; None passes them on unchanged.
        headers: Further headers of the response.
    """

    def __init__(
        self,
        engine: Engine,
        answer: Answer,
        deadline: float,
        ending: Callable[[bytes], str],
        place: Place,
        state: PodState,
        translated: openai_api.Chunks | None,
        headers: Mapping[str, str],
    ) -> None:
        kind = "text/event-stream" if translated else answer.content_type
        super().__init__(media_type=kind, headers=headers)
        del self.headers["content-length"]
        self._engine, self._answer, self._deadline = engine, answer, deadline
        self._ending, self._translated = ending, translated
        self._place, self._state = place, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all parts. The status is already sent when an error occurs, so the error is the last line."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        failure = ""
        is_late = True  # if this coroutine is canceled
        try:
            async with asyncio.timeout_at(self._deadline):
                end = await self._pass_on(send)
            is_late = False
            failure = self._ending(end)
        except TimeoutError:
            failure = TIMED_OUT
        except EngineError:
            is_late = False
            failure = CLOSED
        finally:
            if is_late:
                self._engine.read_to_end(self._answer, self._place)
            else:
                self._answer.close()
        await send({"type": "http.response.body", "body": self._last(failure), "more_body": False})

    async def _pass_on(self, send: Send) -> bytes:
        """Read the answer to its end, even if the client disconnects, and return its last bytes.

        To a client that has disconnected, `send` does nothing.
        """
        end = b""
        while part := await self._answer.part():
            self._state.note_answer(self._place.model)
            end = (end + part)[-KEPT_BYTES:]
            if self._translated:
                part = self._translated(part)
            if part:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        return end

    def _last(self, failure: str) -> bytes:
        if not failure:
            return b""
        if self._translated:
            return openai_api.event_bytes({"error": {"message": failure, "type": "server_error"}})
        return json.dumps({"error": failure}).encode() + b"\n"


class EventStream(Response):
    """The events of an answer, one line of JSON each.

    If the client disconnects, the model's answer is read to its end (see `Relay`) and its SQL is not run.
    """

    media_type = "application/x-ndjson"

    def __init__(self, events: AsyncGenerator[Json, None], peer: Peer) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._events, self._peer = events, peer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events. The status is already sent when an error occurs, so the error is the last event."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        last = b""
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    if self._peer.is_gone and "text" not in event:
                        break
                    await send({"type": "http.response.body", "body": _line(event), "more_body": True})
        except HTTPException as error:
            last = _line({"error": error.detail})
        await send({"type": "http.response.body", "body": last, "more_body": False})


def _line(event: Json) -> bytes:
    return json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n"
