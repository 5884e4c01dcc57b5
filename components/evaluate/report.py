"""The numbers of an evaluation; report.json is this model."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Literal, Self

from pydantic import BaseModel

from chatmetrics.components.evaluate.score import Item, Outcome
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.evaluate.statistics import mcnemar_p_value, wilson_interval
from chatmetrics.components.nl2sql.execution import FailureMode
from chatmetrics.components.nl2sql.scenario import SCENARIOS

ModelName = Literal["student", "base"]
MODELS: tuple[ModelName, ...] = ("student", "base")


class Accuracy(BaseModel):
    """Right answers among those scored, with Wilson's 95 % interval."""

    correct: int
    total: int
    accuracy: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Self:
        """Count; the accuracy of nothing is 0 with the interval (0, 1)."""
        correct, total = sum(outcome.correct for outcome in outcomes), len(outcomes)
        interval = wilson_interval(correct, total)
        return cls(correct=correct, total=total, accuracy=correct / total if total else 0.0, interval=interval)


class ModelScore(Accuracy):
    """All that is said about one model; latency in seconds, as the client saw it with `parallel` requests at once."""

    by_scenario: dict[str, Accuracy]
    by_split: dict[str, Accuracy]
    failures: dict[str, int]
    truncated: int
    median_latency: float
    mean_completion_tokens: float


class Comparison(BaseModel):
    """Student and base on the same questions: McNemar's exact test."""

    only_student: int
    only_base: int
    difference: float
    p_value: float


class Report(BaseModel):
    """The outcome of an evaluation.

    `questions` were asked; those whose database is missing were not, and are counted by database. `gold_failures` of
    them have a gold query that fails and count for nobody; `empty_gold` have one that returns no rows, where a wrong
    query is easily right. The gate is about the questions of `gate_split`, all if that is empty.
    """

    name: str
    questions: int
    missing_databases: dict[str, int]
    gold_failures: int
    empty_gold: int
    models: dict[ModelName, ModelScore]
    comparison: Comparison | None
    gate: float
    gate_split: str
    gate_accuracy: float
    passed: bool

    @property
    def failure_modes(self) -> list[str]:
        """What occurred, in the order of `FailureMode`."""
        return [
            mode.value for mode in FailureMode if any(mode.value in score.failures for score in self.models.values())
        ]

    @property
    def headline(self) -> str:
        """The result in one line."""
        student = self.models["student"]
        low, high = student.interval
        text = (
            f"{self.name}: {student.correct} of {student.total} right, {student.accuracy:.1%} [{low:.1%}, {high:.1%}]"
        )
        if self.comparison:
            base, points = self.models["base"], 100 * self.comparison.difference
            text += f"; base {base.accuracy:.1%}, {points:+.1f} points, p = {self.comparison.p_value:.2g}"
        return text


def summarize(name: str, items: Sequence[Item], missing: dict[str, int], settings: EvaluateSettings) -> Report:
    """Count what was scored.

    Args:
        name: what the report is about, usually the student's file.
        items: all questions that were asked, with outcomes for the student and perhaps the base.
        missing: how many questions were not asked, by the database that is missing.
        settings: for the gate.
    """
    scored = [item for item in items if item.scored]
    models = {model: _model_score(model, scored) for model in MODELS if model in items[0].outcomes}
    gated = [item.outcomes["student"] for item in scored if settings.gate_split in ("", item.example.split)]
    gate_accuracy = Accuracy.of(gated).accuracy
    return Report(
        name=name,
        questions=len(items),
        missing_databases=missing,
        gold_failures=len(items) - len(scored),
        empty_gold=sum(item.gold.row_count == 0 for item in scored),
        models=models,
        comparison=_compare(scored) if scored and "base" in models else None,
        gate=settings.gate,
        gate_split=settings.gate_split,
        gate_accuracy=gate_accuracy,
        passed=gate_accuracy >= settings.gate,
    )


def _model_score(model: ModelName, items: Sequence[Item]) -> ModelScore:
    outcomes = [item.outcomes[model] for item in items]
    failures = Counter(outcome.excerpt.failure for outcome in outcomes)
    predictions = [outcome.prediction for outcome in outcomes]
    return ModelScore(
        **Accuracy.of(outcomes).model_dump(),
        by_scenario=_by(model, items, lambda item: item.example.scenario),
        by_split=_by(model, items, lambda item: item.example.split),
        failures={mode.value: failures[mode] for mode in FailureMode if failures[mode]},
        truncated=sum(prediction.truncated for prediction in predictions),
        median_latency=median(prediction.latency for prediction in predictions) if predictions else 0.0,
        mean_completion_tokens=fmean(prediction.completion_tokens for prediction in predictions)
        if predictions
        else 0.0,
    )


def _by(model: ModelName, items: Sequence[Item], group: Callable[[Item], str]) -> dict[str, Accuracy]:
    """The model's accuracy in each group: known scenarios first and in their order, then by name."""
    groups: defaultdict[str, list[Outcome]] = defaultdict(list)
    for item in items:
        groups[group(item)].append(item.outcomes[model])
    order = {name: index for index, name in enumerate(SCENARIOS)}
    names = sorted(groups, key=lambda name: (order.get(name, len(order)), name))
    return {name: Accuracy.of(groups[name]) for name in names}


def _compare(items: Sequence[Item]) -> Comparison:
    pairs = Counter((item.outcomes["student"].correct, item.outcomes["base"].correct) for item in items)
    only_student, only_base = pairs[True, False], pairs[False, True]
    return Comparison(
        only_student=only_student,
        only_base=only_base,
        difference=(only_student - only_base) / len(items),
        p_value=mcnemar_p_value(only_student, only_base),
    )
