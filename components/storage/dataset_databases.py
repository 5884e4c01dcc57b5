"""Where the databases of a dataset are, and those of a bucket on this machine."""

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
    """Where a dataset's databases are: `databases`, or, when that is empty, the folder that the dataset's card names.

    Raises:
        InputError: neither names one.
    """
    if not dataset.is_dir():
        raise InputError(f"{dataset}: no such folder; give the one that preprocess wrote")
    card = dataset / CARD
    try:
        named = databases or json.loads(card.read_text(encoding="utf-8"))["databases"]
        # Relative names are relative to the dataset, so that it can be moved with the databases inside it.
        return str(named) if databases or "://" in named else str(dataset / named)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{card} does not say where the databases are: name their folder") from error


@contextmanager
def located_databases(
    dataset: Path, databases: str = "", wanted: Callable[[str], bool] = lambda db_id: True
) -> Iterator[str]:
    """Where a dataset's databases are; those that are in a bucket are copied here for as long as the block lasts.

    Args:
        dataset: folder that preprocess wrote.
        databases: as in `databases_of`.
        wanted: says of a database's name whether it is copied.

    Raises:
        InputError: neither names a place.
        StorageError: the bucket or the disk refused.
    """
    where = databases_of(dataset, databases)
    with TemporaryDirectory(prefix="databases-") as folder:
        if where.startswith("s3://"):
            pull_folder(where, Path(folder), lambda key: key.endswith(SUFFIX) and wanted(Path(key).stem))
            where = folder
        yield where
