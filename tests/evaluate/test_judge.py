"""Both verdicts on real databases: rule by rule, and on all published predictions with an official verdict."""

import json
import os
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from chatmetrics.components.evaluate.judge import Judgement, Reason, judge
from chatmetrics.components.nl2sql.databases.databases import SqliteDatabases
from chatmetrics.components.nl2sql.databases.execution import FailureMode

ROWS = [(1, "a", "x", 4.0, 10), (2, "b", "x", 5.0, 10), (3, "c", "y", 4.0, 20), (4, "d", "y", 5.0, 20)]
PREDICTIONS = sorted(Path(os.environ.get("CHATMETRICS_PREDICTIONS_DIR", "/nowhere")).glob("*.json"))


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteDatabases]:
    folder = tmp_path_factory.mktemp("databases")
    with sqlite3.connect(folder / "hotel.sqlite") as connection:
        connection.execute("CREATE TABLE hotel (id INTEGER, name TEXT, city TEXT, rating REAL, value INTEGER)")
        connection.executemany("INSERT INTO hotel VALUES (?, ?, ?, ?, ?)", ROWS)
    connection.close()
    with SqliteDatabases(folder, query_seconds=5) as opened:
        yield opened


def judge_one(databases: SqliteDatabases, gold: str, predicted: str, question: str = "") -> Judgement:
    return judge(question, gold, [predicted], partial(databases.execute, "hotel"))[1][0]


# gold, predicted, official, strict, reasons; `h` is the table
CASES = {
    "the same": ("SELECT name FROM h", "SELECT name FROM h ORDER BY id DESC", True, True, []),
    "a column too many": ("SELECT name FROM h", "SELECT name, id FROM h", False, False, []),
    "columns": ("SELECT id, name FROM h", "SELECT name, id FROM h", True, False, [Reason.COLUMN_ORDER]),
    "DISTINCT lacks": ("SELECT DISTINCT city FROM h", "SELECT city FROM h", True, False, [Reason.DISTINCT]),
    "DISTINCT instead of GROUP BY": (
        "SELECT DISTINCT city FROM h",
        "SELECT city FROM h GROUP BY 1",
        False,
        True,
        [Reason.DISTINCT],
    ),
    "DISTINCT and columns": (
        "SELECT DISTINCT city, length(city) FROM h",
        "SELECT length(city), city FROM h",
        True,
        False,
        [Reason.DISTINCT, Reason.COLUMN_ORDER],
    ),
    "duplicates": ("SELECT city FROM h", "SELECT city FROM h GROUP BY 1", False, False, []),
    "order": ("SELECT name FROM h ORDER BY id", "SELECT name FROM h ORDER BY id DESC", False, False, []),
    "order with two spaces": (
        "SELECT name FROM h ORDER  BY id",
        "SELECT name FROM h ORDER BY id DESC",
        True,
        False,
        [Reason.ROW_ORDER],
    ),
    "ties": (
        "SELECT name FROM h ORDER BY rating",
        "SELECT name FROM h ORDER BY rating, id DESC",
        False,
        True,
        [Reason.TIED_ROWS],
    ),
    "ties of an alias": (
        'SELECT city, count(*) AS "n" FROM h GROUP BY city ORDER BY "n"',
        "SELECT city, count(*) FROM h GROUP BY city ORDER BY 2, 1 DESC",
        False,
        True,
        [Reason.TIED_ROWS],
    ),
    "LIMIT through a tie": (
        "SELECT name FROM h ORDER BY rating LIMIT 1",
        "SELECT name FROM h ORDER BY rating, id DESC LIMIT 1",
        False,
        True,
        [Reason.TIED_LIMIT],
    ),
    "LIMIT through a tie, by accident": (
        "SELECT name FROM h ORDER BY rating LIMIT 1",
        "SELECT name FROM h WHERE id = 3",
        False,
        False,
        [Reason.TIED_LIMIT],
    ),
    "LIMIT and other rows": (
        "SELECT name FROM h ORDER BY rating LIMIT 1",
        "SELECT name FROM h ORDER BY rating DESC LIMIT 1",
        False,
        False,
        [],
    ),
    "unknown ties": (
        "SELECT name FROM h ORDER BY 'rating'",
        "SELECT name FROM h ORDER BY id DESC",
        False,
        False,
        [Reason.TIES_UNKNOWN],
    ),
    "order of a subquery": (
        "SELECT name FROM h WHERE rating >= (SELECT rating FROM h ORDER BY rating LIMIT 1)",
        "SELECT name FROM h ORDER BY id DESC",
        False,
        True,
        [Reason.ORDER_NOT_ASKED],
    ),
    "float noise": ("SELECT 0.1 + 0.2", "SELECT 0.3", False, True, [Reason.TOLERANCE]),
    "int and float": ("SELECT sum(id) FROM h", "SELECT total(id) FROM h", True, True, []),
    "int and float sorted": ("SELECT 1, 10", "SELECT 1.0, 10", False, True, [Reason.TOLERANCE]),
    "text and number": ("SELECT 1", "SELECT '1'", False, False, []),
    "both empty": ("SELECT id FROM h WHERE id > 9", "SELECT id FROM h WHERE 0", True, True, [Reason.EMPTY]),
    "both empty, two columns": (
        "SELECT id FROM h WHERE id > 9",
        "SELECT id, name FROM h WHERE 0",
        True,
        False,
        [Reason.EMPTY],
    ),
    "value": ("SELECT id FROM h WHERE id = 1", "SELECT id FROM h WHERE id = value", True, False, [Reason.REWRITTEN]),
    "value as a name": ("SELECT value FROM h", "SELECT value FROM h", False, True, [Reason.REWRITTEN]),
    "spaced operator": (
        "SELECT id FROM h WHERE id >= 3",
        "SELECT id FROM h WHERE id > = 3",
        True,
        False,
        [Reason.REWRITTEN],
    ),
    "this year": ("SELECT 2020", "SELECT YEAR(CURDATE())", True, False, [Reason.REWRITTEN]),
    "several statements": ("SELECT 1", "SELECT 1; DROP TABLE h", True, False, [Reason.REWRITTEN]),
    "empty statements": ("SELECT id FROM h;;", "SELECT id FROM h; -- all\n;", True, True, []),
    "a comment": ("SELECT id FROM h WHERE 0", "-- I cannot answer that", True, False, [Reason.EMPTY]),
    "nothing": ("SELECT id FROM h WHERE 0", "", False, False, []),
    "no SQL": ("SELECT 1", "I cannot answer that", False, False, []),
    "a write": ("SELECT 1", "DELETE FROM h", False, False, []),
    "broken gold": ("SELECT stars FROM h", "SELECT 1", False, False, [Reason.GOLD_FAILS]),
}


@pytest.mark.parametrize("name", CASES)
def test_verdicts_and_why_they_differ(name: str, databases: SqliteDatabases) -> None:
    gold, predicted, official, strict, reasons = CASES[name]
    found = judge_one(databases, gold.replace(" h", " hotel"), predicted.replace(" h", " hotel"))
    assert (found.official, found.strict, list(found.reasons)) == (official, strict, reasons)
    assert (found.failure == FailureMode.OK) is (strict or name == "broken gold")


@pytest.mark.parametrize(
    ("question", "gold", "predicted", "strict"),
    [
        ("Ids and names of the hotels", "SELECT id, name FROM hotel", "SELECT name, id FROM hotel", False),
        ("How many hotels in each city?", "SELECT city, count(*) FROM hotel GROUP BY 1", None, False),
        ("各城市的酒店数量", "SELECT city, count(*) FROM hotel GROUP BY 1", None, True),
        ("Show what is known", "SELECT name, rating FROM hotel", "SELECT rating, name FROM hotel", True),
        ("Show what is known", "SELECT name, rating FROM hotel", "SELECT rating, city FROM hotel", False),
        (
            "Show what is known, best first",
            "SELECT name, rating FROM hotel ORDER BY rating DESC, id",
            "SELECT rating, name FROM hotel ORDER BY rating, id",
            False,
        ),
    ],
)
def test_columns_may_be_reordered_only_if_the_question_leaves_their_order_open(
    question: str, gold: str, predicted: str | None, strict: bool, databases: SqliteDatabases
) -> None:
    swapped = predicted or "SELECT count(*), city FROM hotel GROUP BY 2"
    found = judge_one(databases, gold, swapped, question)
    assert found.strict is strict
    assert (Reason.COLUMN_ORDER in found.reasons) is (strict or found.official)


def test_a_gold_query_runs_once_for_all_systems(databases: SqliteDatabases) -> None:
    asked: list[str] = []

    def execute(queries: list[str]) -> list[object]:
        asked.extend(queries)
        return list(databases.execute("hotel", queries))

    gold = "SELECT name FROM hotel"
    judge("", gold, [gold, "SELECT id FROM hotel", gold], execute)  # type: ignore[arg-type]
    assert asked == [gold, "SELECT id FROM hotel"]


@pytest.mark.skipif(not PREDICTIONS, reason="CHATMETRICS_PREDICTIONS_DIR is not set")
@pytest.mark.skipif("CHATMETRICS_SPIDER_DIR" not in os.environ, reason="CHATMETRICS_SPIDER_DIR is not set")
@pytest.mark.parametrize("file", PREDICTIONS, ids=lambda file: file.stem)
def test_official_verdicts_of_published_predictions_are_reproduced(file: Path) -> None:
    items = json.loads(file.read_text(encoding="utf-8"))
    different, unexplained = [], []
    with SqliteDatabases(Path(os.environ["CHATMETRICS_SPIDER_DIR"]) / "database", query_seconds=5) as databases:
        for item in items:
            execute = partial(databases.execute, item["db_id"])
            found = judge("", item["gold"], [item["predicted"]], execute)[1][0]
            different += [] if found.official == item["official"] else [item]
            unexplained += [] if found.official == found.strict or found.reasons else [item]
    assert len(items) == 972
    assert different == [] and unexplained == []


def test_an_excerpt_of_a_result_is_small(databases: SqliteDatabases) -> None:
    large = "SELECT printf('%.9000000c', 'a') AS " + "x" * 5000 + ", zeroblob(9000000)"
    found = judge_one(databases, "SELECT 1", large)
    [row] = found.result.rows
    assert row[0] == "a" * 200 + "… (9000000 characters)" and len(row[1]) == 200
    assert len(found.result.columns[0]) < 250


@pytest.mark.parametrize(
    ("gold", "predicted", "is_right"),
    [
        ("SELECT 1", "SELECT 1.0", True),
        ("SELECT 1", "SELECT '1'", False),
        ("SELECT 1 UNION ALL SELECT 1", "SELECT 1", True),  # duplicates do not count
        ("SELECT 1 UNION SELECT 2 ORDER BY 1", "SELECT 1 UNION SELECT 2 ORDER BY 1 DESC", True),  # nor does order
        ("SELECT 1, 2", "SELECT 2, 1", False),  # columns do
        ("SELECT 1 WHERE 0", "SELECT 2 WHERE 0", True),
        ("SELECT 1", "SELECT zzz", False),
        ("SELECT 1", "", False),
        ("SELECT 1 WHERE 0", "", False),
        ("SELECT zzz", "SELECT 1", False),
    ],
)
def test_bird_s_verdict_compares_sets_of_rows(
    gold: str, predicted: str, is_right: bool, databases: SqliteDatabases
) -> None:
    _, [found] = judge("", gold, [predicted], partial(databases.execute, "hotel"))
    assert found.bird == is_right
