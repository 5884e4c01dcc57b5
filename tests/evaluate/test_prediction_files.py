"""Predictions are read in the forms in which benchmarks have them, and are paired with the right questions."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.overlap import TrainingData
from chatmetrics.components.evaluate.prediction_files import read_gold, read_predictions
from tests.command import finished_process

GOLD = ["SELECT COUNT(*) FROM tree WHERE c3 = 'AP'", "SELECT name FROM picker", "SELECT 1"]
PREDICTED = ["SELECT COUNT(*) FROM tree", "", "SELECT 1"]
QUESTIONS = ["How many apple trees?", "Who picks?", "One?"]
FORMS = {
    "pred.sql": "\n".join(PREDICTED) + "\n",
    "pred.txt": "".join(f"{sql}\torchard\n" for sql in PREDICTED),
    "predict_dev.json": json.dumps(
        {str(number): f"{sql}\t----- bird -----\torchard" for number, sql in reversed(list(enumerate(PREDICTED)))}
    ),
}
GOLD_FORMS = {
    "gold.sql": "".join(f"{sql}\torchard\n" for sql in GOLD),
    "dev.json": json.dumps(
        [
            {"question_id": number, "db_id": "orchard", "question": question, "SQL": sql, "difficulty": "simple"}
            for number, (question, sql) in enumerate(zip(QUESTIONS, GOLD, strict=True))
        ],
        indent=1,
    ),
    "spider.json": json.dumps(
        [
            {"db_id": "orchard", "question": question, "query": sql, "sql": {"select": []}}
            for question, sql in zip(QUESTIONS, GOLD, strict=True)
        ]
    ),
}


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, "utf-8")
    return folder / name


@pytest.mark.parametrize("gold", GOLD_FORMS)
@pytest.mark.parametrize("form", FORMS)
def test_queries_are_paired_with_their_questions(tmp_path: Path, form: str, gold: str) -> None:
    asked = read_gold(write(tmp_path, gold, GOLD_FORMS[gold]))
    read = read_predictions(write(tmp_path, form, FORMS[form]), asked)
    assert [(each.db_id, each.gold, each.predicted) for each in read] == [
        ("orchard", sql, predicted) for sql, predicted in zip(GOLD, PREDICTED, strict=True)
    ]
    stem = gold.partition(".")[0]
    assert [each.id for each in read] == [f"{stem}:0", f"{stem}:1", f"{stem}:2"]
    assert [each.question for each in read] == ([""] * 3 if gold == "gold.sql" else QUESTIONS)


def test_empty_lines_between_queries_are_ignored_if_there_are_as_many_queries_as_questions(tmp_path: Path) -> None:
    asked = read_gold(write(tmp_path, "gold.sql", "SELECT 1\torchard\n\nSELECT 2\torchard\n"))
    read = read_predictions(write(tmp_path, "pred.sql", "SELECT 1\n\nSELECT 3\n"), asked)
    assert [(each.gold, each.predicted) for each in read] == [("SELECT 1", "SELECT 1"), ("SELECT 2", "SELECT 3")]


def test_records_may_be_csv(tmp_path: Path) -> None:
    text = "db_id;gold;predicted;question\r\norchard;SELECT 1;;One?\r\norchard;SELECT 2;SELECT 2;Two?\r\n"
    read = read_predictions(write(tmp_path, "ours.csv", text))
    assert [(each.gold, each.predicted, each.question) for each in read] == [
        ("SELECT 1", "", "One?"),
        ("SELECT 2", "SELECT 2", "Two?"),
    ]


def test_records_may_be_in_any_file(tmp_path: Path) -> None:
    record = {"db_id": "orchard", "gold": "SELECT 1", "predicted": "SELECT 2"}
    for name in ("ours.json", "ours.txt", "ours"):
        for text in (json.dumps(record), json.dumps([record]), json.dumps(record, indent=1)):
            [read] = read_predictions(write(tmp_path, name, text))
            assert (read.db_id, read.gold, read.predicted) == ("orchard", "SELECT 1", "SELECT 2")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("pred.sql", "SELECT 1\n", "has 1 queries, and there are 3 gold queries"),
        (
            "pred.sql",
            "SELECT 1\nSELECT 2\nSELECT 3\torange\n",
            ":3: is about orange, but its gold query is about orchard",
        ),
        ("bird.json", '{"0": "SELECT 1", "2": "SELECT 2"}', "the numbers of its answers are not 0 to 1"),
        ("bird.json", '{"0": "x", "1": null, "2": "x"}', "[1]: not a string but NoneType"),
    ],
)
def test_queries_about_other_questions_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    asked = read_gold(write(tmp_path, "gold.sql", GOLD_FORMS["gold.sql"]))
    with pytest.raises(InputError) as caught:
        read_predictions(write(tmp_path, name, text), asked)
    assert str(tmp_path / name) in str(caught.value) and message in str(caught.value)


def test_gold_without_a_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gold\.sql:1: not a query, a tab and the name of its database"):
        read_gold(write(tmp_path, "gold.sql", "SELECT 1\n"))
    with pytest.raises(InputError, match=r"dev\.json\[0\]: the field 'query' is missing"):
        read_gold(write(tmp_path, "dev.json", '[{"db_id": "orchard", "question": "x"}]'))


def test_the_command_takes_a_file_of_queries(tmp_path: Path) -> None:
    databases = tmp_path / "databases"
    databases.mkdir()
    with closing(sqlite3.connect(databases / "orchard.sqlite")) as connection:
        connection.execute("CREATE TABLE tree (id)")
    gold = write(tmp_path, "gold.sql", "SELECT 1\torchard\nSELECT 2\torchard\n")
    pred = write(tmp_path, "pred.sql", "SELECT 1\nSELECT 3\n")
    words = ["evaluate", "--predictions", pred, "--databases", databases, "--output", tmp_path / "report"]
    alone = finished_process(*words)
    assert (alone.returncode, "name those that it is about by --gold FILE" in alone.stderr) == (3, True)
    done = finished_process(*words, "--gold", gold)
    assert done.returncode == 0, done.stderr
    assert "strict 50.0%" in done.stdout


def test_spiders_parsed_queries_are_not_taken_for_sql(tmp_path: Path) -> None:
    seen = TrainingData.read(write(tmp_path, "spider.json", GOLD_FORMS["spider.json"]))
    assert seen.seen("", "SELECT COUNT(*) FROM shrub WHERE c4 = 'PE'") == "only its SQL skeleton seen"
