"""Chooses among the passing samples and turns them into training examples."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from pydantic import BaseModel

from chatmetrics.components.distill.answers.samples import Sample
from chatmetrics.components.distill.answers.verified import Verified
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.nl2sql.answers.answer_form import AS_GIVEN, Answer, AnswerForm, answer_of
from chatmetrics.components.nl2sql.answers.extraction import sql_from_answer
from chatmetrics.components.nl2sql.databases.addresses import SQLITE
from chatmetrics.components.nl2sql.databases.execution import Result
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.linking.found_values import FoundValue
from chatmetrics.components.nl2sql.prompts.fitting import fit_example
from chatmetrics.components.nl2sql.prompts.prompt_fitter import PromptFitter
from chatmetrics.components.nl2sql.prompts.token_counter import TokenCounter
from chatmetrics.components.nl2sql.schema import Schema, SchemaForm
from chatmetrics.components.nl2sql.sql.canonical import canonical
from chatmetrics.components.nl2sql.sql.query_type import query_type_of
from chatmetrics.components.nl2sql.sql.similarity import query_similarity

REASONED = "<think>\n{reasoning}\n</think>\n\n{answer}"


@dataclass(frozen=True, slots=True)
class StudentFormat:
    """Format and length limit of the student's examples.

    Attributes:
        form: how prompts show the schema; None for prompts without a schema.
        cutoff_length: maximum tokens of an example: prompt and answer.
        counter: counts tokens with the student's tokenizer.
        schema: reads the schema of a database, with as many sample values as the prompts show.
        answer_form: how answers write the SQL.
        execute: runs queries on a database by its name, for the check of rewritten queries.
        dialect: that of a database, by its name, as sqlglot names it.
        find_values: finds the values of a database, by its name, that a text names.
    """

    form: SchemaForm | None
    cutoff_length: int
    counter: TokenCounter
    schema: Callable[[str], Schema]
    answer_form: AnswerForm = AS_GIVEN
    execute: Callable[[str, Sequence[str]], Sequence[Result]] | None = None
    dialect: Callable[[str], str] = lambda db_id: SQLITE
    find_values: Callable[[str, str], Sequence[FoundValue]] = lambda db_id, text: ()
    _fitters: dict[str, PromptFitter] = field(default_factory=dict, compare=False)

    def fitted(self, example: Example) -> Example | None:
        """The example with a prompt that fits together with its answer; None if none does.

        Raises:
            InputError: the schema cannot be read.
        """
        db_id = example.db_id
        if db_id not in self._fitters:
            find_values = partial(self.find_values, db_id)
            self._fitters[db_id] = PromptFitter(self.schema(db_id), self.form, find_values=find_values)
        found = fit_example(example, self._fitters[db_id], example.evidence, self.cutoff_length, self.counter)
        return found.example if found else None

    def answer(self, db_id: str, sql: str) -> Answer:
        """The answer to train on, in the form of preprocess's; see `answer_of`."""
        if self.answer_form.is_as_given:
            return Answer(sql)
        return answer_of(
            sql, self.answer_form, self.schema(db_id), partial(self.execute, db_id) if self.execute else None
        )


class Selected(BaseModel):
    """Outcome of the chosen samples, as numbers of examples.

    Attributes:
        examples: all examples.
        with_reasoning: examples whose answer includes the teacher's reasoning.
        without_reasoning: examples reduced to SQL because the teacher gave no reasoning.
        long_reasoning: examples reduced to SQL because the answer exceeds `max_reasoning_tokens`.
        over_cutoff: examples reduced to SQL because question, schema and reasoning exceed the cutoff length.
        not_rewritten: examples with the SQL as given, because its meaning in the form of the other answers is not
            certain.
        dropped: samples that are not trained on, because not even the SQL fits, or it cannot be parsed back or contains
            the end of an answer.
    """

    examples: int = 0
    with_reasoning: int = 0
    without_reasoning: int = 0
    long_reasoning: int = 0
    over_cutoff: int = 0
    not_rewritten: int = 0
    dropped: int = 0


def select(
    verified: Sequence[Verified], settings: DistillSettings, student: StudentFormat
) -> tuple[list[Example], Selected]:
    """Turn up to `keep_samples` passing samples of each question into examples.

    The first example of a question has the question's id, further ones `{id}#2`, `{id}#3` and so on. The field
    `reasoning` always holds the teacher's reasoning, whether or not it is trained on.

    Raises:
        InputError: a schema cannot be read.
    """
    maker = _ExampleBuilder(settings, student)
    return [example for item in verified for example in maker.examples(item)], maker.selected


def choose(samples: Sequence[Sample], keep: int, length: Callable[[Sample], int]) -> list[Sample]:
    """Choose up to `keep` samples: the most frequent query first, then the least similar to those already chosen.

    Frequency comes before length because a query that is correct only by accident is rarely sampled twice and is
    often short. Then greedy selection: each step takes the query whose highest similarity to a chosen one is lowest.

    Args:
        samples: the passing samples; of samples with the same query only the shortest is considered.
        keep: maximum number of samples.
        length: length of what would be trained on; the shorter sample wins a tie.
    """
    shortest: dict[str, Sample] = {}
    for sample in sorted(samples, key=lambda sample: (length(sample), sample.number)):
        shortest.setdefault(canonical(sample.sql), sample)
    written = Counter(canonical(sample.sql) for sample in samples)
    # sorted() is stable, so the shorter of two equally frequent queries comes first.
    left = [shortest[query] for query in sorted(shortest, key=lambda query: -written[query])]
    chosen: list[Sample] = []

    def similarity(sample: Sample) -> float:
        return max((query_similarity(sample.sql, other.sql) for other in chosen), default=0.0)

    while left and len(chosen) < keep:
        # min() returns the first of several minima.
        chosen.append(min(left, key=similarity))
        left.remove(chosen[-1])
    return chosen


def trains_on_reasoning(id: str, settings: DistillSettings) -> bool:
    """Whether the examples of this question are trained on with reasoning; decided by a hash of the question's id."""
    if settings.train_on != "mixture":
        return settings.train_on == "reasoning"
    hashed = hashlib.sha256(id.encode()).digest()[:8]
    return int.from_bytes(hashed, "big") / 2**64 < settings.reasoning_share


class _ExampleBuilder:
    def __init__(self, settings: DistillSettings, student: StudentFormat) -> None:
        self._settings, self._student = settings, student
        self.selected = Selected()

    def examples(self, verified: Verified) -> Iterator[Example]:
        """The examples of one question."""
        with_reasoning = trains_on_reasoning(verified.question.id, self._settings)

        def length(sample: Sample) -> int:
            return len(sample.sql) + (len(sample.reasoning) if with_reasoning else 0)

        number = 0
        for sample in choose(verified.passing, self._settings.keep_samples, length):
            example = self._example(sample, with_reasoning)
            if example:
                number += 1
                yield replace(example, id=example.id if number == 1 else f"{example.id}#{number}")

    def _example(self, sample: Sample, with_reasoning: bool) -> Example | None:
        """The example, with reasoning if that is wanted and fits; None if not even the SQL fits."""
        # SQL that evaluate would not parse back unchanged would train the student to give wrong answers, and so would
        # an answer that contains the end of an answer.
        answer = self._student.answer(sample.question.db_id, sample.sql)
        stop = self._student.counter.template.stop
        is_whole = sql_from_answer(sample.sql) == sample.sql and not (stop and stop in answer.text)
        example = self._sql_only(sample, answer.text) if is_whole else None
        if example is None:
            self.selected.dropped += 1
            return None
        self.selected.examples += 1
        self.selected.not_rewritten += answer.kept is not None
        return self._add_reasoning(example, sample) if with_reasoning else example

    def _sql_only(self, sample: Sample, answer: str) -> Example | None:
        student, question = self._student, sample.question
        example = replace(
            question,
            sql=sample.sql,
            query_type=query_type_of(sample.sql, student.dialect(question.db_id)),
            output=answer,
            reasoning=sample.reasoning,
        )
        if (example.system or not student.form) and student.counter.count(example) <= student.cutoff_length:
            return example
        return student.fitted(example)

    def _add_reasoning(self, example: Example, sample: Sample) -> Example:
        """Add reasoning to the answer if it fits; the schema is not pruned further to make room for it."""
        counter = self._student.counter
        reasoned = replace(example, output=REASONED.format(reasoning=sample.reasoning, answer=example.output))
        if not sample.reasoning:
            self.selected.without_reasoning += 1
        elif counter.count_text(reasoned.output) > self._settings.max_reasoning_tokens:
            self.selected.long_reasoning += 1
        elif counter.count(reasoned) > self._student.cutoff_length:
            self.selected.over_cutoff += 1
        else:
            self.selected.with_reasoning += 1
            return reasoned
        return example
