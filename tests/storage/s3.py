"""A real S3 server in its own process, and proxies to it that stall, cut connections, or change answers."""

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from tests.ports import free_port
from tests.waiting import wait_until

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
SMALLEST_PART = 2**16


class Server:
    """moto's server: its `endpoint`, a `client` to inspect its content, and its log of `requests`."""

    def __init__(self, log: Path, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self._log = log
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
        )

    def requests(self, method: str, text: str) -> list[str]:
        """The log lines of requests with this method and text."""
        lines = self._log.read_text().splitlines()
        return [line for line in lines if f"{method} /" in line and text in line]

    def parts(self, bucket: str) -> list[int]:
        """Part numbers of all unfinished uploads of a bucket."""
        uploads = self.client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
        found = [
            self.client.list_parts(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]) for upload in uploads
        ]
        return [part["PartNumber"] for answer in found for part in answer.get("Parts", [])]

    def settled_parts(self, bucket: str) -> list[int]:
        """These parts, once no more have arrived for a second."""
        before, parts = [-1], self.parts(bucket)
        while parts != before:
            time.sleep(1)
            before, parts = parts, self.parts(bucket)
        return parts


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    """Run moto's server on a free port until the block ends."""
    port, log = free_port(), folder / "moto.log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = {**os.environ, "S3_UPLOAD_PART_MIN_SIZE": str(SMALLEST_PART)}
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process:
        try:
            wait_until(lambda: _answers(port), 60)
            yield Server(log, port)
        finally:
            process.terminate()


class _Line:
    """A TCP proxy in front of a server; subclasses decide how the bytes pass."""

    def __init__(self, target: str) -> None:
        self._target = int(target.rsplit(":", 1)[1])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            far = socket.create_connection(("127.0.0.1", self._target))
            up, down = self._passes()
            threading.Thread(target=self._pump, args=(near, far, up), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, down), daemon=True).start()

    def _passes(self) -> tuple[Any, Any]:
        """How bytes pass to the server and from it, on the next connection."""
        raise NotImplementedError

    def _pump(self, source: socket.socket, sink: socket.socket, how: Any) -> None:
        raise NotImplementedError


class DeadLine(_Line):
    """A TCP proxy that stalls after a number of bytes in one direction."""

    def __init__(self, target: str, upstream: int = 2**62, downstream: int = 2**62) -> None:
        self._most = {"up": upstream, "down": downstream}
        self.passed = {"up": 0, "down": 0}
        self._lock = threading.Lock()
        self.dead = threading.Event()
        super().__init__(target)

    def _passes(self) -> tuple[str, str]:
        return "up", "down"

    def _pump(self, source: socket.socket, sink: socket.socket, how: str) -> None:
        with suppress(OSError):  # a killed client can close its end at any time
            while data := source.recv(2**14):
                with self._lock:
                    self.passed[how] += len(data)
                if self.passed[how] > self._most[how]:
                    self.dead.set()
                if self.dead.is_set():
                    threading.Event().wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


class CutLine(_Line):
    """A TCP proxy that cuts connections: the n-th one after so many bytes from the server, the later ones not at all.

    Args:
        target: the server's endpoint.
        cuts: bytes that the client receives on each connection before it is closed.
        stalls: whether a connection is held open instead of closed.
    """

    def __init__(self, target: str, cuts: list[int], stalls: bool = False) -> None:
        self._cuts, self._stalls = list(cuts), stalls
        self.connections = 0
        self._held: list[socket.socket] = []
        super().__init__(target)

    def cut(self, cuts: list[int]) -> None:
        """Cut the next connections after so many bytes each."""
        self._cuts[:] = cuts

    def _passes(self) -> tuple[int, int]:
        self.connections += 1
        return 2**62, self._cuts.pop(0) if self._cuts else 2**62

    def _pump(self, source: socket.socket, sink: socket.socket, how: int) -> None:
        left = how
        with suppress(OSError):
            while data := source.recv(2**14):
                sink.sendall(data[:left])
                left -= len(data)
                if left <= 0 and self._stalls:
                    self._held.append(sink)
                    return
                if left <= 0:
                    break
            sink.shutdown(socket.SHUT_RDWR)


class SlowLine(_Line):
    """A TCP proxy through which the server's answers come byte for byte, with pauses of so many seconds."""

    def __init__(self, target: str, pause: float) -> None:
        self._pause = pause
        super().__init__(target)

    def _passes(self) -> tuple[float, float]:
        return 0.0, self._pause

    def _pump(self, source: socket.socket, sink: socket.socket, how: float) -> None:
        with suppress(OSError):
            headers = b""
            while data := source.recv(2**14):
                if not how or b"\r\n\r\n" not in headers:
                    headers += data
                    sink.sendall(data[: headers.find(b"\r\n\r\n") + 4] if how else data)
                    continue
                for byte in data:
                    sink.sendall(bytes([byte]))
                    time.sleep(how)
            sink.shutdown(socket.SHUT_RDWR)


Answer = tuple[int, dict[str, str], bytes]


class OtherStore:
    """An HTTP server in front of a store that changes some of its answers, as other stores and proxies do.

    Args:
        target: the store's endpoint.
        answer: the answer to a request (method, path with query, headers) instead of the store's; None asks the store.
        change: changes an answer of the store.
    """

    def __init__(
        self,
        target: str,
        answer: Callable[[str, str, Message], Answer | None] = lambda method, path, headers: None,
        change: Callable[[str, str, Answer], Answer] = lambda method, path, answer: answer,
    ) -> None:
        requests: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                requests.append(f"{self.command} {self.path}")
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                found = answer(self.command, self.path, self.headers)
                if found is None:
                    found = change(self.command, self.path, self.forwarded(body))
                status, headers, content = found
                self.send_response_only(status)
                is_head = self.command == "HEAD"
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "connection") or (is_head and name.lower()[8] == "l"):
                        self.send_header(name, value)
                if not is_head:
                    self.send_header("Content-Length", str(len(content)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.close_connection = True
                if not is_head:
                    self.wfile.write(content)

            do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

            def forwarded(self, body: bytes) -> Answer:
                sent = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "expect")}
                connection = http.client.HTTPConnection("127.0.0.1", int(target.rsplit(":", 1)[1]))
                connection.request(self.command, self.path, body or None, sent)
                got = connection.getresponse()
                return got.status, dict(got.getheaders()), got.read()

            def log_message(self, *_: object) -> None:
                pass

        self.requests = requests
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{server.server_port}"


def s3_error(status: int, code: str, more: str = "", headers: dict[str, str] | None = None) -> Answer:
    """An answer of S3 that refuses a request."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message>{more}</Error>"
    return status, {"Content-Type": "application/xml", **(headers or {})}, body.encode()


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
