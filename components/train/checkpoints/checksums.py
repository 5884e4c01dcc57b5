"""Seals checkpoints with the checksums of their files, and finds the newest one that is intact.

A checkpoint that was interrupted while it was written has no seal; one that was damaged later does not match its seal.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from chatmetrics.components.console import note, warning
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
    """Write the checksums of all files of a checkpoint, which makes it complete, even after a power failure.

    The files are flushed to disk first.

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
    """Return the newest intact checkpoint, or None; incomplete or damaged ones are skipped with a warning.

    Args:
        checkpoints: the folder with `checkpoint-<step>` folders.
    """
    for checkpoint in _newest_first(checkpoints):
        if is_complete(checkpoint):
            return checkpoint
        warning(f"{checkpoint} is incomplete or damaged and is skipped")
    return None


def sealed_after(checkpoints: Path, resumed: Path | None) -> Path | None:
    """Return the newest checkpoint that was sealed since a run resumed from `resumed`, or None; nothing is verified."""
    sealed = (path for path in _newest_first(checkpoints) if (path / SEAL).exists())
    newest = next(sealed, None)
    return None if resumed and newest and newest.name == resumed.name else newest


def remove_newer(checkpoints: Path, kept: Path | None) -> None:
    """Remove the checkpoints that are newer than the one to resume from, or all of them: their steps are repeated.

    Raises:
        StorageError: a checkpoint cannot be removed.
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
    """Whether a checkpoint was sealed and its files have not changed since."""
    try:
        sealed = json.loads((checkpoint / SEAL).read_bytes())
        return bool(sealed == _checksums(checkpoint))
    except (OSError, ValueError, StorageError):
        return False


def sealed_files(checkpoint: Path) -> list[Path]:
    """The files that a sealed checkpoint consists of, the seal last, whether or not they exist any more.

    Raises:
        OSError: the checkpoint has no seal.
    """
    seal = checkpoint / SEAL
    return [*(checkpoint / name for name in json.loads(seal.read_bytes())), seal]


def stage(checkpoint: Path, target: Path) -> None:
    """Make a second copy of a sealed checkpoint, which stays when the first is removed; hard links, where possible.

    Raises:
        FileNotFoundError: a file of the checkpoint has been removed; `target` is incomplete.
        OSError: the checkpoint cannot be copied.
    """
    linked = [_link_or_copy(path, target / path.relative_to(checkpoint)) for path in sealed_files(checkpoint)]
    if not all(linked):
        note(f"{checkpoint.name} is copied for its upload, because this file system cannot link files")


def _link_or_copy(path: Path, target: Path) -> bool:
    """Link a file, or copy it where that is impossible; return whether it was linked."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(path)
        return True
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(path, target)
        return False


def _checksums(checkpoint: Path) -> dict[str, str]:
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != SEAL)
    return {path.relative_to(checkpoint).as_posix(): sha256_of(path) for path in files}


def claim(checkpoints: Path, identity: Mapping[str, str]) -> None:
    """Record in a checkpoint folder which run it belongs to.

    Args:
        checkpoints: the folder.
        identity: names and values that are equal in all checkpoints of a run.

    Raises:
        InputError: the folder belongs to a run with another identity.
    """
    path = checkpoints / IDENTITY
    if path.exists():
        with disk_errors(path):
            previous = json.loads(path.read_bytes())
        differing = sorted(name for name in {*previous, *identity} if previous.get(name) != identity.get(name))
        if differing:
            raise InputError(
                f"{checkpoints}: contains the checkpoints of a run with another {', '.join(differing)}; "
                "name another folder or delete this one"
            )
    else:
        with atomic_file(path) as file:
            file.write(json.dumps(identity, indent=2).encode())


@contextmanager
def locked(checkpoints: Path) -> Iterator[int]:
    """Lock a checkpoint folder against other runs while the block lasts.

    Yields:
        the lock's file descriptor: a process that inherits it keeps the lock, even if this one dies.

    Raises:
        InputError: another run uses the folder.
        StorageError: the folder cannot be written.
    """
    with disk_errors(checkpoints):
        checkpoints.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(checkpoints / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    except BlockingIOError as error:
        raise InputError(f"{checkpoints}: another training run uses this folder; wait for it or stop it") from error
    finally:
        os.close(descriptor)
