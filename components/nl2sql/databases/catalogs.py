"""The schema of a database on a server, from the server's own catalog.

SQLAlchemy's reflection leaves out foreign tables and generated columns' types, fails as a whole where a view may not be
shown, and knows no keys of DuckDB. Each dialect answers the same three questions instead:

    tables    table, kind ("", "view", ...), comment
    columns   table, column, type, comment, in the order of the table; only those that the account may read
    keys      table, column, referenced table, referenced column, name of the constraint, in the order of the key;
              the referenced ones are NULL for a primary key
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.databases.databases import Databases
from chatmetrics.components.nl2sql.descriptions import Descriptions, repeats
from chatmetrics.components.nl2sql.identifiers import quoted
from chatmetrics.components.nl2sql.schema import LONGEST_SAMPLE, SAMPLED_ROWS, Column, ForeignKey, Schema, Table

Rows = Sequence[Sequence[Any]]
# Beginnings of types whose values say nothing to a reader.
WITHOUT_SAMPLES = (
    "bytea",
    "blob",
    "tinyblob",
    "mediumblob",
    "longblob",
    "binary",
    "varbinary",
    "bit",
    "geometry",
    "geography",
)
# Tables without a schema in their name: those that a query finds without naming the schema.
_POSTGRES_TABLES = """
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT c.relispartition AND pg_catalog.pg_table_is_visible(c.oid)
    AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%'
    AND pg_catalog.has_any_column_privilege(c.oid, 'SELECT')
"""
QUERIES: Mapping[str, tuple[str, str, str]] = {
    "postgres": (
        f"""
        SELECT c.relname, CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
        WHEN 'f' THEN 'foreign table' ELSE '' END, COALESCE(pg_catalog.obj_description(c.oid, 'pg_class'), '')
        {_POSTGRES_TABLES} ORDER BY c.oid
        """,
        f"""
        SELECT c.relname, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod) || COALESCE((SELECT
        ' (' || pg_catalog.string_agg(pg_catalog.quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder) || ')'
        FROM pg_catalog.pg_enum e WHERE e.enumtypid = a.atttypid), ''),
        COALESCE(pg_catalog.col_description(c.oid, a.attnum), '')
        FROM (SELECT c.oid, c.relname {_POSTGRES_TABLES}) c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
        WHERE a.attnum > 0 AND NOT a.attisdropped AND pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT')
        ORDER BY c.oid, a.attnum
        """,  # noqa: S608
        f"""
        SELECT c.relname, a.attname, f.relname, fa.attname, k.conname
        FROM (SELECT c.oid, c.relname {_POSTGRES_TABLES}) c JOIN pg_catalog.pg_constraint k ON k.conrelid = c.oid
        CROSS JOIN LATERAL unnest(k.conkey, k.confkey) WITH ORDINALITY AS p (own, referenced, position)
        JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.own
        LEFT JOIN (SELECT c.oid, c.relname {_POSTGRES_TABLES}) f ON f.oid = k.confrelid
        LEFT JOIN pg_catalog.pg_attribute fa ON fa.attrelid = f.oid AND fa.attnum = p.referenced
        WHERE k.contype = 'p' OR (k.contype = 'f' AND f.oid IS NOT NULL) ORDER BY c.oid, k.oid, p.position
        """,  # noqa: S608
    ),
    "mysql": (
        """
        SELECT table_name, CASE WHEN table_type LIKE '%VIEW' THEN 'view' ELSE '' END,
        CASE WHEN table_type LIKE '%VIEW' THEN '' ELSE table_comment END FROM information_schema.tables
        WHERE table_schema = database() ORDER BY table_type LIKE '%VIEW', table_name
        """,
        """
        SELECT table_name, column_name, column_type, column_comment FROM information_schema.columns
        WHERE table_schema = database() ORDER BY table_name, ordinal_position
        """,
        """
        SELECT table_name, column_name, CASE WHEN referenced_table_schema = database() THEN referenced_table_name END,
        referenced_column_name, constraint_name FROM information_schema.key_column_usage
        WHERE table_schema = database() AND (constraint_name = 'PRIMARY' OR referenced_table_schema = database())
        ORDER BY table_name, constraint_name, ordinal_position
        """,
    ),
    "duckdb": (
        """
        SELECT table_name, '', COALESCE(comment, ''), table_oid FROM duckdb_tables()
        WHERE NOT internal AND NOT temporary AND database_name = current_database() AND schema_name = current_schema()
        UNION ALL SELECT view_name, 'view', COALESCE(comment, ''), view_oid FROM duckdb_views()
        WHERE NOT internal AND database_name = current_database() AND schema_name = current_schema() ORDER BY 4
        """,
        """
        SELECT table_name, column_name, data_type, COALESCE(comment, '') FROM duckdb_columns()
        WHERE NOT internal AND database_name = current_database() AND schema_name = current_schema()
        ORDER BY table_name, column_index
        """,
        """
        SELECT table_name, UNNEST(constraint_column_names),
        CASE constraint_type WHEN 'FOREIGN KEY' THEN referenced_table END,
        UNNEST(CASE constraint_type WHEN 'FOREIGN KEY' THEN referenced_column_names ELSE constraint_column_names END),
        constraint_name || constraint_index FROM duckdb_constraints()
        WHERE constraint_type IN ('PRIMARY KEY', 'FOREIGN KEY') AND database_name = current_database()
        AND schema_name = current_schema() ORDER BY table_name, constraint_index
        """,
    ),
}


def read_schema(
    db_id: str, dialect: str, read: Callable[[str], Rows], sample: Callable[[str], Rows], sample_values: int = 0
) -> Schema:
    """Read a schema: tables and views with types, comments, keys and sample values.

    Args:
        db_id: name of the database.
        dialect: a key of `QUERIES`.
        read: runs a query of `QUERIES`.
        sample: runs a query for the sample values of a column, within a time limit; no rows if it fails.
        sample_values: maximum number of distinct values of each column of a table. Views have none, because reading a
            view can take any time.
    """
    tables, columns, keys = (read(query) for query in QUERIES[dialect])
    primary = _primary_keys(keys)
    by_table: dict[str, list[Column]] = {str(name): [] for name, *_ in tables}
    for table, name, kind, comment in columns:
        if table in by_table:
            position = primary.get((table, name), 0)
            by_table[table].append(Column(str(name), str(kind), position, _description(str(name), str(comment))))
    found = [
        Table(str(name), tuple(by_table[name]), str(kind), description=_description(str(name), str(comment)))
        for name, kind, comment, *_ in tables
        if by_table[name]
    ]
    if sample_values:
        found = [table if table.kind else _sampled(table, dialect, sample, sample_values) for table in found]
    return Schema(db_id, tuple(found), _foreign_keys(keys, found), dialect=dialect)


def _primary_keys(keys: Rows) -> dict[tuple[str, str], int]:
    """The position of each column in its table's primary key, from 1."""
    positions: dict[tuple[str, str], int] = {}
    counts: Counter[str] = Counter()
    for table, column, referenced, *_ in keys:
        if referenced is None:
            counts[table] += 1
            positions[table, column] = counts[table]
    return positions


def _foreign_keys(keys: Rows, tables: Iterable[Table]) -> tuple[ForeignKey, ...]:
    columns = {(table.name, column.name) for table in tables for column in table.columns}
    foreign = [row for row in keys if row[2] is not None and {(row[0], row[1]), (row[2], row[3])} <= columns]
    parts = Counter((table, name) for table, _, _, _, name in foreign)
    numbers: dict[tuple[str, str], int] = {}
    return tuple(
        ForeignKey(
            *(str(table), str(column), str(referenced), str(referenced_column)),
            numbers.setdefault((table, name), len(numbers) + 1) if parts[table, name] > 1 else 0,
        )
        for table, column, referenced, referenced_column, name in foreign
    )


def _description(name: str, comment: str) -> str:
    """A comment, unless it only repeats the name."""
    return "" if repeats(comment, name) else comment


def _sampled(table: Table, dialect: str, sample: Callable[[str], Rows], count: int) -> Table:
    text = "CHAR" if dialect == "mysql" else "VARCHAR"

    def values(column: Column) -> tuple[str, ...]:
        if column.type.lower().startswith(WITHOUT_SAMPLES):
            return ()
        name, source = quoted(column.name, dialect), quoted(table.name, dialect)
        # In order, so that training and serving find the same values.
        rows = sample(
            f"SELECT DISTINCT value FROM (SELECT CAST({name} AS {text}) AS value FROM "  # noqa: S608
            f"(SELECT {name} FROM {source} LIMIT {SAMPLED_ROWS}) AS first_rows) AS texts "
            f"WHERE CHAR_LENGTH(value) BETWEEN 1 AND {LONGEST_SAMPLE} ORDER BY value LIMIT {count}"
        )
        return tuple(" ".join(str(value).split()) for (value,) in rows)

    return replace(table, columns=tuple(replace(column, samples=values(column)) for column in table.columns))


class CatalogDatabases(Databases):
    """Databases whose schemas are read from a catalog, each once.

    Args:
        descriptions: foreign keys, and descriptions of columns, that the databases do not contain, by database.

    Attributes:
        dialect: dialect of their SQL, as sqlglot names it.
    """

    dialect: str

    def __init__(self, descriptions: Mapping[str, Descriptions]) -> None:
        self._descriptions = descriptions
        self._structures: dict[tuple[str, int], Schema] = {}

    def structure(self, db_id: str, sample_values: int = 0) -> Schema:
        """The tables, views and foreign keys that the account may read; see `Databases.structure`."""
        key = db_id, sample_values
        if key not in self._structures:
            read, sample = partial(self._read, db_id), partial(self._sample, db_id)
            schema = read_schema(db_id, self.dialect, read, sample, sample_values)
            if not schema.tables:
                raise self._no_tables(db_id)
            self._structures[key] = schema.described_by(self._descriptions.get(db_id, Descriptions()))
        return self._structures[key]

    @abstractmethod
    def _read(self, db_id: str, sql: str) -> Rows:
        """Rows of a query of the catalog. Raises `InputError` if it fails."""

    @abstractmethod
    def _sample(self, db_id: str, sql: str) -> Rows:
        """Rows of a query for sample values; none if it fails."""

    @abstractmethod
    def _no_tables(self, db_id: str) -> InputError:
        """The error about a database without tables."""
