"""An append-only log of JSON records that survives crashes: a local file, or small objects in a bucket.

In a bucket, several processes may use one log at the same time. Each writes objects under its own name, numbered from
0, and reads the others' new ones after each of its own:

    requests/PROCESS/00000000.jsonl, 00000001.jsonl, ...    the records of one process
    requests/0...-MOMENT-ID.jsonl                           records of ended processes, merged into few objects
    processes/PROCESS.json                                  a counter that the process increments while it is alive

A process writes before it reads. S3 is strongly consistent, so of two processes that write at the same moment at least
one reads the other's records (Lamport's bakery algorithm rests on the same order).
"""

import fcntl
import io
import json
import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from chatmetrics.components.console import track
from chatmetrics.components.errors import InputError, StorageError
from chatmetrics.components.storage.files import disk_errors, flush_folder_to_disk, flush_to_disk
from chatmetrics.components.storage.store import Store, local_path, open_store

FILE = "requests.jsonl"
PREFIX, PROCESSES = "requests", "processes"
LOCK = ".lock"
BLOCK = 2**16
MAX_OBJECTS = 100  # in a bucket; if there are more, the next process that opens the log merges them
MERGED_BYTES = 8 * 2**20  # of one merged object
MERGED = f"{0:020}-"  # sorts before the other objects
BEAT_SECONDS = 10.0
LEASE_SECONDS = 60.0  # a process whose counter does not change for this long is dead
CHECK_SECONDS = 1.0  # between two looks at a counter
# A process whose counter is older than this was killed long ago. S3 refuses clocks that are off by over 15 minutes.
ABANDONED_SECONDS = 3600.0

LogRecord = dict[str, Any]


class AppendOnlyLog(Protocol):
    """Records of this process and others. Not thread-safe.

    Attributes:
        process: name of this process, for `is_alive` in others; empty if no other process can use the log.
    """

    process: str

    def read(self) -> Iterator[LogRecord]:
        """All records that were written completely. Those written at the same moment may be in any order, or twice."""

    def append(self, records: Sequence[LogRecord]) -> None:
        """Append records; they are durable when this returns.

        Raises:
            StorageError: the disk or the store cannot be written.
        """

    def read_new(self) -> list[LogRecord]:
        """The records that other processes have appended since `read` and the last `read_new`."""

    def is_alive(self, process: str) -> bool:
        """Whether another process still uses the log. It may take `LEASE_SECONDS` until a killed one counts as dead."""


@contextmanager
def open_log(uri: str) -> Iterator[AppendOnlyLog]:
    """Open the log in a folder, at a file:// URI or below an s3:// prefix.

    In a folder the log is one file, locked against other processes. In a bucket several processes can use it.

    Raises:
        InputError: another process holds the lock.
        StorageError: the disk or the store cannot be read or written.
    """
    if uri.startswith("s3://"):
        with _alive(ObjectLog(open_store(uri))) as log:
            yield log
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

    process = ""

    def __init__(self, path: Path) -> None:
        self._path = path
        with disk_errors(path):
            path.touch()
            flush_folder_to_disk(path.parent)
            # An incomplete last line is left over from a write that was interrupted.
            self._end = _end_of_last_line(path)

    def read(self) -> Iterator[LogRecord]:
        with disk_errors(self._path), self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if file.tell() > self._end:
                    return
                yield _parse(line, f"{self._path}:{number}")

    def append(self, records: Sequence[LogRecord]) -> None:
        with disk_errors(self._path), self._path.open("r+b") as file:
            # Overwrite what an interrupted append may have left behind.
            file.seek(self._end)
            file.truncate()
            file.write(_render(records))
            flush_to_disk(file)
            self._end = file.tell()

    def read_new(self) -> list[LogRecord]:
        return []

    def is_alive(self, process: str) -> bool:
        return False


@dataclass(slots=True)
class _Beat:
    """The counter of another process: as read last, and when it changed and was read, by this process's clock."""

    content: bytes | None = None
    since: float = 0.0
    checked: float = -math.inf


class ObjectLog:
    """Objects of a few records each; see the module's text."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.process = f"{time.time_ns():020}-{uuid4().hex[:12]}"
        self._written = 0
        self._failed = False
        self._others: dict[str, int] = {}  # by process: the number of its objects that were read
        self._ended: set[str] = set()
        self._beats: dict[str, _Beat] = {}

    def read(self) -> Iterator[LogRecord]:
        self._merge()
        done: set[str] = set()
        while keys := [key for key in self._keys() if key not in done]:
            for key in track(keys, "reading the ledger", len(keys), "objects"):
                done.add(key)
                if (content := self._content(key)) is None:
                    continue  # merged meanwhile by another process; the next list has the merged object
                if (process := _process_of(key)) and Path(key).stem.isdecimal():  # else a copy by hand
                    self._others[process] = max(self._others.get(process, 0), int(Path(key).stem) + 1)
                yield from _parse_all(content, self._store.uri(key))

    def append(self, records: Sequence[LogRecord]) -> None:
        if self._failed:
            # Whether the last object was stored is unknown, and others may have read it.
            raise StorageError(f"{self._store.uri(PREFIX)}: an earlier write failed")
        self._failed = True
        self._store.put_bytes(_render(records), _key(self.process, self._written), overwrite=True)
        self._failed = False
        self._written += 1

    def read_new(self) -> list[LogRecord]:
        processes = (Path(key).stem for key in self._store.list(f"{PROCESSES}/"))
        return [
            record
            for process in processes
            if process != self.process and process not in self._ended
            for record in self._read_new_of(process)
        ]

    def is_alive(self, process: str) -> bool:
        beat, now = self._beats.setdefault(process, _Beat()), time.monotonic()
        if now - beat.checked > CHECK_SECONDS:
            content = b"" if self._has_ended(process) else self._content(_beat_key(process))
            if content != beat.content:
                beat.content, beat.since = content, now
            beat.checked = now
        return bool(beat.content) and now - beat.since < LEASE_SECONDS

    def beat(self, count: int, ended: bool = False) -> None:
        """Tell the other processes that this one is alive, or that it has ended."""
        content = {"count": count, "time": time.time(), "ended": ended}
        self._store.put_bytes(json.dumps(content).encode(), _beat_key(self.process), overwrite=True)

    def _read_new_of(self, process: str) -> Iterator[LogRecord]:
        # Read first, so that no object can be added after the last one that is found here.
        has_ended = self._has_ended(process)
        while (content := self._content(key := _key(process, self._others.get(process, 0)))) is not None:
            self._others[process] = self._others.get(process, 0) + 1
            yield from _parse_all(content, self._store.uri(key))
        if has_ended:
            self._ended.add(process)

    def _content(self, key: str) -> bytes | None:
        """An object's content; None if it does not exist."""
        try:
            return self._store.read_bytes(key)
        except StorageError:
            # It may have been written meanwhile.
            return self._store.read_bytes(key) if self._store.exists(key) else None

    def _keys(self) -> list[str]:
        return [key for key in self._store.list(f"{PREFIX}/") if key.endswith(".jsonl")]

    def _merge(self) -> None:
        """Merge the objects if there are many, and no other process uses the log.

        A merged object is written before the others are deleted. If the process dies in between, some records exist
        twice.
        """
        keys = [key for key in self._keys() if not key.startswith(f"{PREFIX}/{MERGED}")]
        others = [Path(key).stem for key in self._store.list(f"{PROCESSES}/") if key != _beat_key(self.process)]
        if len(keys) <= MAX_OBJECTS or not all(self._has_ended(process) for process in others):
            return
        batch: list[str] = []
        merged = bytearray()
        for key in track(keys, "merging the ledger", len(keys), "objects"):
            merged += self._content(key) or b""
            batch.append(key)
            if len(merged) >= MERGED_BYTES or key == keys[-1]:
                name = f"{PREFIX}/{MERGED}{time.time_ns():020}-{uuid4().hex}.jsonl"
                self._store.put_bytes(bytes(merged), name, overwrite=True)
                for merged_key in batch:
                    self._store.delete(merged_key)
                batch, merged = [], bytearray()
        for process in others:
            self._store.delete(_beat_key(process))

    def _has_ended(self, process: str) -> bool:
        content = self._content(_beat_key(process))
        if not content:
            return True
        try:
            beat = json.loads(content)
            return bool(beat["ended"]) or time.time() - beat["time"] > ABANDONED_SECONDS
        except (ValueError, LookupError, TypeError):
            return False  # not written by us: whether the process is alive shows in changes of the content


@contextmanager
def _alive(log: ObjectLog) -> Iterator[ObjectLog]:
    """Tell other processes regularly that this one is alive, from before it reads the log until the block ends."""
    end = threading.Event()

    def beat() -> None:
        count = 0
        while not end.wait(BEAT_SECONDS):
            count += 1
            # If the store does not answer for long, the next `append` fails and ends the run.
            with suppress(StorageError):
                log.beat(count)

    log.beat(0)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield log
    finally:
        end.set()
        thread.join()
        # Otherwise, other processes notice it after `LEASE_SECONDS`.
        with suppress(StorageError):
            log.beat(-1, ended=True)


def _key(process: str, number: int) -> str:
    return f"{PREFIX}/{process}/{number:08}.jsonl"


def _beat_key(process: str) -> str:
    return f"{PROCESSES}/{process}.json"


def _process_of(key: str) -> str:
    """The process in the key of an object; empty for merged objects and those of earlier versions."""
    return key.split("/")[1] if key.count("/") == 2 else ""


def _end_of_last_line(path: Path) -> int:
    """Offset after the last newline of a file, found from its end; 0 if there is none."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - BLOCK)
            file.seek(start)
            if found := file.read(end - start).rfind(b"\n") + 1:
                return start + found
            end = start
    return 0


def _render(records: Sequence[LogRecord]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def _parse_all(content: bytes, where: str) -> Iterator[LogRecord]:
    for number, line in enumerate(io.BytesIO(content), start=1):
        yield _parse(line, f"{where}:{number}")


def _parse(line: bytes, where: str) -> LogRecord:
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise InputError(f"{where}: not a line of the ledger ({error}); fix or remove it") from error
    return record
