"""Reads the user's questions without SQL."""

import csv
import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.fitting import bare_example
from chatmetrics.components.nl2sql.query_type import UNPARSED
from chatmetrics.components.storage.files import path_below
from chatmetrics.components.storage.store import open_store

TRAIN = "train"


def read_questions(uri: str) -> list[Example]:
    """Read a JSONL or CSV file with the fields `question`, `db_id` and optionally `id` as examples without SQL.

    Args:
        uri: path, or s3:// URI.

    Raises:
        InputError: the file cannot be read, or a line lacks a field or repeats an id; names file, line and field.
        StorageError: the bucket cannot be read.
    """
    with TemporaryDirectory(prefix="questions-") as folder:
        records = list(_records(_local(uri, Path(folder)), uri))
    examples: dict[str, Example] = {}
    for where, record in records:
        example = _example(record, where, f"own:{len(examples) + 1}")
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


def _records(path: Path, uri: str) -> Iterator[tuple[str, Any]]:
    """The records, each with its location as URI:LINE."""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # spreadsheets write a byte-order mark
    except OSError as error:
        raise InputError(f"{uri}: cannot be read ({error.strerror}); check distill.unlabeled_questions") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{uri}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if path.suffix.lower() == ".csv":
        rows = csv.DictReader(StringIO(text, newline=""))
        yield from ((f"{uri}:{rows.line_num}", row) for row in rows)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"{uri}:{number}", json.loads(line)
            except ValueError as error:
                raise InputError(f"{uri}:{number}: not JSON ({error})") from error


def _example(record: Any, where: str, default_id: str) -> Example:
    if not isinstance(record, dict):
        raise InputError(f"{where}: not an object with the fields 'question' and 'db_id'")
    for name in ("question", "db_id"):
        if not isinstance(record.get(name), str) or not record[name].strip():
            raise InputError(f"{where}: the field '{name}' is missing, empty or not a string")
    id = str(record["id"]) if record.get("id") not in (None, "") else default_id
    return bare_example(id, record["db_id"].strip(), record["question"].strip(), "", TRAIN, UNPARSED)
