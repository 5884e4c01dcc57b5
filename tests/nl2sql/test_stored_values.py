"""The values of real databases, read for an index: SQLite files, servers, and DuckDB files."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.databases.databases import open_databases
from chatmetrics.components.nl2sql.databases.stored_values import MOST_VALUES, StoredValues
from chatmetrics.components.nl2sql.descriptions import Descriptions
from chatmetrics.components.nl2sql.schema import SAMPLED_ROWS, Schema
from tests.nl2sql.hotels import DIALECTS

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(*statements: str, name: str = "hotel") -> Path:
        path = tmp_path / f"{name}.sqlite"
        with closing(sqlite3.connect(path)) as connection, connection:
            for statement in statements:
                connection.execute(statement)
        return path

    return make


def found(path: Path, question: str, known: Descriptions | None = None) -> list[tuple[str, str, str]]:
    matches = StoredValues(Schema.from_sqlite(path, descriptions=known), path).find(question)
    return [(match.table, match.column, match.value) for match in matches]


def test_the_text_of_all_columns_is_found_whatever_their_type(make: Make) -> None:
    path = make(
        "CREATE TABLE t (a TEXT, b INTEGER, c, d BLOB, e TEXT, f TEXT)",
        "INSERT INTO t VALUES ('Alpha', 'Bravo', 'Charlie', x'44656c7461', 4711, CAST(x'ff45' AS TEXT))",
        "INSERT INTO t VALUES (1234, 4712, NULL, 'Echo' || char(10) || 'Fox', '', ' ')",
    )
    assert [value for *_, value in found(path, "Alpha Bravo Charlie Delta Echo  Fox")] == [
        "Alpha",
        "Bravo",
        "Charlie",
        "Echo Fox",
    ]
    assert found(path, "1234, 4711 and 4712") == [("t", "a", "1234"), ("t", "e", "4711")]  # stored as text
    assert found(path, "\\xffE") == [("t", "f", "\\xffE")]


def test_names_with_quotes_and_keywords_are_read(make: Make) -> None:
    path = make(
        'CREATE TABLE "order ""by"" x; --" ("a""b" TEXT, "select" TEXT, "北京 ]" TEXT, value TEXT)',
        """INSERT INTO "order ""by"" x; --" VALUES ('Alpha', 'Bravo', '上海外滩', 'It''s "Echo"')""",
    )
    table = 'order "by" x; --'
    assert found(path, "Alpha Bravo 上海外滩 It's Echo") == [
        (table, 'a"b', "Alpha"),
        (table, "select", "Bravo"),
        (table, "北京 ]", "上海外滩"),
        (table, "value", 'It\'s "Echo"'),
    ]


def test_private_columns_are_not_read_and_views_neither(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    """Reading this column fails, so a warning tells whether it is read."""
    fails = "abs(-9223372036854775807 - length(name))"
    path = make(
        "CREATE TABLE guest (name TEXT, city TEXT)",
        "INSERT INTO guest VALUES ('N', 'Shanghai'), ('Lee', 'Shanghai')",
        f"ALTER TABLE guest ADD COLUMN secret TEXT AS ({fails})",
        "CREATE VIEW known AS SELECT city AS home FROM guest",
    )
    known = Descriptions(private={"Guest": ("SECRET", "Name")})
    assert found(path, "Is Lee in Shanghai?", known) == [("guest", "city", "Shanghai")]
    assert capfd.readouterr().err == ""
    assert found(path, "Is Lee in Shanghai?") == [("guest", "name", "Lee"), ("guest", "city", "Shanghai")]
    assert "cannot be read, so questions are not compared with them" in (err := capfd.readouterr().err)
    assert "hotel: the values of guest.secret (other execution error)" in err and "Lee" not in err


def test_a_huge_column_is_read_up_to_its_limits(make: Make) -> None:
    numbers = f"WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < {SAMPLED_ROWS + 5})"
    path = make(
        "CREATE TABLE t (many TEXT, few TEXT)",
        f"INSERT INTO t {numbers} SELECT 'guest ' || x, iif(x < {SAMPLED_ROWS}, 'red', 'blue' || x) FROM n",
    )
    values = StoredValues(Schema.from_sqlite(path), path)
    last = f"blue{SAMPLED_ROWS}"
    assert [match.value for match in values.find(f"red, {last}, blue{SAMPLED_ROWS + 1}")] == ["red", last]
    assert [match.value for match in values.find(f"guest {MOST_VALUES} and guest {MOST_VALUES + 1}")] == [
        f"guest {MOST_VALUES}"
    ]


def test_a_full_index_is_a_warning(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    path = make("CREATE TABLE t (a TEXT, b TEXT)", *(f"INSERT INTO t VALUES ('red{n}', 'blue{n}')" for n in range(50)))
    values = StoredValues(Schema.from_sqlite(path), path, max_bytes=5_000)
    assert len(values.find("red1 and blue49")) == len(values.find("red1 and blue49")) == 1
    error = capfd.readouterr().err
    assert error.count("warning") == 1 and "fit into the 0 MiB of a value index" in error and "column t.b" in error


def test_the_database_is_read_at_the_first_question_and_once(make: Make) -> None:
    path = make("CREATE TABLE t (a TEXT)", "INSERT INTO t VALUES ('Alpha')")
    values = StoredValues(Schema.from_sqlite(path), path)
    assert len(values.find("Alpha")) == 1
    path.unlink()
    assert len(values.find("Alpha")) == 1
    with pytest.raises(InputError, match="hotel"):
        StoredValues(values._schema, path).find("Alpha")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_values_on_a_server_are_found(dialect: str, addresses: dict[str, str]) -> None:
    if dialect not in addresses:
        pytest.skip(f"{dialect} is not installed")
    known = {"hotels": Descriptions(private={"guest": ("note",)})}
    with open_databases(addresses[dialect], 5.0, known) as databases:
        schema = databases.structure("hotels")
    with open_databases(addresses[dialect], 5.0) as databases:
        public = databases.structure("hotels")
    values = StoredValues(schema, addresses[dialect])
    matches = values.find("Rooms in 上海 or Bnn, in 和平饭店 or the Adler, with good mood, opened 1929-08-01")
    assert {(match.table, match.column, match.value) for match in matches} == {
        ("city", "name", "上海"),
        ("hotel", "name", "和平饭店"),
        ("hotel", "name", "Adler"),
        ("hotel", "mood", "good"),
    }
    assert values.find("a (b) -- c") == []
    assert [match.value for match in StoredValues(public, addresses[dialect]).find("a (b) -- c")] == ["a (b) -- c"]
