"""Ports for servers that tests start."""

import os
import random
import socket

# Below the ports that the system gives to connections, any of which could take a port before its server listens.
FIRST, PER_WORKER, WORKERS = 12_000, 6_000, 3
_issued: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on, and that no other process of this test run gets."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
    first = FIRST + worker * PER_WORKER
    while True:
        port = random.randrange(first, first + PER_WORKER)
        if port not in _issued and _is_free(port):
            _issued.add(port)
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True
