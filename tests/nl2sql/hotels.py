"""One hotel database in three dialects: PostgreSQL, MariaDB and DuckDB."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import sqlalchemy

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
    start = postgres if dialect == "postgresql" else mariadb
    with start(folder) as url:
        default = "postgres" if dialect == "postgresql" else "mysql"
        _run(f"{url}/{default}", [f"CREATE DATABASE hotels{' CHARACTER SET utf8mb4' * (dialect == 'mariadb')}"])
        rights = {
            "postgresql": ["CREATE ROLE reader LOGIN", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader"],
            "mariadb": [
                "DROP USER IF EXISTS ''@'localhost'",
                "CREATE USER reader",
                "GRANT SELECT, SHOW VIEW ON hotels.* TO reader",
            ],
        }
        _run(f"{url}/hotels", [*statements(dialect), *rights[dialect]])
        yield f"{url.replace('admin@', 'reader@').replace('root@', 'reader@')}/{{db_id}}"


def _run(url: str, texts: list[str]) -> None:
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for text in texts:
            connection.exec_driver_sql(text)
    engine.dispose()
