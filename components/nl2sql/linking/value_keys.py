"""The form in which values and questions are compared: keys, in which spelling makes no difference."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from chatmetrics.components.nl2sql.linking.words import stem

_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff"  # Chinese and Japanese, which have no spaces between words
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_ACCENTS = re.compile(r"(?<=[a-z])[\u0300-\u036f]+")


class Token(NamedTuple):
    """A word, or a Chinese character, of a text."""

    start: int
    end: int
    key: str
    is_unspaced: bool


class Span(NamedTuple):
    """Neighboring tokens of a text: the number of the first one, that of the one after the last, and their key."""

    first: int
    end: int
    key: str


def normal(text: str) -> str:
    """A text in one of the forms that Unicode has for the same characters, such as those of different width."""
    return unicodedata.normalize("NFKC", text)


def tokens(text: str) -> list[Token]:
    """The tokens of a text that is `normal`."""
    found = []
    for match in _TOKEN.finditer(text):
        is_unspaced = "\u3040" <= match[0] < "\ua000"
        found.append(Token(match.start(), match.end(), match[0] if is_unspaced else _folded(match[0]), is_unspaced))
    return found


def key_of(value: str) -> tuple[str, int]:
    """The key of a value, and its number of tokens; an empty one if the value has no letters or digits."""
    found = tokens(normal(value))
    return "".join(_joined(found)), len(found)


def spans(text: Sequence[Token], first: int, longest: int) -> Iterator[Span]:
    """The spans of up to `longest` tokens that begin with the token number `first`."""
    key = ""
    for place, part in enumerate(_joined(text[first : first + longest]), first + 1):
        key += part
        yield Span(first, place, key)


def has_one_mistake(first: str, second: str) -> bool:
    """Whether one letter is missing, added or wrong, or two neighbors are swapped, which are different texts."""
    if len(first) > len(second):
        first, second = second, first
    pairs = enumerate(zip(first, second, strict=False))
    same = next((place for place, (one, other) in pairs if one != other), len(first))
    rest, other = first[same:], second[same:]
    if len(rest) < len(other):
        return rest == other[1:]
    is_swapped = rest[:2] == other[1::-1] and rest[2:] == other[2:]
    return bool(rest) and (rest[1:] == other[1:] or is_swapped)


def _joined(found: Sequence[Token]) -> Iterator[str]:
    """The keys of tokens, with a space before each that needs one."""
    is_unspaced = True
    for token in found:
        yield token.key if is_unspaced or token.is_unspaced else f" {token.key}"
        is_unspaced = token.is_unspaced


def _folded(word: str) -> str:
    """A word in lower case, without accents and without the ending of a plural."""
    folded = word.casefold()
    if not folded.isascii():
        folded = normal(_ACCENTS.sub("", unicodedata.normalize("NFKD", folded)))
    return stem(folded)
