"""Acceptance tests: running them on a real database, and reading files that may have been tampered with."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.acceptance_test import (
    AcceptanceScore,
    AcceptanceTest,
    Mistake,
    Question,
    read_acceptance_test,
    run_acceptance_test,
)
from chatmetrics.components.nl2sql.databases.execution import Executor
from chatmetrics.components.nl2sql.prompts.prompt import instruction
from chatmetrics.components.nl2sql.published_schema import PublishedSchema

DATABASE = "hotel-0123456789ab.sqlite"
# Question, gold query, and a right answer whose SQL differs from the gold query.
QUESTIONS = {
    "count": (
        "How many hotels are there?",
        "SELECT count(*) FROM hotel",
        "```sql\nSELECT count(name) FROM hotel;\n```",
    ),
    "best": (
        "Hotels, best first",
        "SELECT name FROM hotel ORDER BY rating DESC",
        "SELECT name FROM hotel ORDER BY -rating, name DESC",
    ),
    "all": ("Show what is known", "SELECT name, rating FROM hotel", "It is `SELECT rating, name FROM hotel`"),
    "names": (
        "Names and ratings",
        "SELECT name, rating FROM hotel",
        "<think>rating?</think>SELECT name, rating FROM hotel",
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with closing(sqlite3.connect(tmp_path / DATABASE)) as connection:
        connection.execute("CREATE TABLE hotel (name TEXT, rating REAL)")
        connection.executemany("INSERT INTO hotel VALUES (?, ?)", [("和平饭店", 4.5), ("如家", 4.0), ("Ritz", 4.5)])
        connection.commit()
    return tmp_path


def question(id: str, words: str, sql: str) -> Question:
    return Question(
        id=id, db_id="hotel", question=words, sql=sql, system="", instruction=instruction("hotel"), input=words
    )


def acceptance_test(**changes: Any) -> AcceptanceTest:
    asked = tuple(question(id, words, sql) for id, (words, sql, _) in QUESTIONS.items())
    fields = {"threshold": 0.5, "max_tokens": 64, "databases": {"hotel": DATABASE}, "questions": asked}
    return AcceptanceTest(**{**fields, **changes})


def right_answer(asked: Question) -> str:
    return QUESTIONS[asked.id][2]


def test_right_answers_pass_even_if_their_sql_differs_from_the_gold_query(folder: Path) -> None:
    score = run_acceptance_test(acceptance_test(threshold=1.0), folder, right_answer)
    assert (score.right, score.total, score.needed, score.passed, score.wrong) == (4, 4, 4, True, [])
    assert score.answers["count"] == "SELECT count(name) FROM hotel"
    assert list(score.answers) == list(QUESTIONS)
    assert score.summary() == "4 of 4 right, 4 needed"


@pytest.mark.parametrize(
    ("id", "answer", "reason"),
    [
        ("count", "SELECT 7", "wrong result"),
        ("count", "SELECT count(*) FROM motel", "no such table: motel"),
        ("count", "SELECT count(", "does not parse: incomplete input"),
        ("count", "DELETE FROM hotel", "refused: "),
        ("count", "I do\nnot know", "no SQL in the answer 'I do not know'"),
        ("count", "", "no SQL in the answer ''"),
        ("best", "SELECT name FROM hotel ORDER BY rating", "wrong result"),
        ("names", "SELECT rating, name FROM hotel", "wrong result"),
        ("count", "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT count(*) FROM n", "timed out: "),
    ],
)
def test_a_wrong_answer_is_reported_with_its_reason(id: str, answer: str, reason: str, folder: Path) -> None:
    before = (folder / DATABASE).read_bytes()
    score = run_acceptance_test(
        acceptance_test(), folder, lambda asked: answer if asked.id == id else right_answer(asked)
    )
    [mistake] = score.wrong
    assert (score.right, score.passed) == (3, True)
    assert (mistake.id, mistake.question, mistake.sql) == (id, QUESTIONS[id][0], score.answers[id])
    assert mistake.reason.startswith(reason)
    assert f"; wrong: '{mistake.question}' -> {reason}" in score.summary()
    assert (folder / DATABASE).read_bytes() == before


def test_the_threshold_decides_and_can_be_replaced(folder: Path) -> None:
    def half(asked: Question) -> str:
        return right_answer(asked) if asked.id in ("count", "best") else "SELECT 0"

    assert run_acceptance_test(acceptance_test(), folder, half).passed
    score = run_acceptance_test(acceptance_test(), folder, half, threshold=0.51)
    assert (score.right, score.needed, score.passed) == (2, 3, False)
    assert run_acceptance_test(acceptance_test(), folder, lambda asked: "", threshold=0.0).passed
    with pytest.raises(InputError, match=r"threshold 1\.5"):
        run_acceptance_test(acceptance_test(), folder, half, threshold=1.5)


@pytest.mark.parametrize(
    ("threshold", "total", "needed"),
    [(0.0, 10, 0), (0.07, 100, 7), (0.3, 10, 3), (0.5, 1, 1), (0.5, 3, 2), (0.7, 10, 7), (0.8, 9, 8), (1.0, 10, 10)],
)
def test_needed_is_the_smallest_number_that_reaches_the_threshold(threshold: float, total: int, needed: int) -> None:
    assert AcceptanceScore(total, threshold, [], {}).needed == needed


def test_a_failing_gold_query_is_an_error_before_the_model_is_asked(folder: Path) -> None:
    asked: list[str] = []

    def answer(question: Question) -> str:
        asked.append(question.id)
        return "SELECT 1"

    broken = acceptance_test(questions=(question("stars", "Stars?", "SELECT stars FROM hotel"),))
    with pytest.raises(InputError, match=r"gold query of question 'stars' fails on .*no such column: stars"):
        run_acceptance_test(broken, folder, answer)
    with pytest.raises(InputError, match=rf"{DATABASE} cannot be read"):
        run_acceptance_test(acceptance_test(), folder / "elsewhere", answer)
    (folder / DATABASE).write_bytes(b"not a database")
    with pytest.raises(InputError, match="is not an SQLite database"):
        run_acceptance_test(acceptance_test(), folder, answer)
    assert asked == []


def test_a_summary_is_one_short_printable_line() -> None:
    hostile = "浦东\n\x1b[31m" * 500
    score = AcceptanceScore(100, 0.5, [Mistake(str(n), hostile, "", hostile) for n in range(60)], {})
    summary = score.summary()
    assert summary.startswith("40 of 100 right, 50 needed; wrong: '浦东 [31m浦东")
    assert len(summary) <= 600 and summary.isprintable()
    reported = summary.count("-> ")
    assert reported > 1 and summary.endswith(f"; and {60 - reported} more")


def test_an_acceptance_test_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "acceptance_test.json"
    path.write_text(acceptance_test().model_dump_json(), encoding="utf-8")
    assert read_acceptance_test(path) == acceptance_test()


def changed(path: str, value: Any) -> str:
    """An acceptance test as JSON, with the value at a path such as "questions.0.id" replaced."""
    record: Any = json.loads(acceptance_test().model_dump_json())
    *parents, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    target = record
    for part in parents:
        target = target[part]
    target[last] = value
    return json.dumps(record)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Invalid JSON"),
        ("[" * 100_000, "Invalid JSON"),
        ("{}", "threshold: Field required"),
        (changed("threshold", 1.5), "threshold: Input should be less than or equal to 1"),
        (changed("threshold", "NaN"), "threshold: "),
        (changed("max_tokens", 0), "max_tokens: "),
        (changed("questions", []), "questions: "),
        (changed("questions.0.sql", None), r"questions\.0\.sql: Input should be a valid string"),
        (changed("questions.0.db_id", "motel"), "no file is named for the database 'motel'"),
        (changed("questions.0.id", "best"), "several questions have the id 'best'"),
        (changed("databases.hotel", "../hotel.sqlite"), r"databases\.hotel: String should match"),
        (changed("databases.hotel", "/etc/passwd"), r"databases\.hotel: String should match"),
        (changed("databases.hotel", ".."), r"databases\.hotel: String should match"),
        (changed("databases.hotel", "hotel.sqlite\n"), r"databases\.hotel: String should match"),
        (changed("surprise", 1), "surprise: Extra inputs"),
    ],
)
def test_a_malformed_acceptance_test_is_an_error_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "acceptance_test.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_acceptance_test(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.json: cannot be read"):
        read_acceptance_test(tmp_path / "no.json")


SCHEMA = {"Guest": ("id", "hotelId", "note"), "hotel": ("id", "name", "price")}


def served_test(dialect: str = "postgres") -> AcceptanceTest:
    """A test about a database on a server, which has a schema instead of a file."""
    schema = PublishedSchema(dialect=dialect, tables=SCHEMA)
    return acceptance_test(databases={}, schemas={"hotel": schema})


@pytest.mark.parametrize(
    ("dialect", "sql", "reason"),
    [
        ("postgres", 'SELECT name::text FROM hotel JOIN "Guest" g ON g."hotelId" = hotel.id', ""),
        ("postgres", "WITH a (x) AS (SELECT name FROM hotel) SELECT DISTINCT ON (x) x FROM a ORDER BY x", ""),
        ("postgres", "SELECT name FROM Guest", "no such table: Guest"),
        ("postgres", 'SELECT hotelId FROM "Guest"', "no such column: hotelId"),
        ("postgres", "SELECT h.nam FROM hotel h", "no such column: h.nam"),
        ("postgres", "SELECT g.name FROM hotel h", "no such column: g.name"),
        ("postgres", 'SELECT id FROM hotel, "Guest"', "ambiguous column name: id"),
        ("postgres", "SELECT name FROM hotel WHERE", "does not parse: "),
        ("postgres", "SELECT (", "does not parse: "),
        ("postgres", "DELETE FROM hotel", "refused: not a statement that only reads"),
        ("postgres", "WITH a AS (DELETE FROM hotel RETURNING *) SELECT * FROM a", "refused: "),
        ("postgres", "SELECT 1; DROP TABLE hotel", ""),  # the answer's first statement
        ("mysql", "SELECT `name`, IFNULL(price, 0) FROM HOTEL GROUP BY name HAVING COUNT(*) > 1", ""),
        ("mysql", "SELECT `stars` FROM hotel", "no such column: `stars`"),
        ("duckdb", "SELECT name FROM hotel WHERE price = (SELECT max(price) FROM hotel)", ""),
        ("duckdb", "SELECT name FROM motel", "no such table: motel"),
        ("postgres", "I do not know", "no SQL in the answer 'I do not know'"),
    ],
)
def test_without_its_database_the_text_of_an_answer_is_checked(dialect: str, sql: str, reason: str) -> None:
    score = run_acceptance_test(served_test(dialect), Path("/nowhere"), lambda asked: sql)
    assert score.by_text == ("hotel",)
    assert "4 needed" in replace(score, threshold=1.0).summary()
    assert "(no database, so only the text of the SQL was checked: hotel)" in score.summary()
    assert (score.right, [mistake.reason for mistake in score.wrong]) == (4, []) if not reason else score.right == 0
    assert all(mistake.reason.startswith(reason) for mistake in score.wrong)


def test_a_database_that_is_served_is_asked(folder: Path) -> None:
    with Executor(5) as executor:
        served = {"hotel": partial(executor.execute_all, folder / DATABASE), "other": lambda queries: 1 / 0}
        score = run_acceptance_test(served_test(), folder, right_answer, served=served)
        assert (score.right, score.by_text) == (4, ())
        score = run_acceptance_test(served_test(), folder, lambda asked: "SELECT name FROM hotel", served=served)
        assert {mistake.reason for mistake in score.wrong} == {"wrong result"}
        with pytest.raises(InputError, match="the gold query of question 'count' fails on the database 'hotel'"):
            fails = {"hotel": lambda queries: executor.execute_all(folder / DATABASE, ["x"])}
            run_acceptance_test(served_test(), folder, right_answer, served=fails)


@pytest.mark.parametrize("sql", ["(" * 60_000, "SELECT '\\ud800", "SELECT a ->> .b", "\0", ""])
def test_no_text_ends_the_check(sql: str) -> None:
    problem = PublishedSchema(dialect="postgres", tables=SCHEMA).problem(sql)
    assert problem.startswith(("does not parse: ", "refused: "))


def test_a_database_with_neither_file_nor_schema_is_an_error(folder: Path) -> None:
    path = folder / "test.json"
    content = json.loads(served_test().model_dump_json()) | {"schemas": {}}
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="no file is named for the database 'hotel'"):
        read_acceptance_test(path)
