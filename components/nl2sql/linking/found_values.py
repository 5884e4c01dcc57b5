"""What is found of a database's values in a question."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chatmetrics.components.nl2sql.linking.value_keys import Span, normal, tokens

ColumnName = tuple[str, str]  # table and column

MOST_SPACE = 20  # characters between two words of a sentence
_QUOTES = "\"'`“”‘’「」『』《》"
_SENTENCE_ENDS = ".?!:。？！："


@dataclass(frozen=True, slots=True)
class FoundValue:
    """A value that a question names.

    Attributes:
        table: the table that contains it.
        column: the column.
        value: the value as the database spells it.
        asked: the words of the question.
        similarity: 1 for the same words, less for a misspelled one.
    """

    table: str
    column: str
    value: str
    asked: str
    similarity: float = 1.0


FindValues = Callable[[str], Sequence[FoundValue]]


def no_values(question: str) -> Sequence[FoundValue]:
    """`FindValues` without an index."""
    return ()


class Question:
    """A question and the values that are found in it, none of which overlap.

    Args:
        question: the text.
        most: the maximum number of values.

    Attributes:
        tokens: its words.
    """

    def __init__(self, question: str, most: int) -> None:
        self._text = normal(question)
        self.tokens = tokens(self._text)
        self._most = most
        self._taken = bytearray(len(self.tokens))
        self._values: dict[int, list[FoundValue]] = {}

    def is_free(self, span: Span) -> bool:
        """Whether a value may be found there: no other one is, and there are not too many."""
        return len(self._values) < self._most and not any(self._taken[span.first : span.end])

    def add(self, span: Span, values: list[FoundValue]) -> None:
        """Note what these words name: a value, for each column that contains it; or nothing."""
        if values:
            self._taken[span.first : span.end] = b"\1" * (span.end - span.first)
            self._values[span.first] = values

    def words(self, span: Span) -> str:
        """The words as the question spells them."""
        return self._text[self.tokens[span.first].start : self.tokens[span.end - 1].end]

    def is_marked(self, span: Span, value: str) -> bool:
        """Whether the text has exactly this value, in quotes, or with a capital letter that begins no sentence."""
        start = self.tokens[span.first].start
        if not self._text.startswith(value, start):
            return False
        end = start + len(value)
        around = self._text[max(0, start - 1) : start], self._text[end : end + 1]
        if all(character and character in _QUOTES for character in around):
            return True
        before = self._text[max(0, start - MOST_SPACE) : start].rstrip()[-1:]
        return value != value.lower() and before != "" and before not in _SENTENCE_ENDS

    def values(self) -> list[FoundValue]:
        """The values in the order of the question."""
        return [value for first in sorted(self._values) for value in self._values[first]]
