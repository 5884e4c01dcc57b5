"""The acceptance test of a student: which questions are drawn, what is written, and the warnings."""

import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from chatmetrics.components.evaluate.acceptance_test import draw_acceptance_test
from chatmetrics.components.evaluate.prediction_files import read_predictions
from chatmetrics.components.evaluate.predictions import TokenUsage, predicted
from chatmetrics.components.evaluate.score import Item, score
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.nl2sql.acceptance_test import AcceptanceScore, read_acceptance_test, run_acceptance_test
from chatmetrics.components.nl2sql.databases.databases import SqliteDatabases, open_databases
from chatmetrics.components.nl2sql.descriptions import Descriptions
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3
from chatmetrics.components.nl2sql.sql.query_type import query_type_of
from tests.nl2sql.hotels import DIALECTS

Answer = Callable[[Example], str]
PREDICTIONS = sorted(Path(os.environ.get("CHATMETRICS_PREDICTIONS_DIR", "/nowhere")).glob("*.json"))
USAGE = TokenUsage(latency=0.25, first_token=0.05, prompt_tokens=100, completion_tokens=20, truncated=False)


def gold_sql(example: Example) -> str:
    return example.sql


def score_items(examples: Sequence[Example], databases: Path, answer: Answer) -> list[Item]:
    with SqliteDatabases(databases, query_seconds=5) as opened:
        return score({"student": [predicted(example, answer(example), USAGE) for example in examples]}, opened)[0]


def draw(
    examples: Sequence[Example], databases: Path, output: Path, answer: Answer = gold_sql, **settings: object
) -> AcceptanceScore | None:
    items = score_items(examples, databases, answer)
    return draw_acceptance_test(
        examples, items, "student", str(databases), EvaluateSettings.model_validate(settings), output, DEEPSEEK3
    )


def files_by_name(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "acceptance_test").iterdir()}


def drawn_ids(output: Path) -> list[str]:
    [path] = (output / "acceptance_test").glob("acceptance_test-*.json")
    return [question.id for question in read_acceptance_test(path).questions]


def add_database(databases: Path, db_id: str, size: int = 0) -> None:
    """Add a hotel's database, flat in the folder, with `size` bytes of ballast."""
    with closing(sqlite3.connect(databases / f"{db_id}.sqlite")) as connection:
        connection.execute("CREATE TABLE hotel (name TEXT, rating REAL)")
        connection.execute("INSERT INTO hotel VALUES (?, 4.5)", [db_id])
        connection.execute("CREATE TABLE ballast (filling BLOB)")
        connection.execute("INSERT INTO ballast VALUES (zeroblob(?))", [size])
        connection.commit()


def examples_of(example: Example, db_id: str, queries: Sequence[str]) -> list[Example]:
    return [
        replace(example, id=f"{db_id}-{number}", db_id=db_id, sql=sql, query_type=query_type_of(sql))
        for number, sql in enumerate(queries)
    ]


def test_the_written_acceptance_test_can_run_elsewhere(
    examples: list[Example], databases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(example: Example) -> str:
        return "SELECT 0" if example.id == "q0" else example.sql

    score = draw(examples, databases, tmp_path / "report", answer, max_tokens=99)
    # The gold query of one of the other two fails, and that of the other returns no rows.
    assert score is not None and set(score.answers) == {"q0", "q1", "q2"}
    assert (score.right, score.passed, [mistake.id for mistake in score.wrong]) == (2, True, ["q0"])
    assert capsys.readouterr().err.count("acceptance test") == 0

    moved = (tmp_path / "report" / "acceptance_test").rename(tmp_path / "moved")
    [path] = moved.glob("acceptance_test-*.json")
    acceptance_test = read_acceptance_test(path)
    asked = {question.id: question for question in acceptance_test.questions}
    assert (acceptance_test.threshold, acceptance_test.max_tokens) == (0.5, 99)
    assert {path.name for path in moved.iterdir()} == {path.name, *acceptance_test.databases.values()}
    assert (asked["q0"].system, asked["q0"].input) == (examples[0].system, examples[0].input)
    assert run_acceptance_test(acceptance_test, moved, lambda question: score.answers[question.id]) == score


def test_the_questions_do_not_depend_on_the_verdicts(examples: list[Example], databases: Path, tmp_path: Path) -> None:
    asked = examples_of(examples[0], "hotel", [f"SELECT {number}" for number in range(50)])
    draw(asked, databases, tmp_path / "good")
    draw(asked, databases, tmp_path / "bad", lambda _: "SELECT 'wrong'")
    assert files_by_name(tmp_path / "good") == files_by_name(tmp_path / "bad")
    assert len(drawn_ids(tmp_path / "good")) == 10
    # The order of the questions does not matter either.
    draw(asked[::-1], databases, tmp_path / "reversed")
    assert files_by_name(tmp_path / "reversed") == files_by_name(tmp_path / "good")


def test_questions_come_from_the_gate_s_split(examples: list[Example], databases: Path, tmp_path: Path) -> None:
    draw(examples, databases, tmp_path, gate_split="unseen wording")
    assert set(drawn_ids(tmp_path)) == {"q1", "q2"}


def test_questions_are_spread_over_query_types_and_databases(
    examples: list[Example], databases: Path, tmp_path: Path
) -> None:
    counts = [f"SELECT count(*) + {number} FROM hotel" for number in range(30)]
    nested = [f"SELECT {number} FROM (SELECT 1)" for number in range(15)]
    db_ids = ("hotel", "inn", "motel")
    asked = [example for db_id in db_ids for example in examples_of(examples[0], db_id, counts + nested)]
    for db_id in ("inn", "motel"):
        add_database(databases, db_id)
    draw(asked, databases, tmp_path, acceptance_test_questions=9)
    chosen = [example for example in asked if example.id in drawn_ids(tmp_path)]
    assert Counter(example.query_type for example in chosen) == {"aggregate": 6, "subquery": 3}
    assert Counter(example.db_id for example in chosen) == {"hotel": 3, "inn": 3, "motel": 3}
    assert len(files_by_name(tmp_path)) == 4


def test_the_smallest_databases_are_used(
    examples: list[Example], databases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mebibyte = 2**20
    for db_id, size in (("large", 21 * mebibyte), ("medium", 11 * mebibyte), ("other", 12 * mebibyte)):
        add_database(databases, db_id, size)
    queries = ["SELECT name FROM hotel", "SELECT rating FROM hotel"]
    db_ids = ("large", "other", "medium", "hotel")
    asked = [example for db_id in db_ids for example in examples_of(examples[0], db_id, queries)]
    draw(asked, databases, tmp_path / "report")
    assert {id.partition("-")[0] for id in drawn_ids(tmp_path / "report")} == {"hotel", "medium"}

    assert draw(examples_of(examples[0], "large", queries), databases, tmp_path / "large") is None
    assert not (tmp_path / "large" / "acceptance_test").exists()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("no acceptance test: ") and "20 MiB" in line


def test_there_is_no_acceptance_test_without_files_or_if_it_is_switched_off(
    examples: list[Example], databases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(examples, databases, tmp_path)
    assert draw(examples, databases, tmp_path, acceptance_test_questions=0) is None
    assert not (tmp_path / "acceptance_test").exists()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dialect", DIALECTS)
def test_of_a_database_on_a_server_the_schema_is_published(
    examples: list[Example], tmp_path: Path, addresses: dict[str, str], dialect: str
) -> None:
    if dialect not in addresses:
        pytest.skip(f"{dialect} is not installed")
    queries = ["SELECT count(*) FROM hotel", "SELECT name FROM hotel WHERE price > 15", "SELECT note FROM hotel"]
    quote = "`{}`" if dialect == "mariadb" else '"{}"'
    guest, hotel_id = map(quote.format, ("Guest", "hotelId"))
    queries.append(f"SELECT h.name, h.mood FROM hotel h JOIN {guest} g ON g.{hotel_id} = h.id WHERE g.note IS NOT NULL")
    asked = examples_of(examples[0], "hotels", [*queries, "SELECT mood FROM hotel WHERE id = 1"])
    known = {"hotels": Descriptions(private={"hotel": ("mood",)})}
    with open_databases(addresses[dialect], 5) as opened:
        answers = [predicted(example, example.sql, USAGE) for example in asked]
        items, _ = score({"student": answers}, opened)
        drawn = draw_acceptance_test(
            *(asked, items, "student", addresses[dialect], EvaluateSettings(), tmp_path, DEEPSEEK3), opened=opened
        )
        assert drawn is not None and (drawn.right, drawn.total, drawn.by_text) == (4, 4, ())
        (path,) = (tmp_path / "acceptance_test").iterdir()
        test = read_acceptance_test(path)
        assert test.databases == {} and "price" in test.schemas["hotels"].tables["hotel"]
        by_text = run_acceptance_test(test, path.parent, lambda question: question.sql)
        assert (by_text.right, by_text.by_text) == (4, ("hotels",))
        served = {"hotels": partial(opened.execute, "hotels")}
        assert run_acceptance_test(test, path.parent, lambda question: question.sql, served=served) == drawn
        draw_acceptance_test(
            *(asked, items, "student", addresses[dialect], EvaluateSettings(), tmp_path, DEEPSEEK3), known, opened
        )
    (path,) = (tmp_path / "acceptance_test").iterdir()
    assert {question.id for question in read_acceptance_test(path).questions} == {"hotels-0", "hotels-1"}


def test_a_student_that_would_never_be_ready_causes_a_warning(
    examples: list[Example], databases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(example: Example) -> str:
        return "SELECT stars FROM hotel" if example.id == "q2" else example.sql

    score = draw(examples, databases, tmp_path, answer, acceptance_test_threshold=0.9)
    assert score is not None and not score.passed
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        "warning: the student fails its acceptance test, 2 of 3 right, 3 needed; wrong: 'The best hotel?' -> "
        "no such column: stars. The served model would never become ready: lower evaluate.acceptance_test_threshold or "
        "train longer"
    )


def test_another_evaluation_replaces_the_acceptance_test(
    examples: list[Example], databases: Path, tmp_path: Path
) -> None:
    draw(examples, databases, tmp_path)
    before = files_by_name(tmp_path)
    draw(examples, databases, tmp_path, max_tokens=99)
    after = files_by_name(tmp_path)
    assert len(after) == len(before) == 2
    assert {name for name in before if name.endswith(".sqlite")} < after.keys() != before.keys()


def test_database_names_become_valid_file_names(examples: list[Example], databases: Path, tmp_path: Path) -> None:
    db_ids = ("酒店 1", "-- 'x'\n", "a" * 200)
    for db_id in db_ids:
        add_database(databases, db_id)
    asked = [example for db_id in db_ids for example in examples_of(examples[0], db_id, ["SELECT name FROM hotel"])]
    score = draw(asked, databases, tmp_path)
    assert score is not None and score.right == 3
    [path] = (tmp_path / "acceptance_test").glob("acceptance_test-*.json")
    names = list(read_acceptance_test(path).databases.values())
    assert len(set(names)) == 3 and all(name.isascii() and len(name) < 100 and " " not in name for name in names)


def test_questions_that_share_an_id_are_asked_once(examples: list[Example], databases: Path, tmp_path: Path) -> None:
    asked = [replace(examples[0], id="same"), replace(examples[2], id="same"), examples[1]]
    score = draw(asked, databases, tmp_path)
    assert score is not None and (score.total, score.right) == (2, 2)


@pytest.mark.skipif(not PREDICTIONS, reason="CHATMETRICS_PREDICTIONS_DIR is not set")
@pytest.mark.skipif("CHATMETRICS_SPIDER_DIR" not in os.environ, reason="CHATMETRICS_SPIDER_DIR is not set")
def test_an_acceptance_test_on_spider_scores_published_systems_like_all_questions(
    examples: list[Example], tmp_path: Path
) -> None:
    databases = Path(os.environ["CHATMETRICS_SPIDER_DIR"]) / "database"
    with SqliteDatabases(databases, query_seconds=5) as opened:
        items, _ = score({file.stem: read_predictions(file) for file in PREDICTIONS}, opened)
    asked = [
        replace(
            examples[0],
            id=item.id,
            db_id=item.db_id,
            question=item.question,
            sql=item.sql,
            query_type=query_type_of(item.sql),
        )
        for item in items
    ]
    settings = EvaluateSettings(acceptance_test_questions=100)
    for system in items[0].answers:
        test_score = draw_acceptance_test(asked, items, system, str(databases), settings, tmp_path, DEEPSEEK3)
        counted = [item.answers[system].judgement.strict for item in items if item.scored]
        assert test_score is not None and test_score.total == 100
        assert abs(test_score.right / 100 - sum(counted) / len(counted)) < 0.05, system
