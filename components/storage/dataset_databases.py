"""The location of a dataset's databases, and local copies of databases in a bucket."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

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


@contextmanager
def located_databases(
    dataset: Path, databases: str = "", wanted: Callable[[str], bool] = lambda db_id: True
) -> Iterator[str]:
    """Provide a dataset's databases. Databases in a bucket are copied to this machine while the block runs.

    Args:
        dataset: folder that preprocess wrote.
        databases: as in `databases_of`.
        wanted: whether to copy a database, by its name.

    Yields:
        A folder or an SQLAlchemy URL.

    Raises:
        InputError: neither names a location.
        StorageError: the bucket or the disk failed.
    """
    where = databases_of(dataset, databases)
    with TemporaryDirectory(prefix="databases-") as folder:
        if where.startswith("s3://"):
            pull_folder(where, Path(folder), lambda key: key.endswith(SUFFIX) and wanted(Path(key).stem))
            where = folder
        yield where
