"""Terms of a business that a question names."""

import re
import unicodedata
from collections.abc import Iterable

# Chinese and Japanese are written without spaces, so their words have no ends that can be seen.
_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff"
_LETTER = rf"[^\W{_UNSPACED}]"


def named_terms(question: str, terms: Iterable[str]) -> list[str]:
    """The terms that a question names, in the order of `terms`.

    Upper and lower case, the width of letters and the number of spaces make no difference, nor does an English plural.
    A term inside a longer one that is named does not count: "active customer" does not name "customer".
    """
    text = _normal(question)
    named = set()
    for term in sorted(terms, key=len, reverse=True):
        pattern = _pattern(term)
        if pattern and pattern.search(text):
            named.add(term)
            text = pattern.sub(lambda found: "\0" * len(found[0]), text)
    return [term for term in terms if term in named]


def _pattern(term: str) -> re.Pattern[str] | None:
    words = _normal(term).split()
    if not words:
        return None
    first, last = words[0][0], words[-1][-1]
    before = rf"(?<!{_LETTER})" if re.match(_LETTER, first) else ""
    after = rf"(?:e?s)?(?!{_LETTER})" if re.match(_LETTER, last) else ""
    return re.compile(before + r"\s+".join(map(re.escape, words)) + after)


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
