"""`chatmetrics schema`: what a prompt shows of a database for a question, and why."""

import os
import re
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from chatmetrics.components.nl2sql.descriptions import Descriptions
from chatmetrics.components.serve.shown_schema import shown_schema
from tests.command import finished_process
from tests.nl2sql.picture.drawn import Drawing

SPIDER = os.environ.get("CHATMETRICS_SPIDER_DIR", "")
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "hotel.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE city (id INTEGER PRIMARY KEY, name TEXT)")
        connection.execute("CREATE TABLE hotel (id INTEGER PRIMARY KEY, stars INT, city_id INT REFERENCES city)")
        connection.execute(
            f"CREATE TABLE log (id INTEGER PRIMARY KEY, cause TEXT, {', '.join(f'c{n} TEXT' for n in range(90))})"
        )
        connection.execute("INSERT INTO city VALUES (1, '北京'), (2, '上海')")
    return path


def test_it_prints_the_part_and_the_reasons(database: Path) -> None:
    ended = finished_process("schema", str(database), "--question", "北京有多少 hotels?", "--tokens", "65")
    assert ended.returncode == 0, ended.stderr
    assert "CREATE TABLE hotel (" in ended.stdout and "name TEXT -- e.g. 北京, 上海" in ended.stdout
    assert "CREATE TABLE log" not in ended.stdout
    assert "note: no --base-model, so three characters count as a token" in ended.stderr
    assert "values: '北京' in name" in ended.stderr and "joined by: hotel.city_id = city.id" in ended.stderr
    assert "left out: 1 of 3 tables" in ended.stderr


def test_it_prints_misspelled_values_that_are_no_sample_values(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("INSERT INTO city VALUES (3, 'Bonn'), (4, 'Shanghai')")
    ended = finished_process(
        "schema", str(database), "--question", "In Shangai?", "--sample-values", "1", "--tokens", "30"
    )
    assert ended.returncode == 0, ended.stderr
    assert """values: 'Shanghai' in name (asked: "Shangai")""" in ended.stderr
    assert "-- e.g. Shanghai\n" in ended.stdout


def test_without_a_limit_it_prints_the_whole_schema(database: Path) -> None:
    ended = finished_process("schema", str(database), "--question", "Why?", "--schema", "m-schema")
    assert ended.returncode == 0 and ended.stdout.count("# Table:") == 3
    assert "names no table, column or value" in ended.stderr and "nothing is left out" in ended.stderr


def test_a_limit_for_which_no_table_fits_is_an_error(database: Path) -> None:
    ended = finished_process("schema", str(database), "--question", "hotels?", "--tokens", "5")
    assert ended.returncode == 3
    assert "hotel: not even one table fits into 5 tokens; raise --tokens" in ended.stderr


def test_terms_that_the_question_names_are_compared(database: Path) -> None:
    """So a glossary finds what a question in another language is about."""
    known = Descriptions(terms={"日志": "log", "原因": "cause"})
    shown = shown_schema(database, "日志的原因是什么？", "ddl", 0, 20, lambda text: len(text) // 3, known)
    assert shown.text == "CREATE TABLE log (\nid INTEGER PRIMARY KEY,\ncause TEXT\n);"
    assert shown.reasons.startswith("log ") and "cause" in shown.reasons
    without = shown_schema(database, "日志的原因是什么？", "ddl", 0, 20, lambda text: len(text) // 3)
    assert "log" not in without.text and "names no table" in without.reasons


def test_it_writes_a_picture_of_the_part(database: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "hotel.svg"
    given = ["schema", str(database), "--question", "北京有多少 hotels?", "--tokens", "65", "--picture", str(path)]
    ended = finished_process(*given)
    assert ended.returncode == 0, ended.stderr
    assert "CREATE TABLE hotel (" in ended.stdout and "joined by: hotel.city_id = city.id" in ended.stderr
    drawing = Drawing.read(path.read_text("utf-8"))
    drawing.check()
    assert drawing.texts[1].content == "北京有多少 hotels?"
    assert "main" in drawing.box("city").style and "= 北京" in drawing.box("city").lines
    assert "left" in drawing.box("log").style

    ended = finished_process("schema", str(database), "--picture", str(path))
    assert ended.returncode == 0 and not ended.stderr and ended.stdout.count("CREATE TABLE") == 3
    assert {box.style for box in Drawing.read(path.read_text("utf-8")).boxes} == {"box"}


def test_a_picture_replaces_no_other_file(database: Path, tmp_path: Path) -> None:
    notes, folder = tmp_path / "notes.svg", tmp_path / "folder.svg"
    notes.write_text("my notes")
    folder.mkdir()
    for path, message in (
        (tmp_path / "hotel.png", "the picture is an SVG; name a file that ends in .svg"),
        (notes, "the file exists and is not an SVG; name another one"),
        (folder, "folder.svg"),
        (Path("/proc/none/hotel.svg"), "/proc/none"),
    ):
        ended = finished_process("schema", str(database), "--picture", str(path))
        assert ended.returncode in (3, 6) and message in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr
    assert notes.read_text() == "my notes"


def test_a_limit_needs_a_question(database: Path) -> None:
    ended = finished_process("schema", str(database), "--tokens", "65")
    assert ended.returncode == 3 and "give --question" in ended.stderr


@pytest.mark.skipif(not SPIDER, reason="CHATMETRICS_SPIDER_DIR is not set")
def test_the_picture_in_the_documentation_is_what_its_command_writes(tmp_path: Path) -> None:
    page = (DOCS / "schemas.md").read_text("utf-8")
    command = re.search(r"    chatmetrics (schema car_1\.sqlite .*) \\\n +(--picture schema\.svg)", page)
    assert command is not None
    folder = Path(SPIDER).resolve() / "database" / "car_1"
    (tmp_path / "car_1.sqlite").symlink_to(folder / "car_1.sqlite")
    ended = finished_process(*shlex.split(" ".join(command.groups())), folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    written = (tmp_path / "schema.svg").read_bytes()
    assert written == (DOCS / "schema.svg").read_bytes()
    Drawing.read(written.decode()).check()
