"""One hotel database in three dialects: PostgreSQL, MariaDB and DuckDB."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import sqlalchemy
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from tests.nl2sql.mariadb import SERVER, mariadb
from tests.nl2sql.postgres import BINARIES, postgres

DIALECTS = ("postgresql", "mariadb", "duckdb")
INSTALLED = {"postgresql": BINARIES is not None, "mariadb": SERVER is not None, "duckdb": True}

_TABLES = """
CREATE TABLE city (id int, year int, name varchar(20), PRIMARY KEY (year, id));
CREATE TABLE hotel (id int PRIMARY KEY, name varchar(40), price decimal(10, 2), opened date,
    city_id int, city_year int, {mood}, {generated}, FOREIGN KEY (city_year, city_id) REFERENCES city (year, id));
CREATE TABLE {guest} (id int PRIMARY KEY, {hotel_id} int REFERENCES hotel (id), note varchar(60));
INSERT INTO city VALUES (1, 2024, '上海'), (2, 2024, 'Bonn');
INSERT INTO hotel (id, name, price, opened, city_id, city_year, mood) VALUES
    (1, '和平饭店', 10.50, '1929-08-01', 1, 2024, 'good'), (2, 'Ritz', 20, NULL, 2, 2024, 'bad'),
    (3, 'Adler', 0.25, '2001-02-03', NULL, NULL, NULL);
INSERT INTO {guest} VALUES (1, 1, 'a (b) -- c'), (2, 1, NULL), (3, 2, 'it''s');
CREATE VIEW best AS SELECT name AS best_name FROM hotel WHERE price > 15
"""
_OF = {
    "postgresql": {
        "mood": "mood feeling",
        "generated": "twice int GENERATED ALWAYS AS (id * 2) STORED",
        "guest": '"Guest"',
        "hotel_id": '"hotelId"',
    },
    "mariadb": {
        "mood": "mood enum('good', 'bad')",
        "generated": "twice int GENERATED ALWAYS AS (id * 2) STORED",
        "guest": "`Guest`",
        "hotel_id": "`hotelId`",
    },
    "duckdb": {
        "mood": "mood feeling",
        "generated": "twice int GENERATED ALWAYS AS (id * 2)",
        "guest": '"Guest"',
        "hotel_id": '"hotelId"',
    },
}
_RIGHTS = {
    "postgresql": ["CREATE ROLE reader LOGIN", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader"],
    "mariadb": [
        "DROP USER IF EXISTS ''@'localhost'",
        "CREATE USER reader",
        "GRANT SELECT, SHOW VIEW ON {name}.* TO reader",
    ],
}
_BEFORE = {
    "postgresql": "CREATE TYPE feeling AS ENUM ('good', 'bad');",
    "duckdb": "CREATE TYPE feeling AS ENUM ('good', 'bad');",
}
_AFTER = {
    "postgresql": ";COMMENT ON COLUMN hotel.price IS 'per night, in euro'",
    "mariadb": ";ALTER TABLE hotel MODIFY price decimal(10, 2) COMMENT 'per night, in euro'",
    "duckdb": ";COMMENT ON COLUMN hotel.price IS 'per night, in euro'",
}


def statements(dialect: str) -> list[str]:
    """The statements that create the database."""
    text = _BEFORE.get(dialect, "") + _TABLES.format(**_OF[dialect]) + _AFTER[dialect]
    return [statement.strip() for statement in text.split(";") if statement.strip()]


@contextmanager
def hotels(dialect: str, folder: Path) -> Iterator[str]:
    """Create the database `hotels` and yield its address with `{db_id}`, for an account that may only read."""
    if dialect == "duckdb":
        with duckdb.connect(str(folder / "hotels.duckdb")) as connection:
            for statement in statements(dialect):
                connection.execute(statement)
        yield f"duckdb:///{folder}/{{db_id}}.duckdb"
        return
    with _server(dialect, folder, "hotels") as (url, reader):
        _run(url, statements(dialect))
        _grant(url, dialect, "hotels")
        yield reader


@contextmanager
def copied(sqlite: Path, dialect: str, folder: Path) -> Iterator[str]:
    """Copy an SQLite file to a server, or to a DuckDB file, of its own, and yield its address with `{db_id}`."""
    given, metadata = sqlalchemy.create_engine(f"sqlite:///{sqlite}"), sqlalchemy.MetaData()
    metadata.reflect(given)
    for column in (column for table in metadata.tables.values() for column in table.columns):
        if isinstance(column.type, sqlalchemy.REAL):
            column.type = sqlalchemy.Double()  # as SQLite keeps it
    if dialect == "duckdb":
        with duckdb.connect(str(folder / f"{sqlite.stem}.duckdb")) as connection:
            _copy_to_duckdb(given, metadata, connection)
        yield f"duckdb:///{folder}/{{db_id}}.duckdb"
        return
    with _server(dialect, folder, sqlite.stem) as (url, reader):
        there = sqlalchemy.create_engine(url)
        metadata.create_all(there)
        with given.connect() as source, there.begin() as target:
            for table in metadata.sorted_tables:
                target.execute(table.insert(), [dict(row._mapping) for row in source.execute(table.select())])
        there.dispose()
        _grant(url, dialect, sqlite.stem)
        yield reader


@contextmanager
def _server(dialect: str, folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """A server with an empty database: its URL for the superuser, and the address with `{db_id}` for the reader."""
    start, default = (postgres, "postgres") if dialect == "postgresql" else (mariadb, "mysql")
    with start(folder) as url:
        _run(f"{url}/{default}", [f"CREATE DATABASE {name}{' CHARACTER SET utf8mb4' * (dialect == 'mariadb')}"])
        yield f"{url}/{name}", f"{url.replace('admin@', 'reader@').replace('root@', 'reader@')}/{{db_id}}"


def _grant(url: str, dialect: str, name: str) -> None:
    """Create the reader, who may only read the tables that there are."""
    _run(url, [text.format(name=name) for text in _RIGHTS[dialect]])


def _copy_to_duckdb(given: sqlalchemy.Engine, metadata: sqlalchemy.MetaData, target: duckdb.DuckDBPyConnection) -> None:
    dialect = postgresql.dialect()
    with given.connect() as source:
        for table in metadata.sorted_tables:
            target.execute(str(CreateTable(table).compile(dialect=dialect)).replace("SERIAL", "INTEGER"))
            rows = [tuple(row) for row in source.execute(table.select())]
            target.executemany(f"INSERT INTO {table.name} VALUES ({', '.join('?' * len(table.columns))})", rows)


def _run(url: str, texts: list[str]) -> None:
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for text in texts:
            connection.exec_driver_sql(text)
    engine.dispose()
