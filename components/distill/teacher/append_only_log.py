"""Lines that outlive whoever wrote them: a file on this machine, or small objects in a bucket."""

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
LOCK = ".lock"
MOST_OBJECTS = 100

Record = dict[str, Any]


class AppendOnlyLog(Protocol):
    """Records in the order in which they were written; not for use by several threads at a time."""

    def read(self) -> list[Record]:
        """All records that were written to their end."""

    def append(self, records: Sequence[Record]) -> None:
        """Return when the records would survive a power cut.

        Raises:
            StorageError: the disk or the store refused.
        """


@contextmanager
def open_log(uri: str) -> Iterator[AppendOnlyLog]:
    """The journal of a folder, a file:// or an s3:// URI, for as long as the block lasts.

    In a folder it is one file, and no other process has it meanwhile. In a bucket every append is an object of its own,
    and two processes at once do not harm each other's records, but see none of them.

    Raises:
        InputError: another process has the folder.
        StorageError: the disk or the store refused.
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
            raise InputError(f"{folder}: another process asks the teacher here; wait for it to end") from error
        yield FileLog(folder / FILE)


class FileLog:
    """A file with one record a line, which is made when it is not there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with disk_errors(path):
            path.touch()
            flush_folder_to_disk(path.parent)
            # What comes after the last whole line was torn off while it was written.
            self._end = path.read_bytes().rfind(b"\n") + 1

    def read(self) -> list[Record]:
        """See `AppendOnlyLog`."""
        with disk_errors(self._path):
            content = self._path.read_bytes()
        return list(_parse(content[: self._end], str(self._path)))

    def append(self, records: Sequence[Record]) -> None:
        """See `AppendOnlyLog`; what an append that failed has left is written over."""
        with disk_errors(self._path), self._path.open("r+b") as file:
            file.seek(self._end)
            file.truncate()
            file.write(_render(records))
            flush_to_disk(file)
            self._end = file.tell()


class ObjectLog:
    """Objects of a few records each, named for the time of writing."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self) -> list[Record]:
        """See `AppendOnlyLog`; many objects become one, which is there before the others go."""
        keys = [key for key in self._store.list("requests/") if key.endswith(".jsonl")]
        contents = [self._store.read_bytes(key) for key in track(keys, "reading the ledger", len(keys), "objects")]
        lines = dict.fromkeys(line for content in contents for line in content.splitlines())
        if len(keys) > MOST_OBJECTS:
            # A process that dies in between leaves lines twice, which count once.
            self._put(b"".join(line + b"\n" for line in lines), first=True)
            for key in track(keys, "tidying the ledger", len(keys), "objects"):
                self._store.delete(key)
        return list(_parse(b"\n".join(lines), self._store.uri("requests")))

    def append(self, records: Sequence[Record]) -> None:
        """See `AppendOnlyLog`."""
        self._put(_render(records))

    def _put(self, data: bytes, first: bool = False) -> None:
        moment = 0 if first else time.time_ns()
        # The name is new, so what is there already is from an attempt of this very call.
        self._store.put_bytes(data, f"requests/{moment:020}-{uuid4().hex}.jsonl", overwrite=True)


def _render(records: Sequence[Record]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def _parse(content: bytes, where: str) -> Iterator[Record]:
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}:{number}: not a line of the ledger ({error}); mend or remove it") from error
        yield record
