"""A question with its SQL query: the line of a dataset that every step reads."""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from chatmetrics.components.errors import InputError, StorageError


@dataclass(frozen=True, slots=True)
class Example:
    """A question about one database and its gold query, with the three Alpaca fields that a model is trained on.

    Attributes:
        system: schema text at the start of the prompt; empty if the dataset was built without schemas.
        split: "train", "dev" or a finer name that the report groups by, such as "unseen wording".
        reasoning: the teacher's reasoning; empty, and left out of the file, if there is none.
        evidence: what is known about the question's words, which `input` contains too; empty, and left out of the file,
            if there is none.
        difficulty: how hard a person called the question, as in BIRD; empty, and left out of the file, if unknown.
        weight: how often an epoch of training has the example; left out of the file if it is 1.
    """

    id: str
    db_id: str
    question: str
    sql: str
    query_type: str
    split: str
    system: str
    instruction: str
    input: str
    output: str
    reasoning: str = ""
    evidence: str = ""
    difficulty: str = ""
    weight: int = 1


FIELDS = tuple(field.name for field in fields(Example) if field.default is MISSING)
OPTIONAL = tuple(field.name for field in fields(Example) if field.default == "")
MAX_WEIGHT = 1000
_WORD = re.compile(r"\w+")
HELD_OUT = "held_out.jsonl"  # questions of a dataset that are only scored on; their split is the name of their set


def read_examples(path: Path) -> list[Example]:
    """Read a dataset file, one example per line.

    Unknown fields are ignored, so that other tools can add their own.

    Raises:
        InputError: the file cannot be read, or a line is not an example; names the file, the line and the field.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            return [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a dataset that preprocess wrote") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def question_key(db_id: str, question: str) -> tuple[str, str]:
    """What equal questions about a database have in common: the words, regardless of case and punctuation."""
    return db_id, " ".join(_WORD.findall(question.casefold())) or question


def read_held_out(dataset: Path) -> list[Example]:
    """Read the questions of a dataset's held-out sets; there are none in a dataset without such sets.

    Raises:
        InputError: see `read_examples`.
    """
    path = dataset / HELD_OUT
    return read_examples(path) if path.exists() else []


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write the examples, one per line. The file appears complete or not at all.

    Raises:
        StorageError: the disk is full or the folder is not writable.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(_render(example) for example in examples)
        unfinished.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}); free some space or choose another folder"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _render(example: Example) -> str:
    names = (*FIELDS, *(name for name in OPTIONAL if getattr(example, name)))
    weight = {} if example.weight == 1 else {"weight": example.weight}
    return json.dumps({name: getattr(example, name) for name in names} | weight, ensure_ascii=False) + "\n"


def _parse(line: str, where: str) -> Example:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(record, dict):
        raise InputError(f"{where}: not a JSON object with the fields {', '.join(FIELDS)}")
    for name in FIELDS:
        if name not in record:
            raise InputError(f"{where}: the field '{name}' is missing")
        if not _text(record, name, where).strip() and name != "system":
            raise InputError(f"{where}: the field '{name}' is empty")
    # Other programs write null where a column has no value.
    optional = {name: _text(record, name, where) for name in OPTIONAL if record.get(name) is not None}
    weight = 1 if record.get("weight") is None else record["weight"]
    # pandas writes whole numbers with a point where a column has gaps.
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight not in range(1, MAX_WEIGHT + 1):
        raise InputError(f"{where}: the field 'weight' is {str(weight)[:20]}, and not a number from 1 to {MAX_WEIGHT}")
    return Example(**{name: record[name] for name in FIELDS}, **optional, weight=int(weight))


def _text(record: dict[str, Any], name: str, where: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise InputError(f"{where}: the field '{name}' is not a string but {type(value).__name__}")
    return value
