"""A folder that takes the place of another one whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

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
