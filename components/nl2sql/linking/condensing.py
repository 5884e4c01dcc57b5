"""Shortens a question that is too long for a prompt: sentences that say nothing about the database are left out.

A question can be an e-mail, or pages of background with one sentence that asks. Nothing is cut off: sentences stay
whole and in their order, and those with the least information are left out first. No model is needed, so training,
evaluation and `ask` shorten a question to the same text.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

from chatmetrics.components.nl2sql.linking.found_values import FindValues, no_values
from chatmetrics.components.nl2sql.linking.ranking import VALUE, SchemaIndex
from chatmetrics.components.nl2sql.linking.sentences import sentences
from chatmetrics.components.nl2sql.linking.words import asked_words, words
from chatmetrics.components.nl2sql.terms import named_terms

# What counts for a sentence: a fact; that it asks for something, and names something too; that it asks for data, or for
# anything, without naming what the database has; that a sentence next to it asks.
FACT, ASKS, ASKS_DATA, ASKS_ANYTHING, NEAR = 0.5, 6.0, 3.0, 1.0, 1.0
MOST_FACTS = 4  # of a sentence
MOST_NAMES = 6.0

# What asks for data, and what asks for anything; in English at the start of a sentence.
_START = r"^\W*(?:(?:please|now|then|also|and|so|i|we|you|would|could|can|need|want|like|to|know|me|us|just|tell)\W+)*"
_REQUEST = re.compile(
    _START + r"(?:list|show|find|give|return|count|compute|calculate|get|display|report|sort|order|select|provide|"
    r"identify|retrieve|name|what|which|how)\b"
    r"|多少|几[个名位家种条次]|哪[些个位种家年里一]|是什么|列出|查询|查找|找出|找到|统计|给出|显示|返回|求出|计算|排序",
    re.IGNORECASE,
)
_QUESTION = re.compile(rf"[?？]|{_START}(?:who|whom|whose|when|where|tell)\b|谁|什么|是否|有没有|请问", re.IGNORECASE)
_FACTS = re.compile(
    r"\d[\d.,:/-]*"
    r"|\"[^\"\n]{1,80}\"|“[^”\n]{1,80}”|‘[^’\n]{1,80}’|《[^》\n]{1,80}》|「[^」\n]{1,80}」|(?<!\w)'[^'\n]{1,80}'(?!\w)"
    # Dates.
    r"|\b(?:jan|febr)uary\b|\b(?:march|april|june|july|august|today|yesterday)\b|\b(?:septem|octo|novem|decem)ber\b"
    r"|\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b|\b(?:last|this|next)\s+(?:year|month|week|quarter)\b"
    r"|[今去前明]年|[本上下]个?[月周季]|昨天|今天|季度"
    # Comparisons.
    r"|\b(?:more|less|fewer|greater|larger|smaller|higher|lower|older|younger|earlier|later|than|least|most|above|below|"
    r"over|under|between|before|after|since|until|top|bottom|highest|lowest|largest|smallest|oldest|youngest|latest|"
    r"earliest|maximum|minimum|average|total|same|equal|exceeds?|each|every|per|both|either|only)\b"
    r"|超过|大于|小于|高于|低于|多于|少于|至少|至多|最[多少高低大小早晚新旧长短]|之[间前后]|以[上下前后内]|平均|总[数和额]|每[个家种年月]|相同"
    # Negations.
    r"|\b(?:not|no|never|without|none|neither|nor|except|excluding)\b|n't\b|[不没无非未]|除了|除外",
    re.IGNORECASE,
)

Excess = Callable[[str], float]


class Condenser:
    """Shortens questions about one database.

    Args:
        index: that of the database's schema.
        terms: the terms of its glossary, see `Descriptions.terms`.
        find_values: finds the values of the database that a text names.
    """

    def __init__(self, index: SchemaIndex, terms: Iterable[str] = (), find_values: FindValues = no_values) -> None:
        self._index = index
        self._terms = tuple(terms)
        self._find_values = find_values

    def condense(self, question: str, excess: Excess) -> str:
        """The sentences of a question that fit, in their order: those that ask, and those that name something.

        It takes linear time, apart from sorting the sentences.

        Args:
            question: a text of any length.
            excess: by how many tokens a text is too long; at most 0 if it fits. It must not be less for a longer text.

        Returns:
            The question itself if it fits; empty if no sentence does.
        """
        if excess(question) <= 0:
            return question
        parts = sentences(question)
        scores = self._scores(parts, named_terms(question, self._terms))
        # sorted() is stable: of sentences with the same information, the first ones stay.
        order = sorted(range(len(parts)), key=lambda number: -scores[number])

        def text(number: int) -> str:
            return "".join(parts[place] for place in sorted(order[:number])).strip()

        # Bisection counts the tokens of about twice the question.
        return text(bisect_right(range(1, len(parts) + 1), 0.0, key=lambda number: excess(text(number))))

    def _scores(self, parts: Sequence[str], terms: Sequence[str]) -> list[float]:
        """The information in each sentence; sentences that are repeated, as in replies to a mail, have none.

        A window of three sentences slides over the text, because what a request means is often said next to it.
        """
        named = [self._named(part, terms) for part in parts]
        asked = [_asked(part, bool(names)) for part, names in zip(parts, named, strict=True)]
        seen: set[str] = set()
        scores = []
        for place, part in enumerate(parts):
            is_near = bool(named[place]) and max(asked[max(0, place - 1) : place + 2]) == ASKS
            facts = FACT * min(MOST_FACTS, len(_FACTS.findall(part)))
            words_of = " ".join(part.split()).casefold()
            is_new = words_of and words_of not in seen
            scores.append(named[place] + facts + asked[place] + NEAR * is_near if is_new else -1.0)
            seen.add(words_of)
        return scores

    def _named(self, sentence: str, terms: Sequence[str]) -> float:
        """How much of the schema, its values and these terms a sentence names."""
        names = sum(weight * self._index.relevance(word) for word, weight in asked_words(sentence).items())
        values = {value.value for value in self._find_values(sentence)} | self._index.values_in(words(sentence))
        return min(MOST_NAMES, names) + VALUE * (len(values) + len(named_terms(sentence, terms)))


def _asked(sentence: str, names_something: bool) -> float:
    """What it counts that a sentence asks."""
    asks_data = bool(_REQUEST.search(sentence))
    if not asks_data and not _QUESTION.search(sentence):
        return 0.0
    return ASKS if names_something else ASKS_DATA if asks_data else ASKS_ANYTHING
