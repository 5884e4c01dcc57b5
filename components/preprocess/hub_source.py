"""Questions in Parquet files and in datasets of the Hugging Face Hub, read with `datasets`, one row after the other."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from chatmetrics.components.base_model.hub import hub_snapshot
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.record_files import FileRecord

PREFIX = "hub:"
PARQUET = b"PAR1"
_REFERENCE = re.compile(r"hub:(?P<name>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")
# Data and the card that describes them, but no code.
_FILES = ("*.parquet", "*.jsonl", "*.json", "*.ndjson", "*.csv", "*.tsv", "*.arrow", "*.md", "*.gz", "*.zip", "*.zst")


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
            raise InputError(f"{reference}: write hub:ORGANIZATION/NAME, hub:.../CONFIGURATION or hub:...@REVISION")
        return cls(found["name"], found["config"] or "", found["revision"] or "")

    def __str__(self) -> str:
        config = f"/{self.config}" if self.config else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.name}{config}{revision}"

    def downloaded(self) -> Self:
        """This dataset at the commit that its revision names now, with its files on this machine.

        Raises:
            InputError, ServiceError, StorageError: see `hub_snapshot`.
        """
        return replace(self, revision=hub_snapshot("dataset", self.name, self.revision, _FILES).name)

    @property
    def folder(self) -> Path:
        """The files of a downloaded dataset."""
        return hub_snapshot("dataset", self.name, self.revision, _FILES, is_downloaded=True)


def is_hub(source: str) -> bool:
    """Whether a source is a dataset on the Hub."""
    return source.startswith(PREFIX)


def hub_splits(dataset: HubDataset) -> dict[str, Iterator[FileRecord]]:
    """The records of each split of a downloaded dataset.

    Raises:
        InputError: its files are not such that `datasets` can read them; names the configurations to choose from.
    """
    return _read(str(dataset), str(dataset.folder), name=dataset.config or None)


def is_parquet(path: Path) -> bool:
    """Whether a file is a Parquet file, by its content."""
    try:
        with path.open("rb") as file:
            return file.read(len(PARQUET)) == PARQUET
    except OSError:
        return False  # whoever reads it as text reports it


def parquet_records(path: Path) -> Iterator[FileRecord]:
    """The records of a Parquet file.

    Raises:
        InputError: it cannot be read.
    """
    return _read(str(path), "parquet", data_files={"train": str(path)})["train"]


def _read(label: str, *path: str, **options: Any) -> dict[str, Iterator[FileRecord]]:
    # datasets takes a second to import, and only these sources need it.
    from datasets import disable_progress_bars, load_dataset_builder
    from datasets.exceptions import DatasetsError
    from datasets.packaged_modules.csv.csv import CsvConfig

    disable_progress_bars()
    failures = (OSError, ValueError, TypeError, RuntimeError, DatasetsError)

    def records(split: str, rows: Any) -> Iterator[FileRecord]:
        try:
            for number, row in enumerate(rows, start=1):
                yield FileRecord(row, f"{label}: row {number} of {split}", number)
        except failures as error:
            raise InputError(f"{label}: {split} cannot be read ({_first_line(error)})") from error

    try:
        builder = load_dataset_builder(*path, **options)
        if isinstance(builder.config, CsvConfig):
            builder.config.keep_default_na = False  # or the text "NA" would be a missing value
        splits = builder.as_streaming_dataset()
    except failures as error:
        raise InputError(f"{label}: cannot be read as a dataset ({_first_line(error)})") from error
    return {str(split): records(str(split), rows) for split, rows in splits.items()}


def _first_line(error: BaseException) -> str:
    # Configurations to choose from are in the second line of the message.
    return " ".join(str(error).split())[:300]
