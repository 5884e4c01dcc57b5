"""`chatmetrics schema`: what a prompt shows of a database for a question, and why."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from chatmetrics.components.nl2sql.descriptions import Descriptions
from chatmetrics.components.serve.shown_schema import shown_schema
from tests.command import finished_process


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
    text, reasons = shown_schema(database, "日志的原因是什么？", "ddl", 0, 20, lambda text: len(text) // 3, known)
    assert text == "CREATE TABLE log (\nid INTEGER PRIMARY KEY,\ncause TEXT\n);"
    assert reasons.startswith("log ") and "cause" in reasons
    without, reasons = shown_schema(database, "日志的原因是什么？", "ddl", 0, 20, lambda text: len(text) // 3)
    assert "log" not in without and "names no table" in reasons
