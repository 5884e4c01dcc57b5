"""What became of the teacher's answers: which may be trained on, and why others may not."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel

from chatmetrics.components.distill.answers.samples import Sample
from chatmetrics.components.nl2sql.example import Example


class RejectionReason(StrEnum):
    """Why a sample does not pass, or none of a question does."""

    NO_ANSWER = "no answer"
    NO_SQL = "no SQL in the answer"
    CUT = "cut off"
    FAILS = "the SQL fails"
    WRONG_RESULT = "another result than the gold query's"
    NO_MAJORITY = "no majority for one result"
    OUTVOTED = "another result than the majority's"
    EMPTY_MAJORITY = "the majority returns no rows"
    GOLD_FAILS = "unverifiable: the gold query fails"
    GOLD_EMPTY = "unverifiable: the gold query returns no rows"
    UNPOPULATED = "unverifiable: the database holds no rows"
    NO_DATABASE = "unverifiable: the database cannot be used"


UNVERIFIABLE = frozenset(
    {RejectionReason.GOLD_FAILS, RejectionReason.GOLD_EMPTY, RejectionReason.UNPOPULATED, RejectionReason.NO_DATABASE}
)


@dataclass(frozen=True, slots=True)
class Verified:
    """A question with what became of its samples.

    Attributes:
        question: as it was asked.
        passing: the samples that may be trained on, by their number.
        rejected: the reason for each other sample, by its number.
        reason: why none passes; None where one does.
    """

    question: Example
    passing: tuple[Sample, ...]
    rejected: Mapping[int, RejectionReason]
    reason: RejectionReason | None

    @property
    def answered(self) -> int:
        """How many samples there are."""
        return len(self.passing) + len(self.rejected)


class SampleAccuracy(BaseModel):
    """How many of the answers that could be compared with a gold query are right."""

    right: int = 0
    compared: int = 0


class SampleCounts(BaseModel):
    """What became of all samples.

    Attributes:
        questions: number of them.
        passing_questions: those with a sample that passes.
        samples: answers of the teacher.
        passing: those that may be trained on.
        rejected: number of samples by the reason why they may not.
        reasons: number of questions without a passing sample by reason.
        accuracy: of the samples to questions with gold that could be verified, by the gold query's query type.
    """

    questions: int
    passing_questions: int
    samples: int
    passing: int
    rejected: dict[str, int]
    reasons: dict[str, int]
    accuracy: dict[str, SampleAccuracy]

    @classmethod
    def of(cls, verified: Sequence[Verified], verification: str) -> "SampleCounts":
        """Count; without verification nothing is known of the teacher's accuracy."""
        accuracy: dict[str, SampleAccuracy] = {}
        for item in verified:
            if verification == "none" or not item.question.sql or not item.answered or item.reason in UNVERIFIABLE:
                continue
            so_far = accuracy.setdefault(item.question.query_type, SampleAccuracy())
            so_far.right += len(item.passing)
            so_far.compared += item.answered
        return cls(
            questions=len(verified),
            passing_questions=sum(bool(item.passing) for item in verified),
            samples=sum(item.answered for item in verified),
            passing=sum(len(item.passing) for item in verified),
            rejected=_count(reason for item in verified for reason in item.rejected.values()),
            reasons=_count(item.reason for item in verified if item.reason),
            accuracy=accuracy,
        )


def _count(reasons: Iterable[RejectionReason]) -> dict[str, int]:
    counted = Counter(reasons)
    return {str(reason): counted[reason] for reason in RejectionReason if counted[reason]}
