"""Translates gold queries into the dialect of another server that has the same databases, and verifies each."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from sqlglot import ErrorLevel, exp
from sqlglot.errors import SqlglotError

from chatmetrics.components import console
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.binding.binder import bind_names
from chatmetrics.components.nl2sql.databases.addresses import TITLES, dialect_at
from chatmetrics.components.nl2sql.databases.execution import FailureMode
from chatmetrics.components.nl2sql.sql.parsing import parse_new
from chatmetrics.components.nl2sql.verdict import StrictVerdict
from chatmetrics.components.preprocess.build import BuiltExample, Database, OpenDatabases
from chatmetrics.components.preprocess.readers import Record, Source
from chatmetrics.components.redaction import one_line


class UntranslatedError(Exception):
    """A query has no verified translation; the message says why."""


def translate(source: Source, address: str, query_seconds: float) -> tuple[Source, list[BuiltExample]]:
    """Translate the gold queries of a source, whose databases are then those at an address.

    A translation is used if it returns the same rows at the address as the query does on its own database, with ties in
    any order. If that database has no file, the translation only has to run as it is. Held-out sets with databases of
    their own are not translated.

    Args:
        source: the questions and their databases.
        address: where the same databases are, in another dialect.
        query_seconds: time limit of a query.

    Returns:
        The source with the translated queries, and the questions whose queries have no verified translation.

    Raises:
        InputError: no query has one.
        ServiceError: a server closed the connection.
    """
    kept: list[Record] = []
    dropped: list[BuiltExample] = []
    found: dict[tuple[str, str], str | UntranslatedError] = {}
    progress = console.Progress("translating", len(source.records), "queries")
    with OpenDatabases(query_seconds) as opened:
        translator = _Translator(source, address, opened)
        for number, record in enumerate(source.records, start=1):
            if record.db_id in source.held_out_databases:
                kept.append(record)
                continue
            key = record.db_id, record.sql
            if key not in found:
                found[key] = translator.attempt(record)
            match found[key]:
                case UntranslatedError() as error:
                    dropped.append(_dropped(record, str(error)))
                case sql:
                    kept.append(replace(record, sql=str(sql)))
            progress.update(number)
    if dropped and not any(record.db_id not in source.held_out_databases for record in kept):
        raise InputError(
            f"preprocess.translate_to: no query could be translated; the first, {dropped[0].record.where}: "
            f"{dropped[0].untranslated}"
        )
    return replace(source, records=kept, address=address), dropped


def _dropped(record: Record, reason: str) -> BuiltExample:
    return BuiltExample(record, None, 0, False, None, False, untranslated=reason)


class _Translator:
    def __init__(self, source: Source, address: str, opened: OpenDatabases) -> None:
        self._source, self._address, self._opened = source, address, opened

    def attempt(self, record: Record) -> str | UntranslatedError:
        """The verified translation of a record's query, or why there is none."""
        try:
            return self._translation(record)
        except UntranslatedError as error:
            return error

    def _translation(self, record: Record) -> str:
        here, there = self._here(record), Database(record.db_id, None, None, self._address)
        dialects = dialect_at(here.address, record.db_id), dialect_at(self._address, record.db_id)
        sql = _transpiled(record.sql, *dialects)
        if here.can_run:  # so that a name that is spelled as the server has it is verified
            sql = next(bound.sql for bound in bind_names(sql, self._opened.schema(there, 0)))
        result = self._opened.execute(there, [sql])[0]
        if result.failure != FailureMode.OK:
            raise UntranslatedError(
                f"{sql}: {result.failure} in {TITLES.get(dialects[1], dialects[1])}: {result.message}"
            )
        if here.can_run:
            gold = self._opened.execute(here, [record.sql])[0]
            if gold.failure != FailureMode.OK:
                raise UntranslatedError(f"the query itself fails: {gold.failure}: {gold.message}")
            verdict = StrictVerdict("", record.sql, gold, partial(self._opened.execute, here))
            if not verdict.is_same(record.sql, result):
                raise UntranslatedError(f"{sql}: returns other rows than the query ({_counts(gold.rows, result.rows)})")
        return sql

    def _here(self, record: Record) -> Database:
        if self._source.address:
            return Database(record.db_id, None, None, self._source.address)
        return Database(record.db_id, self._source.database(record), self._source.tables.get(record.db_id))


def _transpiled(sql: str, read: str, write: str) -> str:
    try:
        tree = parse_new(sql, read)
        for number, derived in enumerate(tree.find_all(exp.Subquery), start=1):
            # SQLite needs no name for a table in FROM; MySQL and PostgreSQL before 16 do.
            if isinstance(derived.parent, exp.From | exp.Join) and not derived.alias:
                derived.set("alias", exp.TableAlias(this=exp.to_identifier(f"derived_{number}")))
        return tree.sql(dialect=write, unsupported_level=ErrorLevel.RAISE)
    except (SqlglotError, RecursionError, TypeError, ValueError) as error:
        raise UntranslatedError(f"sqlglot cannot translate it: {one_line(error)}") from error


def _counts(first: Sequence[object], second: Sequence[object]) -> str:
    return f"{len(first)} and {len(second)} rows"
