"""Addresses of databases: the name and place of one of them."""

from pathlib import Path

import duckdb
import pytest

from chatmetrics.components.nl2sql.databases.addresses import ListedDatabase, as_text, listed_at, name_at, one_at
from chatmetrics.components.nl2sql.databases.databases import open_databases
from chatmetrics.components.nl2sql.databases.execution import FailureMode

HOTEL = ListedDatabase("hotel", "postgresql+psycopg://reader@h/sales", "front", ("booking",))
FLIGHT = ListedDatabase("flight", "duckdb:////data/{db_id}.duckdb")


@pytest.mark.parametrize(
    ("where", "db_id", "expected"),
    [
        ("postgresql+psycopg://reader@h/{db_id}", "hotel", "postgresql+psycopg://reader@h/hotel"),
        ("duckdb:////data/{db_id}.duckdb", "hotel", "duckdb:////data/hotel.duckdb"),
        # Questions have another name for the database than its address.
        ("mysql://h/sales", "hotel", as_text([ListedDatabase("hotel", "mysql://h/sales")])),
        (as_text([HOTEL, FLIGHT]), "hotel", as_text([HOTEL])),
        (as_text([HOTEL, FLIGHT]), "flight", as_text([FLIGHT])),
    ],
)
def test_one_database_is_asked_under_the_name_that_its_questions_have(where: str, db_id: str, expected: str) -> None:
    assert one_at(where, db_id) == expected
    assert name_at(expected) == db_id


def test_the_schema_of_a_listed_database_is_an_option_of_its_connection() -> None:
    assert HOTEL.place == "postgresql+psycopg://reader@h/sales?options=-csearch_path%3D%22front%22"
    assert FLIGHT.place == "duckdb:////data/flight.duckdb"
    assert listed_at(as_text([HOTEL, FLIGHT])) == {"hotel": HOTEL, "flight": FLIGHT}


def test_a_list_has_the_limit_on_rows_and_its_tables(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "warehouse.duckdb")) as connection:
        connection.execute("CREATE TABLE item AS SELECT * FROM range(5)")
        connection.execute("CREATE TABLE other AS SELECT 1 AS a")
    where = as_text([ListedDatabase("shop", f"duckdb:///{tmp_path}/warehouse.duckdb", tables=("item",))])
    with open_databases(where, 3.0, max_rows=4) as databases:
        many, few = databases.execute("shop", ["SELECT * FROM item", "SELECT count(*) FROM item"])
        assert (many.failure, few.rows) == (FailureMode.OVER_MEMORY, [(5,)])
        schema = databases.structure("shop")
        assert (schema.db_id, [table.name for table in schema.tables]) == ("shop", ["item"])
