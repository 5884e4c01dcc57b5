"""Thousands of broken, odd and hostile queries: each gets a verdict, and no file changes."""

import hashlib
import json
import os
import random
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import sqlglot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlglot import exp

from chatmetrics.components.evaluate.judge import judge
from chatmetrics.components.nl2sql.databases.databases import SqliteDatabases
from chatmetrics.components.nl2sql.databases.execution import FailureMode

GOLD = "SELECT name, rating FROM hotel ORDER BY rating"
WORDS = """
SELECT DISTINCT * name rating hotel FROM WHERE ORDER BY GROUP HAVING LIMIT 1 -1 9e99 'x' ; -- /* */ ( ) , . "name"
= > < ! UNION INTERSECT EXCEPT JOIN ON AS IN NOT NULL LIKE BETWEEN AND OR CASE WHEN THEN END count max randomblob
zeroblob printf DROP DELETE INSERT UPDATE RETURNING PRAGMA ATTACH VACUUM INTO WITH RECURSIVE VALUES EXPLAIN value
load_extension x'00' ? :a @b $c 酒店
"""
TEXTS = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from([*WORDS.split(), "\0", "\ud800", "\u2028"]), max_size=30).map(" ".join),
)


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, SqliteDatabases]]:
    folder = tmp_path_factory.mktemp("databases")
    with sqlite3.connect(folder / "hotel.sqlite") as connection:
        connection.execute("CREATE TABLE hotel (name TEXT, rating REAL)")
        connection.executemany("INSERT INTO hotel VALUES (?, ?)", [("a", 4.0), ("b", 5.0), (None, 4.0)])
    connection.close()
    with SqliteDatabases(folder, query_seconds=1) as opened:
        yield folder, opened


def file_hashes(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*")}


@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(TEXTS, min_size=1, max_size=8))
def test_any_text_gets_a_verdict(databases: tuple[Path, SqliteDatabases], predicted: list[str]) -> None:
    folder, opened = databases
    before = file_hashes(folder)
    gold, judgements = judge("", GOLD, predicted, partial(opened.execute, "hotel"))
    assert gold.failure is FailureMode.OK and len(judgements) == len(predicted)
    for judgement in judgements:
        assert judgement.strict is (judgement.failure is FailureMode.OK)
        assert judgement.official is judgement.strict or judgement.reasons
    assert file_hashes(folder) == before


def mutated(sql: str, generator: random.Random) -> str:
    """A mutation of a real query: a part of it is removed, doubled, wrapped or moved."""
    tree = sqlglot.parse_one(sql, read="sqlite")
    nodes = [node for node in tree.walk() if node.parent is not None]
    for _ in range(generator.randint(1, 3)):
        node, other = generator.choice(nodes), generator.choice(nodes)
        match generator.randrange(5):
            case 0:
                node.pop()
            case 1:
                node.replace(other.copy())
            case 2:
                node.replace(exp.func("RANDOMBLOB", exp.Literal.number(1000)))
            case 3:
                node.replace(exp.Distinct(expressions=[other.copy()]))
            case _:
                tree.set("limit", exp.Limit(expression=exp.Literal.number(generator.choice(["-1", "0", "1e9"]))))
    return tree.sql(dialect="sqlite", unsupported_level=sqlglot.ErrorLevel.IGNORE)


@pytest.mark.skipif("CHATMETRICS_SPIDER_DIR" not in os.environ, reason="CHATMETRICS_SPIDER_DIR is not set")
def test_mutated_real_queries_get_a_verdict() -> None:
    spider, generator = Path(os.environ["CHATMETRICS_SPIDER_DIR"]), random.Random(0)
    items = json.loads((spider / "dev.json").read_text(encoding="utf-8"))
    judged = 0
    with SqliteDatabases(spider / "database", query_seconds=1) as databases:
        for item in items:
            if not (spider / "database" / item["db_id"] / f"{item['db_id']}.sqlite").exists():
                continue
            predicted = []
            for _ in range(3):
                try:
                    predicted.append(mutated(item["query"], generator))
                except Exception:  # noqa: BLE001 (sqlglot cannot render every broken tree)
                    continue
            execute = partial(databases.execute, item["db_id"])
            gold, judgements = judge(item["question"], item["query"], predicted, execute)
            judged += len(judgements)
            for judgement in judgements if gold.failure is FailureMode.OK else ():
                assert judgement.strict is (judgement.failure is FailureMode.OK)
                assert judgement.official is judgement.strict or judgement.reasons
    assert judged > 2000
