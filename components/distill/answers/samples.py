"""Reads the teacher's answers as samples: SQL and reasoning."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from chatmetrics.components.distill.teacher.request import TeacherAnswer
from chatmetrics.components.nl2sql.answers.extraction import sql_from_answer
from chatmetrics.components.nl2sql.binding.binder import bind_names
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.schema import Schema


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
        is_repaired: whether names in the SQL were bound to the schema.
    """

    question: Example
    number: int
    sql: str
    reasoning: str
    tokens: int
    is_cut: bool
    is_repaired: bool = False

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

    def bound(self, schema: Schema) -> "Sample":
        """The sample with names that do not resolve bound to the schema; its reasoning would lead to another query."""
        first = bind_names(self.sql, schema)[0]
        return replace(self, sql=first.sql, reasoning="", is_repaired=True) if first.repairs else self


def by_question(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Group samples by question id, ordered by sample number."""
    found: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.number):
        found.setdefault(sample.question.id, []).append(sample)
    return found


def _writable(text: str) -> str:
    """Replace lone surrogates, which JSON may contain but a UTF-8 file cannot."""
    return text.encode(errors="replace").decode()
