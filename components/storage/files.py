"""File operations of the stores: atomic writes, checksums, and errors in one line."""

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from chatmetrics.components.console import Progress
from chatmetrics.components.errors import StorageError

BLOCK = 8 * 2**20
MIB = 2**20
UNFINISHED = ".part"


class AlreadyThereError(StorageError):
    """Other content already exists under this name and is never overwritten."""


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file.

    Raises:
        StorageError: the file cannot be read.
    """
    with disk_errors(path):
        return copy(path, None)


def copy(path: Path, target: BinaryIO | None, size: int | None = None) -> str:
    """Copy a file's bytes to `target`, unless it is None, and return their hexadecimal sha256.

    Bytes that are appended meanwhile are left out.

    Raises:
        StorageError: the file does not have the `size` in bytes.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        found = os.fstat(file.fileno()).st_size
        if size is not None:
            check_size(str(path), found, size)
        size = left = found
        progress = Progress(f"{'copying' if target else 'sha256 of'} {path.name}", size // MIB, "MiB")
        while block := file.read(min(BLOCK, left)):
            left -= len(block)
            digest.update(block)
            if target:
                target.write(block)
            progress.update(file.tell() // MIB)
    return digest.hexdigest()


def check_size(where: str, found: int, size: int) -> None:
    """Refuse a file that does not have the size that its manifest states.

    Raises:
        StorageError: the sizes, in bytes, differ.
    """
    if found != size:
        raise StorageError(f"{where} is damaged: it has {found} bytes instead of {size}; publish it again")


def read_bounded(path: Path, most: int | None) -> bytes:
    """The content of a small file.

    Raises:
        StorageError: the file cannot be read, or has more than `most` bytes.
    """
    with disk_errors(path), path.open("rb") as file:
        content = file.read(-1 if most is None else most + 1)
    if most is not None and len(content) > most:
        raise too_large(str(path), most)
    return content


def too_large(where: str, most: int) -> StorageError:
    """The error of a file with more than `most` bytes, which is not read."""
    return StorageError(f"{where} is not read, because it has more than {most // MIB} MiB; check who wrote it")


@contextmanager
def atomic_file(path: Path, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` when the block has ended and its bytes are on the disk.

    If the block raises or the process dies, `path` is unchanged.

    Raises:
        AlreadyThereError: `overwrite` is false and `path` exists, or was created during the block.
        StorageError: the disk is full, or the folder is not writable.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}{UNFINISHED}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                yield file
                flush_to_disk(file)
            _put_in_place(temporary, path, overwrite)
        finally:
            temporary.unlink(missing_ok=True)


def _put_in_place(temporary: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        temporary.replace(path)
    else:
        try:
            # Unlike a rename, a link fails if the name exists: exactly one of two writers succeeds.
            path.hardlink_to(temporary)
        except FileExistsError:
            raise AlreadyThereError(f"{path} already exists and is never overwritten") from None
    flush_folder_to_disk(path.parent)


def flush_folder_to_disk(folder: Path) -> None:
    """Flush a folder's entries, so that the names of new files survive a power failure."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def flush_to_disk(file: BinaryIO) -> None:
    """Flush the bytes written to `file`, so that they survive a power failure."""
    file.flush()
    os.fsync(file.fileno())


def check_key(key: str, where: str) -> None:
    """Refuse a key that, as a path, would lead out of a folder. Whoever can write to a bucket chooses its keys.

    Args:
        key: a key of a store.
        where: the store's location, for the error.

    Raises:
        StorageError: it is an absolute path, or contains `.` or `..` as a name, or a control character.
    """
    if key.startswith("/") or {".", ".."} & set(key.split("/")) or re.search(r"[\x00-\x1f\x7f]", key):
        raise StorageError(
            f"{where}: the key {key!r} cannot be used as a path; remove the object or give it another key"
        )


def path_below(folder: Path, key: str) -> Path:
    """The path below `folder` for a key of a store.

    Raises:
        StorageError: it would not be below the folder; see `check_key`.
    """
    check_key(key, str(folder))
    path = folder / key
    if path == folder or not path.is_relative_to(folder):
        raise StorageError(f"{folder}: the key {key!r} is not a file below this folder; use another key")
    return path


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Convert an OSError in the block to a StorageError with one line that names the file and what to do.

    Errors of safetensors (Rust) and torch.save (C++) that stand for an OSError are converted too.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(_explanation(error, Path(error.filename or path))) from error
    except Exception as error:
        if (number := _error_number(error)) is None:
            raise
        raise StorageError(_explanation(OSError(number, os.strerror(number)), path)) from error


def full_disk(error: BaseException, folder: Path | None = None) -> StorageError | None:
    """The error of a full disk, if that is what an error or any of its causes is about; None if not.

    Libraries raise errors of their own when they cannot write, which blame the network or a file's content.

    Args:
        error: any error.
        folder: where the block wrote, if the error does not name a file; None: the one with the least space of the
            folders that programs write to without being told.
    """
    if isinstance(error, StorageError):
        return None  # it names the file and the reason already
    for cause in _causes(error):
        number = cause.errno if isinstance(cause, OSError) and cause.errno else _error_number(cause)
        if number in (errno.ENOSPC, errno.EDQUOT):
            name = cause.filename if isinstance(cause, OSError) else None
            path = Path(name) if isinstance(name, str) else folder or _fullest_folder()
            return StorageError(_explanation(OSError(number, os.strerror(number)), path))
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it was raised from, while handling, or for."""
    pending, seen = [error], set[int]()
    while pending:
        found = pending.pop(0)
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        parts = found.exceptions if isinstance(found, BaseExceptionGroup) else ()
        arguments = (argument for argument in found.args if isinstance(argument, BaseException))
        pending += [cause for cause in (found.__cause__, found.__context__, *parts, *arguments) if cause]


def _fullest_folder() -> Path:
    folders = {Path(tempfile.gettempdir()), Path.home(), Path.cwd()}
    return min((folder for folder in folders if folder.exists()), key=lambda folder: shutil.disk_usage(folder).free)


def _free_space(path: Path) -> str:
    existing = next((folder for folder in (path, *path.absolute().parents) if folder.exists()), None)
    try:
        return f" ({shutil.disk_usage(existing).free / 2**30:.1f} GiB free now)" if existing else ""
    except OSError:
        return ""


def _error_number(error: BaseException) -> int | None:
    """The errno in an error message of safetensors or torch; None if there is none."""
    if found := re.search(r"\(os error (\d+)\)|\[Errno (\d+)\]", str(error)):
        return int(found[1] or found[2])
    # torch reports no errno; its zip writer raises this error when a write is incomplete.
    return errno.ENOSPC if re.search(r"inline_container\.cc.*(unexpected pos|failed writing)", str(error)) else None


def _explanation(error: OSError, path: Path) -> str:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return (
                f"{path}: the disk is full; free some space or choose another folder, then run again{_free_space(path)}"
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"{path}: not allowed ({error.strerror}); choose another folder or change the permissions"
        case errno.ENOENT:
            return f"{path}: no such file or folder; check the path"
        case _:
            return f"{path}: {error.strerror or error}"
