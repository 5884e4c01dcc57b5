"""Query types of parsed queries."""

import json
import os
from pathlib import Path

import pytest

from chatmetrics.components.nl2sql.sql.query_type import QUERY_TYPES, is_complex, query_type_of, query_types_of

QUERIES = {
    "SELECT name FROM hotel WHERE city = '上海' ORDER BY rating LIMIT 10": "single table",
    "SELECT DISTINCT max(a, b) FROM t": "single table",
    "SELECT count(*) FROM hotel": "aggregate",
    "SELECT city FROM hotel GROUP BY city": "aggregate",
    "SELECT h.name FROM hotel h JOIN city c ON h.city_id = c.id": "2-3 table join",
    "SELECT c.name, avg(rating) FROM hotel h, city c WHERE h.city_id = c.id GROUP BY 1": "2-3 table join",
    "SELECT name FROM (hotel JOIN city USING (city_id))": "2-3 table join",
    "SELECT 1 FROM a JOIN b USING (x), c JOIN d USING (y)": "larger join",
    "SELECT name FROM hotel WHERE rating > (SELECT avg(rating) FROM hotel)": "subquery",
    "SELECT name FROM hotel h WHERE EXISTS (SELECT 1 FROM review r WHERE r.hotel_id = h.id)": "subquery",
    "WITH best AS (SELECT * FROM hotel LIMIT 3) SELECT name FROM best": "subquery",
    "SELECT a FROM t UNION SELECT b FROM u JOIN v USING (b)": "set operation",
    "SELECT * FROM (SELECT a FROM t EXCEPT SELECT a FROM u)": "set operation",
    "SELECT name, rank() OVER (ORDER BY rating DESC) FROM hotel": "window function",
    "WITH r AS (SELECT *, row_number() OVER (PARTITION BY city) n FROM hotel) SELECT * FROM r": "window function",
}
UNPARSED = ["", "not SQL at all", "SELECT 'open", "DROP TABLE hotel", "SELECT " + "(" * 20_000]


@pytest.mark.parametrize("sql", QUERIES)
def test_query_type(sql: str) -> None:
    assert QUERIES[sql] in QUERY_TYPES
    assert query_type_of(sql) == QUERIES[sql]


SEVERAL = {
    "SELECT 1": ("single table",),
    "SELECT count(*) FROM hotel": ("single table", "aggregate"),
    "SELECT name FROM hotel WHERE rating > (SELECT avg(rating) FROM Hotel)": ("single table", "subquery", "aggregate"),
    "SELECT name FROM hotel WHERE id IN (SELECT hotel_id FROM review)": ("subquery",),
    "(SELECT a FROM t) UNION SELECT b FROM u ORDER BY 1": ("set operation",),
    "SELECT sum(count(*)) OVER (ORDER BY m) FROM t GROUP BY m": ("single table", "aggregate", "window function"),
    "SELECT sum(x) OVER (ORDER BY m) FROM t JOIN u": ("2-3 table join", "window function"),
}


@pytest.mark.parametrize("sql", SEVERAL)
def test_a_query_can_have_several_query_types(sql: str) -> None:
    assert query_types_of(sql) == SEVERAL[sql]


def test_a_query_with_one_table_and_an_aggregate_is_not_complex() -> None:
    simple = {"SELECT 1", "SELECT count(*) FROM hotel"}
    assert {sql for sql in SEVERAL if not is_complex(sql)} == simple


@pytest.mark.parametrize("sql", UNPARSED)
def test_text_that_is_not_one_query_is_unparsed(sql: str) -> None:
    assert query_type_of(sql) == "unparsed"


def test_deeply_nested_text_is_unparsed_and_does_not_crash() -> None:
    assert query_type_of("SELECT * FROM (" * 20_000) == "unparsed"
    assert query_type_of("FROM " * 20_000) == "unparsed"
    assert query_type_of(f"SELECT 1 FROM a{' JOIN a' * 20_000}") == "unparsed"
    assert query_type_of(f"SELECT 1 IN ({', '.join(['(1)'] * 2000)})") == "single table"


@pytest.mark.skipif("CHATMETRICS_SPIDER_DIR" not in os.environ, reason="CHATMETRICS_SPIDER_DIR is not set")
def test_every_gold_query_of_spider_dev_has_a_query_type() -> None:
    items = json.loads((Path(os.environ["CHATMETRICS_SPIDER_DIR"]) / "dev.json").read_text(encoding="utf-8"))
    assert {query_type_of(item["query"]) for item in items} == set(QUERY_TYPES) - {"window function"}
