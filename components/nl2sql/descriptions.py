"""What prompts show about a database that it does not contain: descriptions, foreign keys, and terms of the business.

Preprocess reads them from Spider's tables.json and from the recipe's knowledge, and writes them to the dataset; convert
publishes them with the model. Distill, `ask` and /ask read them from there, so that their prompts are equal to those of
training.
"""

import json
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.terms import named_terms

FILE = "schema_descriptions.json"
EVERYWHERE = ""  # the key of what is known about every database; no database has this name
MAX_BYTES = 16 * 1024 * 1024  # of the file, which a serving pod keeps in memory

ColumnNames = Set[tuple[str, str]]  # table and column, in lower case

# Malformed JSON of any kind shows as one of these.
_MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True, slots=True)
class DiscoveredJoin:
    """Two columns that join, although no foreign key declares it. They are named as those of a foreign key.

    Attributes:
        table: the table that refers.
        column: its column.
        referenced_table: the table that is referred to.
        referenced_column: its column.
        score: how certain the join is, from 0 to 1.
        evidence: why, in words and numbers; it contains no values.
        uses: number of training queries that join by these columns.
    """

    table: str
    column: str
    referenced_table: str
    referenced_column: str
    score: float
    evidence: str
    uses: int = 0


@dataclass(frozen=True, slots=True)
class Descriptions:
    """What is known about one database in addition to what it contains.

    Attributes:
        columns: descriptions of columns, by table and column.
        foreign_keys: table and column, and the table and column that it refers to.
        tables: descriptions of tables.
        values: what is known about the values of columns, by table and column; not shown of private ones.
        terms: what terms in questions mean, by term.
        private: columns whose values are neither shown nor published, by table.
        joins: joins that no foreign key declares, the best first.
    """

    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    foreign_keys: tuple[tuple[str, str, str, str], ...] = ()
    tables: Mapping[str, str] = field(default_factory=dict)
    terms: Mapping[str, str] = field(default_factory=dict)
    private: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    joins: tuple[DiscoveredJoin, ...] = ()

    @classmethod
    def from_spider(cls, entry: Mapping[str, Any]) -> Self:
        """Read an entry of Spider's tables.json. A description that only repeats the column's name is left out.

        KaggleDBQA's `column_descriptions` replace the names in words.

        Raises:
            InputError: the entry is malformed.
        """
        try:
            tables = entry["table_names_original"]
            ends = [(tables[owner], name) if owner >= 0 else ("", "") for owner, name in entry["column_names_original"]]
            columns: dict[str, dict[str, str]] = {}
            texts = [text for _, text in entry["column_names"]]
            if described := entry.get("column_descriptions"):
                texts = [str(text).strip() or name for text, name in zip(described, texts, strict=True)]
            for (table, name), text, _ in zip(ends, texts, entry["column_types"], strict=True):
                if table and not repeats(text, name):
                    columns.setdefault(table, {})[name] = text
            keys = tuple((*ends[first], *ends[second]) for first, second in entry["foreign_keys"])
        except _MALFORMED as error:
            name = entry.get("db_id", "an entry")
            raise InputError(f"tables.json: {name}: malformed ({type(error).__name__}: {error})") from error
        return cls(columns, keys)

    @classmethod
    def _parse(cls, entry: Mapping[str, Any]) -> Self:
        keys = tuple((str(a), str(b), str(c), str(d)) for a, b, c, d in entry["foreign_keys"])
        columns, values = (
            {table: {name: str(text) for name, text in by.items()} for table, by in entry.get(key, {}).items()}
            for key in ("columns", "values")
        )
        tables, terms = (
            {str(name): str(text) for name, text in entry.get(key, {}).items()} for key in ("tables", "terms")
        )
        private = {str(table): tuple(map(str, names)) for table, names in entry.get("private", {}).items()}
        joins = tuple(DiscoveredJoin(**join) for join in entry.get("joins", ()))
        return cls(columns, keys, tables, terms, private, values, joins)

    def updated(self, other: "Descriptions") -> "Descriptions":
        """These descriptions with those of `other`, which win where both describe the same."""
        private = {table: tuple(names) for table, names in self.private.items()}
        for table, names in other.private.items():
            private[table] = tuple(dict.fromkeys((*private.get(table, ()), *names)))
        return Descriptions(
            _updated_by_table(self.columns, other.columns),
            tuple(dict.fromkeys((*self.foreign_keys, *other.foreign_keys))),
            _updated(self.tables, other.tables),
            _updated(self.terms, other.terms),
            private,
            _updated_by_table(self.values, other.values),
            tuple(dict.fromkeys((*self.joins, *other.joins))),
        )

    @property
    def private_columns(self) -> ColumnNames:
        """The private columns, as table and column in lower case."""
        return {(table.lower(), name.lower()) for table, names in self.private.items() for name in names}

    def without_values_of(self, columns: ColumnNames) -> "Descriptions":
        """These descriptions without what is known about the values of columns."""
        kept = {
            table: {name: text for name, text in texts.items() if (table.lower(), name.lower()) not in columns}
            for table, texts in self.values.items()
        }
        return replace(self, values={table: texts for table, texts in kept.items() if texts})

    def evidence(self, question: str, given: str = "") -> str:
        """What prompts show as evidence of a question: what was given with it, and the terms that it names.

        Args:
            question: the question.
            given: its own evidence, such as BIRD's; may be empty.
        """
        named = [f"{term}: {self.terms[term]}" for term in named_terms(question, self.terms)]
        return "; ".join(filter(None, [given, *(text for text in named if text not in given)]))


class KnownDatabases(Mapping[str, Descriptions]):
    """Descriptions by database. What is known about all databases is included in each.

    What is known about the values of private columns is left out here, so that prompts are the same before and after
    the descriptions are written and read. A column that is private in one database has no values in `everywhere`.

    Args:
        by_name: descriptions of single databases.
        everywhere: what is known about every database, also about those that `by_name` does not contain.
    """

    def __init__(self, by_name: Mapping[str, Descriptions], everywhere: Descriptions | None = None) -> None:
        shared = everywhere or Descriptions()
        private = shared.private_columns
        self.by_name = {
            db_id: known.without_values_of(known.private_columns | private)
            for db_id, known in by_name.items()
            if known != Descriptions()
        }
        self.everywhere = shared.without_values_of(
            set(private).union(*(known.private_columns for known in self.by_name.values()))
        )
        self._merged: dict[str, Descriptions] = {}

    def __getitem__(self, db_id: str) -> Descriptions:
        if db_id not in self.by_name and self.everywhere == Descriptions():
            raise KeyError(db_id)
        if db_id not in self._merged:
            self._merged[db_id] = self.everywhere.updated(self.by_name.get(db_id, Descriptions()))
        return self._merged[db_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)

    def __bool__(self) -> bool:
        return bool(self.by_name) or self.everywhere != Descriptions()


def read_descriptions(folder: Path) -> KnownDatabases:
    """Read the descriptions in the folder of a dataset or of a published model; it may have none.

    Raises:
        InputError: the file cannot be read or is malformed.
    """
    path = folder / FILE
    if not path.exists():
        return KnownDatabases({})
    try:
        entries = {db_id: Descriptions._parse(entry) for db_id, entry in json.loads(path.read_bytes()).items()}
        return KnownDatabases(entries, entries.pop(EVERYWHERE, None))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except _MALFORMED as error:
        raise InputError(f"{path}: malformed ({type(error).__name__}: {error}); run preprocess again") from error


def write_descriptions(folder: Path, descriptions: Mapping[str, Descriptions]) -> None:
    """Write descriptions to a folder; no file is written if there are none.

    Raises:
        InputError: the descriptions are too large to be published with a model.
    """
    known = descriptions if isinstance(descriptions, KnownDatabases) else KnownDatabases(descriptions)
    if not known:
        return
    everywhere = {EVERYWHERE: known.everywhere} if known.everywhere != Descriptions() else {}
    entries = {db_id: _entry(each) for db_id, each in {**everywhere, **known.by_name}.items()}
    content = json.dumps(entries, ensure_ascii=False, indent=1).encode() + b"\n"
    if len(content) > MAX_BYTES:
        raise InputError(
            f"the descriptions of databases take {len(content) >> 20} MiB, more than the {MAX_BYTES >> 20} MiB that "
            "are published with a model; shorten tables.json or preprocess.knowledge, or remove databases that are not "
            "asked about"
        )
    (folder / FILE).write_bytes(content)


def _entry(known: Descriptions) -> dict[str, Any]:
    """Descriptions as JSON; the first two keys were always written, and the others only where they have content."""
    entry = asdict(known)
    return {key: value for key, value in entry.items() if value or key in ("columns", "foreign_keys")}


def _updated(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    """The texts of both, by name; case does not matter, and the second wins."""
    replaced = {name.lower() for name in second}
    return {**{name: text for name, text in first.items() if name.lower() not in replaced}, **second}


def _updated_by_table(
    first: Mapping[str, Mapping[str, str]], second: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    merged = {table: dict(texts) for table, texts in first.items()}
    spelled = {table.lower(): table for table in merged}
    for table, texts in second.items():
        known = spelled.setdefault(table.lower(), table)
        merged[known] = _updated(merged.get(known, {}), texts)
    return merged


def repeats(text: str, name: str) -> bool:
    """Whether a description only repeats the name of what it describes."""
    return _letters(text) == _letters(name)


def _letters(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
