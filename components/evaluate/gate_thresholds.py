"""The gate: what a student must reach, by itself and beside its teacher."""

from collections.abc import Sequence

from pydantic import BaseModel

from chatmetrics.components.evaluate.score import Item
from chatmetrics.components.evaluate.settings import EvaluateSettings

# 80 % less 75 % is more than 5 points to a computer.
ROUNDING = 1e-9


class Threshold(BaseModel):
    """One thing that the gate asks, with the numbers in words, and whether it was met."""

    sentence: str
    passed: bool


class GateResult(BaseModel):
    """The gate is about the questions of `gate_split`, all if that is empty; it is passed when all `thresholds` are.

    `gate_teacher` is how far the student may be below its teacher, from 0 to 1, None where that is not asked.
    `teacher_accuracy` is the teacher's on those of the questions that both were asked, None where there are none.
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
        """Why it is not passed."""
        return [threshold.sentence for threshold in self.thresholds if not threshold.passed]


def check_gate(items: Sequence[Item], student: str, teacher: str, settings: EvaluateSettings) -> GateResult:
    """Hold a student against the gate.

    Args:
        items: all questions that count.
        student: the system that the gate is about.
        teacher: the system that is its teacher; empty where there is none.
        settings: the gate and the verdict.
    """
    asked = [item for item in items if settings.gate_split in ("", item.split) and student in item.answers]
    both = [item for item in asked if teacher in item.answers]
    accuracy = _accuracy(asked, student, settings)
    thresholds = []
    if settings.gate:
        sentence = f"accuracy {accuracy:.1%}{_on(settings)}, the gate is {settings.gate:.1%}"
        thresholds.append(Threshold(sentence=sentence, passed=accuracy >= settings.gate))
    if settings.gate_teacher is not None:
        thresholds.append(_teacher_threshold(both, student, teacher, settings.gate_teacher, settings))
    return GateResult(
        gate=settings.gate,
        gate_split=settings.gate_split,
        gate_accuracy=accuracy,
        gate_teacher=settings.gate_teacher,
        teacher_accuracy=_accuracy(both, teacher, settings) if both else None,
        thresholds=thresholds,
        passed=all(threshold.passed for threshold in thresholds),
    )


def _teacher_threshold(
    items: Sequence[Item], student: str, teacher: str, allowed: float, settings: EvaluateSettings
) -> Threshold:
    """The bar that a teacher sets; it is not met where the two cannot be compared."""
    if not items:
        return Threshold(sentence=f"no question{_on(settings)} counts for both student and teacher", passed=False)
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
