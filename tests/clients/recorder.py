"""A reverse proxy that records what clients send to a pod, and the errors that they get."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import aiohttp
from aiohttp import web

from chatmetrics.components.inference.process import bound_socket
from chatmetrics.components.serve.error_responses import error_message

Json = dict[str, Any]

HEADERS = ("accept", "content-type")  # of requests; the others differ between machines, or are secret
PASSED_ON = {"accept", "authorization", "content-type"}


class Recorder:
    """The requests of clients, by client and use, which are the first two parts of the path.

    Args:
        upstream: Endpoint of the pod.
        token: The token that the pod accepts. A recorded request only has the word valid, wrong or none.
    """

    def __init__(self, upstream: str, token: str) -> None:
        self.requests: dict[tuple[str, str], list[Json]] = {}
        self._upstream, self._token = upstream, token

    async def relay(self, request: web.Request) -> web.StreamResponse:
        """Pass a request on and record it."""
        _, client, use, path = request.raw_path.split("/", 3)
        content = await request.read()
        sent = {name: value for name, value in request.headers.items() if name.lower() in PASSED_ON}
        recorded = {
            "method": request.method,
            "path": f"/{path}",
            "token": self._kind_of_token(request.headers.get("Authorization", "")),
            "headers": {name: request.headers[name] for name in HEADERS if name in request.headers},
            **({"body": json.loads(content)} if content else {}),
        }
        self.requests.setdefault((client, use), []).append(recorded)
        async with (
            aiohttp.ClientSession() as http,
            http.request(request.method, f"{self._upstream}/{path}", headers=sent, data=content) as answer,
        ):
            recorded["status"] = answer.status
            kind = {"Content-Type": answer.headers["Content-Type"]}
            if answer.status >= 400:
                error = await answer.read()
                recorded["error"] = error_message(error)
                return web.Response(status=answer.status, headers=kind, body=error)
            response = web.StreamResponse(status=answer.status, headers=kind)
            await response.prepare(request)
            with suppress(ConnectionResetError):  # a client may stop to read at the last event
                async for part in answer.content.iter_any():
                    await response.write(part)
                await response.write_eof()
        return response

    def _kind_of_token(self, authorization: str) -> str:
        if not authorization:
            return "none"
        return "valid" if authorization == f"Bearer {self._token}" else "wrong"


@contextmanager
def recording(upstream: str, token: str) -> Iterator[tuple[str, Recorder]]:
    """Start a recorder in front of a pod; yields its endpoint and the recorder."""
    recorder, loop, socket = Recorder(upstream, token), asyncio.new_event_loop(), bound_socket(0, "127.0.0.1")
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", recorder.relay)
    runner = web.AppRunner(application)
    loop.run_until_complete(runner.setup())
    loop.run_until_complete(web.SockSite(runner, socket).start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}", recorder
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
