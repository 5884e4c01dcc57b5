"""The gate's thresholds: the student's accuracy, and its distance from the teacher's accuracy."""

import math
from collections.abc import Iterator, Sequence

from pydantic import BaseModel

from chatmetrics.components.evaluate.score import Item
from chatmetrics.components.evaluate.settings import EvaluateSettings

# In floating-point arithmetic, 80 % minus 75 % is more than 5 points.
ROUNDING = 1e-9


class Threshold(BaseModel):
    """A threshold of the gate: a sentence with the numbers, and whether it is met."""

    sentence: str
    passed: bool


class Coverage(BaseModel):
    """How many questions are not scored, and why: a gold query that fails, a missing database, and so on.

    Attributes:
        of: what is counted: "questions", or "questions of the dataset" if only some of them were drawn.
        total: number of questions.
        not_scored: number of questions that are not scored, by reason.
    """

    of: str = "questions"
    total: int
    not_scored: dict[str, int]

    @property
    def scored(self) -> int:
        """Number of questions that are scored."""
        return self.total - sum(self.not_scored.values())

    @property
    def sentence(self) -> str:
        """The numbers in words; empty if all questions are scored."""
        if not self.not_scored:
            return ""
        several = len(self.not_scored) > 1
        reasons = ", ".join(f"{reason} ({count})" if several else reason for reason, count in self.not_scored.items())
        return f"{self.total - self.scored} of {self.total} {self.of} not scored: {reasons}"


class GateResult(BaseModel):
    """Result of the gate, which is passed if all `thresholds` are met.

    Attributes:
        gate: minimum accuracy of the student; 0 for no minimum.
        gate_split: the split whose questions count; empty for all questions.
        gate_accuracy: the student's accuracy on these questions.
        gate_teacher: how far the student's accuracy may be below the teacher's, from 0 to 1; None for no limit.
        teacher_accuracy: the teacher's accuracy on those of the questions that both answered; None if there are none.
        thresholds: the thresholds that are set.
        passed: whether all are met.
    """

    gate: float
    gate_split: str
    gate_accuracy: float
    gate_teacher: float | None = None
    teacher_accuracy: float | None = None
    thresholds: list[Threshold] = []
    passed: bool

    @property
    def gate_reasons(self) -> list[str]:
        """The sentences of the thresholds that are not met."""
        return [threshold.sentence for threshold in self.thresholds if not threshold.passed]


def check_gate(
    items: Sequence[Item], student: str, teacher: str, settings: EvaluateSettings, coverages: Sequence[Coverage] = ()
) -> GateResult:
    """Compare a student's accuracy with the gate's thresholds.

    A gate is not passed if too few of its questions are scored, or if none is left because all chose the adapter.

    Args:
        items: all questions that are scored. Those that chose the adapter do not count.
        student: the student's system name.
        teacher: the teacher's system name; empty if there is no teacher.
        settings: the gate and the verdict.
        coverages: how many of the gate's questions are scored; the shares of several are multiplied.
    """
    gated = [item for item in items if settings.gate_split in ("", item.split) and student in item.answers]
    asked = [item for item in gated if not item.chose_adapter]
    both = [item for item in asked if teacher in item.answers]
    accuracy = _accuracy(asked, student, settings)
    thresholds = []
    if settings.gate:
        sentence = f"accuracy {accuracy:.1%}{_on(settings)}, the gate is {settings.gate:.1%}"
        thresholds.append(Threshold(sentence=sentence, passed=accuracy >= settings.gate))
    if settings.gate_teacher is not None:
        thresholds.append(_teacher_threshold(both, student, teacher, settings.gate_teacher, settings))
    if thresholds:
        thresholds += _enough_questions(coverages, gated, asked, settings)
    return GateResult(
        gate=settings.gate,
        gate_split=settings.gate_split,
        gate_accuracy=accuracy,
        gate_teacher=settings.gate_teacher,
        teacher_accuracy=_accuracy(both, teacher, settings) if both else None,
        thresholds=thresholds,
        passed=all(threshold.passed for threshold in thresholds),
    )


def _enough_questions(
    coverages: Sequence[Coverage], gated: Sequence[Item], asked: Sequence[Item], settings: EvaluateSettings
) -> Iterator[Threshold]:
    """The thresholds on the number of questions that count, as far as they are not met."""
    share = math.prod(coverage.scored / coverage.total if coverage.total else 0.0 for coverage in coverages)
    if share < settings.gate_scored - ROUNDING:
        sentences = " and ".join(filter(None, (coverage.sentence for coverage in coverages)))
        sentence = f"{sentences}{_on(settings)}; at least {settings.gate_scored:.0%} must be scored"
        yield Threshold(sentence=sentence, passed=False)
    if gated and not asked:
        sentence = (
            f"no question{_on(settings)} is left: all {len(gated)} chose the adapter during training; "
            "lower train.evaluation_questions, or set train.early_stopping to none"
        )
        yield Threshold(sentence=sentence, passed=False)


def _teacher_threshold(
    items: Sequence[Item], student: str, teacher: str, allowed: float, settings: EvaluateSettings
) -> Threshold:
    """The threshold relative to the teacher. It is not met if there are no questions that both answered."""
    if not items:
        return Threshold(sentence=f"no question{_on(settings)} was answered by student and teacher", passed=False)
    own, teachers = (_accuracy(items, system, settings) for system in (student, teacher))
    behind = teachers - own
    distance = f"{100 * abs(behind):.1f} points {'below' if behind >= 0 else 'above'} the teacher"
    numbers = f"{own:.1%} against {teachers:.1%} of {len(items)} questions{_on(settings)}"
    return Threshold(
        sentence=f"{distance} ({numbers}), at most {100 * allowed:.1f} below are allowed",
        passed=behind <= allowed + ROUNDING,
    )


def _accuracy(items: Sequence[Item], system: str, settings: EvaluateSettings) -> float:
    correct = sum(item.answers[system].correct(settings.verdict) for item in items)
    return correct / len(items) if items else 0.0


def _on(settings: EvaluateSettings) -> str:
    return f" on the split '{settings.gate_split}'" if settings.gate_split else ""
