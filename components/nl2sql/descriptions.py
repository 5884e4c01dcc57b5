"""What prompts show about a database that its file does not contain: descriptions of columns, and foreign keys.

Preprocess reads them from Spider's tables.json and writes them to the dataset; convert publishes them with the model.
Distill, `ask` and /ask read them from there, so that their prompts are equal to those of training.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from chatmetrics.components.errors import InputError

FILE = "schema_descriptions.json"
MAX_BYTES = 16 * 1024 * 1024  # of the file, which a serving pod keeps in memory

# Malformed JSON of any kind shows as one of these.
_MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True, slots=True)
class Descriptions:
    """What is known about one database in addition to its file.

    Attributes:
        columns: descriptions of columns, by table and column.
        foreign_keys: table and column, and the table and column that it refers to.
    """

    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    foreign_keys: tuple[tuple[str, str, str, str], ...] = ()

    @classmethod
    def from_spider(cls, entry: Mapping[str, Any]) -> Self:
        """Read an entry of Spider's tables.json. A description that only repeats the column's name is left out.

        Raises:
            InputError: the entry is malformed.
        """
        try:
            tables = entry["table_names_original"]
            ends = [(tables[owner], name) if owner >= 0 else ("", "") for owner, name in entry["column_names_original"]]
            columns: dict[str, dict[str, str]] = {}
            for (table, name), (_, text), _ in zip(ends, entry["column_names"], entry["column_types"], strict=True):
                if table and _letters(text) != _letters(name):
                    columns.setdefault(table, {})[name] = text
            keys = tuple((*ends[first], *ends[second]) for first, second in entry["foreign_keys"])
        except _MALFORMED as error:
            name = entry.get("db_id", "an entry")
            raise InputError(f"tables.json: {name}: malformed ({type(error).__name__}: {error})") from error
        return cls(columns, keys)

    @classmethod
    def _parse(cls, entry: Mapping[str, Any]) -> Self:
        keys = tuple((str(a), str(b), str(c), str(d)) for a, b, c, d in entry["foreign_keys"])
        columns = {table: {name: str(text) for name, text in by.items()} for table, by in entry["columns"].items()}
        return cls(columns, keys)


def read_descriptions(folder: Path) -> dict[str, Descriptions]:
    """Read the descriptions in the folder of a dataset or of a published model, by database; {} if it has none.

    Raises:
        InputError: the file cannot be read or is malformed.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        return {db_id: Descriptions._parse(entry) for db_id, entry in json.loads(path.read_bytes()).items()}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except _MALFORMED as error:
        raise InputError(f"{path}: malformed ({type(error).__name__}: {error}); run preprocess again") from error


def write_descriptions(folder: Path, descriptions: Mapping[str, Descriptions]) -> None:
    """Write the descriptions to a folder; databases without any are left out, and no file is written if none has any.

    Raises:
        InputError: the descriptions are too large to be published with a model.
    """
    entries = {db_id: asdict(known) for db_id, known in descriptions.items() if known != Descriptions()}
    if not entries:
        return
    content = json.dumps(entries, ensure_ascii=False, indent=1).encode() + b"\n"
    if len(content) > MAX_BYTES:
        raise InputError(
            f"the descriptions in tables.json take {len(content) >> 20} MiB, more than the {MAX_BYTES >> 20} MiB that "
            "are published with a model; shorten them, or remove databases that are not asked about"
        )
    (folder / FILE).write_bytes(content)


def _letters(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
