"""Schemas: reading from SQLite and Spider, rendering for prompts, and pruning."""

import hashlib
import json
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.schema import ForeignKey, Schema, fit_schema

HOTEL = """
CREATE TABLE city (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE hotel (id INTEGER PRIMARY KEY, "full name" VARCHAR(20), city_id INT REFERENCES city);
CREATE TABLE booking (hotel_id INT, day DATE, price REAL, PRIMARY KEY (hotel_id, day),
    FOREIGN KEY (hotel_id) REFERENCES Hotel (ID));
CREATE TABLE invoice (id INTEGER PRIMARY KEY, hotel_id INT, day DATE, "order" TEXT,
    FOREIGN KEY (hotel_id, day) REFERENCES booking (hotel_id, day));
CREATE TABLE color (code TEXT);
INSERT INTO city VALUES (1, '上海'), (2, '北京'), (3, '北京');
INSERT INTO color VALUES ('red'), (NULL), (''), (x'ff'), ('%s');
""" % ("x" * 51)

DDL = """\
CREATE TABLE city (
id INTEGER PRIMARY KEY,
name TEXT
);
CREATE TABLE hotel (
id INTEGER PRIMARY KEY,
"full name" VARCHAR(20),
city_id INT,
FOREIGN KEY (city_id) REFERENCES city (id)
);
CREATE TABLE booking (
hotel_id INT,
day DATE,
price REAL,
PRIMARY KEY (hotel_id, day),
FOREIGN KEY (hotel_id) REFERENCES hotel (id)
);
CREATE TABLE invoice (
id INTEGER PRIMARY KEY,
hotel_id INT,
day DATE,
"order" TEXT,
FOREIGN KEY (hotel_id) REFERENCES booking (hotel_id),
FOREIGN KEY (day) REFERENCES booking (day)
);
CREATE TABLE color (
code TEXT
);"""

M_SCHEMA = """\
【DB_ID】 hotel
【Schema】
# Table: city
[
(id:INTEGER, Primary Key, Examples: [1, 2]),
(name:TEXT, Examples: [上海, 北京])
]
# Table: hotel
[
(id:INTEGER, Primary Key),
(full name:VARCHAR),
(city_id:INT)
]
【Foreign keys】
hotel.city_id=city.id"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    # The name contains what an SQLite URI would parse as a query and a fragment.
    folder = tmp_path / "a folder?mode=rw#1%20"
    folder.mkdir()
    path = folder / "hotel.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(HOTEL)
    return path


def test_a_schema_is_rendered_as_ddl(database: Path) -> None:
    assert Schema.from_sqlite(database).render("ddl") == DDL


def test_a_schema_is_rendered_as_m_schema_with_samples(database: Path) -> None:
    schema = Schema.from_sqlite(database, sample_values=2)
    assert schema.prune(["HOTEL", "city"]).render("m-schema") == M_SCHEMA


def test_samples_leave_out_empty_long_and_binary_values(database: Path) -> None:
    color = Schema.from_sqlite(database, sample_values=5).prune(["color"])
    assert color.render("ddl") == "CREATE TABLE color (\ncode TEXT -- e.g. red\n);"


def test_reading_a_schema_does_not_change_the_database(database: Path) -> None:
    before = hashlib.sha256(database.read_bytes()).hexdigest()
    Schema.from_sqlite(database, sample_values=3)
    assert hashlib.sha256(database.read_bytes()).hexdigest() == before
    assert [path.name for path in database.parent.iterdir()] == ["hotel.sqlite"]


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such database"), (b"text" * 99, "cannot be read"), (b"", "no table")]
)
def test_a_file_that_is_not_a_database_is_an_error_that_names_it(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "x.sqlite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"x\.sqlite: .*{message}"):
        Schema.from_sqlite(path)


def test_text_that_is_not_utf8_is_tolerated(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "x.sqlite")) as connection:
        connection.executescript("CREATE TABLE t (a TEXT); INSERT INTO t VALUES (CAST(x'63616665e9' AS TEXT))")
    schema = Schema.from_sqlite(tmp_path / "x.sqlite", sample_values=1)
    assert schema.tables[0].columns[0].samples == ("cafe\N{REPLACEMENT CHARACTER}",)


def test_distances_follow_foreign_keys_in_both_directions(database: Path) -> None:
    schema = Schema.from_sqlite(database)
    assert schema.distances(["hotel"]) == {"hotel": 0, "city": 1, "booking": 1, "invoice": 2}
    assert schema.distances(["city", "invoice"]) == {"city": 0, "invoice": 0, "hotel": 1, "booking": 1}
    assert schema.distances([]) == {}


def test_pruning_keeps_the_order_and_the_keys_between_kept_tables(database: Path) -> None:
    pruned = Schema.from_sqlite(database).prune(["booking", "hotel"])
    assert [table.name for table in pruned.tables] == ["hotel", "booking"]
    assert pruned.foreign_keys == (ForeignKey("booking", "hotel_id", "hotel", "id"),)


@pytest.mark.parametrize(
    ("question", "budget", "tables"),
    [
        pytest.param("How many invoices?", 10**6, ["city", "hotel", "booking", "invoice", "color"], id="all fits"),
        pytest.param("What was the order of each invoice?", 1, ["invoice"], id="the table that is named"),
        pytest.param("What was the order of each invoice?", 2, ["booking", "invoice"], id="then its neighbour"),
        pytest.param("Which colors are there?", 1, ["color"], id="a plural, unconnected"),
        pytest.param("北京有几个?", 1, ["city"], id="a value in a Chinese question"),
        pytest.param("Full names of hotels?", 2, ["city", "hotel"], id="neighbours in the order of the schema"),
    ],
)
def test_a_schema_is_pruned_by_distance_from_the_tables_in_the_question(
    database: Path, question: str, budget: int, tables: list[str]
) -> None:
    schema = Schema.from_sqlite(database, sample_values=3)
    text = fit_schema(schema, question, "ddl", lambda text: text.count("CREATE TABLE") <= budget)
    assert text is not None
    assert re.findall(r"CREATE TABLE (\w+)", text) == tables


def test_there_is_no_schema_if_not_even_one_table_fits(database: Path) -> None:
    assert fit_schema(Schema.from_sqlite(database), "invoices", "ddl", lambda _: False) is None


@pytest.fixture
def entry() -> dict[str, Any]:
    return {
        "db_id": "hotel_1",
        "table_names_original": ["city", "hotel"],
        "column_names_original": [[-1, "*"], [0, "id"], [0, "name"], [1, "ID"], [1, "full name"], [1, "city_id"]],
        "column_names": [[-1, "*"], [0, "id"], [0, "town"], [1, "id"], [1, "full name"], [1, "city id"]],
        "column_types": ["text", "number", "text", "number", "text", "number"],
        "primary_keys": [1, 3],
        "foreign_keys": [[5, 1], [2, 4]],
    }


def test_tables_json_is_enough_without_a_database(entry: dict[str, Any]) -> None:
    schema = Schema.from_spider(entry, None)
    assert schema.render("ddl") == (
        "CREATE TABLE city (\nid number PRIMARY KEY,\nname text, -- town\n"
        'FOREIGN KEY (name) REFERENCES hotel ("full name")\n);\n'
        'CREATE TABLE hotel (\nID number PRIMARY KEY,\n"full name" text,\ncity_id number,\n'
        "FOREIGN KEY (city_id) REFERENCES city (id)\n);"
    )


def test_tables_json_adds_descriptions_and_keys_to_the_database(entry: dict[str, Any], database: Path) -> None:
    schema = Schema.from_spider(entry, database)
    assert schema.db_id == "hotel_1"
    assert [table.name for table in schema.tables] == ["city", "hotel", "booking", "invoice", "color"]
    assert schema.tables[0].columns[1].description == "town"
    assert schema.foreign_keys == (
        *Schema.from_sqlite(database).foreign_keys,
        ForeignKey("city", "name", "hotel", "full name"),
    )


@pytest.mark.parametrize("broken", [{"column_types": []}, {"foreign_keys": [[5, 99]]}, {"table_names_original": 3}])
def test_a_malformed_entry_of_tables_json_is_an_error_that_names_it(
    entry: dict[str, Any], broken: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=r"tables\.json: hotel_1: malformed"):
        Schema.from_spider(entry | broken, None)


@pytest.mark.skipif("CHATMETRICS_SPIDER_DIR" not in os.environ, reason="CHATMETRICS_SPIDER_DIR is not set")
def test_sqlite_accepts_the_ddl_of_every_spider_database() -> None:
    spider = Path(os.environ["CHATMETRICS_SPIDER_DIR"])
    described = {entry["db_id"]: entry for entry in json.loads((spider / "tables.json").read_bytes())}
    databases = sorted((spider / "database").glob("*/*.sqlite"))
    assert len(databases) == 165
    for path in databases:
        schema = Schema.from_spider(described[path.stem], path, sample_values=2)
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.executescript(schema.render("ddl"))
            names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert names == [table.name for table in schema.tables]
