"""The score of a held-out set: questions that are never trained on, and no part of a report's other numbers."""

from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel

from chatmetrics.components.evaluate.comparison import Accuracy, Comparison, compare_all, ordered
from chatmetrics.components.evaluate.coverage import coverages
from chatmetrics.components.evaluate.gate_thresholds import Coverage
from chatmetrics.components.evaluate.questions import NotAsked
from chatmetrics.components.evaluate.score import Item, Verdict
from chatmetrics.components.evaluate.settings import EvaluateSettings


class HeldOutScore(BaseModel):
    """Numbers of one held-out set, by the judgements that count.

    Attributes:
        strict: accuracy by the strict verdict, by system.
        official: accuracy by the official verdict, by system.
        bird: accuracy by BIRD's verdict, by system.
        difficulty: accuracies by the report's verdict, by difficulty and system; empty if the set has none.
        comparisons: comparison of each pair of systems that answered the set's questions, by the report's verdict.
        coverages: how many of the set's questions are scored, and why others are not.
    """

    strict: dict[str, Accuracy]
    official: dict[str, Accuracy]
    bird: dict[str, Accuracy]
    difficulty: dict[str, dict[str, Accuracy]]
    comparisons: list[Comparison]
    coverages: list[Coverage]

    def by(self, verdict: Verdict) -> dict[str, Accuracy]:
        """The accuracies by a verdict."""
        return {"strict": self.strict, "official": self.official, "bird": self.bird}[verdict]

    def sentence(self, verdict: Verdict) -> str:
        """The accuracies in one line."""
        scored = {system: score for system, score in self.by(verdict).items() if score.total}
        found = (f"{system} {score.accuracy:.1%} of {score.total}" for system, score in scored.items())
        return ", ".join(found) or "no question could be scored"

    @classmethod
    def of(
        cls, name: str, items: Sequence[Item], systems: Sequence[str], settings: EvaluateSettings, not_asked: NotAsked
    ) -> Self:
        """Score a set.

        Args:
            name: name of the set.
            items: its questions.
            systems: names of the systems; those that answered none of its questions are left out.
            settings: the verdict, and which answer counts.
            not_asked: the questions of held-out sets that were not asked.
        """
        scored = [item.counted(settings.bind_names, settings.answer == "vote") for item in items if item.scored]
        levels = ordered({item.difficulty for item in scored if item.difficulty})
        answers = {
            system: [item.answers[system] for item in scored if system in item.answers]
            for system in systems
            if any(system in item.answers for item in items)
        }
        return cls(
            strict={system: Accuracy.of(found, "strict") for system, found in answers.items()},
            official={system: Accuracy.of(found, "official") for system, found in answers.items()},
            bird={system: Accuracy.of(found, "bird") for system, found in answers.items()},
            difficulty={
                level: {
                    system: Accuracy.of([i.answers[system] for i in found if system in i.answers], settings.verdict)
                    for system in answers
                }
                for level in levels
                if (found := [item for item in scored if item.difficulty == level])
            },
            comparisons=compare_all(list(answers), scored, settings.verdict),
            coverages=coverages(items, systems[0], not_asked, name),
        )
