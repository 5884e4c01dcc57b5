"""The check that the tables and columns that files of knowledge name exist."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches

from chatmetrics.components import console
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.descriptions import Descriptions
from chatmetrics.components.nl2sql.schema import Schema
from chatmetrics.components.preprocess.knowledge.knowledge import SETTING, Knowledge
from chatmetrics.components.preprocess.source_files import DESCRIPTIONS

EXAMPLES = 3  # names in a warning


def check_names(knowledge: Knowledge, asked: Iterable[str], schema_of: Callable[[str], Schema]) -> None:
    """Check that the tables and columns that files name exist.

    In a knowledge file an unknown name is an error: a typing error in the name of a private column would show its
    values. Others' files are used as they are, and what does not exist in them is a warning.

    Args:
        knowledge: what the files say.
        asked: databases that questions are about.
        schema_of: reads the schema of a database.

    Raises:
        InputError: a knowledge file names a database, table or column that does not exist.
    """
    described = set(asked) if knowledge.dbt != Descriptions() else set(asked) & knowledge.bird.keys()
    schemas = {db_id: schema_of(db_id) for db_id in (*knowledge.own, *sorted(described - knowledge.own.keys()))}
    for db_id, known in knowledge.own.items():
        for table, column in _named(known):
            if problem := _problem(schemas[db_id], table, column):
                raise InputError(f"{SETTING}: databases.{db_id}: {problem}")
    for db_id in sorted(schemas.keys() & knowledge.bird.keys()):
        _warn(f"{DESCRIPTIONS} of {db_id}", _unknown(schemas[db_id], knowledge.bird[db_id]))
    if schemas:
        _check_private(knowledge.dbt, schemas.values())
        in_none = set.intersection(*(_unknown(schema, knowledge.dbt) for schema in schemas.values()))
        _warn("dbt's properties", in_none)


def _check_private(dbt: Descriptions, schemas: Iterable[Schema]) -> None:
    """Check that the private columns of dbt exist, if their tables do."""
    for table, names in dbt.private.items():
        having = [schema for schema in schemas if not _problem(schema, table, "")]
        for name in names:
            problems = [_problem(schema, table, name) for schema in having]
            if problems and all(problems):
                raise InputError(f"{SETTING}: dbt marks {table}.{name} as private, but {problems[0]}")


def _named(known: Descriptions) -> list[tuple[str, str]]:
    """The tables, with "", and the columns that descriptions name."""
    by_table = [*known.columns.items(), *known.values.items(), *known.private.items()]
    names = [(table, "") for table in known.tables] + [(table, name) for table, columns in by_table for name in columns]
    ends = [end for key in known.foreign_keys for end in (key[:2], key[2:])]
    return list(dict.fromkeys([*names, *ends]))


def _unknown(schema: Schema, known: Descriptions) -> set[tuple[str, str]]:
    return {(table, column) for table, column in _named(known) if _problem(schema, table, column)}


def _problem(schema: Schema, table: str, column: str) -> str:
    """What is wrong with a name; "" if it exists."""
    tables = {each.name.lower(): each for each in schema.tables}
    found = tables.get(table.lower())
    if found is None:
        return f"there is no table {table!r}{_meant(table, [each.name for each in schema.tables])}"
    names = [each.name for each in found.columns]
    if column and column.lower() not in map(str.lower, names):
        return f"the table {found.name} has no column {column!r}{_meant(column, names)}"
    return ""


def _meant(name: str, names: Iterable[str]) -> str:
    by_lower = {each.lower(): each for each in names}
    close = get_close_matches(name.lower(), by_lower, 1)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


def _warn(where: str, unknown: set[tuple[str, str]]) -> None:
    if unknown:
        names = [f"{table}.{column}" if column else table for table, column in sorted(unknown)]
        console.warning(
            f"preprocess: {len(names)} names in {where} are not in the database: {', '.join(names[:EXAMPLES])}"
        )
