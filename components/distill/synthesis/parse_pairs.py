"""Questions with SQL that the teacher made up, as they are read from its answer."""

import json
import re
from collections.abc import Iterator
from typing import Any

from chatmetrics.components.nl2sql.prompt import sql_from_answer

# strict=False takes line breaks inside strings, which models write.
_DECODER = json.JSONDecoder(strict=False)
# An answer with more objects that are broken off is not worth more time.
MOST_BROKEN = 1000
_OBJECT = re.compile(r'\{\s*"')


def parse_pairs(text: str) -> Iterator[tuple[str, str] | None]:
    """The question and the SQL of every JSON object in a text that has either; None for one that lacks the other.

    It does not matter what stands around the objects: a list, another object, a fence, prose, nothing.
    """
    position = broken = 0
    while broken < MOST_BROKEN and (found := _OBJECT.search(text, position)):
        try:
            record, position = _DECODER.raw_decode(text, found.start())
        except (ValueError, RecursionError):
            position, broken = found.start() + 1, broken + 1
            continue
        if "question" in record or "sql" in record:
            yield _pair(record)
        else:
            position = found.start() + 1  # what is wanted may stand inside


def _pair(record: dict[str, Any]) -> tuple[str, str] | None:
    question, sql = record.get("question"), record.get("sql")
    if not isinstance(question, str) or not isinstance(sql, str):
        return None
    pair = " ".join(question.split()), sql_from_answer(sql)
    return pair if all(pair) and _is_writable("".join(pair)) else None


def _is_writable(text: str) -> bool:
    """Whether it holds no half of a surrogate pair, which JSON may and a file cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
