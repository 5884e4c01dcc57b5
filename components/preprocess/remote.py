"""Sources in a bucket: copied to this machine, and named by their URIs in the dataset card."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chatmetrics.components.errors import InputError
from chatmetrics.components.preprocess.settings import HeldOutSettings, PreprocessSettings
from chatmetrics.components.storage.files import path_below
from chatmetrics.components.storage.mirror import pull_folder
from chatmetrics.components.storage.store import open_store

S3 = "s3://"


@contextmanager
def local_source(settings: PreprocessSettings) -> Iterator[PreprocessSettings]:
    """Context manager: the settings with local copies of an s3:// source, s3:// databases and s3:// knowledge.

    Raises:
        InputError: the URI does not exist.
        StorageError: the bucket cannot be read, or the disk cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="source-") as folder:
        changed = _copies(settings, Path(folder)) | {"knowledge": _copy(settings.knowledge, Path(folder) / "knowledge")}
        held_out = {
            name: held_out.model_copy(update=_copies(held_out, Path(folder) / "held_out" / str(number)))
            for number, (name, held_out) in enumerate(settings.held_out.items())
        }
        yield settings.model_copy(update={**changed, "held_out": held_out})


def original(path: Path, copied: PreprocessSettings, settings: PreprocessSettings) -> str:
    """The URI of a path inside a copy made by `local_source`; any other path is returned as it is."""
    pairs = [(settings, copied), *((held_out, copied.held_out[name]) for name, held_out in settings.held_out.items())]
    for given, local, name in ((*pair, name) for pair in pairs for name in ("databases", "source")):
        uri, copy = getattr(given, name), getattr(local, name)
        if uri.startswith(S3):
            root = Path(copy) if Path(copy).is_dir() else Path(copy).parent
            base = uri.rstrip("/") if Path(copy).is_dir() else uri.rpartition("/")[0]
            if path.is_relative_to(root):
                return "/".join([base, *path.relative_to(root).parts])
    return str(path)


def _copies(settings: PreprocessSettings | HeldOutSettings, folder: Path) -> dict[str, str]:
    return {name: _copy(getattr(settings, name), folder / name) for name in ("source", "databases")}


def _copy(uri: str, folder: Path) -> str:
    """Copy the file or folder at an s3:// URI into `folder`; returns its path. Other paths are returned as they are."""
    if not uri.startswith(S3):
        return uri
    parent, _, name = uri.rstrip("/").rpartition("/")
    store = open_store(parent)
    if store.exists(name):
        store.get_file(name, path_below(folder, name))
        return str(folder / name)
    pull_folder(uri, folder)
    if not folder.is_dir():
        raise InputError(f"{uri}: does not exist; check the URI")
    return str(folder)
