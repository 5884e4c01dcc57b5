"""Reads the teacher's answers as samples: SQL and reasoning."""

from collections.abc import Iterable
from dataclasses import dataclass

from chatmetrics.components.distill.teacher.request import TeacherAnswer
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.extraction import sql_from_answer


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer of the teacher to one question.

    Attributes:
        question: the question; its `sql` is the gold query, or empty if there is none.
        number: number of the sample among those of the question, from 0.
        sql: the first SQL statement in the answer; empty if there is none.
        reasoning: the teacher's reasoning; may be empty.
        tokens: completion tokens of the answer, including reasoning.
        is_cut: whether the answer was cut off at `max_tokens`.
    """

    question: Example
    number: int
    sql: str
    reasoning: str
    tokens: int
    is_cut: bool

    @classmethod
    def of(cls, question: Example, number: int, answer: TeacherAnswer) -> "Sample":
        """Read SQL and reasoning from an answer; any text is accepted."""
        return cls(
            question=question,
            number=number,
            sql=_writable(sql_from_answer(answer.text)),
            reasoning=_writable(answer.reasoning).strip(),
            tokens=answer.completion_tokens,
            is_cut=answer.is_cut,
        )


def by_question(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Group samples by question id, ordered by sample number."""
    found: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.number):
        found.setdefault(sample.question.id, []).append(sample)
    return found


def _writable(text: str) -> str:
    """Replace lone surrogates, which JSON may contain but a UTF-8 file cannot."""
    return text.encode(errors="replace").decode()
