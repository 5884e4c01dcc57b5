"""Folders to and from a store: what is too large or too many for one file, such as a merged model."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from chatmetrics.components.storage.files import sha256_of
from chatmetrics.components.storage.store import open_store


def push_folder(folder: Path, uri: str) -> str:
    """Store a folder's files under a name of their content, and return the URI of that copy.

    Two writers, or a step that is run again, never touch each other's files: the same content has the same name.

    Args:
        folder: its hidden files are left out.
        uri: folder, file:// or s3:// prefix under which the copy gets a name of its own.

    Raises:
        StorageError: the store or the disk refused.
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
    """Bring the files below a URI into `folder`, each verified; what is there and right stays.

    Args:
        uri: folder, file:// or s3:// prefix.
        folder: where they go.
        wanted: says of a file's key, relative to the URI, whether it is brought.

    Raises:
        StorageError: the store or the disk refused.
    """
    store = open_store(uri)
    # What consoles make as a "folder" is an empty object whose name ends in a slash.
    for key in (key for key in store.list("") if key and not key.endswith("/") and wanted(key)):
        store.get_file(key, folder / key)
