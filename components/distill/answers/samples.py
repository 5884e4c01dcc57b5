"""The teacher's answers as samples: the SQL of each, and the reasoning that led to it."""

from collections.abc import Iterable
from dataclasses import dataclass

from chatmetrics.components.distill.teacher.request import TeacherAnswer
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.prompt import sql_from_answer


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer of the teacher to one question.

    Attributes:
        question: of the dataset, or a bare example; its `sql` is the gold query, empty where there is none.
        number: the sample's among those of the question, from 0.
        sql: the first statement of the answer; empty when it holds none.
        reasoning: may be empty.
        tokens: that the answer took, reasoning included.
        is_cut: whether the answer was longer than the teacher was let.
    """

    question: Example
    number: int
    sql: str
    reasoning: str
    tokens: int
    is_cut: bool

    @classmethod
    def of(cls, question: Example, number: int, answer: TeacherAnswer) -> "Sample":
        """Read an answer, whatever it is."""
        return cls(
            question=question,
            number=number,
            sql=_writable(sql_from_answer(answer.text)),
            reasoning=_writable(answer.reasoning).strip(),
            tokens=answer.completion_tokens,
            is_cut=answer.is_cut,
        )


def by_question(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """The samples of each question's id, by their number."""
    found: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.number):
        found.setdefault(sample.question.id, []).append(sample)
    return found


def _writable(text: str) -> str:
    """JSON may hold half a surrogate pair, which no file can."""
    return text.encode(errors="replace").decode()
