"""The sentences of a text, in English and Chinese."""

import re
from collections.abc import Iterator

LONGEST = 240  # characters of a part; longer sentences are cut between clauses

# An end in English comes before white space, because 3.5 and example.com have none; in Chinese it needs no space.
# Long runs of full stops take linear time.
_END = re.compile(r"(?<![.!?])[.!?]++[\"')\]\u201d\u2019]*+(?=\s)\s*|[。！？；!?]++[\"”’」』）]*\s*|\n\s*")
# After these, a full stop is not an end: initials, titles and other short forms.
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'])(?:[A-Za-z]|[a-z]\.[a-z]|Mr|Mrs|Ms|Dr|Prof|St|Nos?|vs|cf|approx|dept|Dept|Fig|fig|U\.S|U\.K)\.\s*$"
)
_CLAUSE_END = re.compile(r"[,;:，、：；]\s*|\)\s|\s[-\u2013\u2014]\s")
_SPACE = re.compile(r"\s+")


def sentences(text: str) -> list[str]:
    """Split a text at the ends of sentences and lines; together, the parts are the text.

    A sentence of more than `LONGEST` characters is several parts, which end between clauses or words where it has some.
    """
    return [part for sentence in _sentences(text) for part in _cut(sentence)]


def _sentences(text: str) -> Iterator[str]:
    start = 0
    for end in _END.finditer(text):
        before = text[max(start, end.start() - 10) : end.end()]
        if end[0][0] == "." and "\n" not in end[0] and _ABBREVIATION.search(before):
            continue
        yield text[start : end.end()]
        start = end.end()
    if start < len(text):
        yield text[start:]


def _cut(sentence: str) -> Iterator[str]:
    start = 0
    while len(sentence) - start > LONGEST:
        end = start + _last_end(sentence[start : start + LONGEST])
        yield sentence[start:end]
        start = end
    yield sentence[start:]


def _last_end(text: str) -> int:
    """Where a part of a long sentence ends: after the last clause in its second half, or word, or all of it."""
    for pattern in (_CLAUSE_END, _SPACE):
        ends = [found.end() for found in pattern.finditer(text, len(text) // 2)]
        if ends:
            return ends[-1]
    return len(text)
