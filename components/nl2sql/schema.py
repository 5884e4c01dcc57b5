"""A database's schema: read from SQLite or Spider's tables.json, and rendered for a prompt."""

import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.descriptions import Descriptions, DiscoveredJoin
from chatmetrics.components.nl2sql.identifiers import identifier, m_schema_name, quoted
from chatmetrics.components.nl2sql.sqlite_file import FileVersion, read_unchanged

SchemaForm = Literal["ddl", "m-schema"]

SAMPLED_ROWS = 100_000  # first rows of a table in which sample values are searched
LONGEST_SAMPLE = 50  # characters; longer values are left out, as in M-Schema
# Values of `hidden` in PRAGMA table_xinfo.
HIDDEN = 1
GENERATED = (2, 3)
VIRTUAL = "virtual table"
NOT_SHOWN = "not shown, because the database has private columns"  # in place of rows and of a database's messages

# SQLite stores the statement of a virtual table in this form, whatever its author wrote before the name.
_USING = re.compile(
    r"CREATE VIRTUAL TABLE\s+(?:\"(?:[^\"]|\"\")*\"|`(?:[^`]|``)*`|'(?:[^']|'')*'|\[[^\]]*\]|[^\s\"`'\[]+)\s+"
    r"USING\s+(\w+)",
    re.IGNORECASE,
)
# Endings of shadow tables: those of fts3 to fts5, rtree and geopoly, and of the extensions vec0 and spellfix1.
_SHADOW = re.compile(
    r"content|segments|segdir|docsize|stat|data|idx|config|node|rowid|parent|"
    r"chunks|rowids|info|auxiliary|vector_chunks\d+|metadata(?:chunks|text)\d+|vocab",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column. `type` is as declared; `description` is empty if it would only repeat the name.

    `primary_key` is the position in the table's primary key, from 1; 0 if the column is not part of it. Values of a
    `private` column are neither shown nor published.
    """

    name: str
    type: str
    primary_key: int = 0
    description: str = ""
    samples: tuple[str, ...] = ()
    private: bool = False


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A column that refers to another one.

    A composite key is several of these with the same number `constraint`, which is unique in a table; 0 means that the
    key has one column.
    """

    table: str
    column: str
    referenced_table: str
    referenced_column: str
    constraint: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Table:
    """A table, view or virtual table, and its columns in declaration order.

    Attributes:
        name: its name.
        columns: its columns, also generated ones.
        kind: "" for a table, "view", or "virtual table" with its module.
        hidden: columns that a query can use although `SELECT *` leaves them out, such as `rank` of a full-text table.
            They come with the module, and prompts do not show them.
        description: what is known about the table; may be empty.
    """

    name: str
    columns: tuple[Column, ...]
    kind: str = ""
    hidden: tuple[str, ...] = ()
    description: str = ""

    @property
    def column_names(self) -> list[str]:
        """The names of all columns that a query can use, hidden ones last."""
        return [*(column.name for column in self.columns), *self.hidden]


@dataclass(frozen=True, slots=True)
class Omitted:
    """A table or view that no query can use, and why."""

    name: str
    reason: str

    @property
    def message(self) -> str:
        """One line for a log."""
        return f"{self.name} is not in prompts, because no query can use it: {self.reason}"


@dataclass(frozen=True, slots=True)
class Schema:
    """Tables and views in creation order, the foreign keys between them, and what was omitted from the database.

    `dialect` is that of the database's SQL, as sqlglot names it; it decides how names are quoted. `discovered` are
    joins that no key declares; they are not rendered.
    """

    db_id: str
    tables: tuple[Table, ...]
    foreign_keys: tuple[ForeignKey, ...] = ()
    omitted: tuple[Omitted, ...] = ()
    dialect: str = "sqlite"
    discovered: tuple[DiscoveredJoin, ...] = ()

    @classmethod
    def from_sqlite(cls, path: Path, sample_values: int = 0, descriptions: Descriptions | None = None) -> Self:
        """Read what a query can use in an SQLite file. All steps get their schemas here, so that prompts are equal.

        This includes views, virtual tables and generated columns, but not the tables in which a virtual table keeps
        its data, nor SQLite's own. The file is opened read-only. Foreign keys to tables that do not exist are left out.

        Args:
            path: the file; its stem becomes the schema's `db_id`.
            sample_values: maximum number of distinct values of each column of a table. Views and virtual tables have
                none, because reading a view can take any time.
            descriptions: descriptions and foreign keys that the file does not contain.

        Raises:
            InputError: the file is missing, is not an SQLite database, is being written to, or has no tables that can
                be read.
        """
        if not path.is_file():
            raise InputError(f"{path}: no such database; name an SQLite file")
        try:
            schema = cls(path.stem, *read_unchanged(path, lambda version: _read_file(version, sample_values)))
        except sqlite3.Error as error:
            raise InputError(f"{path}: cannot be read as an SQLite database ({error})") from error
        if not schema.tables:
            found = "".join(f"; {item.name} cannot be read ({item.reason})" for item in schema.omitted)
            raise InputError(f"{path}: the database has no tables{found}")
        return schema.described_by(descriptions) if descriptions else schema

    @classmethod
    def from_spider(cls, entry: Mapping[str, Any], database: Path | None, sample_values: int = 0) -> Self:
        """Read one entry of Spider's tables.json, which adds descriptions and foreign keys to the database's schema.

        Without a `database`, column types are those of tables.json ("text", "number", "time", ...) and there are no
        sample values.

        Raises:
            InputError: the entry lacks a field, or the database cannot be read.
        """
        descriptions = Descriptions.from_spider(entry)
        if database is not None:
            return replace(cls.from_sqlite(database, sample_values, descriptions), db_id=entry["db_id"])
        try:
            return cls._from_entry(entry).described_by(descriptions)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            name = entry.get("db_id", "an entry")
            raise InputError(f"tables.json: {name}: malformed ({type(error).__name__}: {error})") from error

    @classmethod
    def _from_entry(cls, entry: Mapping[str, Any]) -> Self:
        primary = [key for keys in entry["primary_keys"] for key in (keys if isinstance(keys, list) else [keys])]
        columns: list[list[Column]] = [[] for _ in entry["table_names_original"]]
        for number, (owner, name) in enumerate(entry["column_names_original"]):
            if owner >= 0:
                position = primary.index(number) + 1 if number in primary else 0
                columns[owner].append(Column(name, entry["column_types"][number], position))
        return cls(entry["db_id"], tuple(map(Table, entry["table_names_original"], map(tuple, columns))))

    def described_by(self, descriptions: Descriptions) -> Self:
        """The schema with what is known about the database, and without the values of private columns."""
        texts, values = _by_column(descriptions.columns), _by_column(descriptions.values)

        about = {table.lower(): text for table, text in descriptions.tables.items()}
        private = descriptions.private_columns

        def described(table: Table, column: Column) -> Column:
            key = table.name.lower(), column.name.lower()
            known = replace(column, description=texts.get(key, column.description))
            if key in private:
                # The type of an enumeration lists its values.
                kind = column.type.partition("(")[0].rstrip() if "'" in column.type else column.type
                return replace(known, samples=(), type=kind, private=True)
            return replace(known, description="; ".join(filter(None, [known.description, values.get(key, "")])))

        tables = tuple(
            replace(
                table,
                columns=tuple(described(table, column) for column in table.columns),
                description=about.get(table.name.lower(), table.description),
            )
            for table in self.tables
        )
        keys = (*self.foreign_keys, *(ForeignKey(*key) for key in descriptions.foreign_keys))
        declared = _existing_keys(tables, keys)
        joins = _existing_joins(tables, (*self.discovered, *descriptions.joins), declared)
        return replace(self, tables=tables, foreign_keys=declared, discovered=joins)

    @property
    def joins(self) -> tuple["ForeignKey | DiscoveredJoin", ...]:
        """The foreign keys, and after them the joins that none declares."""
        return (*self.foreign_keys, *self.discovered)

    @property
    def has_private(self) -> bool:
        """Whether a column is private."""
        return any(column.private for table in self.tables for column in table.columns)

    def render(self, form: SchemaForm) -> str:
        """The schema as prompt text: DDL or M-Schema. Equal schemas give equal text."""
        return _render_ddl(self) if form == "ddl" else _render_m_schema(self)

    def prune(self, keep: Collection[str]) -> Self:
        """The schema reduced to the tables named in `keep` (case-insensitive), in the same order."""
        names = {name.lower() for name in keep}
        tables = tuple(table for table in self.tables if table.name.lower() in names)
        keys = _existing_keys(tables, self.foreign_keys)
        return replace(
            self, tables=tables, foreign_keys=keys, discovered=_existing_joins(tables, self.discovered, keys)
        )


def constraints(keys: Iterable[ForeignKey]) -> list[list[ForeignKey]]:
    """The foreign keys; the columns of a composite one are together."""
    found: dict[object, list[ForeignKey]] = defaultdict(list)
    for key in keys:
        found[(key.table, key.constraint) if key.constraint else key].append(key)
    return list(found.values())


def _by_column(texts: Mapping[str, Mapping[str, str]]) -> dict[tuple[str, str], str]:
    """Texts by table and column in lower case."""
    return {(table.lower(), name.lower()): text for table, by in texts.items() for name, text in by.items()}


def _read_file(
    version: FileVersion, sample_values: int
) -> tuple[tuple[Table, ...], tuple[ForeignKey, ...], tuple[Omitted, ...]]:
    with closing(sqlite3.connect(version.uri, uri=True)) as connection:
        connection.text_factory = lambda raw: raw.decode("utf-8", errors="replace")
        return _read_database(connection, sample_values)


def _read_database(
    connection: sqlite3.Connection, sample_values: int
) -> tuple[tuple[Table, ...], tuple[ForeignKey, ...], tuple[Omitted, ...]]:
    # Names that begin with sqlite_ are SQLite's own.
    rows = connection.execute(
        "SELECT name, type, rootpage, sql FROM sqlite_master WHERE type IN ('table', 'view') "
        "AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    ).fetchall()
    kinds = {name: _kind(kind, rootpage, sql) for name, kind, rootpage, sql in rows}
    tables: dict[str, Table] = {}
    omitted: dict[str, list[Omitted]] = {}
    for name, kind in kinds.items():
        try:
            tables[name], omitted[name] = _read_table(connection, name, kind, sample_values)
        except sqlite3.DatabaseError as error:
            # A damaged table is a damaged database, but a module's own data costs its virtual table alone.
            if not kind and not isinstance(error, sqlite3.OperationalError):
                raise
            omitted[name] = [Omitted(name, str(error))]
    internal = _internal_tables(connection, kinds, kinds.keys() - tables.keys())
    shown = tuple(table for name, table in tables.items() if name not in internal)
    primary = {table.name.lower(): [column.name for column in _primary_key(table)] for table in shown}
    keys = (key for table in shown if not table.kind for key in _read_foreign_keys(connection, table.name, primary))
    reported = (item for name, items in omitted.items() if name not in internal for item in items)
    return shown, _existing_keys(shown, keys), tuple(reported)


def _kind(kind: str, rootpage: int, sql: str | None) -> str:
    """A table's `kind`; virtual tables have no pages of their own."""
    if kind == "view" or rootpage:
        return "view" if kind == "view" else ""
    module = _USING.match(sql or "")
    return f"{VIRTUAL} ({module[1]})" if module else VIRTUAL


def _internal_tables(connection: sqlite3.Connection, kinds: Mapping[str, str], unreadable: Collection[str]) -> set[str]:
    """The shadow tables, in which virtual tables keep their data: those that SQLite names, and those that look like it.

    SQLite before 3.37 names none, and no version names those of a module that is missing.
    """
    # SQLite ignores a PRAGMA that it does not know.
    listed = connection.execute("PRAGMA table_list").fetchall()
    named = {name for _, name, kind, *_ in listed if kind == "shadow"}
    virtual = [name for name, kind in kinds.items() if kind.startswith(VIRTUAL)]
    unknown = virtual if not listed else [name for name in virtual if name in unreadable]
    guessed = {
        name
        for name, kind in kinds.items()
        for owner in unknown
        if not kind and name.lower().startswith(f"{owner}_".lower()) and _SHADOW.fullmatch(name[len(owner) + 1 :])
    }
    return named | guessed


def _read_table(
    connection: sqlite3.Connection, name: str, kind: str, sample_values: int
) -> tuple[Table, list[Omitted]]:
    """Read a table or view, and what it has of columns that no query can use.

    Raises:
        sqlite3.DatabaseError: no query can use the table.
    """
    rows = connection.execute("SELECT name, type, pk, hidden FROM pragma_table_xinfo(?)", (name,)).fetchall()
    if not rows:
        raise sqlite3.OperationalError("SQLite reports no columns")
    # Fails where something that the table depends on is missing: a module, a function, the table behind a view.
    # A virtual table is read, since its module may miss something only then. Reading a view can take any time.
    read = "SELECT * FROM {} LIMIT 1" if kind.startswith(VIRTUAL) else "EXPLAIN SELECT 1 FROM {}"
    connection.execute(read.format(quoted(name))).fetchall()
    visible = [row for row in rows if row[3] != HIDDEN]
    problems = {row[0]: _problem(connection, name, row[0]) for row in visible if row[3] in GENERATED}
    omitted = [Omitted(f"{name}.{column}", problem) for column, problem in problems.items() if problem]
    shown = [row for row in visible if not problems.get(row[0])]
    if not shown:
        raise sqlite3.OperationalError(omitted[0].reason if omitted else "it has no columns")
    if kind:
        # The types of these columns depend on SQLite's version, and prompts must not.
        columns = tuple(Column(column, "") for column, *_ in shown)
    else:
        is_large = sample_values > 0 and _is_large(connection, name)
        samples = partial(_read_samples, connection, name, count=sample_values, is_large=is_large)
        columns = tuple(
            Column(column, " ".join(type.split()), key, samples=samples(column)) for column, type, key, _ in shown
        )
    return Table(name, columns, kind, tuple(row[0] for row in rows if row[3] == HIDDEN)), omitted


def _problem(connection: sqlite3.Connection, table: str, column: str) -> str:
    """Why no query can read a generated column, for example because its function is missing; empty if one can."""
    try:
        connection.execute(f"EXPLAIN SELECT {quoted(column)} FROM {quoted(table)}")  # noqa: S608
    except sqlite3.OperationalError as error:
        return str(error)
    return ""


def _is_large(connection: sqlite3.Connection, table: str) -> bool:
    beyond = f"SELECT 1 FROM {quoted(table)} LIMIT 1 OFFSET {SAMPLED_ROWS}"  # noqa: S608
    return connection.execute(beyond).fetchone() is not None


def _read_samples(
    connection: sqlite3.Connection, table: str, column: str, count: int, is_large: bool
) -> tuple[str, ...]:
    if not count:
        return ()
    name, source = quoted(column), quoted(table)

    def found(expression: str) -> list[tuple[Any]]:
        rows, value = source, expression
        if is_large:  # a bound on rows, not on time, so that training and serving find the same values
            rows, value = f"(SELECT {expression} AS {name} FROM {source} LIMIT {SAMPLED_ROWS})", name  # noqa: S608
        return connection.execute(
            f"SELECT DISTINCT {value} FROM {rows} WHERE {name} IS NOT NULL AND typeof({name}) <> 'blob' "  # noqa: S608
            f"AND length({name}) BETWEEN 1 AND {LONGEST_SAMPLE} LIMIT {count}"
        ).fetchall()

    try:
        values = found(name)
    except sqlite3.OperationalError:  # the column's collation is missing, which only comparisons need
        values = found(f"{name} COLLATE BINARY")
    return tuple(" ".join(str(value).split()) for (value,) in values)


def _read_foreign_keys(
    connection: sqlite3.Connection, table: str, primary_keys: Mapping[str, Sequence[str]]
) -> Iterator[ForeignKey]:
    # SQLite numbers foreign keys from the last declared to the first.
    rows = connection.execute(
        'SELECT id, "table", "from", "to", seq FROM pragma_foreign_key_list(?) ORDER BY id DESC, seq', (table,)
    ).fetchall()
    parts = Counter(number for number, *_ in rows)
    for number, referenced, column, referenced_column, position in rows:
        # A foreign key without a referenced column refers to the primary key.
        implied = primary_keys.get(referenced.lower(), [])[position : position + 1]
        constraint = number + 1 if parts[number] > 1 else 0
        for name in [referenced_column] if referenced_column is not None else implied:
            yield ForeignKey(table, column, referenced, name, constraint)


def _primary_key(table: Table) -> list[Column]:
    """The columns of the primary key, in its order."""
    return sorted((column for column in table.columns if column.primary_key), key=lambda column: column.primary_key)


def _existing_keys(tables: Iterable[Table], keys: Iterable[ForeignKey]) -> tuple[ForeignKey, ...]:
    """The distinct keys with both ends in `tables`, spelled like the tables and columns."""
    columns = {
        (table.name.lower(), column.name.lower()): (table.name, column.name)
        for table in tables
        for column in table.columns
    }
    ends = (
        (
            columns.get((key.table.lower(), key.column.lower())),
            columns.get((key.referenced_table.lower(), key.referenced_column.lower())),
            key.constraint,
        )
        for key in keys
    )
    return tuple(
        dict.fromkeys(
            ForeignKey(*column, *referenced, constraint)
            for column, referenced, constraint in ends
            if column and referenced
        )
    )


def _existing_joins(
    tables: Iterable[Table], joins: Iterable[DiscoveredJoin], keys: Iterable[ForeignKey]
) -> tuple[DiscoveredJoin, ...]:
    """The joins with both ends in `tables`, spelled like the tables and columns, that no key declares."""
    names = {
        (table.name.lower(), column.name.lower()): (table.name, column.name)
        for table in tables
        for column in table.columns
    }
    known = {frozenset(_ends(key)) for key in keys}
    found = []
    for join in joins:
        first, second = (names.get((table.lower(), column.lower())) for table, column in _ends(join))
        if first and second and frozenset((first, second)) not in known:
            known.add(frozenset((first, second)))
            found.append(DiscoveredJoin(*first, *second, join.score, join.evidence, join.uses))
    return tuple(found)


def _ends(join: ForeignKey | DiscoveredJoin) -> tuple[tuple[str, str], tuple[str, str]]:
    return (join.table, join.column), (join.referenced_table, join.referenced_column)


def _render_ddl(schema: Schema) -> str:
    constraints = _constraints(schema.foreign_keys)
    return "\n".join(
        _render_create_table(table, constraints.get(table.name, []), partial(identifier, dialect=schema.dialect))
        for table in schema.tables
    )


def _render_create_table(table: Table, constraints: Iterable[Sequence[ForeignKey]], spell: Callable[[str], str]) -> str:
    primary = _primary_key(table)
    lines = [(_render_ddl_column(column, len(primary) == 1, spell), _ddl_comment(column)) for column in table.columns]
    if len(primary) > 1:
        lines.append((f"PRIMARY KEY ({', '.join(spell(column.name) for column in primary)})", ""))
    lines += [(_render_foreign_key(keys, spell), "") for keys in constraints]
    last = len(lines) - 1
    body = "\n".join(f"{line}{',' if number < last else ''}{comment}" for number, (line, comment) in enumerate(lines))
    comment = "; ".join(filter(None, [table.kind, " ".join(table.description.split())]))
    kind = f" -- {comment}" if comment else ""
    return f"CREATE TABLE {spell(table.name)} ({kind}\n{body}\n);"


def _constraints(foreign_keys: Iterable[ForeignKey]) -> dict[str, list[list[ForeignKey]]]:
    """The foreign keys by table; the columns of a composite one are together."""
    by_constraint: dict[object, list[ForeignKey]] = {}
    for key in foreign_keys:
        by_constraint.setdefault((key.table, key.constraint) if key.constraint else key, []).append(key)
    by_table: dict[str, list[list[ForeignKey]]] = {}
    for keys in by_constraint.values():
        by_table.setdefault(keys[0].table, []).append(keys)
    return by_table


def _render_foreign_key(keys: Sequence[ForeignKey], spell: Callable[[str], str]) -> str:
    columns = ", ".join(spell(key.column) for key in keys)
    referenced = ", ".join(spell(key.referenced_column) for key in keys)
    return f"FOREIGN KEY ({columns}) REFERENCES {spell(keys[0].referenced_table)} ({referenced})"


def _render_ddl_column(column: Column, is_key: bool, spell: Callable[[str], str]) -> str:
    key = " PRIMARY KEY" if is_key and column.primary_key else ""
    return f"{spell(column.name)}{f' {column.type}' if column.type else ''}{key}"


def _ddl_comment(column: Column) -> str:
    samples = f"e.g. {', '.join(column.samples)}" if column.samples else ""
    comment = "; ".join(filter(None, (" ".join(column.description.split()), samples)))
    return f" -- {comment}" if comment else ""


def _render_m_schema(schema: Schema) -> str:
    """M-Schema as published with XiYan-SQL (arXiv 2411.08599)."""
    lines = [f"【DB_ID】 {schema.db_id}", "【Schema】"]
    spell = partial(m_schema_name, dialect=schema.dialect)
    for table in schema.tables:
        typed = not table.kind or schema.dialect != "sqlite"  # SQLite's types of views depend on its version
        columns = ",\n".join(_render_m_schema_column(column, typed, spell) for column in table.columns)
        about = filter(None, [table.kind, " ".join(table.description.split())])
        kind = "".join(f", {text}" for text in about)
        lines += [f"# Table: {spell(table.name)}{kind}", "[", columns, "]"]
    if schema.foreign_keys:
        lines.append("【Foreign keys】")
    ends = ((key.table, key.column, key.referenced_table, key.referenced_column) for key in schema.foreign_keys)
    lines += ["{}.{}={}.{}".format(*map(spell, names)) for names in ends]
    return "\n".join(lines)


def _render_m_schema_column(column: Column, typed: bool, spell: Callable[[str], str]) -> str:
    kind = f":{column.type.partition('(')[0].strip().upper() or 'TEXT'}" if typed else ""
    parts = [
        f"{spell(column.name)}{kind}",
        " ".join(column.description.split()),
        "Primary Key" if column.primary_key else "",
        f"Examples: [{', '.join(column.samples)}]" if column.samples else "",
    ]
    return f"({', '.join(filter(None, parts))})"
