"""The edits that make one name of a query resolve, each with its cost: the smaller the change, the lower."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from sqlglot import exp

from chatmetrics.components.nl2sql.binding.edit import Edit, Repair, There, is_in_on, on_equality, reference
from chatmetrics.components.nl2sql.binding.joins import Joins
from chatmetrics.components.nl2sql.binding.names import distance
from chatmetrics.components.nl2sql.binding.scopes import Problem, Scope, Source
from chatmetrics.components.nl2sql.join_graph import JoinGraph
from chatmetrics.components.nl2sql.schema import Schema, Table
from chatmetrics.components.nl2sql.sql.dialect import Dialect

# Costs, see also `names` and `joins`. What the query names explicitly is kept as long as possible: a table that it uses
# by an alias, or that it forgot to join, costs least. Then come changes of one name, of one table, and joins.
OTHER_NAME_OF_TABLE = 0.3
NEAR_TABLE_WITHOUT_COLUMNS = 0.1  # more: its columns have to be repaired too
ALIAS = 1.0
OUTER_ALIAS = 1.3
ALIAS_IN_ON = 0.2  # more
EXCHANGE = 1.02
OTHER_TABLE = 1.5
OTHER_TABLE_PER_KEY = 0.1
JOIN_OF_NAMED_TABLE = 1.5
MAX_DISTANCE = 5


class Editor:
    """Finds the edits for a problem.

    Args:
        schema: the tables and foreign keys.
        dialect: how names are compared and written.
    """

    def __init__(self, schema: Schema, dialect: Dialect) -> None:
        self._schema, self._dialect = schema, dialect
        self._graph = JoinGraph(schema)
        self._columns = {
            table.name: {dialect.key_of(column.name) for column in table.columns} for table in schema.tables
        }
        self._joins = Joins(self._graph, self._columns, dialect)

    def edits(self, problem: Problem) -> list[Edit]:
        """The edits that solve a problem, the smallest first; none may exist."""
        match problem.kind:
            case "table":
                found = self._for_table(problem)
            case "qualifier":
                found = self._for_qualifier(problem)
            case "column":
                found = self._for_column(problem)
            case "ambiguous":
                found = self._for_ambiguous(problem)
            case "using":
                found = self._joins.without_using(problem)
        return sorted(found, key=lambda edit: edit.cost)

    def _for_table(self, problem: Problem) -> Iterator[Edit]:
        source = problem.source
        if source is None:
            return
        wanted, columns = problem.nodes[0].name, self._wanted(source.references)
        for table in self._schema.tables:
            near, has_columns = distance(wanted, table.name), columns <= self._columns[table.name]
            apply = self._replace_table(source, table)
            if near is not None:
                cost = near + (0 if has_columns else NEAR_TABLE_WITHOUT_COLUMNS)
                yield Edit(cost, Repair("near_name", f"table {wanted} is {table.name}"), apply)
            elif columns and has_columns:
                message = f"table {table.name} instead of {wanted}, which does not exist"
                yield Edit(OTHER_TABLE, Repair("other_table", message), apply)

    def _for_qualifier(self, problem: Problem) -> Iterator[Edit]:
        column = problem.nodes[0]
        key, qualifier = self._dialect.key(column.this), self._dialect.key(column.args["table"])
        is_star = isinstance(column.this, exp.Star)
        for source in _visible(problem.scope):
            is_named = source.table is not None and self._dialect.key_of(source.table.name) == qualifier
            cost = OTHER_NAME_OF_TABLE if is_named else self._alias_cost(problem, source)
            if is_star or source.has(key):
                yield from self._requalified(problem, source, cost)
            else:
                yield from self._near_columns(problem, source, cost)
        if not is_star:
            yield from self._joins.by_key(problem)
            named = [table for table in self._schema.tables if self._dialect.key_of(table.name) == qualifier]
            yield from self._joins.added(problem, key, named, JOIN_OF_NAMED_TABLE)
            yield from self._joins.added(problem, key, [table for table in self._schema.tables if table not in named])

    def _for_column(self, problem: Problem) -> Iterator[Edit]:
        key, owner = self._dialect.key(problem.nodes[0].this), problem.source
        for source in _visible(problem.scope):
            if source is not owner and source.has(key):
                yield from self._requalified(problem, source, self._alias_cost(problem, source))
            else:
                # A column without a prefix can be of any source.
                yield from self._near_columns(problem, source, 0.0 if owner in (None, source) else ALIAS)
        if owner is None:
            yield from self._near_aliases(problem)
            owners = problem.scope.sources
        else:
            yield from self._exchanges(problem.scope, owner, key)
            owners = [owner]
        yield from self._joins.by_key(problem)
        yield from self._joins.added(problem, key, self._schema.tables)
        for source in owners:
            yield from self._other_tables(problem, source)

    def _for_ambiguous(self, problem: Problem) -> Iterator[Edit]:
        key = self._dialect.key(problem.nodes[0].this)
        for source in _visible(problem.scope):
            if source.has(key):
                yield from self._requalified(problem, source, ALIAS)

    def _alias_cost(self, problem: Problem, source: Source) -> float:
        is_condition = any(on_equality(node) for node in problem.nodes)
        cost = ALIAS if source in problem.scope.sources else OUTER_ALIAS
        return cost + (ALIAS_IN_ON if is_condition else 0)

    def _requalified(self, problem: Problem, source: Source, cost: float) -> Iterator[Edit]:
        """The same column of another source, unless that compares a column with itself or with one of a later join."""
        if any(
            self._is_compared(node, problem.scope, source) or _is_later(node, problem.scope, source)
            for node in problem.nodes
        ):
            return
        column = problem.nodes[0].copy()
        before = self._text(column)
        column.set("table", reference(source.node))

        def apply(there: There) -> None:
            for node in problem.nodes:
                there(node).set("table", reference(source.node))

        yield Edit(cost, Repair("alias", f"{before} is {self._text(column)}"), apply)

    def _is_compared(self, node: exp.Expr, scope: Scope, source: Source) -> bool:
        """Whether a column is compared with the column of the same name of a source."""
        parent = node.parent
        if not isinstance(parent, exp.EQ):
            return False
        other = parent.expression if node is parent.this else parent.this
        if not isinstance(other, exp.Column) or self._dialect.key(other.this) != self._dialect.key(node.this):
            return False
        qualifier = self._dialect.key(other.args.get("table"))
        return qualifier == source.key or (not qualifier and source in scope.sources)

    def _near_columns(self, problem: Problem, source: Source, cost: float) -> Iterator[Edit]:
        """The columns of a source with a near name."""
        wanted = problem.nodes[0].this
        for name in (source.columns or {}).values() if isinstance(wanted, exp.Identifier) else ():
            near = distance(wanted.name, name, source.table.name if source.table else "")
            if near is not None:
                yield self._rename(problem, name, source, cost + near)

    def _near_aliases(self, problem: Problem) -> Iterator[Edit]:
        """The result's columns with a near name, for a name outside the result's columns."""
        wanted, results = problem.nodes[0].name, problem.scope.select.expressions
        in_result = {id(node) for result in results for node in result.walk()}
        if any(id(node) in in_result for node in problem.nodes):
            return
        for name in problem.scope.aliases.values():
            near = distance(wanted, name)
            if near is not None:
                yield self._rename(problem, name, None, near)

    def _rename(self, problem: Problem, name: str, source: Source | None, cost: float) -> Edit:
        column = problem.nodes[0].copy()
        before = self._text(column)
        is_qualified = source is not None and (column.args.get("table") or len(problem.scope.sources) > 1)
        column.set("this", self._dialect.identifier(name))
        if source is not None and is_qualified:
            column.set("table", reference(source.node))

        def apply(there: There) -> None:
            for node in problem.nodes:
                there(node).replace(column.copy())

        return Edit(cost, Repair("near_name", f"{before} is {self._text(column)}"), apply)

    def _replace_table(self, source: Source, table: Table) -> Callable[[There], None]:
        def apply(there: There) -> None:
            there(source.node).set("this", self._dialect.identifier(table.name))
            if not source.node.alias:
                for column in source.references:
                    if column.table:
                        there(column).set("table", self._dialect.identifier(table.name))

        return apply

    def _other_tables(self, problem: Problem, source: Source) -> Iterator[Edit]:
        """The tables that have the missing column, and all columns for which the query uses a source."""
        if source.table is None:
            return
        wanted = self._wanted([*_outside_on(source), *problem.nodes])
        used = {other.table.name for other in problem.scope.sources if other.table}
        distances = self._graph.distances([source.table.name])
        for table in self._schema.tables:
            if table.name not in used and wanted <= self._columns[table.name]:
                cost = OTHER_TABLE + OTHER_TABLE_PER_KEY * min(distances.get(table.name, MAX_DISTANCE), MAX_DISTANCE)
                repair = Repair("other_table", f"table {table.name} instead of {source.table.name}")
                yield Edit(cost, repair, self._replace_table(source, table))

    def _exchanges(self, scope: Scope, owner: Source, key: str) -> Iterator[Edit]:
        """The aliases of two tables exchanged, if all columns outside ON then resolve."""
        for other in scope.sources:
            first, second = owner.table, other.table
            if other is owner or first is None or second is None or not other.has(key):
                continue
            has_aliases = owner.node.alias and other.node.alias
            is_complete = (
                self._wanted(_outside_on(owner)) <= self._columns[second.name]
                and self._wanted(_outside_on(other)) <= self._columns[first.name]
            )
            if has_aliases and is_complete:
                message = f"aliases exchanged: {owner.name} is {second.name}, {other.name} is {first.name}"
                yield Edit(EXCHANGE, Repair("alias", message), partial(self._exchange, owner, other))

    def _exchange(self, first: Source, second: Source, there: There) -> None:
        names = first.node.this.copy(), second.node.this.copy()
        there(first.node).set("this", names[1])
        there(second.node).set("this", names[0])

    def _wanted(self, columns: Iterable[exp.Expr]) -> set[str]:
        """Keys of the columns that a table must have."""
        return {self._dialect.key(column.this) for column in columns if isinstance(column.this, exp.Identifier)}

    def _text(self, node: exp.Expr) -> str:
        return node.sql(dialect=self._dialect.name)


def _visible(scope: Scope) -> Iterator[Source]:
    """The sources of a scope and of those around it."""
    for inner in scope.chain:
        yield from inner.sources


def _outside_on(source: Source) -> list[exp.Expr]:
    """The references to a source, without those in ON, which can be repaired by foreign key."""
    return [column for column in source.references if not is_in_on(column)]


def _is_later(node: exp.Expr, scope: Scope, source: Source) -> bool:
    """Whether a source is joined after the join in whose ON clause a node is."""
    join = node.find_ancestor(exp.Join, exp.Query)
    if not isinstance(join, exp.Join) or source not in scope.sources:
        return False
    joined = next((other for other in scope.sources if other.node is join.this), source)
    return scope.sources.index(source) > scope.sources.index(joined)
