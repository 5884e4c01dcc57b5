"""An HTTP client for the engine, with as little as possible between a request and its answer.

A general client (aiohttp) costs a fifth of the processor time that the pod needs for a request; docs/serving.md has the
figures. HTTP itself is parsed by httptools, the parser of Node.js.
"""

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

import httptools

CONNECT_SECONDS = 5.0
MOST_BYTES = 1 << 16  # of a body that wait to be read; more stay in the kernel, so that the engine waits
Json = dict[str, Any]


class EngineError(Exception):
    """The engine cannot be reached, closed the connection, or does not answer in HTTP."""


class EngineClient:
    """Requests to one HTTP server, whose connections are kept open. There is no limit on their number.

    Args:
        endpoint: For example http://127.0.0.1:11434.
    """

    def __init__(self, endpoint: str) -> None:
        address = urlsplit(endpoint)
        self._host, self._port = address.hostname or "", address.port or 80
        self._authority = address.netloc
        self._idle: list[_Connection] = []

    async def send(self, method: str, path: str, body: Json | None = None) -> "Answer":
        """Send a request and wait for the status and the headers of its answer.

        If this coroutine is canceled, the connection is closed, which makes the engine stop.

        Raises:
            EngineError: The connection failed.
        """
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._authority}\r\nContent-Type: application/json\r\n"
        connection = self._unused() or await self._connected()
        answer = Answer(self, connection)
        try:
            connection.transport.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            await answer.read_head()
        except BaseException:
            answer.close()
            raise
        return answer

    def keep(self, connection: "_Connection") -> None:
        """Take back a connection whose answer is complete."""
        self._idle.append(connection)

    def _unused(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():  # the engine closes it, for example because it is restarted
                return connection
        return None

    async def _connected(self) -> "_Connection":
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                loop = asyncio.get_running_loop()
                return (await loop.create_connection(_Connection, self._host, self._port))[1]
        except OSError as error:  # also TimeoutError
            raise EngineError(f"no connection ({type(error).__name__})") from error


class _Connection(asyncio.Protocol):
    """A connection, and the answer that is read from it."""

    transport: asyncio.Transport
    answer: "Answer | None" = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.answer:
            self.answer.received(data)
        else:
            self.transport.close()  # nothing was asked

    def connection_lost(self, exc: Exception | None) -> None:
        if self.answer:
            self.answer.failed(exc)


class Answer:
    """The engine's answer to one request.

    Attributes:
        status: The HTTP status.
        content_type: The header of this name.
    """

    def __init__(self, client: EngineClient, connection: _Connection) -> None:
        self.status, self.content_type = 0, ""
        self._client, self._connection = client, connection
        connection.answer = self
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._has_head = self._is_complete = self._keeps_connection = self._is_paused = False
        self._error: EngineError | None = None
        self._more: asyncio.Future[None] | None = None

    async def read_head(self) -> None:
        """Wait for the status and the headers.

        Raises:
            EngineError: The connection failed.
        """
        while not self._has_head:
            await self._wait()

    async def part(self) -> bytes:
        """The next part of the body; empty at its end.

        Raises:
            EngineError: The connection failed before the end.
        """
        while not self._body and not self._is_complete:
            await self._wait()
        part = bytes(self._body)
        self._body.clear()
        if self._is_complete:
            self.close()
        return part

    async def read(self) -> bytes:
        """The rest of the body.

        Raises:
            EngineError: The connection failed before the end.
        """
        while not self._is_complete:
            await self._wait()
        return await self.part()

    async def line(self) -> bytes:
        """The next line of the body, with its line break; empty at the end of the body.

        Raises:
            EngineError: The connection failed before the end.
        """
        while (end := self._body.find(b"\n") + 1) == 0 and not self._is_complete:
            await self._wait()
        if not end:
            return await self.part()
        line = bytes(self._body[:end])
        del self._body[:end]
        return line

    def close(self) -> None:
        """Give the connection back; it is closed if the answer is not complete, which makes the engine stop."""
        if self._connection.answer is not self:
            return
        self._connection.answer = None
        if self._is_complete and self._keeps_connection:
            self._client.keep(self._connection)
        else:
            self._connection.transport.close()

    def received(self, data: bytes) -> None:
        """Parse data of the connection."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.failed(error)
        if len(self._body) > MOST_BYTES and not self._is_paused:
            self._is_paused = True
            self._connection.transport.pause_reading()
        self._wake()

    def failed(self, error: Exception | None) -> None:
        """Record that no more data arrives."""
        self._error = EngineError(type(error).__name__ if error else "the connection was closed")
        self._wake()

    async def _wait(self) -> None:
        if self._error:
            raise self._error
        if self._is_paused:
            self._is_paused = False
            self._connection.transport.resume_reading()
        self._more = asyncio.get_running_loop().create_future()
        await self._more

    def _wake(self) -> None:
        if self._more and not self._more.done():
            self._more.set_result(None)

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Remember the content type."""
        if name.lower() == b"content-type":
            self.content_type = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Remember the status, and whether the connection can be used again."""
        self.status, self._keeps_connection = self._parser.get_status_code(), self._parser.should_keep_alive()
        self._has_head = True

    def on_body(self, body: bytes) -> None:
        """Add a part of the body."""
        self._body += body

    def on_message_complete(self) -> None:
        """End the body."""
        self._is_complete = True
