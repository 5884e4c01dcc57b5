"""Reads of an SQLite file to which another process may write.

Databases are opened read-only and `immutable`, which needs no lock and no right to write, but then SQLite does not
notice a writer: a query would see a part of a transaction. So each read is checked: it counts only if the file is the
same before and after.
"""

import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from chatmetrics.components.errors import InputError

HEADER = b"SQLite format 3\0"
HEADER_BYTES = 100
LFS_POINTER = b"version https://git-lfs"
CHANGE_COUNTER = slice(24, 28)  # counts transactions, except in WAL mode
VALID_FOR = slice(92, 96)  # the change counter for which the number of pages is valid

SECONDS_BETWEEN_TRIES = 0.02
SECONDS_OF_TRIES = 1.0
# A file system's clock has a resolution of up to 10 ms. A file that was written more recently may be written again
# without another time, so it is read a little later.
NANOSECONDS_SINCE_WRITTEN = 20_000_000

Value = TypeVar("Value")


class BrokenDatabaseError(InputError):
    """A database exists but cannot be used: its file is damaged, empty, not readable, or something else."""


class WrittenDatabaseError(BrokenDatabaseError):
    """A database is being written to, so that no consistent state of it can be read."""


@dataclass(frozen=True, slots=True)
class FileVersion:
    """A state of an SQLite file. Two states with different content differ in at least one attribute.

    Attributes:
        path: the file.
        modified: time of the last modification in ns.
        size: size in bytes.
        inode: changes when the file is replaced.
        transactions: SQLite's change counter.
    """

    path: Path
    modified: int
    size: int
    inode: int
    transactions: int

    @property
    def uri(self) -> str:
        """The URI with which SQLite opens the file."""
        return self.path.resolve().as_uri() + "?mode=ro&immutable=1"


def read_unchanged(database: Path, read: Callable[[FileVersion], Value]) -> Value:
    """Read an SQLite file, again if it was written to meanwhile, for up to `SECONDS_OF_TRIES`.

    Args:
        database: the file.
        read: reads the file; called once per try.

    Raises:
        WrittenDatabaseError: it was written to during each try.
        BrokenDatabaseError: it cannot be read, or is not an SQLite file.
    """
    started = time.monotonic()
    while True:
        try:
            return _read_once(database, read)
        except WrittenDatabaseError:
            if time.monotonic() - started > SECONDS_OF_TRIES:
                raise
            time.sleep(SECONDS_BETWEEN_TRIES)


def file_version(database: Path) -> FileVersion:
    """The state of an SQLite file.

    Raises:
        WrittenDatabaseError: it is being written to.
        BrokenDatabaseError: it cannot be read, or is not an SQLite file.
    """
    header, status = _header(database)
    _check_format(database, header)
    for suffix in ("-wal", "-journal"):
        # After a transaction, an application's SQLite may leave the file there, empty or with zeros at its start.
        if any(_begin(log := f"{database}{suffix}")):
            raise WrittenDatabaseError(
                f"database {database} has changes that are not in the file yet: close its writers ({log})"
            )
    if 0 <= time.time_ns() - status.st_mtime_ns < NANOSECONDS_SINCE_WRITTEN:
        raise _written(database)
    transactions = int.from_bytes(header[CHANGE_COUNTER])
    return FileVersion(database, status.st_mtime_ns, status.st_size, status.st_ino, transactions)


def check_complete(database: Path) -> None:
    """Check that a file is a whole SQLite database, by its header and size. Damage inside of it is not found.

    Raises:
        BrokenDatabaseError: it cannot be read, is not an SQLite file, is cut off, or is being written to.
    """
    read_unchanged(database, _check_size)


def _check_size(version: FileVersion) -> None:
    header, status = _header(version.path)
    # Offsets of the file format: page size, where 1 is 65536, and number of pages.
    page_size, pages = int.from_bytes(header[16:18]), int.from_bytes(header[28:32])
    expected = (65536 if page_size == 1 else page_size) * pages
    size = status.st_size
    if len(header) < HEADER_BYTES or (header[CHANGE_COUNTER] == header[VALID_FOR] and size < expected):
        raise BrokenDatabaseError(
            f"database {version.path} is cut off: {size} of {max(expected, HEADER_BYTES)} bytes; copy it again"
        )


def _read_once(database: Path, read: Callable[[FileVersion], Value]) -> Value:
    before = file_version(database)
    try:
        value = read(before)
    except sqlite3.Error:
        if file_version(database) == before:
            raise
        raise _written(database) from None
    if file_version(database) != before:
        raise _written(database)
    return value


def _header(database: Path) -> tuple[bytes, os.stat_result]:
    try:
        with database.open("rb", buffering=0) as file:
            return file.read(HEADER_BYTES), os.fstat(file.fileno())
    except OSError as error:
        raise BrokenDatabaseError(f"database {database} cannot be read: {error.strerror}") from error


def _begin(log: str) -> bytes:
    try:
        with open(log, "rb", buffering=0) as file:  # noqa: PTH123 (done for every query)
            return file.read(1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise BrokenDatabaseError(f"{log} cannot be read: {error.strerror}") from error


def _check_format(database: Path, header: bytes) -> None:
    if not header:
        raise BrokenDatabaseError(f"{database} is not an SQLite database: the file is empty")
    if header.startswith(LFS_POINTER):
        raise BrokenDatabaseError(f"{database} is not an SQLite database but a git-lfs pointer: run `git lfs pull`")
    if not header.startswith(HEADER):
        raise BrokenDatabaseError(f"{database} is not an SQLite database")


def _written(database: Path) -> WrittenDatabaseError:
    return WrittenDatabaseError(
        f"database {database} is written to while it is read: close its writers, or use a copy of the file"
    )
