"""Which columns of a database contain the values that a question names, also misspelled ones.

The index is an SQLite database in memory. FTS5 with trigrams was measured too: it finds no value of fewer than three
characters, such as 北京, and takes 40 ms for each misspelled word among a million values. One mistake leaves a half of
a value as it is, and by their halves values are found in less than 1 ms.
"""

import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from threading import Lock

from chatmetrics.components.nl2sql.linking.found_values import ColumnName, FoundValue, Question
from chatmetrics.components.nl2sql.linking.value_keys import Span, Token, has_one_mistake, key_of, spans
from chatmetrics.components.nl2sql.linking.words import STOP_STEMS, words

MAX_BYTES = 64 * 1024 * 1024  # of the index of one database
BYTES_PER_VALUE = 60  # of the index, in addition to its texts
LONGEST_KEY = 12  # words, or Chinese characters, of a value
SHORTEST_NUMBER = 3  # digits of a number that is compared with texts
SHORTEST_MISSPELLED, SHORTEST_MISSPELLED_CHINESE = 5, 4  # shorter values are too often one letter apart
LONGEST_MISSPELLED = 5  # words
MOST_MISSPELLED = 2_000  # words, or neighboring words, of a question that are compared with the halves of values
MOST_CANDIDATES = 500  # values with the same half
MOST_FOUND = 20  # values of a question
MOST_COLUMNS = 5  # in which one value is found
KEYS_PER_QUERY = 500

# Ordinary words of questions, which are values of some databases too.
_ASKING = """
ascending average belong between common count current descending different equal first fewest five four greater
highest largest last least less longer longest lowest maximum minimum name newest number one order record run same
second sex shorter shortest smallest sort start sum teach three top total two type unique value year
"""
# Identifiers that no question names: UUIDs, hashes, and other long hexadecimal numbers.
_IDENTIFIER = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|(?=.*\d)[0-9a-f]{16,}", re.IGNORECASE)

# With one mistake, the first or the last half of a key is as it should be, without the letter in the middle.
_HALVES = "substr(key, 1, (length(key) - 1) / 2)", "substr(key, -((length(key) - 1) / 2))"
_IS_LONG = f"length(key) >= {SHORTEST_MISSPELLED_CHINESE}"
_INDEXES = f"""
CREATE INDEX by_key ON value (key);
CREATE INDEX by_begin ON value (length(key), {_HALVES[0]}) WHERE {_IS_LONG};
CREATE INDEX by_end ON value (length(key), {_HALVES[1]}) WHERE {_IS_LONG};
"""
_WITH_HALF = [
    f"SELECT key, value, owner FROM value WHERE {_IS_LONG} AND length(key) = ? AND {half} = ? "  # noqa: S608
    f"ORDER BY rowid LIMIT {MOST_CANDIDATES}"
    for half in _HALVES
]

_Row = tuple[str, str, int]  # key, value, number of the column


class ValueIndex:
    """The distinct values of a database's text columns, built once.

    Upper and lower case, accents, width, punctuation and regular plurals make no difference.

    Args:
        columns: the columns with their values.
        names: names of tables and columns. A word of these counts as a value only if the question marks it as one, with
            a capital letter or quotes.
        max_bytes: about the maximum size. A value that would exceed it, and all after it, are left out.

    Attributes:
        number: how many values it has.
        incomplete: the first column of which values are left out; None if there is none.
    """

    def __init__(
        self, columns: Iterable[tuple[ColumnName, Iterable[str]]], names: Iterable[str] = (), max_bytes: int = MAX_BYTES
    ) -> None:
        self._ordinary = STOP_STEMS.union(words(_ASKING), (word for name in names for word in words(name)))
        self._columns: list[ColumnName] = []
        self._longest: dict[str, int] = {}  # tokens of a value, by the first character of its key
        self._lock = Lock()
        self._database = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._database.execute("CREATE TABLE value (key TEXT, value TEXT, owner INTEGER)")
        self.number = self._bytes = 0
        self.incomplete: ColumnName | None = None
        with self._database:
            self._database.execute("BEGIN")
            for column, values in columns:
                self._columns.append(column)
                if not self._add(values, max_bytes):
                    self.incomplete = column
                    break
        self._database.executescript(_INDEXES)

    def find(self, question: str) -> list[FoundValue]:
        """The values that a question names, in its order. A longer one wins over its parts.

        If no value has the words of the question, values count that are one mistake apart from them: a letter that is
        missing, added or wrong, or two that are swapped. It takes linear time.

        Args:
            question: a text of any length, in any language.
        """
        if not self.number:
            return []
        asked = Question(question, MOST_FOUND)
        exact = self._exact(asked)
        misspelled = islice(self._perhaps_misspelled(asked), MOST_MISSPELLED)
        for span, rows in sorted([*exact, *((span, None) for span in misspelled)], key=_precedence):
            if asked.is_free(span):
                found = (
                    self._similar(span.key)
                    if rows is None
                    else [row for row in rows if self._is_meant(row, span, asked)]
                )
                asked.add(span, self._values(found, asked.words(span), 1.0 if rows else 1 - 1 / len(span.key)))
        return asked.values()

    def _add(self, values: Iterable[str], max_bytes: int) -> bool:
        """Add values of the last column; return whether there was space for all."""
        for value in values:
            key, length = ("", 0) if _IDENTIFIER.fullmatch(value) else key_of(value)
            if not 0 < length <= LONGEST_KEY:
                continue
            text = value.encode(errors="replace")
            self._bytes += BYTES_PER_VALUE + 2 * len(key.encode()) + len(text)
            if self._bytes > max_bytes:
                return False
            row = key, text.decode(), len(self._columns) - 1
            self._database.execute("INSERT INTO value VALUES (?, ?, ?)", row)
            self._longest[key[0]] = max(length, self._longest.get(key[0], 0))
            self.number += 1
        return True

    def _exact(self, asked: Question) -> Iterator[tuple[Span, list[_Row]]]:
        """The words of a question that are values, with these."""
        by_key = defaultdict(list)
        for first, token in enumerate(asked.tokens):
            for span in spans(asked.tokens, first, self._longest.get(token.key[0], 0)):
                by_key[span.key].append(span)
        keys = list(by_key)
        for first in range(0, len(keys), KEYS_PER_QUERY):
            part = keys[first : first + KEYS_PER_QUERY]
            marks = ", ".join("?" * len(part))
            query = f"SELECT key, value, owner FROM value WHERE key IN ({marks}) ORDER BY rowid"  # noqa: S608
            rows = defaultdict(list)
            for row in self._rows(query, part):
                rows[row[0]].append(row)
            yield from ((span, of_key) for key, of_key in rows.items() for span in by_key[key])

    def _similar(self, key: str) -> list[_Row]:
        """The values that are one mistake apart from a key."""
        rows = (row for length in range(len(key) - 1, len(key) + 2) for row in self._with_half(key, length))
        return list(dict.fromkeys(row for row in rows if self._is_misspelled(row[0], key)))

    def _with_half(self, key: str, length: int) -> list[_Row]:
        """Values of a length that begin or end as a key does."""
        half = (length - 1) // 2
        ends = key[:half], key[-half:]
        return [row for query, end in zip(_WITH_HALF, ends, strict=True) for row in self._rows(query, (length, end))]

    def _is_meant(self, row: _Row, span: Span, asked: Question) -> bool:
        """Whether the question means the value, and not an ordinary word, a letter or a small number."""
        key, value, _ = row
        if key.isdigit():
            return len(key) >= SHORTEST_NUMBER
        is_ordinary = len(key) < 2 or (key.isascii() and len(key) < 3) or self._ordinary.issuperset(key.split())
        return not is_ordinary or asked.is_marked(span, value)

    def _perhaps_misspelled(self, asked: Question) -> Iterator[Span]:
        """Neighboring words that are long enough, and not all ordinary."""
        for first, token in enumerate(asked.tokens):
            longest, shortest = LONGEST_MISSPELLED, SHORTEST_MISSPELLED
            if token.is_unspaced:
                longest, shortest = LONGEST_KEY, SHORTEST_MISSPELLED_CHINESE
            is_ordinary = True
            for span in spans(asked.tokens, first, longest):
                last = asked.tokens[span.end - 1]
                if not last.key.isalpha():
                    break
                is_ordinary &= last.key in self._ordinary
                if len(span.key) >= shortest and not is_ordinary and not self._ends_usual(token, last):
                    yield span

    def _ends_usual(self, first: Token, last: Token) -> bool:
        return first.key in STOP_STEMS or last.key in STOP_STEMS

    def _is_misspelled(self, key: str, asked: str) -> bool:
        shortest = SHORTEST_MISSPELLED if key.isascii() else SHORTEST_MISSPELLED_CHINESE
        return len(key) >= shortest and key not in self._ordinary and has_one_mistake(key, asked)

    def _values(self, rows: Sequence[_Row], asked: str, similarity: float) -> list[FoundValue]:
        """One value of each column, as the question spells it if that is one."""
        by_column: dict[int, str] = {}
        for _, value, column in rows:
            if column not in by_column or value == asked:
                by_column[column] = value
        return [
            FoundValue(*self._columns[column], value, asked, similarity)
            for column, value in list(by_column.items())[:MOST_COLUMNS]
        ]

    def _rows(self, query: str, values: Sequence[object]) -> list[_Row]:
        with self._lock:  # one connection for all threads
            return self._database.execute(query, values).fetchall()


def _precedence(match: tuple[Span, list[_Row] | None]) -> tuple[bool, int, bool, int, int]:
    """Longer spans first, of equal ones those that are values; misspelled Chinese last, because any neighbor of a value
    in a text without spaces looks like a part of it.
    """
    span, rows = match
    is_misspelled = rows is None
    return is_misspelled and not span.key.isascii(), span.first - span.end, is_misspelled, -len(span.key), span.first
