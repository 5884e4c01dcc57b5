"""Copies of folders to and from a store, for example of a merged model."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from chatmetrics.components.storage.files import path_below, sha256_of
from chatmetrics.components.storage.store import open_store


def push_folder(folder: Path, uri: str) -> str:
    """Store a folder under a name that is a hash of its content, and return the copy's URI.

    Equal content has the same name, so two writers, or a step that runs again, never overwrite other files.

    Args:
        folder: the folder; hidden files are left out.
        uri: folder, file:// or s3:// prefix that receives the copy.

    Raises:
        StorageError: the store or the disk failed.
    """
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    visible = {key: path for key, path in files.items() if not any(part[0] == "." for part in Path(key).parts)}
    listing = "\n".join(f"{key} {sha256_of(path)}" for key, path in visible.items())
    name = hashlib.sha256(listing.encode()).hexdigest()[:16]
    store = open_store(uri)
    for key, path in visible.items():
        store.put_file(path, f"{name}/{key}")
    return store.uri(name)


def pull_folder(uri: str, folder: Path, wanted: Callable[[str], bool] = lambda key: True) -> None:
    """Fetch the files below a URI to `folder` and verify each one. Files that are already there are kept.

    Args:
        uri: folder, file:// or s3:// prefix.
        folder: the target folder.
        wanted: whether to fetch a file, by its key relative to the URI.

    Raises:
        StorageError: the store or the disk failed.
    """
    store = open_store(uri)
    # S3 consoles create a "folder" as an empty object whose name ends in a slash.
    for key in (key for key in store.list("") if key and not key.endswith("/") and wanted(key)):
        store.get_file(key, path_below(folder, key))
