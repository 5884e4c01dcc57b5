"""An append-only log of JSON records that survives crashes: a local file, or small objects in a bucket."""

import fcntl
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from chatmetrics.components.console import track
from chatmetrics.components.errors import InputError
from chatmetrics.components.storage.files import disk_errors, flush_folder_to_disk, flush_to_disk
from chatmetrics.components.storage.store import Store, local_path, open_store

FILE = "requests.jsonl"
PREFIX = "requests"
LOCK = ".lock"
MAX_OBJECTS = 100  # in a bucket; if there are more, the next read merges them into one

LogRecord = dict[str, Any]


class AppendOnlyLog(Protocol):
    """Records in the order in which they were written. Not thread-safe."""

    def read(self) -> list[LogRecord]:
        """Return all records that were written completely."""

    def append(self, records: Sequence[LogRecord]) -> None:
        """Append records; they are durable when this returns.

        Raises:
            StorageError: the disk or the store cannot be written.
        """


@contextmanager
def open_log(uri: str) -> Iterator[AppendOnlyLog]:
    """Open the log in a folder, at a file:// URI or below an s3:// prefix.

    In a folder the log is one file, locked against other processes. In a bucket every append writes a new object; two
    processes may append at the same time, but do not see each other's records.

    Raises:
        InputError: another process holds the lock.
        StorageError: the disk or the store cannot be read or written.
    """
    if uri.startswith("s3://"):
        yield ObjectLog(open_store(uri))
        return
    folder = local_path(uri)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{folder}: another process uses this ledger; wait until it has ended") from error
        yield FileLog(folder / FILE)


class FileLog:
    """A file with one record per line; created if it does not exist."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with disk_errors(path):
            path.touch()
            flush_folder_to_disk(path.parent)
            # An incomplete last line is left over from a write that was interrupted.
            self._end = path.read_bytes().rfind(b"\n") + 1

    def read(self) -> list[LogRecord]:
        with disk_errors(self._path):
            content = self._path.read_bytes()
        return list(_parse(content[: self._end], str(self._path)))

    def append(self, records: Sequence[LogRecord]) -> None:
        with disk_errors(self._path), self._path.open("r+b") as file:
            # Overwrite what an interrupted append may have left behind.
            file.seek(self._end)
            file.truncate()
            file.write(_render(records))
            flush_to_disk(file)
            self._end = file.tell()


class ObjectLog:
    """Objects of a few records each, with the time of writing in their names."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self) -> list[LogRecord]:
        keys = [key for key in self._store.list(f"{PREFIX}/") if key.endswith(".jsonl")]
        contents = [self._store.read_bytes(key) for key in track(keys, "reading the ledger", len(keys), "objects")]
        lines = dict.fromkeys(line for content in contents for line in content.splitlines())
        if len(keys) > MAX_OBJECTS:
            # The merged object is written before the others are deleted. If the process dies in between, some lines
            # exist twice; dict.fromkeys() above removes them at the next read.
            self._put(b"".join(line + b"\n" for line in lines), first=True)
            for key in track(keys, "merging the ledger", len(keys), "objects"):
                self._store.delete(key)
        return list(_parse(b"\n".join(lines), self._store.uri(PREFIX)))

    def append(self, records: Sequence[LogRecord]) -> None:
        self._put(_render(records))

    def _put(self, data: bytes, first: bool = False) -> None:
        moment = 0 if first else time.time_ns()
        # The name is unique, so an object of this name can only be from an earlier attempt of this very call.
        self._store.put_bytes(data, f"{PREFIX}/{moment:020}-{uuid4().hex}.jsonl", overwrite=True)


def _render(records: Sequence[LogRecord]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def _parse(content: bytes, where: str) -> Iterator[LogRecord]:
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}:{number}: not a line of the ledger ({error}); fix or remove it") from error
        yield record
