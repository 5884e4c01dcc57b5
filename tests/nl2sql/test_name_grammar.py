"""Grammars of a schema's names, with llama.cpp's server."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from chatmetrics.components.inference.client import Client
from chatmetrics.components.inference.server import LlamaServer
from chatmetrics.components.nl2sql.identifiers import KEYWORDS
from chatmetrics.components.nl2sql.name_grammar import name_grammar
from chatmetrics.components.nl2sql.schema import Schema
from tests.gguf_files import ASSISTANT, answering_gguf, tiny_gguf

TABLES = r"""
CREATE TABLE hotel (id INTEGER PRIMARY KEY, name TEXT, "Full name" TEXT, "order" INT);
CREATE TABLE booking (hotel_id INT REFERENCES hotel (id), guest TEXT, "50%" REAL, "back\slash" TEXT);
CREATE TABLE 酒店 (名称 TEXT, É TEXT, "a]b^c-d" TEXT);
"""
NAMES = {"hotel", "id", "name", "booking", "hotel_id", "guest", "酒店", "名称", "é"}
TYPES = {"float", "int", "integer", "numeric", "real", "text", "date", "false", "true", "nocase"}
# Values, names in quotes, and names that a query gives to a result.
UNRESTRICTED = re.compile(r"'[^']*('|\Z)|\"[^\"]*(\"|\Z)|\bAS\s+\w*|\A(Tables|\nJoins|\nConditions):", re.IGNORECASE)


@pytest.fixture(scope="module")
def grammar(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("database") / "hotels.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(TABLES)
    return name_grammar(Schema.from_sqlite(path))


@pytest.fixture(scope="module")
def babbling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A model that writes random characters."""
    with LlamaServer(tiny_gguf(tmp_path_factory.mktemp("model")), 512, concurrency=2) as server:
        yield Client(server.endpoint)


@pytest.mark.parametrize(
    "query",
    [
        "select Name , T1.ID from HOTEL as T1 join Booking as T2 on T1.id = T2.hotel_id where guest = \"O'Hara\"",
        "FROM hotel JOIN booking ON hotel.id = booking.hotel_id WHERE booking.guest LIKE '%a%' SELECT hotel.name",
        "Tables: hotel, booking\nJoins: hotel.id = booking.hotel_id\nSELECT hotel.name FROM hotel",
        "Tables: hotel\nConditions: hotel.id > 3; hotel.id IN (...)\nSELECT hotel.name FROM hotel",
        "SELECT hotel_1.\"Full name\" FROM hotel AS hotel_1 WHERE (hotel_1.id BETWEEN 1 AND 2.5) AND NOT name IS NULL;",
        "SELECT booking.\"50%\", `guest` FROM (SELECT * FROM booking) GROUP BY guest HAVING avg(hotel_id) >= -1",
        "SELECT 名称 , 酒店.É FROM 酒店 WHERE 名称 = '和平''饭店' UNION SELECT \"a]b^c-d\" FROM 酒店",
        "SELECT hotel.guest FROM hotel",
        "SELECT CASE WHEN id % 2 = 0 THEN 'even' ELSE 'odd' END, hotel.\"order\" FROM hotel ORDER BY 1 DESC LIMIT 3",
        "SELECT count(DISTINCT guest), CAST(sum(hotel_id) AS REAL) FROM booking, hotel",
    ],
)  # fmt: skip
def test_queries_are_permitted(query: str, grammar: str, tmp_path: Path) -> None:
    with LlamaServer(answering_gguf(tmp_path, [query]), 512) as server:
        assert Client(server.endpoint).generate(ASSISTANT, 8, grammar=grammar).text == query


@pytest.mark.parametrize(
    "query",
    [
        "SELECT price FROM hotel",
        "SELECT name FROM hotels",
        "SELECT id FROM guest",
        "The query is SELECT id FROM hotel",
        "SELECT é FROM 酒店",
    ],
)
def test_names_of_other_schemas_and_prose_are_not_permitted(query: str, grammar: str, tmp_path: Path) -> None:
    with LlamaServer(answering_gguf(tmp_path, [query]), 512) as server:
        client = Client(server.endpoint)
        assert client.generate(ASSISTANT, 8).text == query
        assert client.generate(ASSISTANT, 8, grammar=grammar).text != query


def test_a_model_that_writes_anything_writes_only_names_of_the_schema(grammar: str, babbling: Client) -> None:
    names = set()
    for seed in range(1, 13):
        text = babbling.generate(f"Question {seed}", 64, temperature=1.5, seed=seed, grammar=grammar).text
        assert re.match(r"SELECT|WITH|FROM|JOIN|Tables: ", text, re.IGNORECASE), text
        words = re.findall(r"[^\W\d]\w*+(?! ?\()", UNRESTRICTED.sub(" ", text).lower())
        names |= {*words[:-1]} - KEYWORDS - TYPES  # the last one may be cut off
    assert len(names) > 5
    assert {name for name in names if not re.fullmatch(r"t\d|(hotel|booking|酒店)_\d", name)} <= NAMES
