"""A client's request, as the handlers of the pod's paths get it, and what is recorded about it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from chatmetrics.components.serve.error_responses import parsed_object
from chatmetrics.components.serve.pod.connection import PEER, Peer
from chatmetrics.components.serve.pod.engine.queue import Place
from chatmetrics.components.serve.pod.paths import known_path

ALWAYS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))  # headers of all responses
CLOSE = (b"connection", b"close")
Result = TypeVar("Result")


class PodRequest:
    """A request and its response so far.

    Attributes:
        path: Path of its handler; empty if there is none.
        name: What the client wrote for `{name}` in that path.
        body: Its body, once it is read; None until then.
        place: Its place in the queue, if its path is queued.
        peer: The client's connection.
        record: What is logged about it.
        status: Status of the response; 499 if the client disconnects before the response begins.
        has_begun: Whether the response has begun.
        closes: Whether the connection is closed after the response.
        started: Time of its beginning, on the monotonic clock.
        first: Seconds to the first byte of the response's body; None before.
    """

    place: Place

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.path, self.name = known_path(scope["path"])
        self.scope, self.receive, self._send = scope, receive, send
        self.peer: Peer = scope.get(PEER) or Peer()
        self.body: bytes | None = None
        self.record: dict[str, Any] = {"client": ""}
        self.status, self.has_begun, self.closes = 499, False, False
        self.started = time.monotonic()
        self.first: float | None = None

    @property
    def client(self) -> str:
        """Name of the client that sent it; empty without a valid token, and for the page, which needs none."""
        return str(self.record["client"])

    def note(self, **fields: Any) -> None:
        """Add fields to the record."""
        self.record.update(fields)

    def json(self) -> dict[str, Any]:
        """The JSON object in the body.

        Raises:
            HTTPException: The body is something else.
        """
        return parsed_object(self.body or b"")

    async def unless_gone(self, action: Awaitable[Result]) -> Result:
        """Await something, and cancel it when the client disconnects, so that other requests do not wait for it.

        Raises:
            HTTPException: The client disconnected.
        """
        task = asyncio.current_task()
        assert task
        self.peer.when_gone = task.cancel
        if self.peer.is_gone:
            task.cancel()
        try:
            return await action
        except asyncio.CancelledError:
            if not self.peer.is_gone:
                raise
            task.uncancel()
            raise HTTPException(499, "the client disconnected") from None
        finally:
            self.peer.when_gone = None

    async def respond(self, response: Response) -> None:
        """Send a response."""
        await response(self.scope, self.receive, self._tracked)

    async def _tracked(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.has_begun = message["status"], True
            message["headers"] = [*message["headers"], *ALWAYS, *([CLOSE] if self.closes else [])]
        elif self.first is None and message.get("body"):
            self.first = time.monotonic() - self.started
        await self._send(message)


Handler = Callable[[PodRequest], Awaitable[Response]]
Handlers = Mapping[tuple[str, str], Handler]  # by method and path
