"""Terms of a business that a question names."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache

SHORTEST_PLURAL = 3  # letters of a word that has one: "new" in "news" is none, but such words are rare as terms
# Scripts without spaces between words, or with endings on them, so that the ends of a word cannot be seen.
_UNSPACED = re.compile(r"[\u0e00-\u0e7f\u1100-\u11ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_DASHES = re.compile(r"[-_\u2010-\u2015\u2212]")
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200d\u2060\ufeff]")
_APOSTROPHES = re.compile(r"[\u2018\u2019\u02bc]")
_SPACE_IN_UNSPACED = re.compile(rf"(?<={_UNSPACED.pattern})\s+|\s+(?={_UNSPACED.pattern})")


def named_terms(question: str, terms: Iterable[str]) -> list[str]:
    """The terms that a question names, in the order of `terms`.

    Upper and lower case, the width of letters, spaces, dashes and the form of an apostrophe make no difference, nor
    does a regular English plural. A term inside a longer one that is named does not count: "active customer" does not
    name "customer".
    """
    terms = list(terms)
    text = _normal(question)
    named = set()
    for term in sorted(terms, key=len, reverse=True):
        places = list(_places(text, _normal(term)))
        if places:
            named.add(term)
        for start, end in places:
            text = f"{text[:start]}{'|' * (end - start)}{text[end:]}"
    return [term for term in terms if term in named]


def _places(text: str, term: str) -> Iterator[tuple[int, int]]:
    """Where a text has a term as a word of its own."""
    for form in _forms(term):
        start = text.find(form) if form else -1
        while start >= 0:
            end = start + len(form)
            if not (_joined(text[start - 1 : start], form[0]) or _joined(form[-1], text[end : end + 1])):
                yield start, end
            start = text.find(form, start + 1)


def _forms(term: str) -> list[str]:
    """A term and its regular plural, the longer one first."""
    if len(term.rpartition(" ")[2]) < SHORTEST_PLURAL or not ("a" <= term[-1] <= "z"):
        return [term]
    if term.endswith(("s", "x", "z", "ch", "sh")):
        return [f"{term}es", term]
    if term[-1] == "y" and term[-2] not in "aeiou":
        return [f"{term[:-1]}ies", term]
    return [f"{term}s", term]


def _joined(first: str, second: str) -> bool:
    """Whether two characters belong to one word."""
    return all(each.isalnum() and not _UNSPACED.match(each) for each in (first, second))


@lru_cache(maxsize=65536)
def _normal(text: str) -> str:
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()
    text = " ".join(_DASHES.sub(" ", _APOSTROPHES.sub("'", text)).split())
    return _SPACE_IN_UNSPACED.sub("", text)
