"""The log of requests: a line of JSON for each, on standard output, without rows."""

import asyncio
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

Level = Literal["none", "requests", "questions"]

CONTENT = ("question", "sql")  # fields that are written at the level `questions` only
LONGEST = 4000  # characters of a text
FLUSH_SECONDS = 0.1


class RequestLog:
    """Writes records of requests.

    Args:
        level: `none` writes nothing; `requests` writes who asked which model and database, when, and with what outcome;
            `questions` writes the question and the SQL too.
    """

    def __init__(self, level: Level) -> None:
        self._level = level
        self._lines: list[str] = []

    def write(self, record: Mapping[str, Any]) -> None:
        """Write a record. Control characters are escaped, so that a text cannot forge a line."""
        if self._level == "none":
            return
        hidden = () if self._level == "questions" else CONTENT
        shown = {name: value[:LONGEST] if isinstance(value, str) else value for name, value in record.items()}
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")}
        line |= {name: value for name, value in shown.items() if name not in hidden}
        if not self._lines:
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
        self._lines.append(json.dumps(line) + "\n")

    def flush(self) -> None:
        """Write the lines that wait, with one system call."""
        sys.stdout.write("".join(self._lines))
        sys.stdout.flush()
        self._lines.clear()
