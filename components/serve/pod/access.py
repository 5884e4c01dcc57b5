"""Access control in front of the proxy: tokens, rate limits, the queue, and metrics for every request."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import limits
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatmetrics.components.errors import ServiceError
from chatmetrics.components.serve.error_responses import error_response, read_body
from chatmetrics.components.serve.pod.bearer_tokens import BearerTokens
from chatmetrics.components.serve.pod.engine_queue import PLACE, EngineQueue, FullQueueError
from chatmetrics.components.serve.pod.metrics import Metrics
from chatmetrics.components.serve.pod.paths import PAGE, QUEUED, known_path
from chatmetrics.components.serve.pod.pod_state import PodState
from chatmetrics.components.serve.pod.request_log import RECORD, RequestLog

UNAUTHENTICATED = "unauthenticated"
RETRY_SECONDS = 1
BODY_SECONDS = 10.0
ALWAYS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))  # headers of all responses
CLOSING = {401, 404, 408, 413, 429, 503}


@dataclass(frozen=True)
class _Refused(Exception):
    status: int
    message: str
    headers: dict[str, str]


class AccessControl:
    """ASGI middleware that authenticates, limits and counts requests.

    Args:
        app: The application to protect.
        state: Whether the pod is ready or draining.
        tokens: The clients' tokens.
        metrics: Where requests are counted.
        rate: Maximum rate per client, for example 600/minute; empty means no limit. Each pod counts separately.
        queue: Places for requests to a model.
        seconds: Timeout of a request to a model, including the time in the queue.
        most_bytes: Maximum size of a request's body.
        log: Where requests are recorded.
    """

    def __init__(
        self,
        app: ASGIApp,
        state: PodState,
        tokens: BearerTokens,
        metrics: Metrics,
        rate: str,
        queue: EngineQueue,
        seconds: float,
        most_bytes: int,
        log: RequestLog,
    ) -> None:
        self._app, self._state, self._tokens, self._metrics = app, state, tokens, metrics
        self._queue, self._seconds, self._most_bytes, self._log = queue, seconds, most_bytes, log
        self._rate = limits.parse(rate) if rate else None
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on or refuse it, and count it when it is done."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        tracked = _TrackedRequest(self, known_path(scope["path"]), send)
        try:
            scope[RECORD] = tracked.record
            tracked.record["client"] = self._client(scope, tracked.path)
            if not tracked.path:
                raise _Refused(404, "no such path", {})
            self._check_rate(tracked.client, tracked.path)
            if tracked.path in QUEUED:
                await self._queued(scope, receive, tracked)
            elif scope["method"] == "POST":
                await self._app(scope, _replayed(await self._body(scope, receive), receive), tracked.send)
            else:
                await self._app(scope, receive, tracked.send)
        except _Refused as refused:
            # Otherwise the rest of a body, however long, would still be read.
            headers = {**refused.headers, "Connection": "close"} if refused.status in CLOSING else refused.headers
            response = error_response(scope["path"], refused.status, refused.message, headers)
            await response(scope, receive, tracked.send)
        finally:
            self._record(tracked)

    async def _queued(self, scope: Scope, receive: Receive, tracked: "_TrackedRequest") -> None:
        if not self._state.loaded:
            raise _Refused(503, f"not ready: waiting for {self._state.waiting_for}", _retry_after(RETRY_SECONDS))
        # The body comes first, so that a client that sends nothing occupies no place.
        body = await self._body(scope, receive)
        try:
            place = self._queue.enter(tracked.client, self._tokens.has_several_clients)
        except FullQueueError as error:
            raise _Refused(429, str(error), _retry_after(RETRY_SECONDS)) from error
        try:
            # The timeout also covers clients that do not read the response.
            async with asyncio.timeout(self._seconds):
                await self._app({**scope, PLACE: place}, _replayed(body, receive), tracked.send)
        except TimeoutError:
            tracked.status = 504
            if not tracked.begun:
                raise _Refused(504, "the request timed out", {}) from None
        finally:
            place.leave()

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await read_body(Request(scope, receive), self._most_bytes)
        except TimeoutError:
            raise _Refused(408, f"the request's body was not complete after {BODY_SECONDS:g} s", {}) from None
        except ClientDisconnect:
            raise _Refused(499, "the client disconnected", {}) from None
        except HTTPException as error:
            raise _Refused(error.status_code, error.detail, {}) from error

    def _client(self, scope: Scope, path: str) -> str:
        try:
            client = self._tokens.client_of(Headers(scope=scope).get("authorization", ""))
        except ServiceError as error:
            raise _Refused(503, str(error), _retry_after(RETRY_SECONDS)) from error
        if not client and path != PAGE:  # the page prompts for a token itself
            message = "no valid token: send the header 'Authorization: Bearer TOKEN'"
            raise _Refused(401, message, {"WWW-Authenticate": "Bearer"})
        return client

    def _check_rate(self, client: str, path: str) -> None:
        if self._rate is None or path not in QUEUED or self._limiter.hit(self._rate, client):
            return
        reset = self._limiter.get_window_stats(self._rate, client).reset_time
        message = f"more than {self._rate.amount} requests in {self._rate.get_expiry()} s; try again later"
        raise _Refused(429, message, _retry_after(max(1, round(reset - time.time()))))

    def _record(self, tracked: "_TrackedRequest") -> None:
        path = tracked.path or "other"
        self._metrics.requests.labels(path, tracked.status, tracked.client or UNAUTHENTICATED).inc()
        self._metrics.duration.labels(path).observe(time.monotonic() - tracked.started)
        if tracked.status == 504:
            self._state.note_timeout()
        seconds = round(time.monotonic() - tracked.started, 4)
        self._log.write({**tracked.record, "path": path, "status": tracked.status, "seconds": seconds})
        if tracked.first is not None and tracked.status < 400:
            self._metrics.first_token.labels(path).observe(tracked.first)

    @property
    def closes_connections(self) -> bool:
        """Whether connections are closed after the response, so that clients connect to another pod."""
        return self._state.draining


class _TrackedRequest:
    """A request and its response so far. `path` is the one of its route; empty if it has none."""

    def __init__(self, access: AccessControl, path: str, send: Send) -> None:
        self.path, self.begun = path, False
        self.status = 499  # in case that the client disconnects before the response starts
        self.started = time.monotonic()
        self.record: dict[str, Any] = {"client": ""}
        self._access, self._send = access, send
        self.first: float | None = None

    @property
    def client(self) -> str:
        """Name of the client; empty without a valid token."""
        return str(self.record["client"])

    async def send(self, message: Message) -> None:
        """Pass on a part of the response and record its status and the time of its first byte."""
        if message["type"] == "http.response.start":
            self.status, self.begun = message["status"], True
            message = {**message, "headers": [*message["headers"], *ALWAYS]}
            if self._access.closes_connections:
                MutableHeaders(scope=message)["connection"] = "close"
        elif self.first is None and message.get("body"):
            self.first = time.monotonic() - self.started
        await self._send(message)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The messages of a request whose body was already received."""
    is_sent = False

    async def replay() -> Message:
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _retry_after(seconds: int) -> dict[str, str]:
    return {"Retry-After": str(seconds)}
