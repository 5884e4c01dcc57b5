"""A database with names and keys that are hard to handle."""

import sqlite3
from contextlib import closing
from pathlib import Path


def make_world(folder: Path) -> Path:
    """Create world.sqlite and return its path."""
    path = folder / "world.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            """
            CREATE TABLE country (id INTEGER PRIMARY KEY, name TEXT, "Head of State" TEXT, "order" INT);
            CREATE TABLE city (id INTEGER PRIMARY KEY, name TEXT, country_id INT REFERENCES country, population INT);
            CREATE TABLE "my visits" (city_id INT REFERENCES city, "日期" TEXT, "select" INT);
            CREATE TABLE "订单" (nr INT, city_id INT, "金额" REAL);
            CREATE TABLE city_1 (id INT);
            CREATE TABLE empty (id INT, name TEXT);
            INSERT INTO country VALUES (1, 'Japan', 'N', 2), (2, 'France', 'M', 1), (3, 'Peru', NULL, 3);
            INSERT INTO city VALUES (1, 'Tokyo', 1, 14), (2, 'Osaka', 1, 3), (3, 'Paris', 2, 2), (4, 'Kyoto', 1, 9);
            INSERT INTO "my visits" VALUES (1, '2024-01-01', 5), (1, '2024-02-01', 6), (3, '2024-03-01', 7);
            INSERT INTO "订单" VALUES (1, 1, 9.5), (2, 3, 1.5), (3, 3, 2.5);
            INSERT INTO city_1 VALUES (1), (2);
            """
        )
    return path
