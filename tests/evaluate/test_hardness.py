"""Spider's hardness levels."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from chatmetrics.components.evaluate.hardness import hardness_of

QUERIES = {
    "SELECT count(*) FROM t": "easy",
    "SELECT a FROM t WHERE b = 1": "easy",
    "SELECT a, b FROM t WHERE c LIKE '%x%'": "medium",
    "SELECT a FROM t JOIN u ON t.id = u.id WHERE b = 1": "medium",
    "SELECT max(a), min(b) FROM t GROUP BY c, d": "hard",
    "SELECT a FROM t WHERE b > (SELECT avg(b) FROM t)": "hard",
    "SELECT a FROM t UNION SELECT b FROM u": "hard",
    "SELECT a FROM t JOIN u ON t.i = u.i JOIN v ON v.i = u.i WHERE b = 1 GROUP BY d ORDER BY count(*)": "extra",
    "SELECT a FROM t WHERE b NOT IN (SELECT c FROM u WHERE d = 1)": "hard",
    "SELECT a FROM t WHERE b IN (SELECT c FROM u) AND d IN (SELECT e FROM v)": "extra",
    "not SQL at all": "unparsed",
    "DROP TABLE t": "unparsed",
}


@pytest.mark.parametrize("sql", QUERIES)
def test_level(sql: str) -> None:
    assert hardness_of(sql) == QUERIES[sql]


@pytest.mark.skipif("CHATMETRICS_SPIDER_DIR" not in os.environ, reason="CHATMETRICS_SPIDER_DIR is not set")
def test_spider_dev_has_the_published_counts() -> None:
    items = json.loads((Path(os.environ["CHATMETRICS_SPIDER_DIR"]) / "dev.json").read_text(encoding="utf-8"))
    assert Counter(hardness_of(item["query"]) for item in items) == {
        "easy": 248,
        "medium": 446,
        "hard": 174,
        "extra": 166,
    }
