"""A real PostgreSQL server for tests, from Debian's package."""

import socket
import socketserver
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.nl2sql.debian_servers import data_folder
from tests.ports import free_port

CANCEL_REQUEST = struct.pack("!II", 16, 80877102)  # PostgreSQL's documentation, "Message Formats"
BINARIES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@contextmanager
def postgres(folder: Path, remote: str = "") -> Iterator[str]:
    """Run a server on 127.0.0.1 and yield the URL of its superuser, without a database.

    With `remote`, that account can connect to all addresses of this machine, with its password.
    """
    assert BINARIES is not None
    data, prefix = data_folder(folder, "postgres")
    port = free_port()
    initdb = [str(BINARIES / "initdb"), "-D", str(data), "-U", "admin", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run([*prefix, *initdb], check=True, capture_output=True)
    if remote:
        with (data / "pg_hba.conf").open("a", encoding="utf-8") as rules:
            rules.write(f"host all {remote} all scram-sha-256\n")
    listen = "*" if remote else "127.0.0.1"
    options = ["-c", "fsync=off", "-c", f"listen_addresses={listen}", "-k", str(data), "-p", str(port)]
    server = subprocess.Popen(
        [*prefix, str(BINARIES / "postgres"), "-D", str(data), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        ready = [str(BINARIES / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-t", "1"]
        while subprocess.run(ready, capture_output=True).returncode:
            assert server.poll() is None
        yield f"postgresql+psycopg://admin@127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


@contextmanager
def late_cancels(port: int, seconds: float) -> Iterator[int]:
    """Forward connections to a server, and cancel requests only after `seconds`; yields the port to connect to."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            begin = self.request.recv(4096)
            if begin.startswith(CANCEL_REQUEST):
                threading.Timer(seconds, deliver, [begin]).start()
                return
            with socket.create_connection(("127.0.0.1", port)) as server:
                server.sendall(begin)
                back = threading.Thread(target=forward, args=(server, self.request), daemon=True)
                back.start()
                forward(self.request, server)
                server.shutdown(socket.SHUT_RDWR)
                back.join()

    def deliver(request: bytes) -> None:
        with socket.create_connection(("127.0.0.1", port)) as server:
            server.sendall(request)
            server.recv(1)

    def forward(source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(65536):
            target.sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as proxy:
        proxy.daemon_threads = True
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield proxy.server_address[1]
        finally:
            proxy.shutdown()
            thread.join()
