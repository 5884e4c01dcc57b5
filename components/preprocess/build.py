"""Builds the examples of one database after the other, and runs their gold queries."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.answers.answer_form import AnswerForm, Kept, answer_of
from chatmetrics.components.nl2sql.binding.shown_names import name_not_shown
from chatmetrics.components.nl2sql.databases.databases import Databases, open_databases
from chatmetrics.components.nl2sql.databases.execution import Executor, FailureMode, Result
from chatmetrics.components.nl2sql.databases.stored_values import StoredValues
from chatmetrics.components.nl2sql.descriptions import Descriptions
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.identifiers import quoted
from chatmetrics.components.nl2sql.linking.found_values import FindValues, no_values
from chatmetrics.components.nl2sql.prompts.fitting import FittedExample, bare_example, fit_example
from chatmetrics.components.nl2sql.prompts.prompt_fitter import PromptFitter
from chatmetrics.components.nl2sql.prompts.template import PromptTemplate
from chatmetrics.components.nl2sql.prompts.token_counter import load_counter
from chatmetrics.components.nl2sql.schema import NOT_SHOWN, Omitted, Schema, SchemaForm
from chatmetrics.components.nl2sql.sql.query_type import query_type_of
from chatmetrics.components.nl2sql.verdict import Execute
from chatmetrics.components.preprocess.noise_tables import add_noise
from chatmetrics.components.preprocess.readers import TRAIN, Record, Source


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of a worker: prompt and answer format, token limit, and time limit of gold queries."""

    tokenizer: Path
    template: PromptTemplate
    form: SchemaForm | None
    sample_values: int
    cutoff_length: int
    query_seconds: float
    answer_form: AnswerForm
    noise_tables: int
    seed: int


@dataclass(frozen=True, slots=True)
class Database:
    """A database, by its file or address, its description, or both.

    Attributes:
        name: its name in questions.
        path: the SQLite file; None if there is none, and the schema comes from `described` or the address.
        described: the database's entry in tables.json; None if there is none.
        address: the address of all databases; empty if they are SQLite files.
        known: what prompts show about the database that it does not contain.
    """

    name: str
    path: Path | None
    described: Mapping[str, Any] | None
    address: str = ""
    known: Descriptions = field(default_factory=Descriptions)

    @classmethod
    def of(cls, source: Source, db_id: str, where: str) -> Self:
        """A database of a source.

        Args:
            source: the source.
            db_id: the database's name.
            where: what names it, for messages.

        Raises:
            InputError: it has neither a file nor an entry in tables.json.
        """
        known = source.known.get(db_id, Descriptions())
        if source.is_at_address(db_id):
            return cls(db_id, None, source.tables.get(db_id), source.address, known)
        try:
            return cls(db_id, source.file(db_id), source.tables.get(db_id), "", known)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error

    @classmethod
    def named_by(cls, source: Source, record: Record) -> Self:
        """The database of a record; raises `InputError`, as `of`."""
        return cls.of(source, record.db_id, f"{record.where}: the field 'db_id'")

    @property
    def can_run(self) -> bool:
        """Whether queries can be run."""
        return bool(self.path or self.address)


class OpenDatabases:
    """Databases of a source, each opened when it is first needed."""

    def __init__(self, query_seconds: float) -> None:
        self._query_seconds = query_seconds
        self._stack = ExitStack()
        self._files = self._stack.enter_context(Executor(query_seconds))
        self._addresses: dict[str, Databases] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def schema(self, database: Database, sample_values: int) -> Schema:
        """Read the schema of a database.

        Raises:
            InputError: the file, the server or the entry of tables.json cannot be read.
        """
        if database.address:
            return self._at(database.address).structure(database.name, sample_values).described_by(database.known)
        if database.path is not None:
            schema = Schema.from_sqlite(database.path, sample_values, database.known)
            return replace(schema, db_id=database.name) if database.described else schema
        assert database.described is not None, "a record has a database or an entry in tables.json"
        return Schema.from_spider(database.described, None).described_by(database.known)

    def execute(self, database: Database, queries: Sequence[str]) -> list[Result]:
        """Run queries on a database, for which `can_run` is true."""
        if database.address:
            return self._at(database.address).execute(database.name, queries)
        assert database.path is not None
        return self._files.execute_all(database.path, queries)

    def _at(self, address: str) -> Databases:
        if address not in self._addresses:
            opened = open_databases(address, self._query_seconds)
            self._addresses[address] = self._stack.enter_context(opened)
        return self._addresses[address]


@dataclass(frozen=True, slots=True)
class Task:
    """Questions about one database, and the databases whose tables are added to the schema of training questions."""

    database: Database
    records: tuple[Record, ...]
    noise: tuple[Database, ...] = ()


@dataclass(frozen=True, slots=True)
class Gold:
    """Result of a gold query; `failure` is empty if it ran without error."""

    failure: str
    message: str
    rows: int


@dataclass(frozen=True, slots=True)
class BuiltExample:
    """The example built from a record.

    Attributes:
        record: the record.
        example: the example; None if it does not fit the token limit.
        tokens: tokens of the whole example, or of the example without a schema if it does not fit.
        is_pruned: whether parts of the schema are left out so that it fits.
        is_condensed: whether sentences of the question are left out so that it fits.
        gold: result of the gold query; None if there is no database file.
        is_populated: whether any table of the database has a row.
        not_shown: message on a name that the gold query uses and the prompt's schema does not show; empty if there is
            none, or no schema in the prompt.
        omitted: tables and views of the database that no query can use.
        kept: why the answer is the query as given, although another form is wanted; None if it has that form.
        has_noise: whether the schema has tables of other databases.
        untranslated: why the query could not be translated; such a question has no example.
    """

    record: Record
    example: Example | None
    tokens: int
    is_pruned: bool
    gold: Gold | None
    is_populated: bool
    is_condensed: bool = False
    not_shown: str = ""
    omitted: tuple[Omitted, ...] = ()
    kept: Kept | None = None
    has_noise: bool = False
    untranslated: str = ""


def build(options: Options, tasks: Sequence[Task]) -> list[BuiltExample]:
    """Turn records into examples and run their gold queries.

    Raises:
        InputError: a database or its entry in tables.json cannot be read.
    """
    with OpenDatabases(options.query_seconds) as opened:
        return [built for task in tasks for built in _build_database(options, opened, task)]


def _build_database(options: Options, opened: OpenDatabases, task: Task) -> list[BuiltExample]:
    counter = load_counter(options.tokenizer, options.template)
    sample_values = options.sample_values if options.form else 0
    database = task.database
    schema = opened.schema(database, sample_values)
    noisy = _noisy_schema(options, opened, task, schema, sample_values)
    noisy_text = noisy.render(options.form) if noisy and options.form else ""
    # Many questions share a query, so each query is parsed and run only once.
    queries = sorted({record.sql for record in task.records})
    query_types = {sql: query_type_of(sql, schema.dialect) for sql in queries}
    execute = partial(opened.execute, database) if database.can_run else None
    is_populated = execute is not None and _is_populated(execute, schema)
    gold = {sql: _run_gold(execute, sql, schema) for sql in queries}
    answers = {sql: answer_of(sql, options.answer_form, schema, execute) for sql in queries}
    fitter = PromptFitter(schema, options.form, database.known, _find_values(database, schema))

    def fitted(example: Example, evidence: str) -> FittedExample | None:
        if noisy and example.split == TRAIN:
            with_noise = replace(example, system=noisy_text)
            # Noise is left out before anything of the schema or the question is.
            if counter.count(with_noise) <= options.cutoff_length:
                return FittedExample(with_noise, noisy)
        return fit_example(example, fitter, evidence, options.cutoff_length, counter)

    def build_one(record: Record) -> BuiltExample:
        query_type = query_types[record.sql]
        bare = bare_example(
            *(record.id, record.db_id, record.question, record.sql, record.split, query_type),
            *(database.known.evidence(record.question, record.evidence), schema.dialect),
        )
        answer = answers[record.sql].text
        bare = replace(bare, output=answer, difficulty=record.difficulty, weight=record.weight)
        found = fitted(bare, record.evidence)
        has_noise = found is not None and found.schema is noisy
        return BuiltExample(
            record=record,
            example=found.example if found else None,
            tokens=counter.count(found.example if found else bare),
            is_pruned=found is not None and not has_noise and found.example.system != fitter.whole,
            is_condensed=found is not None and found.is_condensed,
            gold=gold[record.sql],
            is_populated=is_populated,
            not_shown=name_not_shown(found.schema, record.sql) if found and options.form else "",
            omitted=schema.omitted,
            kept=answers[record.sql].kept,
            has_noise=has_noise,
        )

    return [build_one(record) for record in task.records]


def _find_values(database: Database, schema: Schema) -> FindValues:
    """What finds the values of a database; they are read at the first question that does not fit."""
    where = database.address or database.path
    return StoredValues(schema, where).find if where else no_values


def _noisy_schema(
    options: Options, opened: OpenDatabases, task: Task, schema: Schema, sample_values: int
) -> Schema | None:
    if not task.noise:
        return None
    others = [opened.schema(database, sample_values) for database in task.noise]
    return add_noise(schema, others, options.noise_tables, options.seed)


def _run_gold(execute: Execute | None, sql: str, schema: Schema) -> Gold | None:
    if execute is None:
        return None
    [result] = execute([sql])
    failure = "" if result.failure == FailureMode.OK else str(result.failure)
    message = NOT_SHOWN if failure and schema.has_private else result.message
    return Gold(failure, message, len(result.rows))


def _is_populated(execute: Execute, schema: Schema) -> bool:
    names = (quoted(table.name, schema.dialect) for table in schema.tables)
    return any(execute([f"SELECT 1 FROM {name} LIMIT 1"])[0].rows for name in names)  # noqa: S608
