"""Values of private columns are in no report and in no acceptance test."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from chatmetrics.components.evaluate.acceptance_test import draw_acceptance_test
from chatmetrics.components.evaluate.evaluate import write_report
from chatmetrics.components.evaluate.predictions import TokenUsage, predicted
from chatmetrics.components.evaluate.score import Item, score
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.nl2sql.acceptance_test import AcceptanceScore, read_acceptance_test
from chatmetrics.components.nl2sql.databases.databases import SqliteDatabases
from chatmetrics.components.nl2sql.descriptions import Descriptions
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
CREATE TRIGGER changed AFTER UPDATE ON guest BEGIN INSERT INTO audit VALUES (old."Phone"); END;
"""
QUERIES = [
    "SELECT count(*) FROM guest",
    "SELECT phone FROM guest",
    "SELECT * FROM guest WHERE id < 3",
    "SELECT name FROM guest WHERE id = 1",
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
    assert drawn is not None and drawn.passed and drawn.right == 3
    folder = tmp_path / "report/acceptance_test"
    (path,) = folder.glob("*.sqlite")
    assert not [phone for phone in PHONES if phone.encode() in path.read_bytes()]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name, note FROM guest WHERE id = 1").fetchall() == [("guest 0", None)]
        assert connection.execute("SELECT count(*) FROM audit").fetchone() == (0,)
        problems = {problem for (problem,) in connection.execute("PRAGMA integrity_check")}
        assert problems == {"CHECK constraint failed in guest"}
    (test,) = folder.glob("*.json")
    assert {question.sql for question in read_acceptance_test(test).questions} == {QUERIES[0], QUERIES[2], QUERIES[3]}
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
