"""Atomic replacement of folders."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from chatmetrics.components.errors import InputError
from chatmetrics.components.storage.files import UNFINISHED, disk_errors


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Create an empty folder next to `folder` that replaces it when the block has ended.

    If the block raises or the process dies, `folder` is unchanged.

    Yields:
        The empty folder.

    Raises:
        StorageError: the disk is full, or the parent folder is not writable.
    """
    mark = uuid4().hex[:8]
    unfinished = folder.with_name(f".{folder.name}.{mark}{UNFINISHED}")
    replaced = folder.with_name(f".{folder.name}.{mark}.old")
    with disk_errors(folder):
        unfinished.mkdir(parents=True)
        try:
            yield unfinished
            _put_in_place(unfinished, folder, replaced)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.rmtree(replaced, ignore_errors=True)


def check_replaceable(folder: Path, mark: str, what: str) -> None:
    """Refuse to replace a folder that is neither empty nor of the expected kind.

    Args:
        folder: the folder to replace; it may be missing.
        mark: name of a file that every folder of this kind contains.
        what: the kind of folder in words, for example "a dataset".

    Raises:
        InputError: it is a file, or a folder with other content.
    """
    if folder.is_file():
        raise InputError(f"{folder}: is a file; name a folder for {what}")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / mark).is_file():
        raise InputError(f"{folder}: contains something that is not {what}; name a new or empty folder")


def _put_in_place(unfinished: Path, folder: Path, replaced: Path) -> None:
    if not folder.exists():
        unfinished.rename(folder)
        return
    folder.rename(replaced)
    try:
        unfinished.rename(folder)
    except OSError:
        replaced.rename(folder)
        raise
