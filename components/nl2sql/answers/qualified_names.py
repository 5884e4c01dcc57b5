"""Queries whose columns all have their table's name: `sql_form: canonical`, which models are trained on.

Unlike the form in `canonical.py`, which is only compared, the query here is complete and can be run:

    as given     SELECT T1.name FROM singer AS T1 INNER JOIN song T2 ON T1.id = T2.singer_id WHERE genre = "pop"
    qualified    SELECT singer.name FROM singer JOIN song ON singer.id = song.singer_id WHERE song.genre = 'pop'
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from sqlglot import exp

from chatmetrics.components.nl2sql.schema import Schema
from chatmetrics.components.nl2sql.sql.dialect import Dialect
from chatmetrics.components.nl2sql.sql.parsing import parse_new
from chatmetrics.components.nl2sql.sql.statements import single_statement

Columns = Mapping[str, str]  # the spelling of each column, by what the dialect compares names by
Known = Mapping[str, Columns | None]  # columns of common table expressions, by name; None if they are not known


class UnresolvedNameError(Exception):
    """A name is unknown or ambiguous, or a query has a form whose names are not resolved here."""


def qualify(sql: str, schema: Schema) -> str:
    """The query with each column qualified by its table's name, and one spelling of keywords, names, spaces and quotes.

    A table has an alias only if it occurs twice in one FROM clause, or if a subquery needs to name the outer one of two
    occurrences. Aliases are the table's name with a number: `city_1`, `city_2`. Subqueries in FROM keep their alias,
    and result columns keep their name. Nothing is reordered. The result of a query in this form is the query itself.

    Args:
        sql: a query in the dialect of the schema.
        schema: the whole schema of its database.

    Raises:
        UnresolvedNameError: names the first name that is unknown, or the part of SQL that is not handled.
        SqlglotError: the query cannot be parsed.
        RecursionError: the query is nested too deeply.
    """
    statement, dialect = single_statement(sql), Dialect(schema.dialect)
    tree = parse_new(statement, dialect.name)
    if not isinstance(tree, exp.Query):
        raise UnresolvedNameError("not a query")
    if not dialect.ignores_case:
        for name in tree.find_all(exp.Identifier):
            if not name.quoted:
                name.set("this", dialect.folded(name.name))
    resolver = _Resolver(statement, schema, dialect)
    resolver.resolve(tree, None, {})
    resolver.rename()
    for node in list(tree.walk()):
        spell(node, dialect)
    return tree.sql(dialect=dialect.name, comments=False)


@dataclass(eq=False)
class _Source:
    """A table, subquery or common table expression in a FROM clause.

    Attributes:
        node: its node in the syntax tree.
        known_as: the key of what the query calls it; empty for a subquery without alias.
        base: the table's name in the spelling of the schema; for a subquery its alias.
        columns: its columns; None if they are not known.
        is_table: whether it can be named by `base`, without an alias.
        name: the name in the new query.
    """

    node: exp.Expr
    known_as: str
    base: str
    columns: Columns | None
    is_table: bool
    name: str = ""

    def has(self, column: str) -> bool:
        return self.columns is not None and column in self.columns


@dataclass(eq=False)
class _Scope:
    """The names that one SELECT can use.

    Attributes:
        parent: the SELECT of which this is a subquery.
        sources: those of its FROM clause.
        results: the keys of the names of its result columns.
        merged: columns that USING and NATURAL merge, and that so belong to no table.
        outer: sources of enclosing SELECTs that this one, or a subquery of it, names.
    """

    parent: "_Scope | None"
    sources: list[_Source] = field(default_factory=list)
    results: frozenset[str] = frozenset()
    merged: set[str] = field(default_factory=set)
    outer: list[_Source] = field(default_factory=list)

    def with_parents(self) -> "Iterator[_Scope]":
        scope: _Scope | None = self
        while scope:
            yield scope
            scope = scope.parent


class _Resolver:
    """Finds the source of each column of a query, and then renames both."""

    def __init__(self, sql: str, schema: Schema, dialect: Dialect) -> None:
        self._sql, self._dialect = sql, dialect
        self._key = dialect.key_of
        self._tables = {
            self._key(table.name): (table.name, self._by_name(table.column_names)) for table in schema.tables
        }
        self._scopes: list[_Scope] = []  # outer ones before those inside them
        self._owners: dict[int, tuple[exp.Column, _Source]] = {}  # by the column's identity

    def resolve(self, query: exp.Expr, parent: _Scope | None, known: Known) -> _Scope | None:
        """Resolve the names of a query; returns the scope of its first SELECT.

        Args:
            query: the query.
            parent: scope of the SELECT of which it is a subquery.
            known: the columns of the common table expressions that it can use, by name.
        """
        known = self._common_tables(query, parent, known)
        match query:
            case exp.Select():
                return self._select(query, parent, known)
            case exp.SetOperation():
                first = self.resolve(query.this, parent, known)
                self.resolve(query.expression, parent, known)
                self._order_of_set_operation(query, first, known)
                return first
            case exp.Subquery() if isinstance(query.this, exp.Query):
                return self.resolve(query.this, parent, known)
        raise UnresolvedNameError(f"{type(query).__name__.lower()} in place of a query")

    def rename(self) -> None:
        """Give sources their new names, and columns the names of their sources."""
        for scope in self._scopes:
            self._name_sources(scope)
        for column, source in self._owners.values():
            column.set("table", exp.to_identifier(source.name))
            if not isinstance(column.this, exp.Star):
                column.this.set("this", self._spelling(source, column))

    def _name_sources(self, scope: _Scope) -> None:
        taken = {self._key(source.name) for source in scope.outer}
        times = Counter(self._key(source.base) for source in scope.sources)
        used = {self._key(source.base) for source in scope.sources if not source.is_table}
        if used & taken:
            raise UnresolvedNameError(f"the alias {min(used & taken)} of two sources")
        for source in scope.sources:
            base = self._key(source.base)
            source.name = source.base
            if source.is_table:
                if times[base] > 1 or base in taken:
                    source.name = self._numbered(source.base, taken | used)
                    used.add(self._key(source.name))
                alias = exp.TableAlias(this=exp.to_identifier(source.name)) if source.name != source.base else None
                source.node.this.set("this", source.base)
                source.node.set("alias", alias)

    def _numbered(self, base: str, used: set[str]) -> str:
        names = (f"{base}_{number}" for number in range(1, len(used) + len(self._tables) + 2))
        return next(name for name in names if self._key(name) not in used and self._key(name) not in self._tables)

    def _common_tables(self, query: exp.Expr, parent: _Scope | None, known: Known) -> Known:
        clause: exp.With | None = query.args.get("with_")
        if clause is None:
            return known
        for table in clause.expressions:
            name = self._key(table.alias)
            declared = [column.name for column in table.args["alias"].args.get("columns") or ()]
            own: dict[str, str] = {}
            if clause.args.get("recursive"):
                first = _first_select(table.this)
                own = self._by_name(declared or (first.named_selects if first else ()))
                known = {**known, name: own}
            scope = self.resolve(table.this, parent, known)
            columns = self._by_name(declared) if declared else self._results(table.this, scope)
            own.update(columns or {})  # which a recursive table has named already
            known = {**known, name: columns}
        return known

    def _select(self, select: exp.Select, parent: _Scope | None, known: Known) -> _Scope:
        results = frozenset(self._key(item.alias) for item in select.expressions if isinstance(item, exp.Alias))
        scope = _Scope(parent, results=results)
        self._scopes.append(scope)
        joins: list[exp.Join] = select.args.get("joins") or []
        clause = select.args.get("from_")
        if clause:
            scope.sources.append(self._source(clause.this, parent, known))
        for join in joins:
            source = self._source(join.this, parent, known)
            names = {self._key(identifier.name) for identifier in join.args.get("using") or ()}
            if join.args.get("method") == "NATURAL":
                names |= {name for other in scope.sources for name in other.columns or () if source.has(name)}
            scope.merged |= names
            scope.sources.append(source)
        for key, part in select.args.items():
            for node in part if isinstance(part, list) else [part]:
                if isinstance(node, exp.Expr) and key not in ("with_", "from_"):
                    self._visit(node.args.get("on") if isinstance(node, exp.Join) else node, scope, known)
        return scope

    def _source(self, node: exp.Expr, parent: _Scope | None, known: Known) -> _Source:
        alias = node.alias
        if isinstance(node.args.get("alias"), exp.TableAlias) and node.args["alias"].args.get("columns"):
            raise UnresolvedNameError("an alias that names columns")
        if isinstance(node, exp.Subquery) and isinstance(node.this, exp.Query):
            scope = self.resolve(node.this, parent, known)
            return _Source(node, self._key(alias), alias, self._results(node.this, scope), is_table=False)
        is_plain = isinstance(node, exp.Table) and not node.args.get("db") and not node.args.get("joins")
        if not is_plain or node.args.get("pivots"):
            raise UnresolvedNameError("a FROM clause with nested joins or a database's name")
        if not isinstance(node.this, exp.Identifier):  # a function that returns a table
            return _Source(node, self._key(alias), alias, None, is_table=False)
        name = self._key(node.name)
        if name in known:
            return _Source(node, self._key(alias or name), node.name, known[name], is_table=True)
        if name not in self._tables:
            raise UnresolvedNameError(f"no such table: {node.name}")
        return _Source(node, self._key(alias or name), *self._tables[name], is_table=True)

    def _results(self, query: exp.Expr, scope: _Scope | None) -> Columns | None:
        """The result columns of a query in FROM or WITH; None if they are not known."""
        select = _first_select(query)
        if select is None or scope is None:
            return None
        names: list[str] = []
        for item in select.expressions:
            is_star = isinstance(item, exp.Star) or (isinstance(item, exp.Column) and isinstance(item.this, exp.Star))
            if not is_star:
                owner = self._owners.get(id(item))
                names.append(self._spelling(owner[1], item) if owner else item.alias_or_name)
                continue
            qualifier = self._key(item.table) if isinstance(item, exp.Column) else ""
            for source in scope.sources:
                if qualifier in ("", source.known_as):
                    if source.columns is None:
                        return None
                    names += source.columns.values()
        return self._by_name(names)

    def _order_of_set_operation(self, query: exp.SetOperation, first: _Scope | None, known: Known) -> None:
        """Resolve qualified names in the ORDER BY of a set operation; others there are names of result columns."""
        order = query.args.get("order")
        for column in order.find_all(exp.Column) if order else ():
            if column.table and first:
                self._column(column, first)

    def _visit(self, node: exp.Expr | None, scope: _Scope, known: Known) -> None:
        match node:
            case None:
                return
            case exp.Query():
                self.resolve(node, scope, known)
            case exp.Column():
                self._column(node, scope)
            case exp.In() if node.args.get("field"):
                raise UnresolvedNameError("a table as the right side of IN")
            case _:
                for child in node.iter_expressions():
                    self._visit(child, scope, known)

    def _column(self, column: exp.Column, scope: _Scope) -> None:
        name, qualifier = self._key(column.name), self._key(column.table)
        if isinstance(column.this, exp.Star):
            name = ""
        found = self._find_qualified(name, qualifier, scope) if qualifier else self._find(column, name, scope)
        if found is None:
            return
        source, owner = found
        self._owners[id(column)] = (column, source)
        for inner in scope.with_parents():
            if inner is owner:
                break
            if source not in inner.outer:
                inner.outer.append(source)

    def _find_qualified(self, name: str, qualifier: str, scope: _Scope) -> tuple[_Source, _Scope]:
        for place in scope.with_parents():
            for source in place.sources:
                if source.known_as == qualifier:
                    is_implicit = not name or name in self._dialect.implicit_columns
                    if not is_implicit and source.columns is not None and name not in source.columns:
                        raise UnresolvedNameError(f"no such column: {qualifier}.{name}")
                    return source, place
        raise UnresolvedNameError(f"no such table or alias: {qualifier}")

    def _find(self, column: exp.Column, name: str, scope: _Scope) -> tuple[_Source, _Scope] | None:
        """The source of a column without qualifier; None if the column stays as it is."""
        if name in scope.results and _is_order_term(column):
            return None
        for place in scope.with_parents():
            if name in place.merged:
                return None
            sources = [source for source in place.sources if source.has(name)]
            if len(sources) > 1:
                raise UnresolvedNameError(f"ambiguous column: {name}")
            if sources:
                # A subquery without alias has no name that could qualify its columns.
                return (sources[0], place) if sources[0].base else None
            if name in place.results or any(source.columns is None for source in place.sources):
                return None
            if name in self._dialect.implicit_columns and len(place.sources) == 1:
                return None
        # SQLite reads a name in double quotes as a text if no column has that name.
        if self._dialect.name == "sqlite" and self._is_in_double_quotes(column):
            column.replace(exp.Literal.string(column.name))
            return None
        raise UnresolvedNameError(f"no such column: {name}")

    def _is_in_double_quotes(self, column: exp.Column) -> bool:
        start = column.this.meta.get("start")
        return start is not None and self._sql[start] == '"'

    def _spelling(self, source: _Source, column: exp.Expr) -> str:
        return (source.columns or {}).get(self._key(column.name), column.name)

    def _by_name(self, names: Iterable[str]) -> dict[str, str]:
        return {self._key(name): name for name in names if name}


def _first_select(query: exp.Expr) -> exp.Select | None:
    while isinstance(query, exp.SetOperation | exp.Subquery):
        query = query.this
    return query if isinstance(query, exp.Select) else None


def _is_order_term(column: exp.Column) -> bool:
    """Whether a column is a whole term of ORDER BY or DISTINCT ON, where names of result columns come first."""
    if isinstance(column.parent, exp.Tuple | exp.Paren) and isinstance(column.parent.parent, exp.Distinct):
        return True
    ordered = column.parent
    return (
        isinstance(ordered, exp.Ordered)
        and isinstance(ordered.parent, exp.Order)
        and isinstance(ordered.parent.parent, exp.Select)
    )


def spell(node: exp.Expr, dialect: Dialect) -> None:
    """Give one node the one spelling of what can be written in several ways in a dialect."""
    match node:
        case exp.Identifier():
            node.set("quoted", dialect.needs_quotes(node.name))
        case exp.Join():
            # sqlglot does not tell a comma from SQLite's CROSS JOIN, which would keep SQLite from choosing the order of
            # tables. In other dialects a comma binds less than JOIN.
            is_comma = dialect.name == "sqlite" and node.args.get("kind") == "CROSS"
            if is_comma or node.args.get("kind") in ("INNER", "OUTER"):
                node.set("kind", None)
        case exp.Ordered() if node.args.get("desc") is False:
            node.set("desc", None)
        case exp.Offset() if node.expression.name == "0":
            node.pop()
        case exp.Cast() if dialect.name == "sqlite":
            # sqlglot would write REAL for NUMERIC, which changes integers, and the function date for CAST to DATE.
            node.set("to", exp.DataType(this=exp.DType.USERDEFINED, kind=_affinity(node.to)))
        case exp.Not():
            _spell_not(node, dialect)


def _affinity(type: exp.DataType) -> str:
    """What SQLite converts a value to, by the name of the type (sqlite.org/datatype3.html, section 3.1)."""
    name = str(type.args.get("kind") or type.this.name).upper()
    parts = {
        **{"INT": "INTEGER", "CHAR": "TEXT", "CLOB": "TEXT", "TEXT": "TEXT", "BLOB": "BLOB", "BINARY": "BLOB"},
        **{"REAL": "REAL", "FLOA": "REAL", "DOUB": "REAL"},
    }
    return next((affinity for part, affinity in parts.items() if part in name), "NUMERIC")


def _spell_not(node: exp.Not, dialect: Dialect) -> None:
    """Write `x NOT IN (...)`, as people do, where sqlglot writes `NOT x IN (...)`."""
    test = node.this
    if isinstance(test, exp.Is) and isinstance(test.expression, exp.Null):
        test.set("expression", exp.Not(this=exp.Null()))
    elif isinstance(test, exp.In | exp.Between):
        for inner in list(test.this.walk()):
            spell(inner, dialect)
        test.set("this", exp.Var(this=f"{test.this.sql(dialect=dialect.name)} NOT"))
    else:
        return
    node.replace(test)
