"""HTTP connections with limits for what comes before a request is known: its headers' duration and size."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS = 10.0
MOST_BYTES = 1 << 16  # of a request's headers, or of anything else that is not a part of its body


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, which closes a connection whose next request has begun but does not arrive.

    uvicorn itself has a timeout only for connections that are idle after a response, and httptools keeps headers,
    trailers and extensions of chunks of any size.
    """

    _deadline: asyncio.TimerHandle | None = None
    _bytes = 0  # received since the last part of a body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit of the first request."""
        super().connection_made(_JoinedWrites(transport, self.loop))
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Pass data on; the time limit runs unless a request is being answered."""
        self._bytes += len(data)
        super().data_received(data)
        if self._bytes > MOST_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The headers are larger than {MOST_BYTES} bytes.")
        self._watch()

    def on_body(self, body: bytes) -> None:
        """Pass a part of a body on; its size is limited where it is read."""
        self._bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._bytes = 0
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time limit."""
        super().connection_lost(exc)
        self._stop()

    def on_response_complete(self) -> None:
        """Stop the time limit: uvicorn's own for idle connections begins. A part of a next request starts it again."""
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
    """A transport that sends the writes of one turn of the event loop together, such as a response's head and body.

    Each write would be a system call, and a packet for which the client wakes up.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport, self._loop, self._parts, self._size = transport, loop, list[bytes](), 0
        # Unchanged, and called often.
        self.get_extra_info, self.is_closing = transport.get_extra_info, transport.is_closing  # type: ignore[method-assign]
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading  # type: ignore[method-assign]

    def write(self, data: bytes) -> None:  # type: ignore[override]
        """Send data when this turn of the event loop ends."""
        if not self._parts:
            self._loop.call_soon(self._send)
        self._parts.append(data)
        self._size += len(data)
        if self._size > MOST_BYTES:
            self._send()

    def close(self) -> None:
        """Send what was written, and close the connection."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._parts and not self._transport.is_closing():
            self._transport.write(b"".join(self._parts))
        self._parts.clear()
        self._size = 0
