"""A folder that takes the place of another one whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from chatmetrics.components.errors import InputError
from chatmetrics.components.storage.files import UNFINISHED, disk_errors


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside `folder` that takes its place when the block ends.

    When the block raises, or the process dies, `folder` is what it was.

    Raises:
        StorageError: the disk is full, or the parent may not be written.
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
    """Refuse to put something in the place of what is not an older one of it.

    Args:
        folder: what would be replaced; it need not exist.
        mark: name of a file that such a folder always holds.
        what: what such a folder is, for people: "a dataset".

    Raises:
        InputError: it is a file, or holds something else.
    """
    if folder.is_file():
        raise InputError(f"{folder}: is a file; give a folder for {what}")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / mark).is_file():
        raise InputError(f"{folder}: holds something that is not {what}; give a new or an empty folder")


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
