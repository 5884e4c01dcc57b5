"""Verification on real databases: against gold queries, by majority, and where neither is possible."""

import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from chatmetrics.components.distill.answers.samples import Sample
from chatmetrics.components.distill.answers.verification import verify
from chatmetrics.components.distill.answers.verified import RejectionReason, SampleCounts, Verified
from chatmetrics.components.nl2sql.databases.databases import SqliteDatabases, open_databases
from chatmetrics.components.nl2sql.databases.execution import Result
from chatmetrics.components.nl2sql.example import Example
from tests.distill.shop import answer, make_shop, question, samples, settings

CITY = "SELECT name FROM customer WHERE city_id = 2"


def verify_one(folder: Path, asked: Example, *answers: Any, **values: Any) -> Verified:
    with open_databases(str(folder), 5.0) as databases:
        (verified,) = verify([asked], samples(asked, *answers), databases, settings(**values))
    return verified


def passing(verified: Verified) -> list[int]:
    return [sample.number for sample in verified.passing]


def test_samples_that_return_the_gold_querys_result_pass(tmp_path: Path) -> None:
    make_shop(tmp_path)
    verified = verify_one(
        tmp_path,
        question("SELECT name FROM item ORDER BY price DESC, id", words="The names of items, the dearest first"),
        "SELECT i.name FROM item AS i ORDER BY i.price DESC, i.id",
        "SELECT name FROM item",
        "SELECT title FROM item",
        answer("I cannot say."),
        answer("It was to be SELECT", is_cut=True),
        answer("", is_cut=True),
        "DELETE FROM item",
    )
    assert passing(verified) == [0]
    assert verified.reason is None and verified.answered == 7
    assert verified.rejected == {
        1: RejectionReason.WRONG_RESULT,
        2: RejectionReason.FAILS,
        3: RejectionReason.NO_SQL,
        4: RejectionReason.FAILS,
        5: RejectionReason.CUT,
        6: RejectionReason.FAILS,
    }


def test_an_empty_statement_of_the_gold_query_does_not_count(tmp_path: Path) -> None:
    make_shop(tmp_path)
    verified = verify_one(tmp_path, question(f"{CITY};\n; -- the second city"), CITY, f"{CITY};;")
    assert passing(verified) == [0, 1]


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([], RejectionReason.NO_ANSWER),
        (["No.", answer("")], RejectionReason.NO_SQL),
        (["SELECT x", answer("")], RejectionReason.FAILS),
        (["SELECT x", "SELECT 7"], RejectionReason.WRONG_RESULT),
    ],
)
@pytest.mark.parametrize("gold", ["SELECT count(*) FROM item"])
def test_the_reason_is_that_of_the_sample_that_came_closest(
    tmp_path: Path, gold: str, answers: list[Any], reason: RejectionReason
) -> None:
    make_shop(tmp_path)
    verified = verify_one(tmp_path, question(gold), *answers)
    assert (verified.passing, verified.reason) == ((), reason)


@pytest.mark.parametrize(
    ("gold", "reason"),
    [
        ("SELECT nothing FROM item", RejectionReason.GOLD_FAILS),
        ("SELECT name FROM item WHERE price > 100", RejectionReason.GOLD_EMPTY),
        ("SELECT max(price) FROM item WHERE price > 100", RejectionReason.GOLD_EMPTY),
    ],
)
def test_nothing_passes_if_gold_fails_or_is_empty(tmp_path: Path, gold: str, reason: RejectionReason) -> None:
    make_shop(tmp_path)
    verified = verify_one(tmp_path, question(gold), gold, "SELECT 1 WHERE 0")
    assert (passing(verified), verified.reason, set(verified.rejected.values())) == ([], reason, {reason})


def test_empty_results_pass_if_allowed(tmp_path: Path) -> None:
    make_shop(tmp_path)
    asked = question("SELECT name FROM item WHERE price > 100")
    verified = verify_one(tmp_path, asked, "SELECT name FROM city WHERE 0", "SELECT 1", allow_empty=True)
    assert passing(verified) == [0]
    make_shop(tmp_path, "empty", rows="")
    verified = verify_one(tmp_path, question("SELECT count(*) FROM item", db_id="empty"), "SELECT 0", allow_empty=True)
    assert verified.reason == RejectionReason.UNPOPULATED


@pytest.mark.parametrize(
    ("script", "sql"),
    [
        ("CREATE VIEW day AS SELECT 1 AS number", "SELECT number FROM day"),
        ('CREATE TABLE "a (b" (number INT); INSERT INTO "a (b" VALUES (1)', 'SELECT number FROM "a (b"'),
        ("CREATE VIRTUAL TABLE note USING fts5(text); INSERT INTO note VALUES ('a')", "SELECT text FROM note"),
    ],
)
def test_rows_of_views_and_virtual_tables_count(tmp_path: Path, script: str, sql: str) -> None:
    with closing(sqlite3.connect(tmp_path / "shop.sqlite")) as connection:
        connection.executescript(script)
    assert verify_one(tmp_path, question(sql), sql).reason is None


def test_a_database_that_is_missing_or_broken_is_a_reason(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_shop(tmp_path)
    (tmp_path / "broken.sqlite").write_text("nothing")
    asked = [question("SELECT 1", id=name, db_id=name) for name in ("shop", "none", "broken")]
    given = [sample for one in asked for sample in samples(one, "SELECT 1")]
    with open_databases(str(tmp_path), 5.0) as databases:
        verified = verify(asked, given, databases, settings())
    assert [item.question for item in verified] == asked
    assert [item.reason for item in verified] == [None, RejectionReason.NO_DATABASE, RejectionReason.NO_DATABASE]
    assert "database 'none' is missing" in (output := capfd.readouterr().err) and "broken.sqlite" in output


@pytest.mark.parametrize(
    ("answers", "kept", "reason"),
    [
        pytest.param(
            [CITY, CITY + " ORDER BY 1", f"{CITY} -- x", "SELECT 1"], [], RejectionReason.NO_MAJORITY, id="half"
        ),
        pytest.param([CITY, "SELECT c.name FROM customer c WHERE c.city_id > 1", "SELECT 1"], [0, 1], None, id="most"),
        pytest.param([CITY, CITY, "SELECT 1", "SELECT 1"], [], RejectionReason.NO_MAJORITY, id="tie"),
        pytest.param([CITY], [], RejectionReason.NO_MAJORITY, id="one alone"),
        pytest.param(
            [CITY, CITY, "SELECT x", answer("")], [], RejectionReason.NO_MAJORITY, id="failures lower the share"
        ),
        pytest.param([CITY, CITY, answer(CITY, is_cut=True)], [0, 1], None, id="a cut answer does not vote"),
        pytest.param(
            [CITY, answer(CITY, is_cut=True)], [], RejectionReason.NO_MAJORITY, id="a cut answer makes no majority"
        ),
        pytest.param(["SELECT 1 WHERE 0", "SELECT 2 WHERE 0"], [], RejectionReason.EMPTY_MAJORITY, id="no rows"),
        pytest.param(["SELECT x", "SELECT y"], [], RejectionReason.FAILS, id="all fail"),
        pytest.param([], [], RejectionReason.NO_ANSWER, id="nothing"),
    ],
)
def test_without_gold_most_samples_must_agree(
    tmp_path: Path, answers: list[Any], kept: list[int], reason: RejectionReason | None
) -> None:
    make_shop(tmp_path)
    verified = verify_one(tmp_path, question(words="Names of the customers of city 2?"), *answers)
    assert (passing(verified), verified.reason) == (kept, reason)


def test_one_row_is_in_any_order_and_a_tie_is_no_majority(tmp_path: Path) -> None:
    make_shop(tmp_path)
    dearest = ["SELECT name FROM item WHERE id = 1", "SELECT name FROM item ORDER BY price LIMIT 1"]
    assert passing(verify_one(tmp_path, question(), *dearest)) == [0, 1]
    assert passing(verify_one(tmp_path, question(), *dearest, "SELECT 1", "SELECT 2", min_agreement=0.5)) == [0, 1]
    assert passing(verify_one(tmp_path, question(), *dearest, "SELECT 1", "SELECT 1", min_agreement=0.5)) == []


def test_without_verification_everything_with_sql_passes(tmp_path: Path) -> None:
    verified = verify_one(tmp_path, question("SELECT 1"), "SELECT nonsense", "No.", verification="none")
    assert passing(verified) == [0]
    assert SampleCounts.of([verified], "none").accuracy == {}


class Counted(SqliteDatabases):
    """Counts how often each query is run."""

    runs: ClassVar[Counter[tuple[str, str]]] = Counter()

    def execute(self, db_id: str, queries: Sequence[str]) -> list[Result]:
        self.runs.update((db_id, sql) for sql in queries)
        return super().execute(db_id, queries)


def test_equal_queries_run_once_per_database(tmp_path: Path) -> None:
    names = [f"shop{number}" for number in range(6)]
    for name in names:
        make_shop(tmp_path, name)
    gold = "SELECT count(*) FROM sale"
    asked = [question(gold, id=f"{name}-{number}", db_id=name) for number in range(5) for name in names]
    given: list[Sample] = [s for one in asked for s in samples(one, gold, "SELECT count(*) FROM item", "SELECT 4")]
    with Counted(tmp_path, 5.0) as databases:
        verified = verify(asked, given, databases, settings())
    assert [item.question for item in verified] == asked
    assert all(passing(item) == [0, 1] for item in verified)
    assert {Counted.runs[name, sql] for name in names for sql in (gold, "SELECT 4")} == {1}


def test_the_counts_show_the_teachers_accuracy(tmp_path: Path) -> None:
    make_shop(tmp_path)
    asked = [
        question("SELECT count(*) FROM item", id="aggregate"),
        question("SELECT name FROM item", id="single"),
        question("SELECT x", id="fails"),
        question(id="no gold"),
        question("SELECT 1", id="unanswered"),
    ]
    given = [
        *samples(asked[0], "SELECT count(id) FROM item", "SELECT 5", "SELECT"),
        *samples(asked[1], "SELECT id FROM item", "SELECT price FROM item"),
        *samples(asked[2], "SELECT 1"),
        *samples(asked[3], "SELECT 1", "SELECT 1"),
    ]
    with open_databases(str(tmp_path), 5.0) as databases:
        counts = SampleCounts.of(verify(asked, given, databases, settings()), "execution")
    assert (counts.questions, counts.passing_questions, counts.samples, counts.passing) == (5, 2, 8, 3)
    assert counts.reasons == {
        "no answer": 1,
        "result differs from the gold query's": 1,
        "unverifiable: the gold query fails": 1,
    }
    assert counts.rejected["result differs from the gold query's"] == 3
    assert {name: (found.correct, found.compared) for name, found in counts.accuracy.items()} == {
        "aggregate": (1, 3),
        "single table": (0, 2),
    }


NAMES = ["SELECT names FROM customer WHERE city_id = 2", "SELECT id FROM customers", "SELECT zzz FROM customer", CITY]


def test_names_of_samples_are_bound_before_they_are_verified(tmp_path: Path) -> None:
    make_shop(tmp_path)
    asked, given = question(CITY), [answer(f"```sql\n{sql}\n```", reasoning="I think.") for sql in NAMES]
    assert passing(verify_one(tmp_path, asked, *given)) == [3]
    verified = verify_one(tmp_path, asked, *given, bind_names=True)
    assert [(sample.number, sample.sql, sample.is_repaired, sample.reasoning) for sample in verified.passing] == [
        (0, "SELECT name FROM customer WHERE city_id = 2", True, ""),
        (3, CITY, False, "I think."),
    ]
    assert verified.rejected == {1: RejectionReason.WRONG_RESULT, 2: RejectionReason.FAILS}
    counts = SampleCounts.of([verified], "execution")
    assert (counts.repaired, counts.repaired_passing, counts.passing) == (2, 1, 2)


def test_repaired_samples_need_the_majority_too(tmp_path: Path) -> None:
    make_shop(tmp_path)
    verified = verify_one(tmp_path, question(), NAMES[0], CITY, "SELECT id FROM item", bind_names=True)
    assert passing(verified) == [0, 1]
    assert verify_one(tmp_path, question(), NAMES[0], CITY, "SELECT id FROM item").passing == ()


def test_binding_names_without_verification_is_an_error() -> None:
    with pytest.raises(ValidationError, match="bind_names needs verification by execution"):
        settings(bind_names=True, verification="none")


def test_hostile_answers_are_rejected_quickly(tmp_path: Path) -> None:
    make_shop(tmp_path)
    pieces = ("```", "WITH a AS (", "<think>", "(", "\n", "SELECT ", "SELECT * FROM (", "'", "\ud800", "SELECT 1 /*")
    garbage = [answer((piece * 100_000)[:100_000]) for piece in pieces]
    verified = verify_one(tmp_path, question("SELECT 1"), *garbage, "SELECT 1", verification="execution")
    assert {sample.sql[:11] for sample in verified.passing} <= {"SELECT 1", "SELECT 1 /*"}
    assert passing(verified)[-1] == len(garbage)
    verified = verify_one(tmp_path, question(), *garbage, "SELECT 1")
    assert verified.reason == RejectionReason.NO_MAJORITY
