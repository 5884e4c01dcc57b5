"""Parses generated pairs of question and SQL from the teacher's answer."""

import json
import re
from collections.abc import Iterator
from typing import Any

from chatmetrics.components.nl2sql.answers.extraction import sql_from_answer

# strict=False accepts line breaks inside strings, which models write.
_DECODER = json.JSONDecoder(strict=False)
MAX_BROKEN = 1000  # objects that cannot be decoded, after which parsing stops: each costs a scan of the text
_OBJECT = re.compile(r'\{\s*"')


def parse_pairs(text: str) -> Iterator[tuple[str, str] | None]:
    """Yield question and SQL of every JSON object that has at least one of the two fields; None if one is missing.

    The objects may be in a list, in another object, in a code fence, or between prose.
    """
    position = broken = 0
    while broken < MAX_BROKEN and (found := _OBJECT.search(text, position)):
        try:
            record, position = _DECODER.raw_decode(text, found.start())
        except (ValueError, RecursionError):
            position, broken = found.start() + 1, broken + 1
            continue
        if "question" in record or "sql" in record:
            yield _pair(record)
        else:
            position = found.start() + 1  # the pairs may be nested inside this object


def _pair(record: dict[str, Any]) -> tuple[str, str] | None:
    question, sql = record.get("question"), record.get("sql")
    if not isinstance(question, str) or not isinstance(sql, str):
        return None
    pair = " ".join(question.split()), sql_from_answer(sql)
    return pair if all(pair) and _is_writable("".join(pair)) else None


def _is_writable(text: str) -> bool:
    """Whether the text has no lone surrogates, which JSON may contain but a UTF-8 file cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
