"""Files of records in the forms that people have: JSON arrays, JSON objects one after the other, and CSV.

The form is recognized by the content, since names mislead: `.json` may be JSON lines, and CSV may have semicolons.
"""

import codecs
import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

from chatmetrics.components.errors import InputError

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
BOM = codecs.BOM_UTF8
LONGEST_FIRST_LINE = 64 << 20  # bytes; a longer one is no record
# Other files that are taken for questions now and then, by their first bytes.
OTHER_FORMS = {
    b"PAR1": "a Parquet file; convert it to JSONL or CSV",
    b"PK\x03\x04": "a ZIP archive or an Excel workbook; unpack it, or export the sheet as CSV",
    b"\x1f\x8b": "compressed with gzip; unpack it",
    b"version https://git-lfs": "a pointer of git-lfs and not the file itself; run git lfs pull",
}


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One record of a file.

    Attributes:
        content: the record; a dict of its fields, unless the file has something else.
        where: the file and the line, or the index in a JSON array, for messages.
        number: its index in a JSON array, its line in a file of JSON objects, or its row in a CSV file, from 1.
    """

    content: Any
    where: str
    number: int


def read_records(path: Path, name: str = "") -> Iterator[FileRecord]:
    """Read the records of a file.

    Args:
        path: the file.
        name: what messages call it; empty: its path.

    Raises:
        InputError: it cannot be read or has none of the forms; names the file, the line and the form that it has.
    """
    name = name or str(path)
    if _has_lines_of_json(path):
        yield from _of_lines(_lines(path, name), name)
        return
    text = read_text(path, name)
    first = text.lstrip()[:1]
    if first == "[":
        yield from _array(text, name)
    elif first == "{" or path.suffix.lower() in JSON_SUFFIXES:
        yield from _objects(text, name)
    elif path.suffix.lower() == ".sql":
        raise InputError(f"{name}: SQL without questions; name a JSON, JSONL or CSV file that has both")
    elif text.strip():
        yield from _rows(text, name)


def field_name(record: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Return the record's first field that has one of these names, however they are written; None if it has none.

    A field with a text is preferred: Spider's `sql` is a parsed query, and its text is in `query`.
    """
    spelled = {key.strip().casefold(): key for key in reversed(list(record))} | {key: key for key in record}
    found = [spelled[each] for name in names for each in (name, name.casefold()) if each in spelled]
    return next((key for key in found if isinstance(record[key], str)), found[0] if found else None)


def text_of(record: FileRecord, names: Sequence[str]) -> str:
    """Return the text of the record's field that has one of these names, without white space around it.

    Raises:
        InputError: the record, which is an object, has no such field, or it is empty or not a string.
    """
    field = field_name(record.content, names)
    value = record.content[field] if field else None
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{record.where}: the field '{names[0]}' is missing, empty or not a string")
    return value.strip()


def optional_text(record: FileRecord, names: Sequence[str]) -> str:
    """Return the text as `text_of` does; empty if the record has no such field, or nothing but white space in it.

    Raises:
        InputError: the field is not a string.
    """
    field = field_name(record.content, names)
    value = record.content[field] if field else None
    if not isinstance(value, str | None):
        raise InputError(f"{record.where}: the field '{field}' is not a string but {type(value).__name__}")
    return (value or "").strip()


def _has_lines_of_json(path: Path) -> bool:
    """Whether the first line of a UTF-8 file is a whole JSON object."""
    try:
        with path.open("rb") as file:
            first = next(filter(bytes.strip, iter(partial(file.readline, LONGEST_FIRST_LINE), b"")), b"")
            return isinstance(json.loads(first.removeprefix(BOM)), dict)
    except (OSError, ValueError, RecursionError):
        return False  # it has another form, or `read_text` says what is wrong


def _lines(path: Path, name: str) -> Iterator[str]:
    """The lines of a UTF-8 file that may be larger than memory."""
    with path.open("rb") as file:
        start = 0
        for line in file:
            yield _decoded(line.removesuffix(b"\n"), name, "utf-8" if start else "utf-8-sig", start)
            start += len(line)


def read_text(path: Path, name: str) -> str:
    """Return the text of a file.

    Raises:
        InputError: it cannot be read, or is not text; names the file by `name`, and its form.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from error
    for start, form in OTHER_FORMS.items():
        if data.startswith(start):
            raise InputError(f"{name}: {form}")
    # Spreadsheets write a byte-order mark, and "Unicode text" in UTF-16. Line breaks in values are kept.
    return _decoded(data, name, "utf-16" if data.startswith(UTF_16) else "utf-8-sig")


def _decoded(data: bytes, name: str, encoding: str, start: int = 0) -> str:
    """The text of bytes that begin at byte `start` of a file."""
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 text (byte {start + error.start}); save it as UTF-8") from error


def _array(text: str, name: str) -> Iterator[FileRecord]:
    for number, item in enumerate(_parse(text, name)):
        yield FileRecord(item, f"{name}[{number}]", number)


def _objects(text: str, name: str) -> Iterator[FileRecord]:
    """JSON objects, one in each line or over several lines."""
    lines = text.split("\n")  # not splitlines(), which also splits at characters that a JSON string may contain
    if _is_indented(lines):
        yield from _indented_objects(text, name)
    else:
        yield from _of_lines(lines, name)


def _of_lines(lines: Iterable[str], name: str) -> Iterator[FileRecord]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield FileRecord(_parse(line, f"{name}:{number}"), f"{name}:{number}", number)


def _is_indented(lines: Sequence[str]) -> bool:
    """Whether the first object has several lines: its first line is the beginning of JSON, and not the whole."""
    first = next((line for line in lines if line.strip()), "")
    try:
        json.loads(first)
    except ValueError:
        return first.strip() == "{" or first.rstrip().endswith((",", ":", "[", "{"))
    except RecursionError:
        return False
    return False


def _indented_objects(text: str, name: str) -> Iterator[FileRecord]:
    decoder, position, number = json.JSONDecoder(), 0, 1
    while rest := text[position:].lstrip():
        start = len(text) - len(rest)
        number += text.count("\n", position, start)
        try:
            item, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            raise _not_json(error, f"{name}:{number}") from error
        yield FileRecord(item, f"{name}:{number}", number)
        number += text.count("\n", start, end)
        position = end


def _rows(text: str, name: str) -> Iterator[FileRecord]:
    delimiter = _delimiter(text, name)
    rows = csv.DictReader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for number, row in enumerate(rows, start=1):
            where = f"{name}:{rows.line_num}"
            if None in row:
                raise InputError(
                    f"{where}: more values than the header has columns; quote values that contain a "
                    f"{DELIMITERS[delimiter]}"
                )
            # A row with too few values has None for the others, which means the same as a missing field.
            yield FileRecord({key: value for key, value in row.items() if value is not None}, where, number)
    except csv.Error as error:
        raise InputError(f"{name}:{rows.reader.line_num}: not valid CSV ({error})") from error


def _delimiter(text: str, name: str) -> str:
    """The delimiter that divides the header into most columns."""
    try:
        headers = {delimiter: _header(text, delimiter) for delimiter in DELIMITERS}
    except csv.Error as error:
        raise InputError(f"{name}:1: not valid CSV ({error})") from error
    delimiter = max(headers, key=lambda each: len(headers[each]))  # the first of equally good ones
    header = headers[delimiter]
    if len(header) == 1:
        raise InputError(
            f"{name}:1: the header has one column, {header[0][:50]!r}; separate columns with a comma, a semicolon, a "
            "tab or a vertical bar"
        )
    if twice := next((column for column in header if header.count(column) > 1), None):
        raise InputError(f"{name}:1: the header has the column {twice!r} twice; rename one")
    return delimiter


def _header(text: str, delimiter: str) -> list[str]:
    return next(csv.reader(StringIO(text, newline=""), delimiter=delimiter), [])


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _not_json(error, where) from error


def _not_json(error: ValueError | RecursionError, where: str) -> InputError:
    if isinstance(error, json.JSONDecodeError):
        return InputError(f"{where}: not JSON ({error.msg} at line {error.lineno}, column {error.colno})")
    if isinstance(error, RecursionError):
        return InputError(f"{where}: JSON is nested too deeply")
    return InputError(f"{where}: JSON that cannot be read ({error})")  # an integer of thousands of digits
