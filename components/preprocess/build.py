"""Builds the examples of one database after the other, and runs their gold queries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.execution import Executor, FailureMode
from chatmetrics.components.nl2sql.fitting import bare_example, fit_shown
from chatmetrics.components.nl2sql.identifiers import quoted
from chatmetrics.components.nl2sql.query_type import query_type_of
from chatmetrics.components.nl2sql.schema import Omitted, Schema, SchemaForm
from chatmetrics.components.nl2sql.shown_names import name_not_shown
from chatmetrics.components.nl2sql.template import PromptTemplate
from chatmetrics.components.nl2sql.token_counter import load_counter
from chatmetrics.components.preprocess.readers import Record


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of a worker: prompt format, token limit, and time limit of gold queries."""

    tokenizer: Path
    template: PromptTemplate
    form: SchemaForm | None
    sample_values: int
    cutoff_length: int
    query_seconds: float


@dataclass(frozen=True, slots=True)
class Task:
    """Questions about one database.

    Attributes:
        database: the SQLite file; None if there is none, and the schema comes from `described`.
        described: the database's entry in tables.json; None if there is none.
        records: the questions.
    """

    database: Path | None
    described: Mapping[str, Any] | None
    records: tuple[Record, ...]


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
    """

    record: Record
    example: Example | None
    tokens: int
    is_pruned: bool
    gold: Gold | None
    is_populated: bool
    not_shown: str = ""
    omitted: tuple[Omitted, ...] = ()


def build(options: Options, tasks: Sequence[Task]) -> list[BuiltExample]:
    """Turn records into examples and run their gold queries.

    Raises:
        InputError: a database or its entry in tables.json cannot be read.
    """
    with Executor(query_seconds=options.query_seconds) as executor:
        return [built for task in tasks for built in _build_database(options, executor, task)]


def _build_database(options: Options, executor: Executor, task: Task) -> list[BuiltExample]:
    counter = load_counter(options.tokenizer, options.template)
    schema = _read_schema(task, options.sample_values if options.form else 0)
    whole = schema.render(options.form) if options.form else ""
    # Many questions share a query, so each query is parsed and run only once.
    queries = sorted({record.sql for record in task.records})
    query_types = {sql: query_type_of(sql) for sql in queries}
    is_populated = task.database is not None and _is_populated(executor, task.database, schema)
    gold = {sql: _run_gold(executor, task.database, sql) for sql in queries}

    def build_one(record: Record) -> BuiltExample:
        bare = bare_example(record.id, record.db_id, record.question, record.sql, record.split, query_types[record.sql])
        fitted = fit_shown(replace(bare, system=whole), schema, options.form, options.cutoff_length, counter)
        return BuiltExample(
            record=record,
            example=fitted.example if fitted else None,
            tokens=counter.count(fitted.example if fitted else bare),
            is_pruned=fitted is not None and fitted.example.system != whole,
            gold=gold[record.sql],
            is_populated=is_populated,
            not_shown=name_not_shown(fitted.schema, record.sql) if fitted and options.form else "",
            omitted=schema.omitted,
        )

    return [build_one(record) for record in task.records]


def _read_schema(task: Task, sample_values: int) -> Schema:
    if task.described is not None:
        return Schema.from_spider(task.described, task.database, sample_values)
    assert task.database is not None, "a record has a database or an entry in tables.json"
    return Schema.from_sqlite(task.database, sample_values)


def _run_gold(executor: Executor, database: Path | None, sql: str) -> Gold | None:
    if database is None:
        return None
    result = executor.execute(database, sql)
    failure = "" if result.failure == FailureMode.OK else str(result.failure)
    return Gold(failure, result.message, len(result.rows))


def _is_populated(executor: Executor, database: Path, schema: Schema) -> bool:
    names = (quoted(table.name) for table in schema.tables)
    return any(executor.execute(database, f"SELECT 1 FROM {name} LIMIT 1").rows for name in names)  # noqa: S608
