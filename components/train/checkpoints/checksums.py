"""Which checkpoints of a run can be trusted: those that were sealed with the checksums of all their files."""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from chatmetrics.components.errors import InputError, StorageError
from chatmetrics.components.storage.files import (
    atomic_file,
    disk_errors,
    flush_folder_to_disk,
    flush_to_disk,
    sha256_of,
)

SEAL = "sealed.json"
IDENTITY = "run.json"
LOCK = "lock"


def seal(checkpoint: Path) -> None:
    """Note the checksums of all files of a checkpoint, which makes it a complete one, also after a power cut.

    Raises:
        StorageError: a file cannot be read or written.
    """
    checksums = _checksums(checkpoint)
    with disk_errors(checkpoint):
        for path in checkpoint.rglob("*"):
            if path.is_dir():
                flush_folder_to_disk(path)
            else:
                with path.open("rb") as written:
                    flush_to_disk(written)
        flush_folder_to_disk(checkpoint.parent)
    with atomic_file(checkpoint / SEAL) as file:
        file.write(json.dumps(checksums, indent=2).encode())


def newest_complete(checkpoints: Path) -> Path | None:
    """The checkpoint to go on from; one that is incomplete or damaged is passed over, and said so.

    Args:
        checkpoints: the folder with `checkpoint-<step>` folders.

    Returns:
        None when there is none.
    """
    for checkpoint in _newest_first(checkpoints):
        if is_complete(checkpoint):
            return checkpoint
        print(f"warning: {checkpoint} is incomplete or damaged and is passed over", file=sys.stderr, flush=True)
    return None


def remove_newer(checkpoints: Path, kept: Path | None) -> None:
    """Remove the checkpoints that are newer than the one to go on from, or all: their steps are done again.

    Raises:
        StorageError: the disk refused.
    """
    for checkpoint in _newest_first(checkpoints):
        if checkpoint == kept:
            return
        with disk_errors(checkpoint):
            shutil.rmtree(checkpoint)


def _newest_first(checkpoints: Path) -> list[Path]:
    found = [path for path in checkpoints.glob("checkpoint-*") if path.name.partition("-")[2].isdecimal()]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]), reverse=True)


def is_complete(checkpoint: Path) -> bool:
    """Whether it was sealed, and all its files are as they were then."""
    try:
        sealed = json.loads((checkpoint / SEAL).read_bytes())
        return bool(sealed == _checksums(checkpoint))
    except (OSError, ValueError, StorageError):
        return False


def _checksums(checkpoint: Path) -> dict[str, str]:
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != SEAL)
    return {path.relative_to(checkpoint).as_posix(): sha256_of(path) for path in files}


def claim(checkpoints: Path, identity: Mapping[str, str]) -> None:
    """Note in a checkpoint folder which run it belongs to.

    Args:
        checkpoints: the folder.
        identity: what all checkpoints of a run have in common, by name.

    Raises:
        InputError: the folder belongs to a run of another identity.
    """
    path = checkpoints / IDENTITY
    if path.exists():
        with disk_errors(path):
            previous = json.loads(path.read_bytes())
        if differing := sorted(name for name in {*previous, *identity} if previous.get(name) != identity.get(name)):
            raise InputError(
                f"{checkpoints}: holds the checkpoints of a run with another {', '.join(differing)}; "
                "name another folder or delete this one"
            )
    else:
        with atomic_file(path) as file:
            file.write(json.dumps(identity, indent=2).encode())


@contextmanager
def locked(checkpoints: Path) -> Iterator[int]:
    """Keep other runs out of a checkpoint folder for as long as the block lasts.

    Yields:
        the lock's file descriptor: a process that inherits it keeps the lock, whatever becomes of this one.

    Raises:
        InputError: another run is at work there.
        StorageError: the folder cannot be written.
    """
    with disk_errors(checkpoints):
        checkpoints.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(checkpoints / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    except BlockingIOError as error:
        raise InputError(f"{checkpoints}: another training run is at work there; wait for it or end it") from error
    finally:
        os.close(descriptor)
