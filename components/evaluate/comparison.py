"""Accuracies, and paired comparisons of two systems on the same questions."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Self

from pydantic import BaseModel

from chatmetrics.components.evaluate.hardness import LEVELS
from chatmetrics.components.evaluate.overlap import SEEN
from chatmetrics.components.evaluate.score import Item, ScoredAnswer, Verdict
from chatmetrics.components.evaluate.statistics import (
    bootstrap_interval,
    mcnemar_p_value,
    questions_needed,
    wilson_interval,
)
from chatmetrics.components.nl2sql.sql.query_type import QUERY_TYPES

SIGNIFICANT = 0.05
DIFFICULTIES = ("simple", "moderate", "challenging")  # BIRD's
ORDER = {name: index for index, name in enumerate((*QUERY_TYPES, *LEVELS, *DIFFICULTIES, *SEEN))}


class Accuracy(BaseModel):
    """Number and share of right answers, with Wilson's 95 % interval."""

    correct: int
    total: int
    accuracy: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, answers: Sequence[ScoredAnswer], verdict: Verdict) -> Self:
        """Count the right answers. Without answers, the accuracy is 0 and the interval (0, 1)."""
        correct, total = sum(answer.correct(verdict) for answer in answers), len(answers)
        interval = wilson_interval(correct, total)
        return cls(correct=correct, total=total, accuracy=correct / total if total else 0.0, interval=interval)


class Comparison(BaseModel):
    """Comparison of two systems on the questions that both answered.

    Attributes:
        first: name of the first system.
        second: name of the second system.
        questions: number of questions.
        only_first: questions that only the first answers correctly.
        only_second: questions that only the second answers correctly.
        difference: accuracy of the second minus accuracy of the first.
        interval: 95 % bootstrap interval of the difference, over questions.
        p_value: p-value of McNemar's exact test.
        needed: number of questions that would show this difference; None if the difference is 0.
        query_types: the same comparison for the questions of each query type.
    """

    first: str
    second: str
    questions: int
    only_first: int
    only_second: int
    difference: float
    interval: tuple[float, float]
    p_value: float
    needed: int | None
    query_types: dict[str, "Comparison"] = {}

    @classmethod
    def of(cls, first: str, second: str, pairs: Sequence[tuple[bool, bool]]) -> Self:
        """Compare whether the first and the second system are right, for each question."""
        counts, total = Counter(pairs), len(pairs)
        only_first, only_second = counts[True, False], counts[False, True]
        difference = (only_second - only_first) / total if total else 0.0
        return cls(
            first=first,
            second=second,
            questions=total,
            only_first=only_first,
            only_second=only_second,
            difference=difference,
            interval=bootstrap_interval(only_second, only_first, total),
            p_value=mcnemar_p_value(only_first, only_second),
            needed=questions_needed(difference, (only_first + only_second) / total) if difference else None,
        )

    @property
    def sentence(self) -> str:
        """The conclusion in words."""
        points = f"{100 * abs(self.difference):.1f} points"
        if self.p_value < SIGNIFICANT:
            better, worse = (self.second, self.first) if self.difference > 0 else (self.first, self.second)
            return f"{better} is better than {worse} by {points} on these {self.questions} questions"
        conclusion = f"{self.first} and {self.second} are not distinguishable on these {self.questions} questions"
        return f"{conclusion}; {self.needed} would be needed to detect {points}" if self.needed else conclusion


def compare_all(systems: Sequence[str], items: Sequence[Item], verdict: Verdict) -> list[Comparison]:
    """Compare each pair of systems that answered the same questions; the earlier system is the second of a pair."""
    found = (_compare(first, second, items, verdict) for second, first in combinations(systems, 2))
    return [comparison for comparison in found if comparison]


def _compare(first: str, second: str, items: Sequence[Item], verdict: Verdict) -> Comparison | None:
    both = [item for item in items if first in item.answers and second in item.answers]
    if not both:
        return None
    query_types = ordered({name for item in both for name in item.query_types})
    found = {name: _pair(first, second, [i for i in both if name in i.query_types], verdict) for name in query_types}
    return _pair(first, second, both, verdict).model_copy(update={"query_types": found})


def _pair(first: str, second: str, items: Sequence[Item], verdict: Verdict) -> Comparison:
    answers = [(item.answers[first], item.answers[second]) for item in items]
    return Comparison.of(first, second, [(one.correct(verdict), two.correct(verdict)) for one, two in answers])


def ordered(groups: Iterable[str]) -> list[str]:
    """Sort the groups: known ones first, in the order of `ORDER`, then the others by name."""
    return sorted(groups, key=lambda name: (ORDER.get(name, len(ORDER)), name))
