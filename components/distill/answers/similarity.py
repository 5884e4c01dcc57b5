"""How alike two queries or two questions are, and when they count as one."""

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from itertools import pairwise

import sqlglot
from sqlglot.errors import SqlglotError

from chatmetrics.components.nl2sql.parsing import parse

# Scripts that put no space between words: a question in them is compared by pairs of characters.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]+|[^\W_{_UNSPACED}]+")


@lru_cache(maxsize=4096)
def canonical(sql: str) -> str:
    """A query's normal form: layout, comments and letter case of names taken away; literals stay as they are.

    A text that sqlglot cannot read is only freed of its layout.
    """
    try:
        return parse(sql).sql(dialect="sqlite", normalize=True, comments=False)
    except (SqlglotError, RecursionError):
        return " ".join(sql.split())


def query_similarity(first: str, second: str) -> float:
    """The share of pairs of neighbouring tokens that two queries have in common, from 0 to 1 for the same query."""
    left, right = _token_pairs(canonical(first)), _token_pairs(canonical(second))
    together = (left | right).total()
    return (left & right).total() / together if together else 1.0


@lru_cache(maxsize=4096)
def _token_pairs(sql: str) -> Counter[tuple[str, str]]:
    try:
        words = [token.text for token in sqlglot.tokenize(sql, read="sqlite")]
    except SqlglotError:
        words = sql.split()
    return Counter(pairwise(["", *words, ""]))


def words_of(question: str) -> frozenset[str]:
    """A question's words, or pairs of characters where its script has no spaces, in one width and letter case."""
    text = unicodedata.normalize("NFKC", question).casefold()
    return frozenset(part for word in _WORD.findall(text) for part in _parts(word))


def _parts(word: str) -> list[str]:
    is_unspaced = re.match(f"[{_UNSPACED}]", word) and len(word) > 1
    return [word[index : index + 2] for index in range(len(word) - 1)] if is_unspaced else [word]


def question_similarity(first: frozenset[str], second: frozenset[str]) -> float:
    """The share of the `words_of` two questions that both have, from 0 to 1."""
    together = len(first | second)
    return len(first & second) / together if together else 1.0
