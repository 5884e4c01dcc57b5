"""The joins that training queries use."""

from collections import Counter
from collections.abc import Iterable, Iterator

from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.optimizer.scope import Scope, traverse_scope

from chatmetrics.components.nl2sql.answers.qualified_names import UnresolvedNameError, qualify
from chatmetrics.components.nl2sql.descriptions import DiscoveredJoin
from chatmetrics.components.nl2sql.schema import Schema
from chatmetrics.components.nl2sql.sql.parsing import parse_new

End = tuple[str, str]  # table and column
Ends = frozenset[End]


def with_uses(joins: Iterable[DiscoveredJoin], schema: Schema, queries: Iterable[str]) -> list[DiscoveredJoin]:
    """The joins with how often queries use them, and those that only queries show, the best first.

    Args:
        joins: joins that were discovered in the database.
        schema: its schema.
        queries: the gold queries of training questions, each as often as it occurs. Those whose names cannot be
            resolved count nothing.
    """
    used = Counter(ends for sql in queries for ends in set(_joined(sql, schema)))
    for key in schema.foreign_keys:
        used.pop(_ends(key.table, key.column, key.referenced_table, key.referenced_column), None)
    found = []
    for join in joins:
        uses = used.pop(_ends(join.table, join.column, join.referenced_table, join.referenced_column), 0)
        found.append(_used(join, uses) if uses else join)
    keys = {(table.name, column.name) for table in schema.tables for column in table.columns if column.primary_key}
    for ends, uses in used.items():
        # A primary key is what is referred to.
        first, second = sorted(ends, key=lambda end: (end in keys, end))
        found.append(_used(DiscoveredJoin(*first, *second, 0.0, ""), uses))
    return sorted(found, key=lambda join: -join.score)


def _used(join: DiscoveredJoin, uses: int) -> DiscoveredJoin:
    counted = f"used by {uses:,} training {'query' if uses == 1 else 'queries'}"
    evidence = "; ".join(filter(None, [join.evidence, counted]))
    score = max(join.score, round(1 - 0.5 / uses, 3))
    ends = join.table, join.column, join.referenced_table, join.referenced_column
    return DiscoveredJoin(*ends, score, evidence, uses)


def _joined(sql: str, schema: Schema) -> Iterator[Ends]:
    """The columns of two tables that a query compares with =, spelled as in the schema."""
    try:
        scopes = traverse_scope(parse_new(qualify(sql, schema), schema.dialect))
    except (UnresolvedNameError, SqlglotError, RecursionError):
        return
    names = {
        (table.name.lower(), column.name.lower()): (table.name, column.name)
        for table in schema.tables
        for column in table.columns
    }
    for scope in scopes:
        for equality in scope.find_all(exp.EQ):
            ends = {names.get(_end(scope, side)) for side in (equality.left, equality.right)} - {None}
            if len({end[0] for end in ends if end}) == 2:
                yield frozenset(end for end in ends if end)


def _end(scope: Scope, side: exp.Expr) -> End:
    source = scope.sources.get(side.table) if isinstance(side, exp.Column) else None
    return (source.name.lower(), side.name.lower()) if isinstance(source, exp.Table) else ("", "")


def _ends(table: str, column: str, referenced_table: str, referenced_column: str) -> Ends:
    return frozenset(((table, column), (referenced_table, referenced_column)))
