"""The state that all parts of the step share, and the requests that ask a question."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache, partial
from pathlib import Path

from chatmetrics.components import console
from chatmetrics.components.base_model.references import local_tokenizer
from chatmetrics.components.distill.answers.selection import REASONED, StudentFormat
from chatmetrics.components.distill.distilled_dataset import read_card
from chatmetrics.components.distill.prompts import Messages, question_messages
from chatmetrics.components.distill.scripted.server import scripted_teacher
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.distill.synthesis.synthesis import HELD_OUT
from chatmetrics.components.distill.teacher.ledger import Ledger, open_ledger
from chatmetrics.components.distill.teacher.request import Request, TeacherAnswer
from chatmetrics.components.distill.teacher.sampling import SamplingResult, ask
from chatmetrics.components.distill.teacher_schemas import TeacherSchemas
from chatmetrics.components.distill.unlabeled_questions import read_questions
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.answers.answer_form import AnswerForm
from chatmetrics.components.nl2sql.databases.addresses import dialect_at
from chatmetrics.components.nl2sql.databases.databases import Databases, open_databases
from chatmetrics.components.nl2sql.databases.stored_values import StoredValues, stored_values
from chatmetrics.components.nl2sql.descriptions import Descriptions, read_descriptions
from chatmetrics.components.nl2sql.example import Example, question_key, read_examples, read_held_out
from chatmetrics.components.nl2sql.linking.found_values import FoundValue
from chatmetrics.components.nl2sql.prompts.prompt_fitter import SHORT_QUESTION
from chatmetrics.components.nl2sql.prompts.template import dataset_template
from chatmetrics.components.nl2sql.prompts.token_counter import load_counter
from chatmetrics.components.nl2sql.schema import Schema
from chatmetrics.components.storage.dataset_databases import located_databases

QUESTION, SCORE = "question", "score"
DATABASES_WITH_VALUES = 32  # whose values are kept in memory


@dataclass
class Session:
    """Settings, data and teacher of one run of the step.

    Attributes:
        settings: the recipe's `distill` section.
        dataset: folder that preprocess wrote.
        where: local folder of SQLite files, or the address of the databases.
        databases: these databases.
        endpoint: the teacher's base URL.
        ledger: requests and answers of this run and earlier ones.
        result: how many requests of this run have no answer, of how many.
    """

    settings: DistillSettings
    dataset: Path
    where: str
    databases: Databases
    endpoint: str
    ledger: Ledger
    result: SamplingResult = field(default_factory=SamplingResult)

    def ask(self, requests: Sequence[Request], label: str) -> Mapping[str, TeacherAnswer]:
        """Send the requests that have no answer yet; returns all answers by `Request.key`."""
        result = ask(self.settings, self.endpoint, requests, self.ledger, label)
        self.result.wanted += result.wanted
        self.result.not_sent += result.not_sent
        self.result.unanswered.update(result.unanswered)
        return result.answers

    @cached_property
    def train(self) -> list[Example]:
        """The dataset's training questions, with gold SQL."""
        return read_examples(self.dataset / "train.jsonl")

    @cached_property
    def dev(self) -> list[Example]:
        """The dataset's dev questions."""
        return read_examples(self.dataset / "dev.jsonl")

    @cached_property
    def held_out(self) -> list[Example]:
        """The questions of the dataset's held-out sets, which no generated question may repeat."""
        return read_held_out(self.dataset)

    @cached_property
    def unlabeled(self) -> list[Example]:
        """The user's questions without SQL."""
        uri = self.settings.unlabeled_questions
        unlabeled = read_questions(uri, partial(dialect_at, self.where), self.descriptions) if uri else []
        known = {example.id for example in (*self.train, *self.dev)}
        for question in unlabeled:
            if question.id in known:
                raise InputError(f"{uri}: the id {question.id!r} is already used in the dataset; give it another")
        held_out = {question_key(example.db_id, example.question) for example in self.held_out}
        kept = [each for each in unlabeled if question_key(each.db_id, each.question) not in held_out]
        if len(kept) < len(unlabeled):
            console.warning(f"{uri}: {len(unlabeled) - len(kept)} questions are left out: a held-out set has them")
        return list(map(self._condensed, kept))

    def _condensed(self, question: Example) -> Example:
        """A question as the student's prompts show it, so that the teacher answers what the student is asked."""
        if self.count_tokens(question.input) <= SHORT_QUESTION or not self.has_schema(question):
            return question
        fitted = self.student.fitted(question)
        return replace(question, input=fitted.input, evidence=fitted.evidence) if fitted else question

    @cached_property
    def student(self) -> StudentFormat:
        """The format of the student's examples, as preprocess made them."""
        card = read_card(self.dataset)
        form = None if card["schema_form"] == "none" else card["schema_form"]
        tokenizer = local_tokenizer(card["tokenizer"], card.get("tokenizer_revision", ""))
        template = dataset_template(self.dataset)
        if self.settings.train_on != "sql" and template.stop and template.stop in REASONED:
            raise InputError(
                f"distill.train_on is {self.settings.train_on}, but the dataset's prompt template {template.name} ends "
                f"an answer at {template.stop!r}, which reasoning contains: set train_on to sql, or preprocess.template"
            )
        return StudentFormat(
            form=form,
            cutoff_length=card["cutoff_length"],
            counter=load_counter(tokenizer, template),
            schema=cache(lambda db_id: self._schema(db_id, card["sample_values"] if form else 0)),
            find_values=self.find_values,
            answer_form=AnswerForm(card.get("sql_form", "as_given"), card.get("plan", "none")),
            dialect=partial(dialect_at, self.where),
        )

    def has_schema(self, question: Example) -> bool:
        """Whether the schema of the question's database can be read; verification reports those that cannot."""
        try:
            self.schemas.whole(question.db_id)
        except InputError:
            return False
        return True

    @cached_property
    def schemas(self) -> TeacherSchemas:
        """The schemas in the teacher's prompts."""

        def read(db_id: str) -> Schema:
            schema = self._schema(db_id, self.settings.sample_values)
            for item in schema.omitted:
                console.warning(f"distill: {db_id}: {item.message}")
            return schema

        return TeacherSchemas(self.settings, read, self.count_tokens, self.find_values)

    def find_values(self, db_id: str, text: str) -> Sequence[FoundValue]:
        """The values of a database that a text names, for the prompts of the teacher and of the student."""
        return self._values(db_id).find(text)

    @cached_property
    def _values(self) -> Callable[[str], StoredValues]:
        """The values of a database, by its name."""
        return lru_cache(DATABASES_WITH_VALUES)(lambda db_id: stored_values(self._schema(db_id, 0), self.where))

    def count_tokens(self, text: str) -> int:
        """The number of tokens of a text, by the student's tokenizer."""
        return self.student.counter.count_text(text)

    def requests(self, question: Example, round_number: int) -> Iterator[tuple[int, Request]]:
        """The requests for a question's samples in one round, with the samples' numbers.

        Sample numbers continue from round to round: with `samples` = 4, round 1 has 0 to 3 and round 2 has 4 to 7.
        """
        settings = self.settings
        messages = self._messages(question)
        for number in range((round_number - 1) * settings.samples, round_number * settings.samples):
            temperature = settings.temperatures[number % len(settings.temperatures)]
            yield number, Request(messages, number, temperature, settings.max_tokens, QUESTION)

    def _messages(self, question: Example) -> Messages:
        schema = self.schemas.text(question.db_id, question.input)
        return question_messages(question.db_id, question.input, schema, dialect_at(self.where, question.db_id))

    def score_request(self, example: Example) -> Request:
        """The request that asks the teacher a dev question: one sample at temperature 0."""
        messages = self._messages(example)
        return Request(messages, 0, 0.0, self.settings.max_tokens, SCORE)

    def of_first_round(self, questions: Sequence[Example]) -> list[Example]:
        """The questions that the first round asks."""
        return [question for question in questions if self.settings.first_round == "all" or not _has_gold(question)]

    @cached_property
    def descriptions(self) -> Mapping[str, Descriptions]:
        """What prompts show about the databases that their files do not contain."""
        return read_descriptions(self.dataset)

    def _schema(self, db_id: str, sample_values: int) -> Schema:
        return self.databases.structure(db_id, sample_values)


@contextmanager
def open_session(settings: DistillSettings, dataset: Path, databases: str, ledger_uri: str) -> Iterator[Session]:
    """Open the databases, the ledger and the teacher.

    Raises:
        InputError: no teacher is configured, the dataset or its databases are missing, or another process holds the
            ledger.
        ServiceError: the scripted teacher did not start.
        StorageError: the ledger or the bucket of databases cannot be read.
    """
    if not settings.enabled:
        raise InputError("distill.base_url is empty: set it to the teacher's endpoint, or omit this step")
    with (
        located_databases(dataset, databases) as where,
        open_databases(where, settings.query_seconds, read_descriptions(dataset)) as opened,
        open_ledger(ledger_uri, settings) as ledger,
        _endpoint(settings, dataset) as endpoint,
    ):
        yield Session(settings, dataset, where, opened, endpoint, ledger)


@contextmanager
def _endpoint(settings: DistillSettings, dataset: Path) -> Iterator[str]:
    if not settings.is_scripted:  # with `self`, nobody is asked
        yield settings.base_url
        return
    files = [dataset / "train.jsonl", dataset / "dev.jsonl"]
    with scripted_teacher(files, settings.scripted_error_rate) as endpoint:
        yield endpoint


def _has_gold(question: Example) -> bool:
    """Whether the question's SQL is the dataset's gold; the SQL of a generated question is the teacher's own."""
    return bool(question.sql) and not question.id.startswith(f"{HELD_OUT}:")
