"""The result of verification: the samples that pass, and the reasons why others are rejected."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel

from chatmetrics.components.distill.answers.samples import Sample
from chatmetrics.components.nl2sql.example import Example


class RejectionReason(StrEnum):
    """Why a sample, or every sample of a question, is rejected."""

    NO_ANSWER = "no answer"
    NO_SQL = "no SQL in the answer"
    CUT = "cut off"
    FAILS = "the SQL fails"
    WRONG_RESULT = "result differs from the gold query's"
    NO_MAJORITY = "no majority for any result"
    OUTVOTED = "result differs from the majority's"
    EMPTY_MAJORITY = "the majority returns no rows"
    GOLD_FAILS = "unverifiable: the gold query fails"
    GOLD_EMPTY = "unverifiable: the gold query returns no rows"
    UNPOPULATED = "unverifiable: the database has no rows"
    NO_DATABASE = "unverifiable: the database cannot be used"


UNVERIFIABLE = frozenset(
    {RejectionReason.GOLD_FAILS, RejectionReason.GOLD_EMPTY, RejectionReason.UNPOPULATED, RejectionReason.NO_DATABASE}
)


@dataclass(frozen=True, slots=True)
class Verified:
    """A question and the verification of its samples.

    Attributes:
        question: the question.
        passing: the samples that may be trained on, ordered by number.
        rejected: why each other sample is rejected, by sample number.
        reason: why no sample passes; None if one does.
        repaired: number of samples whose names were bound to the schema.
    """

    question: Example
    passing: tuple[Sample, ...]
    rejected: Mapping[int, RejectionReason]
    reason: RejectionReason | None
    repaired: int = 0

    @property
    def is_unsure(self) -> bool:
        """Whether some samples pass and others do not."""
        return bool(self.passing) and bool(self.rejected)

    @property
    def answered(self) -> int:
        """Number of samples."""
        return len(self.passing) + len(self.rejected)


class SampleAccuracy(BaseModel):
    """Correct samples among those that could be compared with a gold query."""

    correct: int = 0
    compared: int = 0


class SampleCounts(BaseModel):
    """Outcome of all samples.

    Attributes:
        questions: number of questions.
        passing_questions: number of questions with a passing sample.
        samples: number of samples.
        passing: number of passing samples.
        rejected: number of rejected samples, by reason.
        reasons: number of questions without a passing sample, by reason.
        accuracy: the teacher's accuracy by query type of the gold query, over the samples that could be verified.
        repaired: number of samples whose names were bound to the schema before they were verified.
        repaired_passing: number of passing samples among them.
    """

    questions: int
    passing_questions: int
    samples: int
    passing: int
    rejected: dict[str, int]
    reasons: dict[str, int]
    accuracy: dict[str, SampleAccuracy]
    repaired: int = 0
    repaired_passing: int = 0

    @classmethod
    def of(cls, verified: Sequence[Verified], verification: str) -> "SampleCounts":
        """Count the samples; with `verification` "none" the accuracy is unknown and left empty."""
        accuracy: dict[str, SampleAccuracy] = {}
        for item in verified:
            if verification == "none" or not item.question.sql or not item.answered or item.reason in UNVERIFIABLE:
                continue
            so_far = accuracy.setdefault(item.question.query_type, SampleAccuracy())
            so_far.correct += len(item.passing)
            so_far.compared += item.answered
        return cls(
            questions=len(verified),
            passing_questions=sum(bool(item.passing) for item in verified),
            samples=sum(item.answered for item in verified),
            passing=sum(len(item.passing) for item in verified),
            rejected=_count(reason for item in verified for reason in item.rejected.values()),
            reasons=_count(item.reason for item in verified if item.reason),
            accuracy=accuracy,
            repaired=sum(item.repaired for item in verified),
            repaired_passing=sum(sample.is_repaired for item in verified for sample in item.passing),
        )


def _count(reasons: Iterable[RejectionReason]) -> dict[str, int]:
    counted = Counter(reasons)
    return {str(reason): counted[reason] for reason in RejectionReason if counted[reason]}
