"""Reads questions in all supported layouts as records: Spider's, the user's own files, and datasets of the Hub."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatmetrics.components import console
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.databases.addresses import is_address
from chatmetrics.components.nl2sql.databases.execution import database_path
from chatmetrics.components.nl2sql.descriptions import KnownDatabases
from chatmetrics.components.nl2sql.record_files import FileRecord, field_name, optional_text, read_records
from chatmetrics.components.preprocess.hub_source import HubDataset, hub_files, is_hub, is_parquet, parquet_records
from chatmetrics.components.preprocess.settings import PreprocessSettings
from chatmetrics.components.preprocess.source_files import DEV_ARRAY, TEST_ARRAY, folder_of_databases, tables_near

TRAIN = "train"
DEV = "dev"

# The training set is in the first of these groups that has an existing file.
TRAINING_ARRAYS = (("train_spider.json", "train_others.json"), ("train.json",))
OWN_SUFFIXES = ("jsonl", "json", "csv", "tsv", "parquet")
HUB_SPLITS = {"train": TRAIN, "dev": DEV, "validation": DEV, "valid": DEV, "val": DEV}
# A file of this name has questions to score on, so it is no training data. Those named syn, dk or realistic are
# variants of Spider's dev questions.
_HELD_OUT = re.compile(r"(?<![a-z])(dev|test|val|valid|validation|eval|dk|syn|realistic)(?![a-z])", re.IGNORECASE)

# Names of the fields: of Spider and CSpider, Spider-Syn, BIRD, KaggleDBQA, and of users.
_SPIDER_FIELDS = {
    "id": ("id",),
    "db_id": ("db_id",),
    "question": ("question_zh", "SpiderSynQuestion", "question"),
    "sql": ("query", "sql"),
    "split": ("split",),
    "evidence": ("evidence",),
    "difficulty": ("difficulty",),
}
OWN_FIELDS = _SPIDER_FIELDS | {"question": ("question", "question_zh", "SpiderSynQuestion"), "sql": ("sql", "query")}


@dataclass(frozen=True, slots=True)
class Fields:
    """The names of a file's fields, in the order in which they are tried, and the setting that can name others."""

    names: Mapping[str, Sequence[str]]
    setting: str = "preprocess.fields"


@dataclass(frozen=True, slots=True)
class Record:
    """A question with its gold query; `where` is its file and line or index, for error messages.

    `evidence` is what is known about the question's words, and `difficulty` how hard a person called it; both are empty
    if there is none. `weight` is how often an epoch of training has the question.
    """

    id: str
    db_id: str
    question: str
    sql: str
    split: str
    where: str
    evidence: str = ""
    difficulty: str = ""
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Source:
    """Questions and what is known about their databases.

    Attributes:
        records: the questions.
        databases: the folder of SQLite files, or of the questions if the databases are at an address.
        tables: entries of tables.json by db_id.
        other_databases: the folders of databases that are not in `databases`, by db_id.
        more_folders: the folders of databases of further sources, where those of held-out sets can be too.
        held_out_databases: the folders of databases that only questions of held-out sets are about, by db_id.
        address: the address of the databases, of a server or of DuckDB files; empty if they are SQLite files.
        known: what prompts show about databases that they do not contain, by db_id.
    """

    records: list[Record]
    databases: Path
    tables: Mapping[str, Mapping[str, Any]]
    other_databases: Mapping[str, Path] = field(default_factory=dict)
    more_folders: Sequence[Path] = ()
    held_out_databases: Mapping[str, Path] = field(default_factory=dict)
    address: str = ""
    known: KnownDatabases = field(default_factory=lambda: KnownDatabases({}))

    def folder_of(self, db_id: str) -> Path:
        """The folder in which a database is searched."""
        return self.held_out_databases.get(db_id) or self.other_databases.get(db_id, self.databases)

    def is_at_address(self, db_id: str) -> bool:
        """Whether a database is at the address, and no file."""
        return bool(self.address) and db_id not in self.held_out_databases

    def file(self, db_id: str) -> Path | None:
        """The SQLite file of a database; None if it only has an entry in tables.json.

        Raises:
            InputError: the database has neither.
        """
        try:
            return database_path(self.folder_of(db_id), db_id)
        except InputError:
            if db_id in self.tables:
                return None
            raise


def read_questions(settings: PreprocessSettings, section: str = "preprocess") -> Source:
    """Read all records of one source in their order.

    Args:
        settings: with the one source in `source`.
        section: the settings' name in messages.

    Raises:
        InputError: a file is missing or a record is malformed; names the file, the line or index, and the field.
    """
    if settings.format == "none":
        return _only_databases(settings)
    if not settings.source:
        raise InputError(f"{section}.source is empty: set it to the folder or file with the questions")
    hub = HubDataset.parse(settings.source) if is_hub(settings.source) else None
    source = hub.folder if hub else Path(settings.source).expanduser()
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; check {section}.source")
    folder = source if source.is_dir() else source.parent
    address = settings.databases if is_address(settings.databases) else ""
    root = Path(settings.databases).expanduser() if settings.databases and not address else folder
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; check {section}.databases")
    is_spider = settings.format in ("spider", "cspider")
    known = _SPIDER_FIELDS if is_spider else OWN_FIELDS
    fields = Fields(known | {key: (name,) for key, name in settings.fields.items()}, f"{section}.fields")
    if hub:
        records = list(_hub_records(hub, fields))
    else:
        places = _spider_files(source) if is_spider else _own_files(source, settings.format)
        records = [record for path, split in places for record in read_records_of(path, split, fields)]
    if not records:
        raise InputError(f"{hub or source}: contains no questions; check {section}.source")
    check_ids(records)
    tables = _tables_near(folder, root) if is_spider else {}
    databases = folder if address else folder_of_databases([root])
    return Source(records, databases, tables, address=address)


def _only_databases(settings: PreprocessSettings) -> Source:
    """A source without questions."""
    if is_address(settings.databases):
        return Source([], Path(), {}, address=settings.databases)
    root = Path(settings.databases).expanduser()
    if not settings.databases or not root.is_dir():
        problem = f"{root}: no such folder" if settings.databases else "preprocess.databases is empty"
        raise InputError(f"{problem}; set preprocess.databases to the folder of SQLite files")
    return Source([], folder_of_databases([root]), {})


def _spider_files(source: Path) -> list[tuple[Path, str]]:
    """Spider's and CSpider's files with the splits of their questions: in a folder, or the one file."""
    if source.is_file():
        return [(source, TRAIN)]
    groups = ([path for name in names if (path := source / name).is_file()] for names in TRAINING_ARRAYS)
    training = next(filter(None, groups), None)
    if training is None:
        raise InputError(f"{source}: contains neither train_spider.json nor train.json; check preprocess.source")
    _note_test_set(source / TEST_ARRAY)
    dev = source / DEV_ARRAY
    return [*((path, TRAIN) for path in training), *([(dev, DEV)] if dev.is_file() else [])]


def _own_files(source: Path, preferred: str) -> list[tuple[Path, str]]:
    """The user's own files: the one file, or a folder's training file and, if there is one, its dev file."""
    if source.is_file():
        return [(source, TRAIN)]
    training, dev, validation, test = (_files_called(source, stem) for stem in (TRAIN, DEV, "validation", "test"))
    if not training:
        raise InputError(
            f"{source / TRAIN}.{preferred}: no such file; give a {preferred} file, or a folder with {TRAIN}.{preferred}"
        )
    _note_test_set(*test)
    if validation:
        console.note(f"preprocess: {validation[0]} is not used; dev questions are those of a file dev")
    return [*((path, TRAIN) for path in training), *((path, DEV) for path in dev)]


def _files_called(folder: Path, stem: str) -> list[Path]:
    """The file of this name, or all its shards, as in train-00000-of-00002.parquet."""
    found = [path for suffix in OWN_SUFFIXES if (path := folder / f"{stem}.{suffix}").is_file()]
    shards = {match: path for path in folder.glob(f"{stem}-*.parquet") if (match := _shard(stem, path))}
    if len(found) > 1 or (found and shards):
        raise InputError(
            f"{folder}: has {found[0].name} and {[*found, *shards.values()][1].name}; keep one of them there"
        )
    if any(number >= len(shards) or count != len(shards) for number, count in shards):
        raise InputError(f"{folder}: files {stem}-NUMBER-of-NUMBER.parquet are missing, or there are too many")
    return found or [shards[key] for key in sorted(shards)]


def _shard(stem: str, path: Path) -> tuple[int, int] | None:
    """The number of a shard from 0, and the number of all."""
    found = re.fullmatch(rf"{stem}-(\d{{1,9}})-of-(\d{{1,9}})\.parquet", path.name)
    return (int(found[1]), int(found[2])) if found else None


def _note_test_set(*paths: Path) -> None:
    path = next(iter(paths), None)
    if path and path.is_file():
        console.note(
            f"preprocess: {path} is not used; preprocess.held_out.test=PATH makes it a set that models are scored on"
        )


def read_records_of(path: Path, split: str, fields: Fields) -> Iterator[Record]:
    """Read the records of a file whose questions are of this split, unless they say otherwise.

    Raises:
        InputError: a record is malformed, or the file's name says that its questions are not for training.
    """
    is_held_out = bool(_HELD_OUT.search(path.stem)) and "train" not in path.stem.lower()
    for read in _reads(path):
        record = _record(read, f"{path.stem}:{read.number}", split, fields)
        if record.split == TRAIN and is_held_out and not field_name(read.content, fields.names["split"]):
            raise InputError(
                f"{path}: by its name, its questions are for scoring and not for training; rename it if they are for "
                "training, or give its records the field split"
            )
        yield record


def _hub_records(dataset: HubDataset, fields: Fields) -> Iterator[Record]:
    splits = hub_files(dataset)
    if not splits.get(TRAIN):
        raise InputError(f"{dataset}: has no split train, but {', '.join(splits) or 'none'}")
    for split, paths in splits.items():
        if split not in HUB_SPLITS:
            console.note(f"preprocess: the split {split} of {dataset} is not used")
            continue
        for path in paths:
            for read in _reads(path, f"{dataset}: {path.name}"):
                yield _record(read, f"{path.stem}:{read.number}", HUB_SPLITS[split], fields)


def _reads(path: Path, name: str = "") -> Iterator[FileRecord]:
    return parquet_records(path, name) if is_parquet(path) else read_records(path, name)


def _tables_near(*folders: Path) -> dict[str, Mapping[str, Any]]:
    path = tables_near(*folders)
    return read_tables(path) if path else {}


def read_tables(path: Path) -> dict[str, Mapping[str, Any]]:
    """Read a file of schemas in the form of Spider's tables.json, by db_id.

    Raises:
        InputError: it is malformed, or describes a database in two ways.
    """
    entries = [record.content for record in read_records(path)]
    if not all(isinstance(entry, dict) and isinstance(entry.get("db_id"), str) for entry in entries):
        raise InputError(f"{path}: not a JSON array of schemas with a db_id each")
    tables: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        if tables.setdefault(entry["db_id"], entry) != entry:
            raise InputError(f"{path}: two different entries with the db_id '{entry['db_id']}'; delete one")
    return tables


def _record(read: FileRecord, default_id: str, default_split: str, fields: Fields) -> Record:
    item, where = read.content, read.where
    if not isinstance(item, dict):
        raise InputError(f"{where}: not an object with the fields question, {fields.names['sql'][0]} and db_id")
    identity = field_name(item, fields.names["id"])
    if identity and isinstance(item[identity], int):
        item = {**item, identity: str(item[identity])}
    level = item.get(field_name(item, fields.names["difficulty"]) or "")
    split_field = field_name(item, fields.names["split"])
    split = _text(item, "split", where, fields) if split_field and item[split_field] else default_split
    return Record(
        id=_text(item, "id", where, fields) if identity and item[identity] not in (None, "") else default_id,
        db_id=_text(item, "db_id", where, fields),
        question=_text(item, "question", where, fields),
        sql=_text(item, "sql", where, fields),
        split=TRAIN if split.lower() == TRAIN else split,
        where=where,
        evidence=_valid(optional_text(read, fields.names["evidence"]), "evidence", where),
        difficulty=_valid(str(level).strip() if isinstance(level, str | int) else "", "difficulty", where),
    )


def _text(item: Mapping[str, Any], key: str, where: str, fields: Fields) -> str:
    field = field_name(item, fields.names[key])
    if field is None:
        names = fields.names[key]
        raise InputError(
            f"{where}: the field '{names[0] if len(names) == 1 else key}' is missing; the record has "
            f"{', '.join(item) or 'no fields'}; --set {fields.setting}.{key}=NAME if it has another name"
        )
    value = item[field]
    if not isinstance(value, str):
        raise InputError(f"{where}: the field '{field}' is not a string but {type(value).__name__}")
    if not value.strip():
        raise InputError(f"{where}: the field '{field}' is empty")
    return _valid(value.strip(), field, where)


def _valid(text: str, field: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: the field '{field}' contains a lone surrogate, which is not a valid character"
        ) from error
    return text


def check_ids(records: Iterable[Record]) -> None:
    """Raise `InputError` if two records have the same id."""
    places: dict[str, str] = {}
    for record in records:
        if record.id in places:
            raise InputError(f"{record.where}: the field 'id': '{record.id}' was already used at {places[record.id]}")
        places[record.id] = record.where
