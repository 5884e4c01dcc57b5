"""A source in a bucket: copied to this machine while it is read, and called by its own name in the card."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chatmetrics.components.errors import InputError
from chatmetrics.components.preprocess.settings import PreprocessSettings
from chatmetrics.components.storage.mirror import pull_folder
from chatmetrics.components.storage.store import open_store

S3 = "s3://"


@contextmanager
def local_source(settings: PreprocessSettings) -> Iterator[PreprocessSettings]:
    """The settings with an s3:// source and databases on this machine for as long as the block lasts.

    Raises:
        InputError: there is nothing at the URI.
        StorageError: the bucket or the disk refused.
    """
    with tempfile.TemporaryDirectory(prefix="source-") as folder:
        copies = {name: Path(folder) / name for name in ("source", "databases")}
        changed = {name: _copy(getattr(settings, name), path) for name, path in copies.items()}
        yield settings.model_copy(update=changed)


def original(path: Path, copied: PreprocessSettings, settings: PreprocessSettings) -> str:
    """What a path in the copy that `local_source` made of `settings` is called where it came from."""
    for name in ("databases", "source"):
        uri, copy = getattr(settings, name), getattr(copied, name)
        if uri.startswith(S3):
            root = Path(copy) if Path(copy).is_dir() else Path(copy).parent
            base = uri.rstrip("/") if Path(copy).is_dir() else uri.rpartition("/")[0]
            if path.is_relative_to(root):
                return "/".join([base, *path.relative_to(root).parts])
    return str(path)


def _copy(uri: str, folder: Path) -> str:
    """Bring the file or folder at a URI here; anything that is not in a bucket stays where it is."""
    if not uri.startswith(S3):
        return uri
    parent, _, name = uri.rstrip("/").rpartition("/")
    store = open_store(parent)
    if store.exists(name):
        store.get_file(name, folder / name)
        return str(folder / name)
    pull_folder(uri, folder)
    if not folder.is_dir():
        raise InputError(f"{uri}: there is nothing; check the address")
    return str(folder)
