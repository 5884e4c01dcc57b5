"""Edits of joins: ON clauses by foreign key, and joins that are missing."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

from sqlglot import exp

from chatmetrics.components.nl2sql.binding.edit import Edit, Repair, There, on_equality, reference
from chatmetrics.components.nl2sql.binding.scopes import Problem, Scope, Source
from chatmetrics.components.nl2sql.join_graph import JoinGraph, Link, Path
from chatmetrics.components.nl2sql.schema import Table
from chatmetrics.components.nl2sql.sql.dialect import Dialect

ON_BY_KEY = 0.9
MENTIONED_KEY = 0.1  # less, for a key with a column that the wrong condition names
JOIN = 2.0
JOIN_PER_KEY = 0.5
MAX_TABLES = 6  # that may be joined for one column

_NUMBERED = re.compile(r"[tT](\d{1,3})")


class Joins:
    """Finds the edits of joins for a problem.

    Args:
        keys: the foreign keys.
        columns: keys of each table's columns, by the table's name.
        dialect: how names are compared and written.
    """

    def __init__(self, keys: JoinGraph, columns: Mapping[str, set[str]], dialect: Dialect) -> None:
        self._keys, self._columns, self._dialect = keys, columns, dialect

    def added(self, problem: Problem, key: str, tables: Iterable[Table], cost: float = JOIN) -> Iterator[Edit]:
        """Join a table that has the column with this key, along the shortest path of foreign keys.

        Args:
            problem: the column that does not resolve.
            key: the column's key.
            tables: the tables that may be joined.
            cost: cost of a join along one foreign key.
        """
        scope = problem.scope
        if self._dialect.name != "sqlite" and _has_comma(scope.select):
            return  # ON could only use the last of the tables
        sources: dict[str, Source] = {}
        for source in scope.sources:
            if source.table:
                sources.setdefault(source.table.name, source)
        distances = self._keys.distances(sources)
        reachable = [table for table in tables if distances.get(table.name) and key in self._columns[table.name]]
        # Of two keys to one table, the one comes first whose columns the query uses.
        used = {column.name.lower() for column in scope.select.find_all(exp.Column)}
        for table in sorted(reachable, key=lambda table: distances[table.name])[:MAX_TABLES]:
            paths = self._keys.paths(list(sources), table.name)
            for path in sorted(paths, key=lambda path: -sum(name.lower() in used for name in path[0].names)):
                joins = self._joins(scope, sources[path[0].start], path)
                texts = (join.sql(dialect=self._dialect.name).removeprefix("JOIN ") for join in joins)
                repair = Repair("added_join", f"join added: {', '.join(texts)}")
                apply = partial(self._add, problem, joins)
                yield Edit(cost + JOIN_PER_KEY * (len(path) - 1), repair, apply)

    def by_key(self, problem: Problem) -> Iterator[Edit]:
        """Join two tables by foreign key, in place of a comparison in ON of which a column does not exist."""
        for node in problem.nodes:
            equality = on_equality(node)
            join = equality.find_ancestor(exp.Join) if equality else None
            if isinstance(join, exp.Join):
                yield from self._by_key(problem.scope, join, equality)
                return

    def without_using(self, problem: Problem) -> Iterator[Edit]:
        """Join two tables by foreign key, in place of USING with a column that one of them lacks."""
        for join in problem.nodes:
            if isinstance(join, exp.Join):
                yield from self._by_key(problem.scope, join, None)

    def _by_key(self, scope: Scope, join: exp.Join, equality: exp.EQ | None) -> Iterator[Edit]:
        position = next((at for at, source in enumerate(scope.sources) if source.node is join.this), 0)
        joined, before = scope.sources[position], {s.table.name: s for s in scope.sources[:position] if s.table}
        if joined.table is None:
            return
        mentioned = {column.name.lower() for column in equality.find_all(exp.Column)} if equality else set()
        for path in self._keys.paths(list(before), joined.table.name):
            joins = self._joins(scope, before[path[0].start], path[:-1])
            start = reference(joins[-1].this if joins else before[path[0].start].node)
            condition = self._condition(start, reference(joined.node), path[-1])
            text = f"{joined.table.name} ON {condition.sql(dialect=self._dialect.name)}"
            apply = partial(self._join_by, scope, join, equality, joins, condition)
            if joins:
                texts = [item.sql(dialect=self._dialect.name).removeprefix("JOIN ") for item in joins]
                repair = Repair("added_join", f"join added: {', '.join([*texts, text])}")
                yield Edit(JOIN + JOIN_PER_KEY * (len(joins) - 1), repair, apply)
            else:
                names = {name.lower() for name in path[-1].names}
                cost = ON_BY_KEY - (MENTIONED_KEY if names & mentioned else 0)
                yield Edit(cost, Repair("on_by_key", f"joined by key: {text}"), apply)

    def _add(self, problem: Problem, joins: Sequence[exp.Join], there: There) -> None:
        self._qualify(problem.scope, joins, there)
        select = there(problem.scope.select)
        select.set("joins", [*(select.args.get("joins") or ()), *(join.copy() for join in joins)])
        for node in problem.nodes:
            there(node).set("table", reference(joins[-1].this))

    def _join_by(
        self,
        scope: Scope,
        join: exp.Join,
        equality: exp.EQ | None,
        joins: Sequence[exp.Join],
        condition: exp.Expr,
        there: There,
    ) -> None:
        """Replace a join's condition, and add joins before it."""
        self._qualify(scope, joins, there)
        target = there(join)
        if equality is not None:
            there(equality).replace(condition.copy())
        else:
            target.set("using", None)
            target.set("on", condition.copy())
        siblings = target.parent.args["joins"] if target.parent else []
        place = next(at for at, sibling in enumerate(siblings) if sibling is target)
        if target.parent and joins:
            target.parent.set("joins", [*siblings[:place], *(item.copy() for item in joins), *siblings[place:]])

    def _joins(self, scope: Scope, start: Source, path: Path) -> list[exp.Join]:
        """The joins along a path of keys."""
        here, joins = reference(start.node), list[exp.Join]()
        for link, table in zip(path, self._tables(scope, [link.end for link in path]), strict=True):
            joins.append(exp.Join(this=table, on=self._condition(here, reference(table), link)))
            here = reference(table)
        return joins

    def _condition(self, first: exp.Identifier, second: exp.Identifier, link: Link) -> exp.Expr:
        pairs = [
            exp.EQ(
                this=exp.Column(this=self._dialect.identifier(start), table=first.copy()),
                expression=exp.Column(this=self._dialect.identifier(end), table=second.copy()),
            )
            for start, end in link.columns
        ]
        return exp.and_(*pairs) if len(pairs) > 1 else pairs[0]

    def _tables(self, scope: Scope, names: Sequence[str]) -> list[exp.Table]:
        """The tables to join. They have an alias if the query has numbered ones, or if their name is used already."""
        used = {node.alias_or_name.lower() for node in scope.select.root().find_all(exp.Table, exp.Subquery, exp.CTE)}
        number = max((int(match[1]) for name in used if (match := _NUMBERED.fullmatch(name))), default=0)
        is_numbered = any(_NUMBERED.fullmatch(source.name) for source in scope.sources)
        tables = []
        for name in names:
            table = exp.Table(this=self._dialect.identifier(name))
            number += 1
            if is_numbered or name.lower() in used:
                alias = exp.to_identifier(f"T{number}")
                table.set("alias", exp.TableAlias(this=alias))
            tables.append(table)
        return tables

    def _qualify(self, scope: Scope, joins: Sequence[exp.Join], there: There) -> None:
        """Name the source of each column that the new joins would make ambiguous."""
        added = set().union(*(self._columns[join.this.name] for join in joins))
        for source in scope.sources:
            for column in source.references:
                if not column.table and self._dialect.key(column.this) in added:
                    there(column).set("table", reference(source.node))


def _has_comma(select: exp.Select) -> bool:
    """Whether tables are separated by commas."""
    names = ("on", "using", "kind", "side", "method")
    return any(not any(join.args.get(name) for name in names) for join in select.args.get("joins") or ())
