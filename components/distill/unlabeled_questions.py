"""Reads the user's questions without SQL."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.fitting import bare_example
from chatmetrics.components.nl2sql.query_type import UNPARSED
from chatmetrics.components.nl2sql.record_files import field_name, read_records
from chatmetrics.components.storage.files import path_below
from chatmetrics.components.storage.store import open_store

TRAIN = "train"


def read_questions(uri: str) -> list[Example]:
    """Read a JSON, JSONL or CSV file with the fields `question`, `db_id` and optionally `id` as examples without SQL.

    Args:
        uri: path, or s3:// URI.

    Raises:
        InputError: the file cannot be read, or a line lacks a field or repeats an id; names file, line and field.
        StorageError: the bucket cannot be read.
    """
    with TemporaryDirectory(prefix="questions-") as folder:
        records = list(read_records(_local(uri, Path(folder)), uri))
    examples: dict[str, Example] = {}
    for record in records:
        where = record.where
        example = _example(record.content, where, f"own:{len(examples) + 1}")
        if example.id in examples:
            raise InputError(f"{where}: the id {example.id!r} is already used")
        examples[example.id] = example
    if not examples:
        raise InputError(f"{uri}: contains no questions; check distill.unlabeled_questions")
    return list(examples.values())


def _local(uri: str, folder: Path) -> Path:
    if not uri.startswith("s3://"):
        return Path(uri).expanduser()
    parent, _, name = uri.rpartition("/")
    path = path_below(folder, name)
    open_store(parent).get_file(name, path)
    return path


def _example(record: Any, where: str, default_id: str) -> Example:
    if not isinstance(record, dict):
        raise InputError(f"{where}: not an object with the fields 'question' and 'db_id'")
    names = {name: field_name(record, [name]) for name in ("id", "question", "db_id")}
    texts = {name: str(record[key]).strip() for name, key in names.items() if key and record[key] is not None}
    for name in ("question", "db_id"):
        if not texts.get(name) or not isinstance(record[names[name]], str):
            raise InputError(f"{where}: the field '{name}' is missing, empty or not a string")
    return bare_example(texts.get("id") or default_id, texts["db_id"], texts["question"], "", TRAIN, UNPARSED)
