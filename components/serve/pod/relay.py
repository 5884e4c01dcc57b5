"""Streamed answers, which are read to their end whether or not somebody still listens."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import aiohttp
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chatmetrics.components.serve.pod import openai_api

TIMED_OUT = "the answer is not there in time: ask for less, or have the limit raised"
KEPT_BYTES = 1 << 16  # of the end of a streamed answer, where its counts are
Json = dict[str, Any]


class Relay(Response):
    """A streamed answer of Ollama's, passed on part by part; Starlette's own streaming would add half a millisecond.

    Args:
        answer: whose beginning is there.
        deadline: of its end, by the loop's clock.
        ending: gets its end; returns what is wrong with it.
        late: called when the deadline is missed.
        translated: makes its parts into OpenAI's events; None passes them on as they are.
    """

    def __init__(
        self,
        answer: aiohttp.ClientResponse,
        deadline: float,
        ending: Callable[[bytes], str],
        late: Callable[[], None],
        translated: openai_api.Chunks | None,
    ) -> None:
        kind = "text/event-stream" if translated else answer.content_type
        super().__init__(status_code=answer.status, media_type=kind)
        del self.headers["content-length"]
        self._answer, self._deadline, self._ending, self._late = answer, deadline, ending, late
        self._translated = translated

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all parts; what goes wrong after the status was sent is a last line that says it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        gone: asyncio.Future[None] = asyncio.ensure_future(until_disconnected(receive))
        wrong = ""
        try:
            async with asyncio.timeout_at(self._deadline):
                end = await self._pass_on(send, gone)
            wrong = self._ending(end) if self._answer.status == 200 else ""
        except TimeoutError:
            self._late()
            wrong = TIMED_OUT
        except aiohttp.ClientError as error:
            wrong = f"Ollama broke off ({type(error).__name__}); try again later"
        finally:
            gone.cancel()
            self._answer.close()
        await send({"type": "http.response.body", "body": self._last(wrong), "more_body": False})

    async def _pass_on(self, send: Send, gone: "asyncio.Future[None]") -> bytes:
        """Read to the end, also when the client has gone.

        When a streamed answer's connection is closed between two tokens, Ollama 0.34.0 goes on waiting for somebody to
        take the next one, and answers nobody any more (GenerateHandler and ChatHandler send to a channel that
        streamResponse no longer reads).
        """
        end = b""
        while part := await self._answer.content.readany():
            end = (end + part)[-KEPT_BYTES:]
            if self._translated:
                part = self._translated(part)
            if part and not gone.done():
                await send({"type": "http.response.body", "body": part, "more_body": True})
        return end

    def _last(self, wrong: str) -> bytes:
        if not wrong:
            return b""
        if self._translated:
            return openai_api.event_bytes({"error": {"message": wrong, "type": "server_error"}})
        return json.dumps({"error": wrong}).encode() + b"\n"


class EventStream(Response):
    """The events of an answer, a line of JSON each.

    When the client has gone, the model's answer is read to its end (see `Relay`) and its SQL is not run.
    """

    media_type = "application/x-ndjson"

    def __init__(self, events: AsyncGenerator[Json, None]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events; what goes wrong is the last one, for the status was sent."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        gone: asyncio.Future[None] = asyncio.ensure_future(until_disconnected(receive))
        last = b""
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    if gone.done() and "text" not in event:
                        break
                    await send({"type": "http.response.body", "body": _line(event), "more_body": True})
        except HTTPException as error:
            last = _line({"error": error.detail})
        finally:
            gone.cancel()
        await send({"type": "http.response.body", "body": last, "more_body": False})


def _line(event: Json) -> bytes:
    return json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n"


async def until_disconnected(receive: Receive) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
