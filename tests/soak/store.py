"""The S3 store of the soak, and the line to it, which can be cut."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from chatmetrics.components.storage.store import open_store
from tests.ports import free_port
from tests.serve.pods import published
from tests.soak.mix import LONG
from tests.storage import s3

BUCKET = "soak"


def publish_models(folder: Path, server: s3.Server) -> list[dict[str, Any]]:
    """Publish a short and a long model in the store, and return the models of a release that serves both."""
    server.client.create_bucket(Bucket=BUCKET)
    published(folder, "1")
    published(folder, "1", LONG, gold=None, name="long", context_length=1024)
    store = open_store(f"s3://{BUCKET}")
    for path in (folder / "models").glob("*/1/*"):
        store.put_file(path, str(path.relative_to(folder / "models")))
    # The long model has no acceptance test, so that a pod is ready early.
    return [
        {"name": "hotel", "uri": f"s3://{BUCKET}/hotel/1"},
        {"name": "long", "uri": f"s3://{BUCKET}/long/1", "threshold": 0},
    ]


class Line:
    """A TCP port that leads to the store, until it is cut: then it refuses connections.

    Args:
        endpoint: The store's URL.
    """

    def __init__(self, endpoint: str) -> None:
        self._target = int(endpoint.rpartition(":")[2])
        self._port = free_port()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.endpoint = f"http://127.0.0.1:{self._port}"

    async def restore(self) -> None:
        """Lead to the store."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self._port)

    def cut(self) -> None:
        """Refuse new connections and abort those that are open."""
        if self._server is not None:
            self._server.close()
        for writer in self._open:
            writer.transport.abort()

    async def _connected(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            far, forth = await asyncio.open_connection("127.0.0.1", self._target)
            self._open |= {back, forth}
            try:
                await asyncio.gather(_pump(near, forth), _pump(far, back))
            finally:
                self._open -= {back, forth}


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
