"""Questions in Parquet files, and in datasets of the Hugging Face Hub."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self

import yaml

from chatmetrics.components.base_model.hub import hub_snapshot
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.record_files import FileRecord

PREFIX = "hub:"
PARQUET = b"PAR1"
_REFERENCE = re.compile(r"hub:(?P<name>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")
_DATA = ("*.parquet", "*.jsonl", "*.json", "*.ndjson", "*.csv", "*.tsv")
CARD = "README.md"
_HEADER = re.compile(r"\A---\s*\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)
# Keys of a configuration with patterns of files.
_PATTERNS = ("data_files", "data_dir")


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A dataset on the Hub, written `hub:ORGANIZATION/NAME[/CONFIGURATION][@REVISION]`.

    Attributes:
        revision: branch, tag or commit; empty: the default branch.
    """

    name: str
    config: str
    revision: str

    @classmethod
    def parse(cls, reference: str) -> Self:
        """Raises `InputError` if a reference does not have this form."""
        found = _REFERENCE.fullmatch(reference)
        if not found:
            raise InputError(f"{reference!r}: write hub:ORGANIZATION/NAME, hub:.../CONFIGURATION or hub:...@REVISION")
        return cls(found["name"], found["config"] or "", found["revision"] or "")

    def __str__(self) -> str:
        config = f"/{self.config}" if self.config else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.name}{config}{revision}"

    def downloaded(self) -> Self:
        """This dataset at the commit that its revision names now, with its files, but no code, on this machine.

        Raises:
            InputError: see `hub_snapshot`; or it has no data, or without a network some of it may not be here.
            ServiceError, StorageError: see `hub_snapshot`.
        """
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError

        folder = hub_snapshot("dataset", self.name, self.revision, (*_DATA, CARD))
        try:
            get_cached_repo_tree(self.name, repo_type="dataset", revision=folder.name)
        except CachedRepoTreeNotFoundError as error:
            raise InputError(
                f"{self}: the Hub's cache has some of its files, but does not know whether these are all; read it once "
                "with a network"
            ) from error
        if not any(path.is_file() for pattern in _DATA for path in folder.rglob(pattern)):
            raise InputError(f"{self}: has no Parquet, JSON or CSV files")
        return replace(self, revision=folder.name)

    @property
    def folder(self) -> Path:
        """The files of a downloaded dataset."""
        return hub_snapshot("dataset", self.name, self.revision, (*_DATA, CARD), is_downloaded=True)


def is_hub(source: str) -> bool:
    """Whether a source is a dataset on the Hub."""
    return source.startswith(PREFIX)


def hub_files(dataset: HubDataset) -> dict[str, list[Path]]:
    """The files of each split of a downloaded dataset, as `datasets` finds them by its card and by their names.

    Raises:
        InputError: they are not clear, as without one of several configurations, or not files of the dataset.
    """
    # It takes a second to import, and only such sources need it.
    from datasets import load_dataset_builder
    from datasets.exceptions import DatasetsError

    folder = dataset.folder
    _check_card(dataset, folder / CARD)
    failures = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError, DatasetsError)
    try:
        found = load_dataset_builder(str(folder), name=dataset.config or None).config.data_files or {}
    except failures as error:
        raise InputError(f"{dataset}: is no dataset that can be read ({_first_line(error)})") from error
    files = {str(split): [_own_file(dataset, folder, str(path)) for path in paths] for split, paths in found.items()}
    # Others, as those of another program's download, are not of this one.
    return {
        split: [path for path in paths if any(path.match(pattern) for pattern in _DATA)]
        for split, paths in files.items()
    }


def is_parquet(path: Path) -> bool:
    """Whether a file is a Parquet file, by its content."""
    try:
        with path.open("rb") as file:
            return file.read(len(PARQUET)) == PARQUET
    except OSError:
        return False  # whoever reads it as text reports it


def parquet_records(path: Path, name: str = "") -> Iterator[FileRecord]:
    """The records of a Parquet file, of which a part is in memory at a time.

    Args:
        path: the file.
        name: what messages call it; empty: its path.

    Raises:
        InputError: it cannot be read.
    """
    # Of `datasets`' packages; it takes half a second to import.
    import pyarrow as pa
    from pyarrow import parquet

    name, number = name or str(path), 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1000):
                for row in batch.to_pylist():
                    number += 1
                    yield FileRecord(row, f"{name}: row {number}", number)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{name}: cannot be read as Parquet ({_first_line(error)})") from error


def _check_card(dataset: HubDataset, card: Path) -> None:
    """Refuse a card whose header names files that are not of the dataset, before anything reads them.

    `datasets` would take a path of this machine, or a URL.
    """
    header = _HEADER.match(card.read_text("utf-8", errors="replace")) if card.is_file() else None
    try:
        content = yaml.safe_load(header[1]) if header else {}
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{dataset}: the header of its {CARD} is not YAML ({_first_line(error)})") from error
    configs = content.get("configs") if isinstance(content, Mapping) else None
    for config in configs if isinstance(configs, list) else []:
        for text in _texts([config.get(key) for key in _PATTERNS] if isinstance(config, Mapping) else []):
            if "://" in text or "::" in text or text.startswith(("/", "~")) or ".." in PurePosixPath(text).parts:
                raise InputError(f"{dataset}: its {CARD} names {text[:100]!r} as data, which is no file of the dataset")


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value of YAML."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for key, item in value.items() if key != "split" for text in _texts(item))
    elif isinstance(value, list):
        yield from (text for item in value for text in _texts(item))


def _own_file(dataset: HubDataset, folder: Path, path: str) -> Path:
    # Files in the Hub's cache are links to others there, which are not followed.
    found = Path(path)
    if not found.is_relative_to(folder) or ".." in found.parts or not found.is_file():
        raise InputError(f"{dataset}: names {path[-100:]!r} as data, which is no file of the dataset")
    return found


def _first_line(error: BaseException) -> str:
    # Configurations to choose from are in the second line of the message.
    return " ".join(str(error).split())[:300]
