"""Translates gold queries into the dialect of another server that has the same databases, and verifies each."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from sqlglot import ErrorLevel, exp
from sqlglot.errors import SqlglotError

from chatmetrics.components import console
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.binding.binder import bind_names
from chatmetrics.components.nl2sql.databases.addresses import dialect_at, title
from chatmetrics.components.nl2sql.databases.execution import FailureMode, Result
from chatmetrics.components.nl2sql.schema import NOT_SHOWN
from chatmetrics.components.nl2sql.sql.parsing import parse_new
from chatmetrics.components.nl2sql.verdict import StrictVerdict
from chatmetrics.components.preprocess.build import BuiltExample, Database, OpenDatabases
from chatmetrics.components.preprocess.readers import Record, Source
from chatmetrics.components.redaction import one_line


class Translation(NamedTuple):
    """A query in another dialect; `problem` says why it is not verified, and is empty if it is."""

    sql: str
    problem: str = ""


def translate(
    source: Source, address: str, query_seconds: float, has_private: Callable[[str], bool]
) -> tuple[Source, list[BuiltExample]]:
    """Translate the gold queries of a source, whose databases are then those at an address.

    A translation is used if it returns the same rows at the address as the query does on its own database, with ties in
    any order. If that database has no file, the translation only has to run as it is. Held-out sets with databases of
    their own are not translated.

    Args:
        source: the questions and their databases.
        address: where the same databases are, in another dialect.
        query_seconds: time limit of a query.
        has_private: whether a database has private columns, so that no message of its server is kept.

    Returns:
        The source with the translated queries, and the questions whose queries have no verified translation.

    Raises:
        InputError: no query has one.
        ServiceError: a server closed the connection.
    """
    kept: list[Record] = []
    dropped: list[BuiltExample] = []
    databases: dict[str, Database] = {}
    found: dict[tuple[str, str], Translation] = {}
    with OpenDatabases(query_seconds) as opened:
        for record in console.track(source.records, "translating", len(source.records), "queries"):
            db_id, key = record.db_id, (record.db_id, record.sql)
            if db_id in source.held_out_databases:
                kept.append(record)
                continue
            if db_id not in databases:
                databases[db_id] = Database.named_by(source, record)
            if key not in found:
                found[key] = _translation(opened, address, databases[db_id], record.sql)
            if problem := found[key].problem:
                problem = NOT_SHOWN if has_private(db_id) else problem
                dropped.append(BuiltExample(record, None, 0, False, None, False, untranslated=problem))
            else:
                kept.append(replace(record, sql=found[key].sql))
    if dropped and not any(record.db_id not in source.held_out_databases for record in kept):
        raise InputError(
            f"preprocess.translate_to: no query could be translated; the first, {dropped[0].record.where}: "
            f"{dropped[0].untranslated}"
        )
    return replace(source, records=kept, address=address, other_databases={}), dropped


def _translation(opened: OpenDatabases, address: str, here: Database, sql: str) -> Translation:
    """Translate a query of one database, and compare its rows at both places."""
    there = Database(here.name, None, None, address)
    dialect = dialect_at(address, here.name)
    translated = _transpiled(sql, dialect_at(here.address, here.name), dialect)
    if translated.problem:
        return translated
    text = translated.sql
    if here.can_run:  # so that a name that is spelled as the server has it is verified
        text = next(bound.sql for bound in bind_names(text, opened.schema(there, 0)))
    [result] = opened.execute(there, [text])
    if result.failure != FailureMode.OK:
        return Translation(text, f"{text}: {result.failure} in {title(dialect)}: {result.message}")
    return Translation(text, _difference(opened, here, sql, text, result) if here.can_run else "")


def _difference(opened: OpenDatabases, here: Database, sql: str, text: str, result: Result) -> str:
    """How the result of a translation differs from that of its query; "" if it does not."""
    [gold] = opened.execute(here, [sql])
    if gold.failure != FailureMode.OK:
        return f"the query itself fails: {gold.failure}: {gold.message}"
    if StrictVerdict("", sql, gold, partial(opened.execute, here)).is_same(sql, result):
        return ""
    return f"{text}: returns other rows than the query ({len(gold.rows)} and {len(result.rows)} rows)"


def _transpiled(sql: str, read: str, write: str) -> Translation:
    try:
        tree = parse_new(sql, read)
        for number, derived in enumerate(tree.find_all(exp.Subquery), start=1):
            # SQLite needs no name for a table in FROM; MySQL and PostgreSQL before 16 do.
            if isinstance(derived.parent, exp.From | exp.Join) and not derived.alias:
                derived.set("alias", exp.TableAlias(this=exp.to_identifier(f"derived_{number}")))
        return Translation(tree.sql(dialect=write, unsupported_level=ErrorLevel.RAISE))
    except (SqlglotError, RecursionError, TypeError, ValueError) as error:
        return Translation("", f"sqlglot cannot translate it: {one_line(error)}")
