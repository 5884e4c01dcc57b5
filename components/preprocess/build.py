"""Builds the examples of one database after the other, and runs their gold queries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from chatmetrics.components.nl2sql.answers.answer_form import Answer, AnswerForm, Kept, answer_of
from chatmetrics.components.nl2sql.databases.execution import Executor, FailureMode
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.identifiers import quoted
from chatmetrics.components.nl2sql.prompts.fitting import Fitted, bare_example, fit_shown
from chatmetrics.components.nl2sql.prompts.template import PromptTemplate
from chatmetrics.components.nl2sql.prompts.token_counter import load_counter
from chatmetrics.components.nl2sql.schema import Omitted, Schema, SchemaForm
from chatmetrics.components.nl2sql.shown_names import name_not_shown
from chatmetrics.components.nl2sql.sql.query_type import query_type_of
from chatmetrics.components.preprocess.noise_tables import add_noise
from chatmetrics.components.preprocess.readers import TRAIN, Record


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
    """A database, by its file, its description, or both.

    Attributes:
        path: the SQLite file; None if there is none, and the schema comes from `described`.
        described: the database's entry in tables.json; None if there is none.
    """

    path: Path | None
    described: Mapping[str, Any] | None

    def schema(self, sample_values: int) -> Schema:
        """Read the schema.

        Raises:
            InputError: the file or the entry cannot be read.
        """
        if self.described is not None:
            return Schema.from_spider(self.described, self.path, sample_values)
        assert self.path is not None, "a record has a database or an entry in tables.json"
        return Schema.from_sqlite(self.path, sample_values)


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
        is_pruned: whether tables were removed from the schema so that it fits.
        gold: result of the gold query; None if there is no database file.
        is_populated: whether any table of the database has a row.
        not_shown: message on a name that the gold query uses and the prompt's schema does not show; empty if there is
            none, or no schema in the prompt.
        omitted: tables and views of the database that no query can use.
        kept: why the answer is the query as given, although another form is wanted; None if it has that form.
        has_noise: whether the schema has tables of other databases.
    """

    record: Record
    example: Example | None
    tokens: int
    is_pruned: bool
    gold: Gold | None
    is_populated: bool
    not_shown: str = ""
    omitted: tuple[Omitted, ...] = ()
    kept: Kept | None = None
    has_noise: bool = False


def build(options: Options, tasks: Sequence[Task]) -> list[BuiltExample]:
    """Turn records into examples and run their gold queries.

    Raises:
        InputError: a database or its entry in tables.json cannot be read.
    """
    with Executor(query_seconds=options.query_seconds) as executor:
        return [built for task in tasks for built in _build_database(options, executor, task)]


def _build_database(options: Options, executor: Executor, task: Task) -> list[BuiltExample]:
    counter = load_counter(options.tokenizer, options.template)
    sample_values = options.sample_values if options.form else 0
    schema, path = task.database.schema(sample_values), task.database.path
    whole = schema.render(options.form) if options.form else ""
    noisy = _noisy_schema(options, task, schema, sample_values)
    noisy_text = noisy.render(options.form) if noisy and options.form else ""
    # Many questions share a query, so each query is parsed and run only once.
    queries = sorted({record.sql for record in task.records})
    query_types = {sql: query_type_of(sql) for sql in queries}
    is_populated = path is not None and _is_populated(executor, path, schema)
    gold = {sql: _run_gold(executor, path, sql) for sql in queries}
    answers = {sql: _answer(options.answer_form, executor, path, schema, sql) for sql in queries}

    def fitted(example: Example) -> Fitted | None:
        if noisy and example.split == TRAIN:
            with_noise = replace(example, system=noisy_text)
            # Noise is left out before anything of the schema itself is.
            if counter.count(with_noise) <= options.cutoff_length:
                return Fitted(with_noise, noisy)
        return fit_shown(replace(example, system=whole), schema, options.form, options.cutoff_length, counter)

    def build_one(record: Record) -> BuiltExample:
        query_type = query_types[record.sql]
        bare = bare_example(
            record.id, record.db_id, record.question, record.sql, record.split, query_type, record.evidence
        )
        bare = replace(bare, output=answers[record.sql].text, difficulty=record.difficulty)
        found = fitted(bare)
        has_noise = found is not None and found.schema is noisy
        return BuiltExample(
            record=record,
            example=found.example if found else None,
            tokens=counter.count(found.example if found else bare),
            is_pruned=found is not None and not has_noise and found.example.system != whole,
            gold=gold[record.sql],
            is_populated=is_populated,
            not_shown=name_not_shown(found.schema, record.sql) if found and options.form else "",
            omitted=schema.omitted,
            kept=answers[record.sql].kept,
            has_noise=has_noise,
        )

    return [build_one(record) for record in task.records]


def _noisy_schema(options: Options, task: Task, schema: Schema, sample_values: int) -> Schema | None:
    if not task.noise:
        return None
    others = [database.schema(sample_values) for database in task.noise]
    return add_noise(schema, others, options.noise_tables, options.seed)


def _answer(form: AnswerForm, executor: Executor, database: Path | None, schema: Schema, sql: str) -> Answer:
    return answer_of(sql, form, schema, partial(executor.execute_all, database) if database else None)


def _run_gold(executor: Executor, database: Path | None, sql: str) -> Gold | None:
    if database is None:
        return None
    result = executor.execute(database, sql)
    failure = "" if result.failure == FailureMode.OK else str(result.failure)
    return Gold(failure, result.message, len(result.rows))


def _is_populated(executor: Executor, database: Path, schema: Schema) -> bool:
    names = (quoted(table.name) for table in schema.tables)
    return any(executor.execute(database, f"SELECT 1 FROM {name} LIMIT 1").rows for name in names)  # noqa: S608
