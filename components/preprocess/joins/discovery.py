"""Checks with a sample of values which columns with similar names join."""

from collections.abc import Iterable
from typing import Any

from chatmetrics.components import console
from chatmetrics.components.nl2sql.databases.execution import FailureMode
from chatmetrics.components.nl2sql.descriptions import DiscoveredJoin
from chatmetrics.components.nl2sql.identifiers import quoted
from chatmetrics.components.nl2sql.schema import Schema
from chatmetrics.components.nl2sql.verdict import Execute
from chatmetrics.components.preprocess.joins.candidates import Candidate, candidates

# Bounds on rows, not on time, so that the same database always gives the same joins.
SAMPLED_ROWS = 10_000  # of the column that refers
SAMPLED_VALUES = 200  # distinct ones of these
REFERENCED_ROWS = 100_000
MAX_JOINS = 2_000  # of a database, so that the file of descriptions stays small

LEAST_SCORE = 0.5
LEAST_CONTAINED = 0.9  # of the sampled values
NOT_UNIQUE = 0.6  # of the score, if several rows have the referenced value
NO_VALUES = 0.6  # of the score, if a table is empty

_TEXT_TYPE = {"mysql": "CHAR", "postgres": "TEXT", "duckdb": "VARCHAR", "sqlite": "TEXT"}


def discover(schema: Schema, execute: Execute | None, least_score: float = LEAST_SCORE) -> list[DiscoveredJoin]:
    """The joins that no foreign key declares, the best first, at most `MAX_JOINS`.

    Values alone are no evidence, because small numbers are in every column of numbers: names must agree too. Views are
    treated as tables that refer to others, because not every database tells from which column one of a view comes.
    Private columns are not queried.

    Args:
        schema: the schema, with its private columns.
        execute: runs queries on the database; None if there is none.
        least_score: joins with a lower score are left out.
    """
    checked, failed = [], 0
    for candidate in candidates(schema):
        if candidate.score < least_score:
            break
        try:
            join = _checked(candidate, execute, schema.dialect)
        except _QueryError:
            failed += 1
            continue
        if join and join.score >= least_score:
            checked.append(join)
    if failed:
        console.warning(f"{schema.db_id}: {failed} joins could not be checked, because queries failed or took too long")
    found = sorted(_best(checked), key=lambda join: -join.score)
    if len(found) > MAX_JOINS:
        console.warning(f"{schema.db_id}: {len(found):,} joins were discovered; the best {MAX_JOINS:,} are kept")
    return found[:MAX_JOINS]


class _QueryError(Exception):
    """A query failed or took too long."""


def _checked(candidate: Candidate, execute: Execute | None, dialect: str) -> DiscoveredJoin | None:
    distinct, contained = _containment(candidate, execute, dialect) if execute else (0, 0)
    target = f"{candidate.referenced_table}.{candidate.referenced_column.name}"
    score = candidate.score
    if not distinct or execute is None:
        score *= NO_VALUES
        values = "no values to compare"
    else:
        if contained < LEAST_CONTAINED * distinct:
            return None
        score *= contained / distinct
        is_unique = candidate.is_unique or _is_unique(candidate, execute, dialect)
        score *= 1.0 if is_unique else NOT_UNIQUE
        unique = "which is unique" if is_unique else "which is not unique"
        values = f"{contained} of {distinct} sampled values are in {target}, {unique}"
    return DiscoveredJoin(
        candidate.table,
        candidate.column.name,
        candidate.referenced_table,
        candidate.referenced_column.name,
        round(score, 3),
        f"{candidate.evidence}; {values}",
    )


def _containment(candidate: Candidate, execute: Execute, dialect: str) -> tuple[int, int]:
    """The number of sampled values of the column that refers, and of those in the referenced column."""
    as_text, target = candidate.as_text, (candidate.referenced_table, candidate.referenced_column.name)
    rows = _rows(candidate.table, candidate.column.name, SAMPLED_ROWS, dialect, as_text)
    others = _rows(*target, REFERENCED_ROWS, dialect, as_text)
    if candidate.is_unique and not as_text:  # the index of the key is faster than a list of its values
        others = f"SELECT {quoted(target[1], dialect)} FROM {quoted(target[0], dialect)}"  # noqa: S608
    [(distinct, contained)] = _run(
        execute,
        f"SELECT COUNT(*), SUM(CASE WHEN v IN ({others}) THEN 1 ELSE 0 END) "  # noqa: S608
        f"FROM (SELECT DISTINCT v FROM ({rows}) AS r ORDER BY v LIMIT {SAMPLED_VALUES}) AS s",
    )
    return int(distinct), int(contained or 0)


def _is_unique(candidate: Candidate, execute: Execute, dialect: str) -> bool:
    rows = _rows(candidate.referenced_table, candidate.referenced_column.name, REFERENCED_ROWS, dialect)
    [(number, distinct)] = _run(execute, f"SELECT COUNT(*), COUNT(DISTINCT v) FROM ({rows}) AS r")  # noqa: S608
    return bool(number == distinct)


def _rows(table: str, column: str, rows: int, dialect: str, as_text: bool = False) -> str:
    """A query of the values in a table's first rows. MariaDB allows LIMIT only in FROM."""
    value = f"CAST(w AS {_TEXT_TYPE[dialect]})" if as_text else "w"
    first = f"SELECT {quoted(column, dialect)} AS w FROM {quoted(table, dialect)} LIMIT {rows}"  # noqa: S608
    return f"SELECT {value} AS v FROM ({first}) AS l WHERE w IS NOT NULL"  # noqa: S608


def _run(execute: Execute, sql: str) -> list[tuple[Any, ...]]:
    [result] = execute([sql])
    if result.failure is not FailureMode.OK:
        raise _QueryError
    return result.rows


def _best(joins: Iterable[DiscoveredJoin]) -> list[DiscoveredJoin]:
    """Of several columns that one may refer to, those with the best score."""
    joins = list(joins)
    best: dict[tuple[str, str], float] = {}
    for join in joins:
        end = join.table, join.column
        best[end] = max(best.get(end, 0.0), join.score)
    return [join for join in joins if join.score == best[join.table, join.column]]
