"""Reads the user's questions without SQL."""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.databases.addresses import SQLITE
from chatmetrics.components.nl2sql.descriptions import Descriptions
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.prompts.fitting import bare_example
from chatmetrics.components.nl2sql.record_files import FileRecord, field_name, optional_text, read_records, text_of
from chatmetrics.components.nl2sql.sql.query_type import UNPARSED
from chatmetrics.components.storage.files import path_below
from chatmetrics.components.storage.store import open_store

TRAIN = "train"


def read_questions(
    uri: str,
    dialect_of: Callable[[str], str] = lambda db_id: SQLITE,
    known: Mapping[str, Descriptions] = MappingProxyType({}),
) -> list[Example]:
    """Read the questions of a JSON, JSONL or CSV file as examples without SQL.

    Its fields are `question`, `db_id` and optionally `id` and `evidence`.

    Args:
        uri: path, or s3:// URI.
        dialect_of: the dialect of a database, by its name, as sqlglot names it.
        known: terms that questions can name, by database.

    Raises:
        InputError: the file cannot be read, or a line lacks a field or repeats an id; names file, line and field.
        StorageError: the bucket cannot be read.
    """
    with TemporaryDirectory(prefix="questions-") as folder:
        records = list(read_records(_local(uri, Path(folder)), uri))
    examples: dict[str, Example] = {}
    for record in records:
        example = _example(record, f"own:{len(examples) + 1}", dialect_of, known)
        if example.id in examples:
            raise InputError(f"{record.where}: the id {example.id!r} is already used")
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


def _example(
    record: FileRecord, default_id: str, dialect_of: Callable[[str], str], known: Mapping[str, Descriptions]
) -> Example:
    if not isinstance(record.content, dict):
        raise InputError(f"{record.where}: not an object with the fields 'question' and 'db_id'")
    question, db_id = text_of(record, ["question"]), text_of(record, ["db_id"])
    given = record.content.get(field_name(record.content, ["id"]) or "")
    id = default_id if given in (None, "") else str(given)
    evidence = known.get(db_id, Descriptions()).evidence(question, optional_text(record, ["evidence"]))
    return bare_example(id, db_id, question, "", TRAIN, UNPARSED, evidence, dialect_of(db_id))
