"""Scenarios follow from the parsed query."""

import json
import os
from pathlib import Path

import pytest

from chatmetrics.components.nl2sql.scenario import SCENARIOS, scenario_of

QUERIES = {
    "SELECT name FROM hotel WHERE city = '上海' ORDER BY rating LIMIT 10": "single table",
    "SELECT DISTINCT max(a, b) FROM t": "single table",
    "SELECT count(*) FROM hotel": "aggregate",
    "SELECT city FROM hotel GROUP BY city": "aggregate",
    "SELECT h.name FROM hotel h JOIN city c ON h.city_id = c.id": "join",
    "SELECT c.name, avg(rating) FROM hotel h, city c WHERE h.city_id = c.id GROUP BY 1": "join",
    "SELECT name FROM (hotel JOIN city USING (city_id))": "join",
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
def test_scenario(sql: str) -> None:
    assert QUERIES[sql] in SCENARIOS
    assert scenario_of(sql) == QUERIES[sql]


@pytest.mark.parametrize("sql", UNPARSED)
def test_what_is_not_one_query_is_unparsed(sql: str) -> None:
    assert scenario_of(sql) == "unparsed"


@pytest.mark.skipif("CHATMETRICS_SPIDER_DIR" not in os.environ, reason="CHATMETRICS_SPIDER_DIR is not set")
def test_every_gold_query_of_spider_dev_has_a_scenario() -> None:
    items = json.loads((Path(os.environ["CHATMETRICS_SPIDER_DIR"]) / "dev.json").read_text(encoding="utf-8"))
    assert {scenario_of(item["query"]) for item in items} == set(SCENARIOS) - {"window function"}
