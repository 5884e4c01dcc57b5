"""A database's schema: read from SQLite or Spider's tables.json, rendered for a prompt, pruned to fit."""

import re
import sqlite3
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from chatmetrics.components.errors import InputError

SchemaForm = Literal["ddl", "m-schema"]

LONGEST_SAMPLE = 50  # characters; longer values are left out, as in M-Schema

# Keywords that SQLite does not accept as names (sqlite.org/lang_keywords.html without its fallback keywords).
_RESERVED_WORDS = (
    "add all alter and as autoincrement between case check collate commit constraint create default deferrable delete "
    "distinct drop else escape except exists foreign from group having in index insert intersect into is isnull join "
    "limit not notnull null on or order primary references returning select set table then to transaction union "
    "unique update using values when where"
)
_RESERVED = frozenset(_RESERVED_WORDS.split())
_PLAIN_NAME = re.compile(r"[^\W\d]\w*")
_CHINESE = re.compile(r"[\u3400-\u9fff]")


@dataclass(frozen=True, slots=True)
class Column:
    """A column. `type` is as declared; `description` is empty if it would only repeat the name."""

    name: str
    type: str
    primary_key: bool = False
    description: str = ""
    samples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A column that refers to another one. A composite key is several of these."""

    table: str
    column: str
    referenced_table: str
    referenced_column: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table and its columns, in declaration order."""

    name: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Schema:
    """Tables in creation order, and the foreign keys between them."""

    db_id: str
    tables: tuple[Table, ...]
    foreign_keys: tuple[ForeignKey, ...] = ()

    @classmethod
    def from_sqlite(cls, path: Path, sample_values: int = 0) -> Self:
        """Read the schema of an SQLite file, with up to `sample_values` distinct values of each column.

        The file is opened read-only. Foreign keys to tables that do not exist are left out.

        Raises:
            InputError: the file is missing, is not an SQLite database, or has no tables.
        """
        if not path.is_file():
            raise InputError(f"{path}: no such database; name an SQLite file")
        try:
            with closing(sqlite3.connect(path.resolve().as_uri() + "?mode=ro&immutable=1", uri=True)) as connection:
                connection.text_factory = lambda raw: raw.decode("utf-8", errors="replace")
                schema = cls(path.stem, *_read_tables(connection, sample_values))
        except sqlite3.Error as error:
            raise InputError(f"{path}: cannot be read as an SQLite database ({error})") from error
        if not schema.tables:
            raise InputError(f"{path}: the database has no tables")
        return schema

    @classmethod
    def from_spider(cls, entry: Mapping[str, Any], database: Path | None, sample_values: int = 0) -> Self:
        """Read one entry of Spider's tables.json, which adds descriptions and foreign keys to the database's schema.

        Without a `database`, column types are those of tables.json ("text", "number", "time", ...) and there are no
        sample values.

        Raises:
            InputError: the entry lacks a field, or the database cannot be read.
        """
        try:
            described = cls._from_entry(entry)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            name = entry.get("db_id", "an entry")
            raise InputError(f"tables.json: {name}: malformed ({type(error).__name__}: {error})") from error
        if database is None:
            return described
        read = cls.from_sqlite(database, sample_values)
        return replace(read._described_by(described), db_id=described.db_id)

    @classmethod
    def _from_entry(cls, entry: Mapping[str, Any]) -> Self:
        tables = entry["table_names_original"]
        primary = {key for keys in entry["primary_keys"] for key in (keys if isinstance(keys, list) else [keys])}
        owners = [(owner, name) for owner, name in entry["column_names_original"]]
        columns: list[list[Column]] = [[] for _ in tables]
        described = zip(owners, entry["column_names"], entry["column_types"], strict=True)
        for number, ((owner, name), (_, description), kind) in enumerate(described):
            if owner >= 0:
                text = "" if _letters(description) == _letters(name) else description
                columns[owner].append(Column(name, kind, number in primary, text))
        keys = (
            ForeignKey(tables[owners[a][0]], owners[a][1], tables[owners[b][0]], owners[b][1])
            for a, b in entry["foreign_keys"]
        )
        return cls(entry["db_id"], tuple(map(Table, tables, map(tuple, columns))), tuple(keys))

    def _described_by(self, other: "Schema") -> Self:
        descriptions = {
            (table.name.lower(), column.name.lower()): column.description
            for table in other.tables
            for column in table.columns
        }
        tables = tuple(
            replace(
                table,
                columns=tuple(
                    replace(column, description=descriptions.get((table.name.lower(), column.name.lower()), ""))
                    for column in table.columns
                ),
            )
            for table in self.tables
        )
        return replace(self, tables=tables, foreign_keys=_existing_keys(tables, self.foreign_keys + other.foreign_keys))

    def render(self, form: SchemaForm) -> str:
        """The schema as prompt text: DDL or M-Schema. Equal schemas give equal text."""
        return _render_ddl(self) if form == "ddl" else _render_m_schema(self)

    def prune(self, keep: Collection[str]) -> Self:
        """The schema reduced to the tables named in `keep` (case-insensitive), in the same order."""
        names = {name.lower() for name in keep}
        tables = tuple(table for table in self.tables if table.name.lower() in names)
        return replace(self, tables=tables, foreign_keys=_existing_keys(tables, self.foreign_keys))

    def distances(self, from_tables: Iterable[str]) -> dict[str, int]:
        """Number of foreign keys on the shortest path from any of `from_tables` to each reachable table.

        Foreign keys are followed in both directions.
        """
        neighbours: dict[str, set[str]] = {table.name: set() for table in self.tables}
        for key in self.foreign_keys:
            neighbours[key.table].add(key.referenced_table)
            neighbours[key.referenced_table].add(key.table)
        distances = dict.fromkeys(from_tables, 0)
        queue = deque(distances)
        while queue:
            table = queue.popleft()
            for neighbour in neighbours[table] - distances.keys():
                distances[neighbour] = distances[table] + 1
                queue.append(neighbour)
        return distances


def fit_schema(schema: Schema, question: str, form: SchemaForm, fits: Callable[[str], bool]) -> str | None:
    """Render the schema, pruned until it `fits`; None if not even one table fits.

    The relevant tables are guessed from the question alone, so that pruning works the same way without a gold query.
    Tables are ranked by foreign-key distance from the relevant ones, then by how well they match the question:

        question matches  order_item, product    distance 0  ┐
        one key away      orders, supplier       distance 1  │ the longest prefix that fits is kept
        two keys away     customer               distance 2  │
        unreachable       audit_log                          ┘

    Args:
        schema: the whole schema.
        question: the question, in any language.
        form: form of the rendered schema.
        fits: whether a rendered schema leaves enough room for the rest of the prompt. It must be monotonic: if a text
            does not fit, a longer one does not fit either.
    """
    whole = schema.render(form)
    if fits(whole):
        return whole
    scores = _match_scores(schema, question)
    best = max(scores.values())
    distances = schema.distances(name for name, score in scores.items() if score and score >= best / 2)
    # sorted() is stable: tables of equal rank stay in the order of the schema.
    ordered = sorted(scores, key=lambda name: (distances.get(name, len(scores)), -scores[name]))

    def rendered(count: int) -> str:
        return schema.prune(ordered[:count]).render(form)

    # Binary search for the largest number of tables that fits: rendering and counting tokens is slow.
    count = bisect_left(range(1, len(ordered) + 1), True, key=lambda number: not fits(rendered(number)))
    return rendered(count) if count else None


def _read_tables(
    connection: sqlite3.Connection, sample_values: int
) -> tuple[tuple[Table, ...], tuple[ForeignKey, ...]]:
    names = [
        name
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
        )
    ]
    tables = tuple(Table(name, tuple(_read_columns(connection, name, sample_values))) for name in names)
    keys = (key for name in names for key in _read_foreign_keys(connection, name, tables))
    return tables, _existing_keys(tables, keys)


def _read_columns(connection: sqlite3.Connection, table: str, sample_values: int) -> Iterator[Column]:
    rows = connection.execute("SELECT name, type, pk FROM pragma_table_info(?)", (table,)).fetchall()
    for name, kind, primary_key in rows:
        samples = _read_samples(connection, table, name, sample_values) if sample_values else ()
        yield Column(name, kind, primary_key > 0, samples=samples)


def _read_samples(connection: sqlite3.Connection, table: str, column: str, count: int) -> tuple[str, ...]:
    name = _quoted(column)
    query = (
        f"SELECT DISTINCT {name} FROM {_quoted(table)} WHERE {name} IS NOT NULL AND typeof({name}) <> 'blob' "  # noqa: S608
        f"AND length({name}) BETWEEN 1 AND {LONGEST_SAMPLE} LIMIT {count}"
    )
    return tuple(" ".join(str(value).split()) for (value,) in connection.execute(query))


def _read_foreign_keys(connection: sqlite3.Connection, table: str, tables: Iterable[Table]) -> Iterator[ForeignKey]:
    primary_keys = {
        other.name.lower(): [column.name for column in other.columns if column.primary_key] for other in tables
    }
    # SQLite numbers foreign keys from the last declared to the first.
    rows = connection.execute(
        'SELECT "table", "from", "to", seq FROM pragma_foreign_key_list(?) ORDER BY id DESC, seq', (table,)
    )
    for referenced, column, referenced_column, position in rows:
        # A foreign key without a referenced column refers to the primary key.
        implied = primary_keys.get(referenced.lower(), [])[position : position + 1]
        for name in [referenced_column] if referenced_column is not None else implied:
            yield ForeignKey(table, column, referenced, name)


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
        )
        for key in keys
    )
    return tuple(
        dict.fromkeys(ForeignKey(*column, *referenced) for column, referenced in ends if column and referenced)
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _as_identifier(name: str) -> str:
    return name if _PLAIN_NAME.fullmatch(name) and name.lower() not in _RESERVED else _quoted(name)


def _render_ddl(schema: Schema) -> str:
    return "\n".join(_render_create_table(table, schema.foreign_keys) for table in schema.tables)


def _render_create_table(table: Table, foreign_keys: Iterable[ForeignKey]) -> str:
    primary = [column for column in table.columns if column.primary_key]
    lines = [(_render_ddl_column(column, len(primary) == 1), _ddl_comment(column)) for column in table.columns]
    if len(primary) > 1:
        lines.append((f"PRIMARY KEY ({', '.join(_as_identifier(column.name) for column in primary)})", ""))
    lines += [
        (
            f"FOREIGN KEY ({_as_identifier(key.column)}) "
            f"REFERENCES {_as_identifier(key.referenced_table)} ({_as_identifier(key.referenced_column)})",
            "",
        )
        for key in foreign_keys
        if key.table == table.name
    ]
    last = len(lines) - 1
    body = "\n".join(f"{line}{',' if number < last else ''}{comment}" for number, (line, comment) in enumerate(lines))
    return f"CREATE TABLE {_as_identifier(table.name)} (\n{body}\n);"


def _render_ddl_column(column: Column, is_key: bool) -> str:
    key = " PRIMARY KEY" if is_key and column.primary_key else ""
    return f"{_as_identifier(column.name)}{f' {column.type}' if column.type else ''}{key}"


def _ddl_comment(column: Column) -> str:
    samples = f"e.g. {', '.join(column.samples)}" if column.samples else ""
    comment = "; ".join(filter(None, (" ".join(column.description.split()), samples)))
    return f" -- {comment}" if comment else ""


def _render_m_schema(schema: Schema) -> str:
    """M-Schema as published with XiYan-SQL (arXiv 2411.08599)."""
    lines = [f"【DB_ID】 {schema.db_id}", "【Schema】"]
    for table in schema.tables:
        columns = ",\n".join(map(_render_m_schema_column, table.columns))
        lines += [f"# Table: {table.name}", "[", columns, "]"]
    if schema.foreign_keys:
        lines.append("【Foreign keys】")
    lines += [f"{key.table}.{key.column}={key.referenced_table}.{key.referenced_column}" for key in schema.foreign_keys]
    return "\n".join(lines)


def _render_m_schema_column(column: Column) -> str:
    kind = column.type.partition("(")[0].strip().upper() or "TEXT"
    parts = [
        f"{column.name}:{kind}",
        " ".join(column.description.split()),
        "Primary Key" if column.primary_key else "",
        f"Examples: [{', '.join(column.samples)}]" if column.samples else "",
    ]
    return f"({', '.join(filter(None, parts))})"


def _letters(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def _words(text: str) -> set[str]:
    """The words of a name or a question: lower-case, split at underscores and capitals, without a plural s."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", text)
    return {word.removesuffix("s") for word in re.findall(r"\w+", spaced.lower())}


def _match_scores(schema: Schema, question: str) -> dict[str, float]:
    """Score how well each table matches the question, by its name, its column names and its sample values.

    A column name counts less the more tables have it, since names such as "id" carry little information.
    """
    words, text = _words(question), question.lower()

    def mentioned(*names: str) -> bool:
        return any(_words(name) <= words or (_CHINESE.search(name) and name in question) for name in names if name)

    columns = {
        table.name: {_letters(column.name) for column in table.columns if mentioned(column.name, column.description)}
        for table in schema.tables
    }
    frequency = Counter(name for names in columns.values() for name in names)
    return {
        table.name: 2.0 * mentioned(table.name)
        + sum(1 / frequency[name] for name in sorted(columns[table.name]))
        + any(len(value) > 1 and value.lower() in text for column in table.columns for value in column.samples)
        for table in schema.tables
    }
