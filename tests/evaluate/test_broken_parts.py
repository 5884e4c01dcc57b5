"""One part that cannot be used (a database, a page's picture) costs that part alone; everything else is reported."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.evaluate import evaluate_predictions, write_report
from chatmetrics.components.evaluate.prediction_files import read_predictions
from chatmetrics.components.evaluate.questions import load_questions
from chatmetrics.components.evaluate.score import score
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.nl2sql.databases.databases import SqliteDatabases
from chatmetrics.components.nl2sql.example import Example, write_examples
from tests.command import finished_process

GOLD = "SELECT count(*) FROM room"
QUICK = EvaluateSettings(query_seconds=2)


def write_rooms(path: Path, rows: int = 3000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE room (name TEXT)")
        connection.executemany("INSERT INTO room VALUES (?)", ((f"room {number}",) for number in range(rows)))
    connection.close()


def cut_off(path: Path) -> None:
    write_rooms(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_off_in_the_header(path: Path) -> None:
    write_rooms(path)
    path.write_bytes(path.read_bytes()[:40])


def damaged_inside(path: Path) -> None:
    write_rooms(path)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))


def damaged_schema(path: Path) -> None:
    write_rooms(path)
    content = path.read_bytes()
    path.write_bytes(content[:100] + b"\xff" * 3996 + content[4096:])


def unfinished_transaction(path: Path) -> None:
    write_rooms(path)
    Path(f"{path}-journal").write_bytes(b"pages")


def no_tables(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (a)")
        connection.execute("DROP TABLE t")
    connection.close()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (cut_off, "is cut off"),
    "cut off in the header": (cut_off_in_the_header, "is cut off"),
    "empty": (lambda path: path.touch(), "the file is empty"),
    "git-lfs pointer": (lambda path: path.write_bytes(LFS), "git-lfs pointer"),
    "text": (lambda path: path.write_text("CREATE TABLE room (name TEXT);"), "not an SQLite database"),
    "web page": (lambda path: path.write_text("<!doctype html><title>404</title>"), "not an SQLite database"),
    "no tables": (no_tables, "no tables"),
    "folder": (lambda path: path.mkdir(), "is not a file"),
    "dangling link": (lambda path: path.symlink_to(path.with_name("nothing")), "is not a file"),
    "damaged inside": (damaged_inside, "malformed"),
    "damaged schema": (damaged_schema, "cannot be read"),
    "unfinished transaction": (unfinished_transaction, "close its writers"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_rooms(tmp_path / "good" / "good.sqlite")
    return tmp_path


@pytest.fixture
def predictions(folder: Path) -> Path:
    path = folder / "mine.json"
    records = [{"db_id": db_id, "gold": GOLD, "predicted": GOLD} for db_id in ("good", "bad", "good", "bad", "bad")]
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_database_is_named_and_counted_and_the_rest_is_scored(
    kind: str, folder: Path, predictions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, problem = BROKEN[kind]
    path = folder / "bad" / "bad.sqlite"
    path.parent.mkdir()
    make(path)

    report = evaluate_predictions(QUICK, {"mine": predictions}, str(folder), folder / "out")

    assert (report.questions, report.systems["mine"].strict.correct, report.gold_failures) == (2, 2, 0)
    assert report.missing_databases == {"bad": 3}
    assert problem in report.database_problems["bad"]
    assert "the database 'bad' cannot be read: 3" in capsys.readouterr().err
    for name in ("report.html", "report.md"):
        assert "the database bad cannot be read: 3." in (folder / "out" / name).read_text("utf-8")
    items = [json.loads(line) for line in (folder / "out" / "items.jsonl").read_text("utf-8").splitlines()]
    assert [item["reasons"] for item in items[:2]] == [[], ["the database cannot be read"]]


@pytest.mark.parametrize("kind", [kind for kind in BROKEN if kind != "damaged inside"])
def test_questions_about_a_broken_database_are_not_asked(kind: str, folder: Path, examples: list[Example]) -> None:
    path = folder / "bad" / "bad.sqlite"
    path.parent.mkdir()
    BROKEN[kind][0](path)
    fields = {name: getattr(examples[0], name) for name in Example.__slots__}
    asked = [Example(**{**fields, "db_id": db_id, "id": db_id}) for db_id in ("good", "bad")]
    write_examples(folder / "dev.jsonl", asked)

    with SqliteDatabases(folder, 1) as databases:
        asked = load_questions(folder, databases, QUICK)

    assert [example.id for example in asked.examples] == ["good"]
    assert asked.missing["bad"].questions == 1 and BROKEN[kind][1] in asked.missing["bad"].problem


def test_without_any_usable_database_the_problem_is_the_error(folder: Path, predictions: Path) -> None:
    for db_id in ("good", "bad"):
        (folder / db_id).mkdir(exist_ok=True)
        (folder / db_id / f"{db_id}.sqlite").write_bytes(LFS)
    done = finished_process("evaluate", "--predictions", predictions, "--databases", folder, "--output", folder / "out")
    assert done.returncode == 3 and done.stderr.count("\n") == 1
    assert "git-lfs pointer" in done.stderr


def test_a_database_that_another_process_has_locked_is_scored(folder: Path, predictions: Path) -> None:
    write_rooms(folder / "bad" / "bad.sqlite")
    holder = sqlite3.connect(folder / "bad" / "bad.sqlite", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    report = evaluate_predictions(QUICK, {"mine": predictions}, str(folder), folder / "out")
    assert (report.questions, report.systems["mine"].strict.correct) == (5, 5)
    holder.close()


class VanishingDatabases(SqliteDatabases):
    """A database whose file is deleted after the check."""

    def check(self, db_id: str) -> None:
        super().check(db_id)
        if db_id == "bad":
            self._paths[db_id].unlink()


def test_a_database_that_vanishes_while_others_are_scored(folder: Path, predictions: Path) -> None:
    write_rooms(folder / "bad" / "bad.sqlite")
    with VanishingDatabases(folder, 2) as databases:
        items, missing = score({"mine": read_predictions(predictions)}, databases)
    assert missing["bad"].questions == 3 and "No such file" in missing["bad"].problem
    assert [item.scored for item in items] == [True, False, True, False, False]


class NoSchema(SqliteDatabases):
    """A database whose schema can no longer be read when the report is written."""

    def schema(self, db_id: str) -> str:
        raise InputError("a schema that cannot be read")


@pytest.mark.parametrize("loss", ["missing.png", "folder", "pointer.png", "empty.png"])
def test_a_page_without_schema_or_loss_curve_is_still_written(
    loss: str, folder: Path, predictions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "folder").mkdir()
    (folder / "pointer.png").write_bytes(LFS)
    (folder / "empty.png").touch()
    write_rooms(folder / "bad" / "bad.sqlite")
    with NoSchema(folder, 2) as databases:
        items, missing = score({"mine": read_predictions(predictions)}, databases)
        write_report("mine", items, missing, QUICK, databases, folder / "out", folder / loss)
    warnings = capsys.readouterr().err
    assert "does not show the loss curve" in warnings and loss in warnings
    assert "does not show the schema of the database 'good'" in warnings
    assert "Training loss" not in (folder / "out" / "report.html").read_text("utf-8")
    assert json.loads((folder / "out" / "report.json").read_text("utf-8"))["questions"] == 5
