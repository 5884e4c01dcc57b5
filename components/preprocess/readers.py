"""Reads questions in all supported layouts as records: Spider's, CSpider's, JSONL and CSV."""

import csv
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from chatmetrics.components import console
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.canonical import canonical
from chatmetrics.components.nl2sql.execution import database_path
from chatmetrics.components.preprocess.settings import PreprocessSettings

TRAIN = "train"
DEV = "dev"

# The training set is in the first of these groups that has an existing file.
TRAINING_ARRAYS = (("train_spider.json", "train_others.json"), ("train.json",))
DEV_ARRAY = "dev.json"

Query = tuple[str, str]  # a database and the canonical form of a query
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Record:
    """A question with its gold query; `where` is its file and line or index, for error messages."""

    id: str
    db_id: str
    question: str
    sql: str
    split: str
    where: str


@dataclass(frozen=True, slots=True)
class Source:
    """The records of a source, its folder of SQLite files, and the entries of tables.json by db_id."""

    records: list[Record]
    databases: Path
    tables: Mapping[str, Mapping[str, Any]]

    def database(self, record: Record) -> Path | None:
        """The record's SQLite file; None if the database only has an entry in tables.json.

        Raises:
            InputError: the database has neither; names the record.
        """
        try:
            return database_path(self.databases, record.db_id)
        except InputError as error:
            if record.db_id in self.tables:
                return None
            raise InputError(f"{record.where}: the field 'db_id': {error}") from error


def read_source(settings: PreprocessSettings) -> Source:
    """Read the records of the source in their order, after holding out dev questions and applying the limit.

    Raises:
        InputError: a file is missing or a record is malformed; names the file, the line or index, and the field.
    """
    if settings.format == "none":
        return _only_databases(settings)
    if not settings.source:
        raise InputError("preprocess.source is empty: set it to the folder or file with the questions")
    source = Path(settings.source).expanduser()
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; check preprocess.source")
    folder = source if source.is_dir() else source.parent
    root = Path(settings.databases).expanduser() if settings.databases else folder
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; check preprocess.databases")
    is_spider = settings.format in ("spider", "cspider")
    records = _read_arrays(source) if is_spider else _read_own(source, settings.format)
    if not records:
        raise InputError(f"{source}: contains no questions; check preprocess.source")
    _check_ids(records)
    tables = _read_tables(folder, root) if is_spider else {}
    return Source(_draw(records, settings), _folder_of_databases(root), tables)


def _only_databases(settings: PreprocessSettings) -> Source:
    """A source without questions."""
    root = Path(settings.databases).expanduser()
    if not settings.databases or not root.is_dir():
        problem = f"{root}: no such folder" if settings.databases else "preprocess.databases is empty"
        raise InputError(f"{problem}; set preprocess.databases to the folder of SQLite files")
    return Source([], _folder_of_databases(root), {})


def _folder_of_databases(root: Path) -> Path:
    return next((path for name in ("database", "databases") if (path := root / name).is_dir()), root).absolute()


def _read_arrays(source: Path) -> list[Record]:
    """Read Spider's and CSpider's layout: a folder of JSON arrays, or one JSON array."""
    if source.is_file():
        return list(_read_array(source, TRAIN))
    groups = ([path for name in names if (path := source / name).is_file()] for names in TRAINING_ARRAYS)
    training = next(filter(None, groups), None)
    if training is None:
        raise InputError(f"{source}: contains neither train_spider.json nor train.json; check preprocess.source")
    dev = source / DEV_ARRAY
    records = [record for path in training for record in _read_array(path, TRAIN)]
    return records + (list(_read_array(dev, DEV)) if dev.is_file() else [])


def _read_array(path: Path, split: str) -> Iterator[Record]:
    items = _parse_json(_read_text(path), str(path))
    if not isinstance(items, list):
        raise InputError(f"{path}: not a JSON array of questions")
    for index, item in enumerate(items):
        question = "question_zh" if isinstance(item, dict) and "question_zh" in item else "question"
        yield _record(item, f"{path}[{index}]", f"{path.stem}:{index}", split, question, "query")


def _read_tables(*folders: Path) -> dict[str, Mapping[str, Any]]:
    """Read Spider's tables.json, by db_id; it is searched in the folders and in their parent folders."""
    candidates = (place / "tables.json" for folder in folders for place in (folder, folder.parent))
    path = next(filter(Path.is_file, candidates), None)
    if path is None:
        return {}
    entries = _parse_json(_read_text(path), str(path))
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("db_id"), str) for entry in entries
    ):
        raise InputError(f"{path}: not a JSON array of schemas with a db_id each")
    tables: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        if tables.setdefault(entry["db_id"], entry) != entry:
            raise InputError(f"{path}: two different entries with the db_id '{entry['db_id']}'; delete one")
    return tables


def _read_own(source: Path, extension: str) -> list[Record]:
    """Read the user's own questions: one file, or a folder with a training file and optionally a dev file."""
    read = _read_jsonl if extension == "jsonl" else _read_csv
    if source.is_file():
        return list(read(source, TRAIN))
    training, dev = source / f"{TRAIN}.{extension}", source / f"{DEV}.{extension}"
    if not training.is_file():
        raise InputError(f"{training}: no such file; give a {extension} file, or a folder with {training.name}")
    return list(read(training, TRAIN)) + (list(read(dev, DEV)) if dev.is_file() else [])


def _read_jsonl(path: Path, split: str) -> Iterator[Record]:
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield _record(_parse_json(line, where), where, f"{path.stem}:{number}", split)


def _read_csv(path: Path, split: str) -> Iterator[Record]:
    rows = csv.DictReader(StringIO(_read_text(path), newline=""), strict=True)
    try:
        for number, row in enumerate(rows, start=1):
            where = f"{path}:{rows.line_num}"
            if None in row:
                raise InputError(f"{where}: more values than the header has columns; quote values that contain a comma")
            # A row with too few values has None for the others, which means the same as a missing field.
            item = {name: value for name, value in row.items() if value is not None}
            yield _record(item, where, f"{path.stem}:{number}", split)
    except csv.Error as error:
        raise InputError(f"{path}:{rows.reader.line_num}: not valid CSV ({error})") from error


def _read_text(path: Path) -> str:
    try:
        # utf-8-sig skips the byte-order mark that spreadsheets write; newlines inside CSV values are kept.
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg} at line {error.lineno}, column {error.colno})") from error
    except RecursionError as error:
        raise InputError(f"{where}: JSON is nested too deeply") from error


def _record(
    item: Any, where: str, default_id: str, default_split: str, question: str = "question", sql: str = "sql"
) -> Record:
    if not isinstance(item, dict):
        raise InputError(f"{where}: not an object with the fields {question}, {sql} and db_id")
    identity = item.get("id")
    if isinstance(identity, int):
        item = {**item, "id": str(identity)}
    split = _text(item, "split", where) if item.get("split") else default_split
    return Record(
        id=_text(item, "id", where) if item.get("id") not in (None, "") else default_id,
        db_id=_text(item, "db_id", where),
        question=_text(item, question, where),
        sql=_text(item, sql, where),
        split=TRAIN if split.lower() == TRAIN else split,
        where=where,
    )


def _text(item: Mapping[str, Any], field: str, where: str) -> str:
    if field not in item:
        raise InputError(f"{where}: the field '{field}' is missing")
    value = item[field]
    if not isinstance(value, str):
        raise InputError(f"{where}: the field '{field}' is not a string but {type(value).__name__}")
    if not value.strip():
        raise InputError(f"{where}: the field '{field}' is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: the field '{field}' contains a lone surrogate, which is not a valid character"
        ) from error
    return value.strip()


def _check_ids(records: Iterable[Record]) -> None:
    places: dict[str, str] = {}
    for record in records:
        if record.id in places:
            raise InputError(f"{record.where}: the field 'id': '{record.id}' was already used at {places[record.id]}")
        places[record.id] = record.where


def _draw(records: list[Record], settings: PreprocessSettings) -> list[Record]:
    """Hold out dev questions if there are none yet, then apply the limit to training and dev questions."""
    if all(record.split == TRAIN for record in records):
        records = _hold_out(records, settings.dev_fraction, settings.seed)
    parts = ([r for r in records if r.split == TRAIN], [r for r in records if r.split != TRAIN])
    return [record for part in parts for record in _sample(part, settings.limit, settings.seed)]


def _hold_out(records: list[Record], fraction: float, seed: int) -> list[Record]:
    """Move a fraction of the queries to dev, so that neither a gold query nor a question is in both splits.

    A query counts once however it is spelled. Queries that share a question are moved together.
    """
    if not fraction:
        return records
    groups = _groups(records)
    order = sorted(set(groups.values()))
    random.Random(seed).shuffle(order)
    sizes = Counter(groups.values())
    wanted, held_out, count = round(len(groups) * fraction), set[Query](), 0
    for group in order:
        if count + sizes[group] <= wanted:
            held_out.add(group)
            count += sizes[group]
    if wanted and not count:
        console.warning(
            "preprocess: no questions are held out, because all queries are linked by questions that they share; give "
            "some questions the split dev"
        )
    return [replace(record, split=DEV) if groups[_query(record)] in held_out else record for record in records]


def _groups(records: Iterable[Record]) -> dict[Query, Query]:
    """The group of each query, named by one of its queries: those that share a question, directly or through others."""
    groups: dict[Query, Query] = {}
    by_question: dict[Query, Query] = {}

    def group_of(query: Query) -> Query:
        while groups.setdefault(query, query) != query:
            groups[query] = groups[groups[query]]
            query = groups[query]
        return query

    for record in records:
        group = group_of(_query(record))
        question = (record.db_id, " ".join(_WORD.findall(record.question.casefold())) or record.question)
        other = group_of(by_question.setdefault(question, group))
        groups[max(group, other)] = min(group, other)
    return {query: group_of(query) for query in groups}


def _query(record: Record) -> Query:
    return record.db_id, canonical(record.sql)


def _sample(records: list[Record], limit: int, seed: int) -> list[Record]:
    if not limit or limit >= len(records):
        return records
    return [records[index] for index in sorted(random.Random(seed).sample(range(len(records)), limit))]
