"""A small dataset about a hotel, on a real database."""

import json
import sqlite3
from pathlib import Path

import pytest

from chatmetrics.components.nl2sql.example import Example, write_examples
from chatmetrics.components.nl2sql.prompts.prompt import instruction
from chatmetrics.components.nl2sql.sql.query_type import query_type_of

QUESTIONS = [
    ("浦东新区有多少家酒店？", "SELECT count(*) FROM hotel", "unseen value"),
    ("How many hotels are there?", "SELECT count(name) FROM hotel", "unseen wording"),
    ("The best hotel?", "SELECT name FROM hotel ORDER BY rating DESC LIMIT 1", "unseen wording"),
    ("Which hotels are worse than all?", "SELECT name FROM hotel WHERE rating < 0", "unseen value"),
    ("A question with a broken gold query", "SELECT stars FROM hotel", "unseen value"),
]


@pytest.fixture
def databases(tmp_path: Path) -> Path:
    path = tmp_path / "databases" / "hotel" / "hotel.sqlite"
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE hotel (name TEXT, rating REAL)")
        rows = [("和平饭店", 4.5), ("如家", 4.0), ("<i>Ritz</i>", 4.8)]
        connection.executemany("INSERT INTO hotel VALUES (?, ?)", rows)
    connection.close()
    return path.parent.parent


@pytest.fixture
def examples() -> list[Example]:
    return [
        Example(
            id=f"q{number}",
            db_id="hotel",
            question=question,
            sql=sql,
            query_type=query_type_of(sql),
            split=split,
            system="CREATE TABLE hotel (name TEXT, rating REAL);",
            instruction=instruction("hotel"),
            input=question,
            output=sql,
        )
        for number, (question, sql, split) in enumerate(QUESTIONS)
    ]


@pytest.fixture
def dataset(tmp_path: Path, examples: list[Example], databases: Path) -> Path:
    folder = tmp_path / "dataset"
    folder.mkdir()
    write_examples(folder / "dev.jsonl", examples)
    (folder / "dataset_card.json").write_text(json.dumps({"databases": "../databases"}), encoding="utf-8")
    return folder
