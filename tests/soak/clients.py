"""A client of the soak: it sends one request as its plan says, and records what it gets."""

import asyncio
import contextlib
import random
import socket
import ssl
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import h11

from tests.soak.mix import Cut, Plan

SMALL_BUFFER = 4096  # bytes, of a client that reads slowly
AT_ONCE = 65536


@dataclass
class Exchange:
    """A request and what came back.

    Attributes:
        plan: The request.
        pod: Name of the pod that it was sent to.
        token: The token that it carried.
        begun: Time when the client began, in seconds since the epoch.
        sent: Time when its headers were complete; 0 if they never were, so that no pod counts the request.
        ended: Time of its end.
        status: Status of the response; 0 without one.
        body: Body of the response so far.
        complete: Whether the response arrived to its end.
        left: Whether the client disconnected before that.
        failure: What was wrong with the connection.
    """

    plan: Plan
    pod: str
    token: str
    begun: float = field(default_factory=time.time)
    sent: float = 0.0
    ended: float = 0.0
    status: int = 0
    body: bytearray = field(default_factory=bytearray)
    complete: bool = False
    left: bool = False
    failure: str = ""

    @property
    def seconds(self) -> float:
        """Duration of the whole exchange."""
        return self.ended - self.begun


class _Left(Exception):
    """The client has disconnected, as planned."""


class _Reader(asyncio.StreamReader):
    """A reader that still returns what arrived before a connection was reset, as a socket does."""

    def set_exception(self, exc: Exception) -> None:
        self.feed_eof()


class Connection:
    """An HTTP/1.1 connection to one pod."""

    def __init__(self, endpoint: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.endpoint, self._reader, self._writer = endpoint, reader, writer
        self._http = h11.Connection(h11.CLIENT)

    @classmethod
    async def open(cls, endpoint: str, slow: bool) -> "Connection":
        """Connect.

        Args:
            endpoint: The pod's URL.
            slow: Whether buffers are small, so that a client that reads slowly does not receive everything at once.

        Raises:
            OSError: The pod does not accept the connection.
        """
        url, loop = urlsplit(endpoint), asyncio.get_running_loop()
        host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
        [(family, _, _, _, address), *_] = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        near = socket.socket(family)
        try:
            near.setblocking(False)
            if slow:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            await loop.sock_connect(near, address)
        except BaseException:
            near.close()
            raise
        context = ssl.create_default_context() if url.scheme == "https" else None
        reader = _Reader(SMALL_BUFFER if slow else AT_ONCE)
        protocol = asyncio.StreamReaderProtocol(reader)
        secured = host if context else None
        transport, _ = await loop.create_connection(lambda: protocol, sock=near, ssl=context, server_hostname=secured)
        return cls(endpoint, reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    def renew(self) -> bool:
        """Get ready for another request. Returns whether that is possible."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE or self._reader.at_eof():
            return False
        self._http.start_next_cycle()
        return True

    def close(self, abruptly: bool = False) -> None:
        """Close the connection, or reset it."""
        near = self._writer.get_extra_info("socket")
        if abruptly and near is not None:
            with contextlib.suppress(OSError):
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self._writer.transport.abort()
        else:
            self._writer.close()

    async def exchange(self, record: Exchange, seconds: float) -> None:
        """Send the request of a record and fill the record in, within a number of seconds."""
        reading: asyncio.Task[None] | None = None
        try:
            self._send_head(record)
            reading = asyncio.create_task(self._read(record))
            await self._send_body(record, reading)
            plan = record.plan
            leaves = plan.cut is Cut.WAITING or plan.reads
            await asyncio.wait([reading], timeout=plan.patience if leaves else seconds)
            if reading.done():
                await reading
            elif leaves:
                raise _Left
            else:
                record.failure = f"no complete response after {seconds:g} s"
        except _Left:
            record.left = True
        except h11.RemoteProtocolError:
            record.failure = "the connection was closed within the response" if record.status else "no response"
        except OSError as error:
            record.failure = f"{type(error).__name__} {'within the' if record.status else 'instead of a'} response"
        finally:
            if reading is not None and not reading.cancel():
                reading.exception()  # otherwise asyncio would log it

    def _send_head(self, record: Exchange) -> None:
        plan = record.plan
        headers = [("Host", urlsplit(self.endpoint).netloc), ("Authorization", f"Bearer {record.token}")]
        if plan.body:
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(plan.body)))]
        method = "POST" if plan.body else "GET"
        head = self._http.send(h11.Request(method=method, target=plan.path, headers=headers))
        assert head
        if plan.cut is Cut.IN_HEADERS:
            self._writer.write(head[: random.Random(plan.patience).randrange(len(head))])
            raise _Left
        self._writer.write(head)
        record.sent = time.time()

    async def _send_body(self, record: Exchange, reading: "asyncio.Task[None]") -> None:
        """Send the body, unless a response comes first."""
        plan = record.plan
        body = (self._http.send(h11.Data(data=plan.body)) or b"") if plan.body else b""
        if plan.cut is Cut.IN_BODY:
            self._writer.write(body[: random.Random(plan.patience).randrange(len(body))])
            await asyncio.sleep(plan.patience)
            raise _Left
        parts = range(0, len(body), max(1, len(body) // 10) if plan.sends else AT_ONCE)
        for first in parts:
            if plan.sends:
                await asyncio.wait([reading], timeout=plan.sends / len(parts))
            if reading.done():
                return
            self._writer.write(body[first : first + parts.step])
        self._http.send(h11.EndOfMessage())

    async def _read(self, record: Exchange) -> None:
        plan = record.plan
        most = plan.patience * 1000 if plan.cut is Cut.IN_RESPONSE else None
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if plan.reads:
                    await asyncio.sleep(0.5)
                self._http.receive_data(await self._reader.read(max(1, plan.reads // 2) if plan.reads else AT_ONCE))
            elif isinstance(event, h11.Response):
                record.status = event.status_code
            elif isinstance(event, h11.Data):
                record.body += event.data
                if most is not None and len(record.body) >= most:
                    raise _Left
            elif isinstance(event, h11.EndOfMessage):
                record.complete = True
                return


async def send(record: Exchange, endpoint: str, kept: Connection | None, seconds: float) -> Connection | None:
    """Send a request, over a connection that was kept or a new one.

    Args:
        record: The request, which is filled in.
        endpoint: The pod's URL.
        kept: A connection that the client's last request left open.
        seconds: Time limit of the response.

    Returns:
        The connection, if it was kept open.
    """
    plan = record.plan
    connection = kept
    try:
        connection = connection or await Connection.open(endpoint, bool(plan.reads))
        await connection.exchange(record, seconds)
    except OSError as error:
        record.failure = f"no connection: {error}"
    finally:
        record.ended = time.time()
        is_kept = connection is not None and plan.keeps and record.complete and connection.renew()
        if connection is not None and not is_kept:
            connection.close(abruptly=record.left and plan.cut is Cut.IN_RESPONSE and plan.patience > 4)
    return connection if is_kept else None
