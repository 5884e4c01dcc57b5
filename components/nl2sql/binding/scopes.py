"""Every name of a query in its scope: what it refers to, and which names refer to nothing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from sqlglot import exp

from chatmetrics.components.nl2sql.schema import Schema, Table
from chatmetrics.components.nl2sql.sql.dialect import Dialect

Columns = Mapping[str, str]  # names by key, see `Dialect.key_of`

# Clauses other than these cannot use the names of the result's columns. SQLite allows them everywhere but in the
# result's columns themselves, and DuckDB there too.
_CLAUSES_WITH_ALIASES = {"postgres": {"order", "group", "distinct"}, "mysql": {"order", "group", "having"}}
# Functions that are called without parentheses, and that sqlglot takes for columns.
_VALUES = {
    *("user", "current_user", "session_user", "current_role", "current_catalog", "current_schema"),
    *("localtime", "localtimestamp", "utc_date", "utc_time", "utc_timestamp"),
}


@dataclass(eq=False, slots=True)
class Source:
    """A table or subquery in a FROM clause.

    Attributes:
        key: the key of the name by which columns refer to it.
        node: its node in the tree.
        table: the schema's table; None for a subquery and the name of a WITH clause.
        columns: its columns; None if they are not known, so that it may have any.
        references: the columns of the query that refer to it, whether it has them or not.
    """

    key: str
    node: exp.Expr
    table: Table | None = None
    columns: Columns | None = None
    references: list[exp.Column] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name by which columns refer to it, as it is written."""
        return str(self.node.alias_or_name)

    def has(self, key: str) -> bool:
        """Whether it is known to have a column."""
        return self.columns is not None and key in self.columns


@dataclass(eq=False, slots=True)
class Scope:
    """A SELECT with its sources, inside an outer one whose columns it can use too."""

    select: exp.Select
    outer: "Scope | None" = None
    sources: list[Source] = field(default_factory=list)
    aliases: Columns = field(default_factory=dict)

    @property
    def chain(self) -> Iterator["Scope"]:
        """This scope and those around it, from the inside out."""
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.outer

    def source(self, key: str) -> Source | None:
        """The source of this name, in this scope alone."""
        return next((source for source in self.sources if source.key == key), None)


ProblemKind = Literal["table", "qualifier", "column", "ambiguous", "using"]


@dataclass(eq=False, slots=True)
class Problem:
    """A name that refers to nothing, with all nodes that use it in the same way.

    Attributes:
        kind: an unknown table; a column of an unknown table or alias; a column that its table lacks, or that no table
            has; a column of several tables; or a column in USING that a table lacks.
        scope: where the name is used.
        nodes: the tables, columns or joins.
        source: the source that lacks the column; of an unknown table, the source itself.
    """

    kind: ProblemKind
    scope: Scope
    nodes: list[exp.Expr]
    source: Source | None = None

    @property
    def name(self) -> str:
        """The name, as it is written; of USING, its names."""
        match self.nodes[0]:
            case exp.Column() as column:
                return ".".join(part.name for part in column.parts)
            case exp.Join() as join:
                return ", ".join(name.name for name in join.args["using"])
            case node:
                return node.name


def unresolved(tree: exp.Expr, schema: Schema, dialect: Dialect) -> list[Problem]:
    """Find the names of a query that do not resolve, in the order of the query's clauses.

    What the schema cannot tell counts as resolved: functions that return tables, SQLite's own tables, those that the
    schema omits, those of other databases, and everything in a scope with one of them.
    """
    resolver = _Resolver(schema, dialect)
    resolver.query(tree, None, {})
    return list(resolver.problems.values())


class _Resolver:
    def __init__(self, schema: Schema, dialect: Dialect) -> None:
        self._dialect = dialect
        self._tables = {dialect.key_of(table.name): table for table in schema.tables}
        self._omitted = {dialect.key_of(item.name) for item in schema.omitted}
        self.problems: dict[tuple[object, ...], Problem] = {}

    def query(self, query: exp.Expr, outer: Scope | None, known: Mapping[str, Columns | None]) -> Columns | None:
        """Resolve a query and return its columns; None if they are not known."""
        known = self._with(query, outer, known)
        match query:
            case exp.Select():
                return self._select(query, outer, known)
            case exp.SetOperation():
                columns = self.query(query.this, outer, known)
                self.query(query.expression, outer, known)
                return columns
            case exp.Subquery() if isinstance(query.this, exp.Query):
                return self.query(query.this, outer, known)
        return None

    def _with(
        self, query: exp.Expr, outer: Scope | None, known: Mapping[str, Columns | None]
    ) -> Mapping[str, Columns | None]:
        clause = query.args.get("with_")
        if not clause:
            return known
        known = dict(known)
        for expression in clause.expressions:
            key = self._dialect.key(expression.args["alias"].this)
            if clause.args.get("recursive"):
                known[key] = self._named(expression, None)
            known[key] = self._named(expression, self.query(expression.this, outer, known))
        return known

    def _named(self, node: exp.Expr, columns: Columns | None) -> Columns | None:
        """A source's columns, which its alias may name: AS t(a, b)."""
        alias = node.args.get("alias")
        names = alias.args.get("columns") if isinstance(alias, exp.TableAlias) else None
        return {self._dialect.key(name): name.name for name in names} if names else columns

    def _select(self, select: exp.Select, outer: Scope | None, known: Mapping[str, Columns | None]) -> Columns | None:
        scope = Scope(select, outer)
        scope.aliases = {
            self._dialect.key(item.args["alias"]): item.alias
            for item in select.expressions
            if isinstance(item, exp.Alias)
        }
        clause, joins = select.args.get("from_"), _joins(select)
        sources = [*([clause.this] if clause else []), *(join.this for join in joins)]
        conditions = [*joins]
        for node in sources:
            conditions += self._add(node, scope, known)
        for lateral in select.args.get("laterals") or ():
            scope.sources.append(Source(self._dialect.key(_alias(lateral)), lateral))
        for name, value in select.args.items():
            if name not in ("from_", "joins", "laterals", "with_"):
                for node in value if isinstance(value, list) else [value]:
                    self._walk(node, scope, name, known)
        for join in conditions:
            self._walk(join.args.get("on"), scope, "on", known)
            self._check_using(join, scope)
        return self._result(select, scope)

    def _add(self, node: exp.Expr, scope: Scope, known: Mapping[str, Columns | None]) -> list[exp.Join]:
        """Add a source, and return the joins inside it: those of `(a JOIN b ON ...)`."""
        joins = _joins(node)
        found = list(joins)
        if isinstance(node, exp.Subquery) and isinstance(node.this, exp.Table) and not node.alias:
            found += self._add(node.this, scope, known)
        elif isinstance(node, exp.Subquery) and isinstance(node.this, exp.Query):
            columns = self.query(node.this, scope.outer, known)
            scope.sources.append(Source(self._dialect.key(_alias(node)), node, None, self._named(node, columns)))
        elif isinstance(node, exp.Table) and isinstance(node.this, exp.Identifier) and not node.args.get("db"):
            scope.sources.append(self._table(node, scope, known))
        else:
            scope.sources.append(Source(self._dialect.key(_alias(node)), node))
        for join in joins:
            found += self._add(join.this, scope, known)
        return found

    def _table(self, node: exp.Table, scope: Scope, known: Mapping[str, Columns | None]) -> Source:
        key = self._dialect.key(node.this)
        source = Source(self._dialect.key(_alias(node) or node.this), node)
        if key in known:
            source.columns = self._named(node, known[key])
        elif table := self._tables.get(key):
            source.table = table
            source.columns = self._named(node, {self._dialect.key_of(name): name for name in table.column_names})
        elif self._dialect.name == "mysql" and key == "dual":
            source.columns = {}  # stands for no table
        elif key not in self._omitted and not (self._dialect.name == "sqlite" and key.startswith("sqlite_")):
            self._report("table", scope, node, source, (id(node),))
        return source

    def _walk(self, node: object, scope: Scope, clause: str, known: Mapping[str, Columns | None]) -> None:
        """Resolve the names in an expression."""
        if isinstance(node, exp.Query):
            self.query(node, scope, known)
        elif isinstance(node, exp.Column):
            self._column(node, scope, clause)
        elif isinstance(node, exp.Lambda | exp.Comprehension):
            return  # its variables are names of no table; only DuckDB has them
        elif isinstance(node, exp.Expr):
            for child in node.iter_expressions():
                self._walk(child, scope, clause, known)

    def _column(self, column: exp.Column, scope: Scope, clause: str) -> None:
        if column.args.get("db"):
            return
        key, qualifier = self._dialect.key(column.this), self._dialect.key(column.args.get("table"))
        if qualifier:
            source = next((found for inner in self._visible(scope, clause) if (found := inner.source(qualifier))), None)
            if source is None and self._dialect.name == "duckdb" and self._holds(qualifier, scope, clause):
                return  # a field of a structure
            if source is None:
                self._report("qualifier", scope, column, None, (qualifier, key))
                return
            source.references.append(column)
            if isinstance(column.this, exp.Star) or source.columns is None or key in source.columns:
                return
            if not self._is_implicit(key):
                self._report("column", scope, column, source, (qualifier, key))
        elif not isinstance(column.this, exp.Star):
            self._unqualified(column, key, scope, clause)

    def _unqualified(self, column: exp.Column, key: str, scope: Scope, clause: str) -> None:
        clauses = _CLAUSES_WITH_ALIASES.get(self._dialect.name)
        sees_aliases = clause in clauses if clauses else self._dialect.name == "duckdb" or clause != "expressions"
        for inner in self._visible(scope, clause):
            is_alias = inner is scope and sees_aliases and key in inner.aliases
            holders = [source for source in inner.sources if source.has(key)]
            if len(holders) > 1 and not (is_alias and clause == "order") and not _merges(inner.select):
                self._report("ambiguous", scope, column, None, ("", key))
                return
            if holders:
                holders[0].references.append(column)
                return
            if is_alias or any(source.columns is None for source in inner.sources):
                return
            if self._dialect.name in ("postgres", "duckdb") and inner.source(key):
                return  # a whole row
        if self._is_implicit(key) or (self._dialect.name != "sqlite" and key in _VALUES):
            return
        if self._dialect.name == "sqlite" and column.this.quoted:
            return  # SQLite takes it for a text
        self._report("column", scope, column, None, ("", key))

    def _holds(self, key: str, scope: Scope, clause: str) -> bool:
        """Whether a clause can use a column of this name, or could if all columns were known."""
        sources = [source for inner in self._visible(scope, clause) for source in inner.sources]
        return key in scope.aliases or any(source.columns is None or source.has(key) for source in sources)

    def _visible(self, scope: Scope, clause: str) -> Iterator[Scope]:
        """The scopes whose columns a clause can use. SQLite's GROUP BY and ORDER BY cannot use those of outer ones."""
        return iter([scope]) if self._dialect.name == "sqlite" and clause in ("group", "order") else scope.chain

    def _is_implicit(self, key: str) -> bool:
        return key in self._dialect.implicit_columns

    def _check_using(self, join: exp.Join, scope: Scope) -> None:
        """A column in USING must be in the joined table and in one before it."""
        for name in join.args.get("using") or ():
            key = self._dialect.key(name)
            joined = next((source for source in scope.sources if source.node is join.this), None)
            others = [source for source in scope.sources if source is not joined]
            if joined is None or any(source.columns is None for source in scope.sources):
                return
            if not joined.has(key) or not any(source.has(key) for source in others):
                self._report("using", scope, join, joined, (id(join),))
                return

    def _result(self, select: exp.Select, scope: Scope) -> Columns | None:
        names: dict[str, str] = {}
        for item in select.expressions:
            if item.is_star:
                table = item.args.get("table") if isinstance(item, exp.Column) else None
                sources = [scope.source(self._dialect.key(table))] if table else scope.sources
                for source in sources:
                    if source is None or source.columns is None:
                        return None
                    names |= source.columns
            elif item.alias_or_name:
                node = item.args.get("alias") or item.this
                names[self._dialect.key(node) or item.alias_or_name.lower()] = item.alias_or_name
        return names

    def _report(
        self, kind: ProblemKind, scope: Scope, node: exp.Expr, source: Source | None, key: tuple[object, ...]
    ) -> None:
        problem = self.problems.setdefault((kind, id(scope), *key), Problem(kind, scope, [], source))
        problem.nodes.append(node)


def _joins(node: exp.Expr) -> list[exp.Join]:
    return list(node.args.get("joins") or ())


def _alias(node: exp.Expr) -> exp.Expr | None:
    alias = node.args.get("alias")
    return alias.this if isinstance(alias, exp.TableAlias) else alias


def _merges(select: exp.Select) -> bool:
    """Whether some columns of two tables are one: USING, NATURAL JOIN."""
    return any(join.args.get("using") or join.args.get("method") for join in _joins(select))
