"""Sources in a bucket or on the Hub: copied to this machine, and named by their URIs in the dataset card."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from chatmetrics.components import console
from chatmetrics.components.errors import InputError
from chatmetrics.components.preprocess.hub_source import HubDataset, is_hub
from chatmetrics.components.preprocess.settings import HeldOutSettings, PreprocessSettings, SourceSettings
from chatmetrics.components.storage.files import path_below
from chatmetrics.components.storage.mirror import pull_folder
from chatmetrics.components.storage.store import open_store

S3 = "s3://"
Place = TypeVar("Place", PreprocessSettings, SourceSettings, HeldOutSettings)


@contextmanager
def local_source(settings: PreprocessSettings) -> Iterator[PreprocessSettings]:
    """Context manager: the settings with local copies of s3:// sources, s3:// databases and s3:// knowledge.

    Datasets on the Hub are downloaded, and named with the commit that was downloaded.

    Raises:
        InputError: the URI does not exist.
        ServiceError: the Hub does not answer.
        StorageError: the bucket cannot be read, or the disk cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="source-") as name:
        folder = Path(name)
        copied = _copied(settings, folder)
        sources = [_copied(source, folder / "sources" / str(number)) for number, source in enumerate(settings.sources)]
        held_out = {
            name: _copied(held_out, folder / "held_out" / str(number))
            for number, (name, held_out) in enumerate(settings.held_out.items())
        }
        knowledge = _copy(settings.knowledge, folder / "knowledge")
        yield copied.model_copy(update={"knowledge": knowledge, "sources": sources, "held_out": held_out})


def recorded(settings: PreprocessSettings, copied: PreprocessSettings) -> PreprocessSettings:
    """The settings with the commits of datasets on the Hub, as `local_source` downloaded them."""

    def named(given: Place, local: Place) -> Place:
        return given.model_copy(update={"source": local.source}) if is_hub(given.source) else given

    sources = [named(*pair) for pair in zip(settings.sources, copied.sources, strict=True)]
    return named(settings, copied).model_copy(update={"sources": sources})


def original(path: Path, copied: PreprocessSettings, settings: PreprocessSettings) -> str:
    """The URI of a path inside a copy made by `local_source`; any other path is returned as it is."""
    pairs = [
        (settings, copied),
        *zip(settings.sources, copied.sources, strict=True),
        *((held_out, copied.held_out[name]) for name, held_out in settings.held_out.items()),
    ]
    for given, local, name in ((*pair, name) for pair in pairs for name in ("databases", "source")):
        uri, copy = getattr(given, name), getattr(local, name)
        if uri.startswith(S3):
            root = Path(copy) if Path(copy).is_dir() else Path(copy).parent
            base = uri.rstrip("/") if Path(copy).is_dir() else uri.rpartition("/")[0]
            if path.is_relative_to(root):
                return "/".join([base, *path.relative_to(root).parts])
    return str(path)


def _copied(settings: Place, folder: Path) -> Place:
    return settings.model_copy(
        update={name: _copy(getattr(settings, name), folder / name) for name in ("source", "databases")}
    )


def _copy(uri: str, folder: Path) -> str:
    """Copy the file or folder at an s3:// URI into `folder`; returns its path. Other paths are returned as they are.

    A dataset on the Hub is downloaded to the Hub's cache, and its name with the commit is returned.
    """
    if is_hub(uri):
        dataset = HubDataset.parse(uri).downloaded()
        console.info(f"preprocess: reading {dataset}")
        return str(dataset)
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
