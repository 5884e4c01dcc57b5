"""The location of a dataset's databases, and local copies of databases in a bucket."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from chatmetrics.components import console
from chatmetrics.components.errors import InputError
from chatmetrics.components.storage.mirror import pull_folder

CARD = "dataset_card.json"
SUFFIX = ".sqlite"


def databases_of(dataset: Path, databases: str = "") -> str:
    """The location of a dataset's databases: `databases` or, if that is empty, the one in the dataset card.

    Raises:
        InputError: neither names a location.
    """
    if not dataset.is_dir():
        raise InputError(f"{dataset}: no such folder; name the folder that preprocess wrote")
    card = dataset / CARD
    try:
        named = databases or json.loads(card.read_text(encoding="utf-8"))["databases"]
        # Relative names are relative to the dataset, so that it can be moved with the databases inside it.
        return str(named) if databases or "://" in named else str(dataset / named)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{card} does not name the databases; name their folder") from error


def sqlite_files(folder: Path) -> dict[str, Path]:
    """The SQLite files in a folder by the names of their databases, in both layouts that `database_path` accepts."""
    nested = {path.stem: path for path in folder.glob(f"*/*{SUFFIX}") if path.stem == path.parent.name}
    return {path.stem: path for path in folder.glob(f"*{SUFFIX}")} | nested


@contextmanager
def located_databases(
    dataset: Path, databases: str = "", wanted: Callable[[str], bool] = lambda db_id: True, held_out: bool = False
) -> Iterator[str]:
    """Provide a dataset's databases. Databases in a bucket are copied to this machine while the block runs.

    Args:
        dataset: folder that preprocess wrote.
        databases: as in `databases_of`.
        wanted: whether to copy a database, by its name.
        held_out: whether to provide those that only held-out sets are about, too. Nobody but evaluate may see them:
            a teacher would generate training questions about them.

    Yields:
        A folder or an SQLAlchemy URL.

    Raises:
        InputError: neither names a location.
        StorageError: the bucket or the disk failed.
    """
    where = databases_of(dataset, databases)
    kinds = ("other_databases", "held_out_databases") if held_out else ("other_databases",)
    others = {db_id: place for kind in kinds for db_id, place in _others(dataset, kind).items() if wanted(db_id)}
    with TemporaryDirectory(prefix="databases-") as folder:
        if where.startswith("s3://") or (others and Path(where).is_dir()):
            _gather(where, wanted, Path(folder))
            for db_id, place in others.items():
                _gather(place, db_id.__eq__, Path(folder))
            where = folder
        yield where


def _others(dataset: Path, kind: str) -> dict[str, str]:
    """The folders of databases that are in a folder of their own, by database; see `DatasetCard`."""
    path = dataset / CARD
    if not path.is_file():
        return {}  # a dataset that another program wrote
    try:
        found = json.loads(path.read_bytes()).get(kind, {})
        return {str(db_id): str(place) for db_id, place in found.items()}
    except (OSError, ValueError, AttributeError) as error:
        console.warning(f"{path} does not tell where its {kind.replace('_', ' ')} are ({error})")
        return {}


def _gather(where: str, wanted: Callable[[str], bool], folder: Path) -> None:
    """Copy databases from a bucket to a folder, or link to those in another folder."""
    if where.startswith("s3://"):
        pull_folder(where, folder, lambda key: key.endswith(SUFFIX) and wanted(Path(key).stem))
        return
    for db_id, path in sqlite_files(Path(where).absolute()).items():
        if wanted(db_id) and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
