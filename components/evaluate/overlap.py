"""Overlap of evaluation questions, or of their SQL skeletons, with the training data."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from sqlglot import exp
from sqlglot.errors import SqlglotError

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.record_files import field_name, read_records
from chatmetrics.components.nl2sql.sql.canonical import canonical_tree

Seen = Literal["question seen in training", "only its SQL skeleton seen", "unseen"]
SEEN: tuple[Seen, ...] = ("question seen in training", "only its SQL skeleton seen", "unseen")


class TrainingData:
    """Questions and SQL skeletons that a model may have been trained on."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._questions: set[str] = set()
        self._skeletons: set[str] = set()
        for question, sql in pairs:
            self._questions.add(_plain(question))
            self._skeletons.add(skeleton_of(sql))

    @classmethod
    def read(cls, *paths: Path) -> "TrainingData":
        """Read training sets: JSON, JSONL or CSV with `question` and `sql` (or Spider's `query`).

        Raises:
            InputError: a file cannot be read, or a record has no question or SQL.
        """
        return cls(pair for path in paths for pair in _read_pairs(path))

    def seen(self, question: str, sql: str) -> Seen:
        """Whether a question or its SQL skeleton was in the training data. If `question` is empty, only the latter."""
        if question and _plain(question) in self._questions:
            return SEEN[0]
        return SEEN[1] if skeleton_of(sql) in self._skeletons else SEEN[2]


def _read_pairs(path: Path) -> Iterator[tuple[str, str]]:
    for read in read_records(path):
        record = read.content if isinstance(read.content, dict) else {}
        question, sql = field_name(record, ["question"]), field_name(record, ["sql", "query"])
        if question is None or sql is None:
            raise InputError(f"{read.where}: a training question needs the fields 'question' and 'sql'")
        yield str(record[question]), str(record[sql])


def skeleton_of(sql: str) -> str:
    """The query with values and the names of tables and columns replaced by `_`; unparsable text is only normalized."""
    try:
        tree = canonical_tree(sql)
    except (SqlglotError, RecursionError):
        return _plain(sql)
    for node in tree.find_all(exp.Literal, exp.Identifier):
        node.replace(exp.to_identifier("_"))
    return tree.sql(dialect="sqlite", comments=False)


def _plain(text: str) -> str:
    return re.sub(r"\W+", " ", text.lower()).strip()
