"""HTTP connections with limits for what comes before a request is known: its headers' duration and size."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS = 10.0
MOST_BYTES = 1 << 16  # of a request's headers, or of anything else that is not a part of its body
HEAD, CONTINUE, END_OF_HEAD = b"HTTP/1.1 ", b"HTTP/1.1 100 ", b"\r\n\r\n"
PEER = "chatmetrics.peer"  # key of a request's Peer in its ASGI scope


class Peer:
    """The client of a request.

    Attributes:
        is_gone: Whether it has disconnected.
        when_gone: Called when it disconnects.
    """

    def __init__(self) -> None:
        self.is_gone = False
        self.when_gone: Callable[[], object] | None = None

    def leave(self) -> None:
        """Record that the client has disconnected."""
        self.is_gone = True
        if self.when_gone:
            self.when_gone()


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, which closes a connection whose next request has begun but does not arrive.

    uvicorn itself has a timeout only for connections that are idle after a response, and httptools keeps headers,
    trailers and extensions of chunks of any size.
    """

    _deadline: asyncio.TimerHandle | None = None
    _peer: Peer | None = None  # of the latest request
    _bytes = 0  # received since the last part of a body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit of the first request."""
        super().connection_made(_JoinedWrites(transport))
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Pass data on; the time limit runs unless a request is being answered."""
        self._bytes += len(data)
        super().data_received(data)
        if self._bytes > MOST_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The headers are larger than {MOST_BYTES} bytes.")
        self._watch()

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._peer = Peer()
        cast(dict[str, Any], self.scope)[PEER] = self._peer

    def on_body(self, body: bytes) -> None:
        """Pass a part of a body on; its size is limited where it is read."""
        self._bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._bytes = 0
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time limit, and what is done for the client."""
        super().connection_lost(exc)
        self._stop()
        if self._peer:
            self._peer.leave()

    def on_response_complete(self) -> None:
        """Stop the time limit: uvicorn's own for idle connections begins. A part of a next request starts it again."""
        self.transport.send()  # type: ignore[attr-defined]
        super().on_response_complete()
        self._stop()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _JoinedWrites(asyncio.Transport):
    """A transport that sends the head of a response together with the beginning of its body.

    Each write is a system call, and a packet for which the client wakes up.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport, self._head = transport, b""
        self.get_extra_info, self.is_closing = transport.get_extra_info, transport.is_closing  # type: ignore[method-assign]
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading  # type: ignore[method-assign]

    def write(self, data: bytes) -> None:  # type: ignore[override]
        """Send data, unless it is the head of a response, which waits for the next write."""
        data, self._head = self._head + data, b""
        if data.startswith(HEAD) and data.endswith(END_OF_HEAD) and not data.startswith(CONTINUE):
            self._head = data
        else:
            self._transport.write(data)

    def send(self) -> None:
        """Send a head that waits."""
        if self._head and not self._transport.is_closing():
            self._transport.write(self._head)
        self._head = b""

    def close(self) -> None:
        """Send what was written, and close the connection."""
        self.send()
        self._transport.close()
