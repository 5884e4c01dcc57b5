"""HTTP connections with a time limit for headers."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0


class Connection(H11Protocol):
    """uvicorn's protocol, which closes a connection whose next request has begun but does not arrive.

    uvicorn itself has a timeout only for connections that are idle after a response. h11 is used instead of httptools,
    which does not limit the size of headers, not even without a token.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit of the first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Pass data on; the time limit runs unless a request is being answered."""
        super().data_received(data)
        self._watch()

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
