"""A folder appears complete or not at all, and the old folder is never lost."""

from pathlib import Path

import pytest

from chatmetrics.components.errors import StorageError
from chatmetrics.components.storage.folder import atomic_folder


def test_the_new_folder_replaces_the_old_one_and_leaves_no_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    for text in ("old", "new"):
        with atomic_folder(folder) as unfinished:
            (unfinished / "file").write_text(text)
    assert (folder / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_block_that_raises_keeps_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "file").write_text("old")
    with pytest.raises(ValueError, match="broken"), atomic_folder(folder) as unfinished:
        (unfinished / "file").write_text("new")
        raise ValueError("broken")
    assert (folder / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_the_old_folder_is_restored_if_the_new_one_cannot_replace_it(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "file").write_text("old")
    with pytest.raises(StorageError), atomic_folder(folder) as unfinished:
        unfinished.rmdir()  # so that there is nothing to rename
    assert (folder / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]
