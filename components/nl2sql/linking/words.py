"""The words by which a question and a schema are compared, in English and Chinese."""

import re
from collections.abc import Iterator
from functools import lru_cache

_WORD = re.compile(r"[\u3400-\u9fff]+|[^\W\d_\u3400-\u9fff]+|\d+")
_CASES = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_ENDINGS = (("ies", "y"), ("sses", "ss"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("s", ""))
SHORTEST_STEM = 3
# Words of questions that say nothing about tables or columns.
_USUAL = """
a all also an and any are as at be been both but by can did do does done each either every find for from get give had
has have how if in into is it its list many me more most much no not of on only or other out per please return select
show so some than that the their them there these they this those to us use using want was we were what which whose
will with you your s t
"""
# What questions ask for, and words with which they do. These are words of everyday English, not of a domain.
_IMPLIED = {
    "name": "who whom",
    "date year time": "when",
    "location city place address country": "where",
    "age birth": "old older oldest young younger youngest",
    "length duration": "long longer longest",
    "height": "tall taller tallest",
    "weight": "heavy heavier heaviest",
    "price cost": "expensive cheap cheaper cheapest",
    "population person": "people",
    "salary": "earn",
    "gender sex": "male female",
}
_ASKED = {word: asked.split() for asked, used in _IMPLIED.items() for word in used.split()}


def words(text: str) -> list[str]:
    """The words of a text without endings, and the pairs of neighbors of its Chinese characters, in their order.

    Names are split at underscores, digits and capitals: `homeCity_2` has the words home, city and 2.
    """
    return list(_words(text))


def asked_words(question: str) -> dict[str, float]:
    """The words of a question with their weights, without those of every question."""
    found = {word: 1.0 for word in words(question) if word not in STOP_STEMS}
    for word in list(found):
        for implied in _ASKED.get(word, ()):
            found.setdefault(implied, 0.5)
    return found


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """A word without the ending of a plural."""
    for ending, singular in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) + len(singular) >= SHORTEST_STEM:
            return word if word.endswith(("ss", "us", "is")) else word.removesuffix(ending) + singular
    return word


STOP_STEMS = frozenset(map(stem, _USUAL.split()))


def _words(text: str) -> Iterator[str]:
    for word in _WORD.findall(_CASES.sub(" ", text)):
        if "\u3400" <= word[0] <= "\u9fff":
            yield from (word[start : start + 2] for start in range(max(1, len(word) - 1)))
        else:
            yield stem(word.lower())
