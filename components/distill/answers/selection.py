"""Which of the answers that passed are trained on, and the examples that they become."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel

from chatmetrics.components.distill.answers.samples import Sample
from chatmetrics.components.distill.answers.similarity import canonical, query_similarity
from chatmetrics.components.distill.answers.verified import Verified
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.fitting import fit
from chatmetrics.components.nl2sql.prompt import sql_from_answer
from chatmetrics.components.nl2sql.query_type import query_type_of
from chatmetrics.components.nl2sql.schema import Schema, SchemaForm
from chatmetrics.components.nl2sql.token_counter import TokenCounter

REASONED = "<think>\n{reasoning}\n</think>\n\n{sql}"


@dataclass(frozen=True, slots=True)
class Student:
    """What an example must be like for the student.

    Attributes:
        form: how its prompts show the schema; None for prompts without.
        cutoff_length: most tokens of a whole example.
        counter: counts with its tokenizer.
        schema: reads the schema of a database, with as many sample values as its prompts show.
    """

    form: SchemaForm | None
    cutoff_length: int
    counter: TokenCounter
    schema: Callable[[str], Schema]


class Selected(BaseModel):
    """What became of the samples that were chosen.

    Attributes:
        examples: all that are trained on.
        with_reasoning: those of them whose answer has the teacher's reasoning.
        without_reasoning: SQL only although reasoning was wanted: the teacher gave none.
        long_reasoning: likewise: the answer has more than `max_reasoning_tokens`.
        no_room: likewise: the answer does not fit beside question and schema.
        dropped: not trained on: not even the SQL fits, or it would be read back as another.
    """

    examples: int = 0
    with_reasoning: int = 0
    without_reasoning: int = 0
    long_reasoning: int = 0
    no_room: int = 0
    dropped: int = 0


def select(verified: Sequence[Verified], settings: DistillSettings, student: Student) -> tuple[list[Example], Selected]:
    """Turn at most `keep_samples` of each question into examples, the first of which has the question's id.

    Further ones are called `{id}#2` and so on. The reasoning is kept in `reasoning` whether it is trained on or not.

    Raises:
        InputError: a schema that is needed cannot be read.
    """
    maker = _ExampleBuilder(settings, student)
    return [example for item in verified for example in maker.examples(item)], maker.selected


def choose(samples: Sequence[Sample], keep: int, length: Callable[[Sample], int]) -> list[Sample]:
    """At most `keep` samples: the query that most of them wrote, then each time that which is least like those before.

    A query that is right by accident is seldom written twice, and is often the shorter one.

    Args:
        samples: those that passed; of several with the same query only the shortest counts.
        keep: most samples.
        length: of what is trained on; of equally frequent or unlike ones the shorter is taken.
    """
    shortest: dict[str, Sample] = {}
    for sample in sorted(samples, key=lambda sample: (length(sample), sample.number)):
        shortest.setdefault(canonical(sample.sql), sample)
    written = Counter(canonical(sample.sql) for sample in samples)
    # Sorting keeps the shorter of equals in front.
    left = [shortest[query] for query in sorted(shortest, key=lambda query: -written[query])]
    chosen: list[Sample] = []

    def likeness(sample: Sample) -> float:
        return max((query_similarity(sample.sql, other.sql) for other in chosen), default=0.0)

    while left and len(chosen) < keep:
        # min() takes the first of equals.
        chosen.append(min(left, key=likeness))
        left.remove(chosen[-1])
    return chosen


def trains_on_reasoning(id: str, settings: DistillSettings) -> bool:
    """Whether the student is to learn the reasoning in answers to the question of this id; the same at every call."""
    if settings.train_on != "mixture":
        return settings.train_on == "reasoning"
    hashed = hashlib.sha256(id.encode()).digest()[:8]
    return int.from_bytes(hashed, "big") / 2**64 < settings.reasoning_share


class _ExampleBuilder:
    def __init__(self, settings: DistillSettings, student: Student) -> None:
        self._settings, self._student = settings, student
        self._schemas: dict[str, tuple[Schema, str]] = {}
        self.selected = Selected()

    def examples(self, verified: Verified) -> Iterator[Example]:
        """The examples of one question."""
        is_reasoned = trains_on_reasoning(verified.question.id, self._settings)

        def length(sample: Sample) -> int:
            return len(sample.sql) + (len(sample.reasoning) if is_reasoned else 0)

        number = 0
        for sample in choose(verified.passing, self._settings.keep_samples, length):
            example = self._example(sample, is_reasoned)
            if example:
                number += 1
                yield replace(example, id=example.id if number == 1 else f"{example.id}#{number}")

    def _example(self, sample: Sample, is_reasoned: bool) -> Example | None:
        """With reasoning if that is wanted and fits, else with SQL only, if that does."""
        # Whatever would not be read back as it is would teach answers that count as wrong.
        example = self._sql_only(sample) if sql_from_answer(sample.sql) == sample.sql else None
        if example is None:
            self.selected.dropped += 1
            return None
        self.selected.examples += 1
        return self._reasoned(example, sample) if is_reasoned else example

    def _sql_only(self, sample: Sample) -> Example | None:
        student, question = self._student, sample.question
        example = replace(
            question,
            sql=sample.sql,
            query_type=query_type_of(sample.sql),
            output=sample.sql,
            reasoning=sample.reasoning,
        )
        if (example.system or not student.form) and student.counter.count(example) <= student.cutoff_length:
            return example
        if not student.form:
            return None
        schema, whole = self._schema(question.db_id, student.form)
        whole_or_pruned = replace(example, system=example.system or whole)
        return fit(whole_or_pruned, schema, student.form, student.cutoff_length, student.counter)

    def _schema(self, db_id: str, form: SchemaForm) -> tuple[Schema, str]:
        if db_id not in self._schemas:
            schema = self._student.schema(db_id)
            self._schemas[db_id] = schema, schema.render(form)
        return self._schemas[db_id]

    def _reasoned(self, example: Example, sample: Sample) -> Example:
        """The example with reasoning in its answer if possible; the schema stays as large as SQL alone leaves it."""
        counter = self._student.counter
        reasoned = replace(example, output=REASONED.format(reasoning=sample.reasoning, sql=sample.sql))
        if not sample.reasoning:
            self.selected.without_reasoning += 1
        elif counter.count_text(reasoned.output) > self._settings.max_reasoning_tokens:
            self.selected.long_reasoning += 1
        elif counter.count(reasoned) > self._student.cutoff_length:
            self.selected.no_room += 1
        else:
            self.selected.with_reasoning += 1
            return reasoned
        return example
