"""Access control in front of the handlers: paths, tokens, rate limits, the queue, and metrics for every request."""

import asyncio
import time

import limits
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from chatmetrics.components.errors import ServiceError
from chatmetrics.components.serve.error_responses import error_response, read_body
from chatmetrics.components.serve.pod.bearer_tokens import BearerTokens
from chatmetrics.components.serve.pod.engine.queue import EngineQueue, FullQueueError
from chatmetrics.components.serve.pod.metrics import Metrics
from chatmetrics.components.serve.pod.paths import PAGE, QUEUED, no_such_path
from chatmetrics.components.serve.pod.pod_request import Handler, Handlers, PodRequest
from chatmetrics.components.serve.pod.pod_state import PodState
from chatmetrics.components.serve.pod.request_log import RequestLog

UNAUTHENTICATED = "unauthenticated"
RETRY_SECONDS = 1
BODY_SECONDS = 10.0


class AccessControl:
    """The ASGI application of the pod, which authenticates, limits and counts requests to its handlers.

    Args:
        handlers: The handlers to protect.
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
        handlers: Handlers,
        state: PodState,
        tokens: BearerTokens,
        metrics: Metrics,
        rate: str,
        queue: EngineQueue,
        seconds: float,
        most_bytes: int,
        log: RequestLog,
    ) -> None:
        self._handlers, self._state, self._tokens, self._metrics = handlers, state, tokens, metrics
        self._queue, self._seconds, self._most_bytes, self._log = queue, seconds, most_bytes, log
        self._rate = limits.parse(rate) if rate else None
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request or refuse it, and count it when it is done."""
        request = PodRequest(scope, receive, send)
        try:
            request.note(client=self._client(request))
            handler = self._handler(request)
            self._check_rate(request)
            if request.path in QUEUED:
                await self._queued(handler, request)
            else:
                request.body = await self._body(request) if scope["method"] == "POST" else b""
                request.closes = self._state.draining
                await request.respond(await handler(request))
        except HTTPException as error:
            # Otherwise the rest of a body, however long, would still be read. At 429, the client may reach another pod.
            request.closes = self._state.draining or request.body is None or error.status_code == 429
            headers = dict(error.headers or {})
            await request.respond(error_response(scope["path"], error.status_code, error.detail, headers))
        finally:
            self._record(request)

    async def _queued(self, handler: Handler, request: PodRequest) -> None:
        if not self._state.loaded:
            raise HTTPException(503, f"not ready: waiting for {self._state.waiting_for}", _retry_after(RETRY_SECONDS))
        # Counted until it is in the queue, so that a pod that shuts down knows of it at every moment.
        self._state.arriving += 1
        try:
            # The body comes first, so that a client that sends nothing occupies no place.
            request.body = await self._body(request)
            request.place = self._queue.enter(request.client, self._tokens.has_several_clients)
        except FullQueueError as error:
            raise HTTPException(429, str(error), _retry_after(RETRY_SECONDS)) from error
        finally:
            self._state.arriving -= 1
        try:
            # The timeout also covers clients that do not read the response.
            async with asyncio.timeout(self._seconds):
                response = await handler(request)
                request.closes = self._state.draining
                await request.respond(response)
        except TimeoutError:
            request.status = 504
            if not request.has_begun:
                raise HTTPException(504, "the request timed out") from None
        finally:
            request.place.leave()

    async def _body(self, request: PodRequest) -> bytes:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await read_body(request.receive, self._most_bytes)
        except TimeoutError:
            raise HTTPException(408, f"the request's body was not complete after {BODY_SECONDS:g} s") from None

    def _client(self, request: PodRequest) -> str:
        try:
            client = self._tokens.client_of(Headers(scope=request.scope).get("authorization", ""))
        except ServiceError as error:
            raise HTTPException(503, str(error), _retry_after(RETRY_SECONDS)) from error
        if not client and request.path != PAGE:  # the page prompts for a token itself
            message = "no valid token: send the header 'Authorization: Bearer TOKEN'"
            raise HTTPException(401, message, {"WWW-Authenticate": "Bearer"})
        return client

    def _handler(self, request: PodRequest) -> Handler:
        method = "GET" if request.scope["method"] == "HEAD" else request.scope["method"]
        if handler := self._handlers.get((method, request.path)):
            return handler
        allowed = [method for method, path in self._handlers if path == request.path]
        if not allowed:
            raise HTTPException(404, no_such_path(request.scope["path"]))
        raise HTTPException(405, f"the method must be {' or '.join(allowed)}", {"Allow": ", ".join(allowed)})

    def _check_rate(self, request: PodRequest) -> None:
        if self._rate is None or request.path not in QUEUED or self._limiter.hit(self._rate, request.client):
            return
        reset = self._limiter.get_window_stats(self._rate, request.client).reset_time
        message = f"more than {self._rate.amount} requests in {self._rate.get_expiry()} s; try again later"
        raise HTTPException(429, message, _retry_after(max(1, round(reset - time.time()))))

    def _record(self, request: PodRequest) -> None:
        path, seconds = request.path or "other", time.monotonic() - request.started
        self._metrics.requests.labels(path, request.status, request.client or UNAUTHENTICATED).inc()
        self._metrics.duration.labels(path).observe(seconds)
        if request.status == 504 and "model" in request.record:
            self._state.note_timeout(request.record["model"])
        self._log.write({**request.record, "path": path, "status": request.status, "seconds": round(seconds, 4)})
        if request.first is not None and request.status < 400:
            self._metrics.first_token.labels(path).observe(request.first)


def _retry_after(seconds: int) -> dict[str, str]:
    return {"Retry-After": str(seconds)}
