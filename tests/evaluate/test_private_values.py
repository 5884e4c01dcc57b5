"""Values of private columns are in no report and in no acceptance test."""

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from chatmetrics.components.evaluate.acceptance_test import draw_acceptance_test
from chatmetrics.components.evaluate.answers import _ErrorMessages
from chatmetrics.components.evaluate.evaluate import evaluate_predictions, write_report
from chatmetrics.components.evaluate.predictions import TokenUsage, predicted
from chatmetrics.components.evaluate.private_values import PrivateValueError, remove_private_values
from chatmetrics.components.evaluate.score import Item, score
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.nl2sql.acceptance_test import AcceptanceScore, read_acceptance_test
from chatmetrics.components.nl2sql.databases.databases import SqliteDatabases
from chatmetrics.components.nl2sql.descriptions import Descriptions, write_descriptions
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3

USAGE = TokenUsage(latency=0.25, first_token=0.05, prompt_tokens=100, completion_tokens=20, truncated=False)
PHONES = [f"1390000{number:04}" for number in range(50)]
SCHEMA = """
CREATE TABLE guest (
    id INTEGER PRIMARY KEY, name TEXT, "Phone" TEXT NOT NULL UNIQUE CHECK (length("Phone") > 5), note TEXT
);
CREATE INDEX by_phone ON guest ("Phone");
CREATE TABLE stay (guest_id INT REFERENCES guest);
CREATE TABLE audit (text TEXT);
CREATE VIEW seen AS SELECT name AS who, "Phone" AS number FROM guest;
CREATE TRIGGER changed AFTER UPDATE ON guest BEGIN INSERT INTO audit VALUES (old."Phone"); END;
"""
QUERIES = [
    "SELECT count(*) FROM guest",
    "SELECT phone FROM guest",
    "SELECT * FROM guest WHERE id < 3",
    "SELECT name FROM guest WHERE id = 1",
    "SELECT who FROM seen WHERE number LIKE '%0001'",
]


def make_hotel(databases: Path, script: str = "") -> None:
    databases.mkdir()
    with closing(sqlite3.connect(databases / "hotel.sqlite")) as connection:
        connection.executescript(SCHEMA)
        rows = [(f"guest {number}", phone, f"calls from {phone}") for number, phone in enumerate(PHONES)]
        connection.executemany('INSERT INTO guest (name, "Phone", note) VALUES (?, ?, ?)', rows)
        connection.execute("ANALYZE")
        connection.executescript(script)
        connection.commit()


@pytest.fixture
def asked(examples: list[Example]) -> list[Example]:
    return [replace(examples[0], id=f"q{number}", sql=sql) for number, sql in enumerate(QUERIES)]


def known(**private: Sequence[str]) -> dict[str, Descriptions]:
    return {"hotel": Descriptions(private={table: tuple(names) for table, names in private.items()})}


def scored(asked: Sequence[Example], databases: Path, about: dict[str, Descriptions]) -> list[Item]:
    with SqliteDatabases(databases, query_seconds=5, descriptions=about) as opened:
        return score({"student": [predicted(example, example.sql, USAGE) for example in asked]}, opened)[0]


def draw(
    asked: Sequence[Example], databases: Path, output: Path, about: dict[str, Descriptions]
) -> AcceptanceScore | None:
    items, settings = scored(asked, databases, about), EvaluateSettings()
    return draw_acceptance_test(asked, items, "student", str(databases), settings, output, DEEPSEEK3, about)


def test_the_published_database_has_no_private_value(asked: list[Example], tmp_path: Path) -> None:
    make_hotel(tmp_path / "d")
    drawn = draw(asked, tmp_path / "d", tmp_path / "report", known(GUEST=["phone", "note", "nothing"]))
    assert drawn is not None and drawn.passed and drawn.right == 2
    folder = tmp_path / "report/acceptance_test"
    (path,) = folder.glob("*.sqlite")
    assert not [phone for phone in PHONES if phone.encode() in path.read_bytes()]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name, note FROM guest WHERE id = 1").fetchall() == [("guest 0", None)]
        assert connection.execute("SELECT count(*) FROM audit").fetchone() == (0,)
        problems = {problem for (problem,) in connection.execute("PRAGMA integrity_check")}
        assert problems == {"CHECK constraint failed in guest"}
    (test,) = folder.glob("*.json")
    # Neither those that name the column, nor those that return other rows without it.
    assert {question.sql for question in read_acceptance_test(test).questions} == {QUERIES[0], QUERIES[3]}
    # Without private columns, the whole file is published.
    draw(asked, tmp_path / "d", tmp_path / "report", {})
    (path,) = folder.glob("*.sqlite")
    assert path.read_bytes() == (tmp_path / "d/hotel.sqlite").read_bytes()


@pytest.mark.parametrize(
    ("script", "private", "reason"),
    [
        ("", {"guest": ["id"]}, "guest.id is part of a key"),
        ("", {"stay": ["guest_id"]}, "stay.guest_id is part of a key"),
        ("CREATE VIEW v AS SELECT name AS who FROM guest", {"v": ["who"]}, "v.who is computed from other columns"),
        (
            "CREATE TABLE g (a TEXT, b TEXT AS (a || '!') STORED)",
            {"g": ["b"]},
            "g.b is computed from other columns",
        ),
        ("CREATE INDEX i ON guest (id) WHERE phone <> '13900000001'", {"guest": ["phone"]}, "the statement of i could"),
        (
            "CREATE TABLE c (id INT, a INT CHECK (a IN (4711, 8)))",
            {"c": ["a"]},
            "the statement of c could contain a value",
        ),
        ("CREATE TABLE c (id INT, a INT /* as 12 */)", {"c": ["a"]}, "the statement of c could contain a value"),
        (
            "CREATE TABLE c (_rowid_ INT, oid INT, rowid INT NOT NULL); INSERT INTO c VALUES (1, 2, 3)",
            {"c": ["rowid"]},
            "columns of c hide the number of a row",
        ),
        ("CREATE VIRTUAL TABLE f USING fts5(name)", {"guest": ["phone"]}, "it has virtual tables"),
        (
            "CREATE TABLE w (a TEXT PRIMARY KEY, b TEXT NOT NULL) WITHOUT ROWID; INSERT INTO w VALUES (1, 2)",
            {"w": ["b"]},
            "rowid",
        ),
    ],
)
def test_a_database_whose_values_could_remain_is_not_published(
    asked: list[Example],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    script: str,
    private: dict[str, list[str]],
    reason: str,
) -> None:
    make_hotel(tmp_path / "d", script)
    assert draw(asked, tmp_path / "d", tmp_path / "report", known(**private)) is None
    assert not (tmp_path / "report/acceptance_test").exists()
    printed = capsys.readouterr().err
    assert "the acceptance test has no question about hotel, which has private columns: " in printed
    assert reason in printed


@pytest.mark.parametrize(
    ("script", "column"),
    [
        ("CREATE TABLE c (id INTEGER PRIMARY KEY, a TEXT NOT NULL ON CONFLICT IGNORE)", "a"),
        ("CREATE TABLE c (id INTEGER PRIMARY KEY, a INT NOT NULL UNIQUE ON CONFLICT REPLACE)", "a"),
        ("CREATE TABLE c (rowid INT NOT NULL, a INT NOT NULL)", "a"),
        ("CREATE TABLE c (id INT, rowid INT NOT NULL)", "rowid"),
        ("CREATE TABLE c (id INT, a BLOB NOT NULL) STRICT", "a"),
    ],
)
def test_no_constraint_keeps_a_value(tmp_path: Path, script: str, column: str) -> None:
    path = tmp_path / "c.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(script)
        binary = "BLOB" in script
        rows = [(number, f"{4911000 + number}".encode() if binary else 4911000 + number) for number in (1, 2)]
        connection.executemany("INSERT INTO c VALUES (?, ?)", rows)
    try:
        remove_private_values(path, {("c", column)})
    except PrivateValueError as error:
        assert binary, error
        return
    with closing(sqlite3.connect(path)) as connection:
        left = [value for (value,) in connection.execute(f"SELECT {column} FROM c")]
    assert len(left) == 2 and not any("4911" in str(value) for value in left)


def test_a_message_to_a_model_has_no_private_value(tmp_path: Path) -> None:
    make_hotel(tmp_path / "d")
    sql = "SELECT json_extract('{}', phone) FROM guest"
    for about, is_shown in ({}, True), (known(guest=["phone"]), False):
        with (
            SqliteDatabases(tmp_path / "d", query_seconds=5, descriptions=about) as opened,
            _ErrorMessages(opened, EvaluateSettings(repair_attempts=1)) as errors,
        ):
            assert (PHONES[0] in errors.of("hotel", sql)) == is_shown
            assert errors.of("hotel", sql)


def test_predictions_about_a_dataset_show_no_private_values(dataset: Path, tmp_path: Path) -> None:
    make_hotel(tmp_path / "d")
    write_descriptions(dataset, known(guest=["phone"]))
    record = {"question": "q", "db_id": "hotel", "gold": QUERIES[1], "predicted": QUERIES[1]}
    (tmp_path / "p.jsonl").write_text(json.dumps(record))
    for given in (None, dataset):
        evaluate_predictions(
            *(EvaluateSettings(), {"p": tmp_path / "p.jsonl"}, str(tmp_path / "d"), tmp_path / "report"), dataset=given
        )
        shown = "".join(path.read_text("utf-8") for path in (tmp_path / "report").iterdir() if path.is_file())
        assert (PHONES[0] in shown) == (given is None)


def test_a_report_shows_no_rows_of_a_database_with_private_columns(asked: list[Example], tmp_path: Path) -> None:
    make_hotel(tmp_path / "d")

    def written(about: dict[str, Descriptions]) -> str:
        items = scored(asked, tmp_path / "d", about)
        with SqliteDatabases(tmp_path / "d", query_seconds=5, descriptions=about) as opened:
            write_report("m", items, {}, EvaluateSettings(), opened, tmp_path / "report")
        return "".join(path.read_text("utf-8") for path in sorted((tmp_path / "report").iterdir()) if path.is_file())

    shown, hidden = written({}), written(known(guest=["phone"]))
    assert PHONES[0] in shown and "guest 0" in shown
    assert PHONES[0] not in hidden and "guest 0" not in hidden
    assert "50 rows, not shown, because the database has private columns" in hidden
    # Nor the names of columns, which are values in DuckDB's PIVOT.
    assert "<th>note</th>" in shown and "<th>note</th>" not in hidden and "<th>column 4</th>" in hidden
