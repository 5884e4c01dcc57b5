"""`ask` with a real server and a real database; the model always answers with the same SQL, so the rows are known."""

import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from chatmetrics.components.errors import InputError, ServiceError, UserError
from chatmetrics.components.inference.server import LlamaServer
from chatmetrics.components.serve.ask import AskResult, ask, table
from chatmetrics.components.serve.local.serve import running
from chatmetrics.components.serve.settings import AskSettings, ServeSettings
from tests.command import command_line
from tests.gguf_files import answering_gguf
from tests.ports import free_port

SQL = ["SELECT", " name", ", rating", " FROM", " hotel", " ORDER", " BY", " id"]
QUESTION = "有哪些酒店？"
HOTEL = "CREATE TABLE hotel (\nid INTEGER PRIMARY KEY,\nname TEXT,\nrating REAL\n);"
BOOKING = (
    "CREATE TABLE booking (\nid INTEGER PRIMARY KEY,\nhotel_id INTEGER,\n"
    "FOREIGN KEY (hotel_id) REFERENCES hotel (id)\n);"
)
INSTRUCTION = "Using the database 'hotel', translate the following natural language question into a SQL query."


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("databases") / "hotel.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE hotel (id INTEGER PRIMARY KEY, name TEXT, rating REAL)")
        connection.executemany(
            "INSERT INTO hotel VALUES (?, ?, ?)", [(1, "上海外滩酒店", 4.5), (2, "Plaza [red]", None)]
        )
        connection.execute("CREATE TABLE booking (id INTEGER PRIMARY KEY, hotel_id INTEGER REFERENCES hotel)")
        connection.commit()
    return path


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answering_gguf(tmp_path_factory.mktemp("gguf"), SQL)


@pytest.fixture(scope="module")
def endpoint(runtime: str, gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = ServeSettings(runtime=runtime, threads=1, cache=str(tmp_path_factory.mktemp("cache")))
    with running(settings, str(gguf)) as url:
        yield url


@pytest.mark.parametrize("form", ["none", "ddl", "m-schema"])
def test_a_question_becomes_sql_and_rows(endpoint: str, database: Path, form: str) -> None:
    before = database.read_bytes()
    answer = ask(QUESTION, database, endpoint, settings=AskSettings(schema_form=form))
    assert answer.sql == answer.answered == "SELECT name, rating FROM hotel ORDER BY id"
    assert answer.repairs == ()
    assert answer.result.rows == [("上海外滩酒店", 4.5), ("Plaza [red]", None)]
    assert answer.seconds > 0
    assert database.read_bytes() == before


def test_the_table_aligns_chinese_and_shows_markup_as_text(endpoint: str, database: Path) -> None:
    from rich.cells import cell_len

    console = Console(width=80, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    console.print(table(ask(QUESTION, database, endpoint)))
    lines = console.export_text().splitlines()
    assert len({cell_len(line) for line in lines}) == 1
    assert [
        word for word in ("name", "rating", "上海外滩酒店", "Plaza [red]", "NULL") if word not in "\n".join(lines)
    ] == []


def test_the_prompt_is_the_same_as_in_training(gguf: Path, database: Path) -> None:
    with LlamaServer(gguf, 2048, threads=1) as server:
        ask(QUESTION, database, server.endpoint)
        assert was_asked(server, prompt(f"{HOTEL}\n{BOOKING}"))
        ask(QUESTION, database, server.endpoint, settings=AskSettings(schema_form="none"))
        assert was_asked(server, prompt(""))
        assert not was_asked(server, prompt(HOTEL))


def test_a_schema_that_is_too_long_is_pruned(gguf: Path, database: Path) -> None:
    with LlamaServer(gguf, 2048, threads=1) as server:
        ask(QUESTION, database, server.endpoint, settings=AskSettings(cutoff_length=520))
        assert was_asked(server, prompt(HOTEL))


def test_a_schema_without_a_table_that_fits_is_refused(endpoint: str, database: Path) -> None:
    with pytest.raises(InputError, match="no table of hotel fits into the 280 tokens"):
        ask(QUESTION, database, endpoint, settings=AskSettings(cutoff_length=280))


def test_errors_name_what_is_missing(endpoint: str, database: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.sqlite: no such database"):
        ask(QUESTION, tmp_path / "nothing.sqlite", endpoint)
    nowhere = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServiceError, match=f"cannot reach {nowhere}"):
        ask(QUESTION, database, nowhere)
    with pytest.raises(ServiceError, match="has no model 'other'; it has: answering:latest"):
        ask(QUESTION, database, endpoint, model="other")


def test_sql_that_fails_is_shown(endpoint: str, tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE city (id INTEGER)")
        connection.commit()
    answer = ask(QUESTION, other, endpoint)
    with pytest.raises(UserError, match=r"unknown table or column \(no such table: hotel\): SELECT name, rating FROM"):
        table(answer)
    with pytest.raises(UserError, match="without any SQL"):
        table(AskResult("", type(answer.result)(failure=type(answer.result.failure).NO_SQL), 0.1))


@pytest.fixture(scope="module")
def confused(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a model that misspells a column and forgets a join."""
    answer = ["SELECT", " name", ", hotels_id", " FROM", " booking"]
    with LlamaServer(answering_gguf(tmp_path_factory.mktemp("confused"), answer), 2048, threads=1) as server:
        yield server.endpoint


def test_names_are_bound_and_the_repairs_are_named(confused: str, database: Path) -> None:
    answer = ask(QUESTION, database, confused)
    assert answer.answered == "SELECT name, hotels_id FROM booking"
    assert answer.sql == "SELECT hotel.name, booking.hotel_id FROM booking JOIN hotel ON booking.hotel_id = hotel.id"
    assert [repair.message for repair in answer.repairs] == [
        "join added: hotel ON booking.hotel_id = hotel.id",
        "hotels_id is booking.hotel_id",
    ]
    assert (answer.result.failure, answer.result.columns) == ("ok", ("name", "hotel_id"))


def test_without_binding_the_model_s_sql_runs(confused: str, database: Path) -> None:
    answer = ask(QUESTION, database, confused, settings=AskSettings(bind_names=False))
    assert (answer.sql, answer.repairs) == (answer.answered, ())
    assert answer.result.failure == "unknown table or column"


def test_the_command_prints_the_repairs(confused: str, database: Path) -> None:
    command = command_line("ask", QUESTION, "--db", database, "--endpoint", confused)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith(
        "SELECT hotel.name, booking.hotel_id FROM booking JOIN hotel"
    )
    assert "note: the model's SQL was repaired, check it: join added: hotel ON" in done.stderr
    refused = subprocess.run([*command, "--no-bind-names"], capture_output=True, text=True, timeout=60)
    assert refused.returncode != 0 and "no such column: name" in refused.stderr


def prompt(schema: str) -> str:
    return f"{schema}<｜User｜>{INSTRUCTION}\n{QUESTION}<｜Assistant｜>"


def was_asked(server: LlamaServer, text: str) -> bool:
    """Whether the server's last prompt starts with `text`: then only its last token is computed again."""
    request = {"prompt": text, "n_predict": 1, "cache_prompt": True, "temperature": 0}
    timings = httpx.post(f"{server.endpoint}/completion", json=request).json()["timings"]
    return bool(timings["prompt_n"] == 1)
