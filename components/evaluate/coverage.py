"""How many questions are scored, and why others are not."""

from collections import Counter
from collections.abc import Sequence

from chatmetrics.components.evaluate.gate_thresholds import Coverage
from chatmetrics.components.evaluate.questions import NotAsked
from chatmetrics.components.evaluate.score import Item


def coverages(items: Sequence[Item], student: str, not_asked: NotAsked | None, split: str = "") -> list[Coverage]:
    """How many questions of a split, or of all, are scored for the first system.

    If only some questions of a dataset were drawn, those that could not be drawn are counted separately: they are not a
    part of the sample.
    """
    own = [item for item in items if split in ("", item.split)]
    reasons = Counter(reason for item in own if (reason := _why_not_scored(item, student)))
    lost: Counter[str] = Counter()
    available = len(own)
    if not_asked:
        available = sum(count for name, count in not_asked.available.items() if split in ("", name))
        for (reason, name), count in not_asked.counts.items():
            lost[reason] += count if split in ("", name) else 0
        lost = +lost
    if available == len(own):
        together = reasons + lost
        return [Coverage(total=len(own) + lost.total(), not_scored=dict(together.most_common()))]
    dataset = Coverage(of="questions of the dataset", total=available + lost.total(), not_scored=dict(lost))
    return [Coverage(total=len(own), not_scored=dict(reasons.most_common())), dataset]


def _why_not_scored(item: Item, student: str) -> str:
    return item.not_scored or ("" if student in item.answers else f"no prediction by {student}")
