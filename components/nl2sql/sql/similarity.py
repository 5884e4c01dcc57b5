"""Similarity of two queries or two questions."""

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from itertools import pairwise

import sqlglot
from sqlglot.errors import SqlglotError

from chatmetrics.components.nl2sql.sql.canonical import canonical

# Kana and Han, which are written without spaces between words: such text is compared by pairs of characters.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]+|[^\W_{_UNSPACED}]+")


def query_similarity(first: str, second: str) -> float:
    """Similarity of two queries from 0 to 1: the Jaccard index of their bigrams of tokens, as multisets."""
    left, right = _token_pairs(canonical(first)), _token_pairs(canonical(second))
    union = (left | right).total()
    return (left & right).total() / union if union else 1.0


@lru_cache(maxsize=4096)
def _token_pairs(sql: str) -> Counter[tuple[str, str]]:
    try:
        words = [token.text for token in sqlglot.tokenize(sql, read="sqlite")]
    except SqlglotError:
        words = sql.split()
    return Counter(pairwise(["", *words, ""]))


def words_of(question: str) -> frozenset[str]:
    """The words of a question in lower case and normal width; pairs of characters in scripts without spaces."""
    text = unicodedata.normalize("NFKC", question).casefold()
    return frozenset(part for word in _WORD.findall(text) for part in _parts(word))


def _parts(word: str) -> list[str]:
    is_unspaced = re.match(f"[{_UNSPACED}]", word) and len(word) > 1
    return [word[index : index + 2] for index in range(len(word) - 1)] if is_unspaced else [word]


def question_similarity(first: frozenset[str], second: frozenset[str]) -> float:
    """Similarity of two questions from 0 to 1: the Jaccard index of their `words_of`."""
    union = len(first | second)
    return len(first & second) / union if union else 1.0
