"""Schemas: reading from SQLite and Spider, and rendering for prompts."""

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.databases.execution import Executor, FailureMode
from chatmetrics.components.nl2sql.identifiers import KEYWORDS, quoted
from chatmetrics.components.nl2sql.join_graph import JoinGraph
from chatmetrics.components.nl2sql.schema import ForeignKey, Omitted, Schema, SchemaForm

HOTEL = """
CREATE TABLE city (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE hotel (id INTEGER PRIMARY KEY, "full name" VARCHAR(20), city_id INT REFERENCES city);
CREATE TABLE booking (hotel_id INT, day DATE, price REAL, PRIMARY KEY (hotel_id, day),
    FOREIGN KEY (hotel_id) REFERENCES Hotel (ID));
CREATE TABLE invoice (id INTEGER PRIMARY KEY, hotel_id INT, day DATE, "order" TEXT,
    FOREIGN KEY (hotel_id, day) REFERENCES booking (hotel_id, day));
CREATE TABLE color (code TEXT);
INSERT INTO city VALUES (1, '上海'), (2, '北京'), (3, '北京');
INSERT INTO color VALUES ('red'), (NULL), (''), (x'ff'), ('%s');
""" % ("x" * 51)

DDL = """\
CREATE TABLE city (
id INTEGER PRIMARY KEY,
name TEXT
);
CREATE TABLE hotel (
id INTEGER PRIMARY KEY,
"full name" VARCHAR(20),
city_id INT,
FOREIGN KEY (city_id) REFERENCES city (id)
);
CREATE TABLE booking (
hotel_id INT,
day DATE,
price REAL,
PRIMARY KEY (hotel_id, day),
FOREIGN KEY (hotel_id) REFERENCES hotel (id)
);
CREATE TABLE invoice (
id INTEGER PRIMARY KEY,
hotel_id INT,
day DATE,
"order" TEXT,
FOREIGN KEY (hotel_id, day) REFERENCES booking (hotel_id, day)
);
CREATE TABLE color (
code TEXT
);"""

M_SCHEMA = """\
【DB_ID】 hotel
【Schema】
# Table: city
[
(id:INTEGER, Primary Key, Examples: [1, 2]),
(name:TEXT, Examples: [上海, 北京])
]
# Table: hotel
[
(id:INTEGER, Primary Key),
(full name:VARCHAR),
(city_id:INT)
]
【Foreign keys】
hotel.city_id=city.id"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    # The name contains what an SQLite URI would parse as a query and a fragment.
    folder = tmp_path / "a folder?mode=rw#1%20"
    folder.mkdir()
    path = folder / "hotel.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(HOTEL)
    return path


def test_a_schema_is_rendered_as_ddl(database: Path) -> None:
    assert Schema.from_sqlite(database).render("ddl") == DDL


def test_a_schema_is_rendered_as_m_schema_with_samples(database: Path) -> None:
    schema = Schema.from_sqlite(database, sample_values=2)
    assert schema.prune(["HOTEL", "city"]).render("m-schema") == M_SCHEMA


def test_samples_leave_out_empty_long_and_binary_values(database: Path) -> None:
    color = Schema.from_sqlite(database, sample_values=5).prune(["color"])
    assert color.render("ddl") == "CREATE TABLE color (\ncode TEXT -- e.g. red\n);"


def test_reading_a_schema_does_not_change_the_database(database: Path) -> None:
    before = hashlib.sha256(database.read_bytes()).hexdigest()
    Schema.from_sqlite(database, sample_values=3)
    assert hashlib.sha256(database.read_bytes()).hexdigest() == before
    assert [path.name for path in database.parent.iterdir()] == ["hotel.sqlite"]


def created(tmp_path: Path, script: str) -> Path:
    path = tmp_path / "x.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    return path


def shown(path: Path) -> dict[str, list[str]]:
    """The columns that a schema shows, by table."""
    return {table.name: [column.name for column in table.columns] for table in Schema.from_sqlite(path).tables}


# What stays in a file when its extension is not loaded: a line in the catalogue, and the tables that keep its data.
FOREIGN = """
PRAGMA writable_schema = ON;
INSERT INTO sqlite_master (type, name, tbl_name, rootpage, sql)
VALUES ('table', 'vectors', 'vectors', 0, 'CREATE VIRTUAL TABLE vectors USING vec0(e float[4])');
CREATE TABLE vectors_chunks (a); CREATE TABLE vectors_rowids (a); CREATE TABLE vectors_vector_chunks00 (a);
"""
PLAIN = "CREATE TABLE t (a INT);"


@pytest.mark.parametrize(
    ("script", "expected", "omitted"),
    [
        pytest.param(
            f"{PLAIN} CREATE VIEW v AS SELECT a, a + 1 AS b FROM t;", {"t": ["a"], "v": ["a", "b"]}, {}, id="view"
        ),
        pytest.param("CREATE VIEW v (x) AS SELECT 1;", {"v": ["x"]}, {}, id="views alone"),
        pytest.param(
            "CREATE TABLE t (a INT, b INT AS (a + 1), c GENERATED ALWAYS AS (a * 2) STORED, d INT AS (b) VIRTUAL);",
            {"t": ["a", "b", "c", "d"]},
            {},
            id="generated columns",
        ),
        pytest.param("CREATE VIRTUAL TABLE f USING fts5(a, b);", {"f": ["a", "b"]}, {}, id="fts5"),
        pytest.param("CREATE VIRTUAL TABLE f USING fts4(a, b);", {"f": ["a", "b"]}, {}, id="fts4"),
        pytest.param("CREATE VIRTUAL TABLE f USING fts3(a);", {"f": ["a"]}, {}, id="fts3"),
        pytest.param(
            'CREATE VIRTUAL TABLE "a f" USING fts5(a, content=\'\'); CREATE TABLE "a f_notes" (n);',
            {"a f": ["a"], "a f_notes": ["n"]},
            {},
            id="a table named like a shadow table",
        ),
        pytest.param(
            f"{PLAIN} CREATE VIRTUAL TABLE f USING fts5(a, content='t', content_rowid='rowid');",
            {"t": ["a"], "f": ["a"]},
            {},
            id="fts5 on a table",
        ),
        pytest.param(
            "CREATE VIRTUAL TABLE r USING rtree(id, x0, x1, +note);", {"r": ["id", "x0", "x1", "note"]}, {}, id="rtree"
        ),
        pytest.param(
            PLAIN + FOREIGN, {"t": ["a"]}, {"vectors": "no such module: vec0"}, id="a table of a missing extension"
        ),
        pytest.param(
            f"{PLAIN} CREATE VIEW v AS SELECT * FROM gone; CREATE VIEW w AS SELECT a FROM v;",
            {"t": ["a"]},
            {"v": "no such table: main.gone", "w": "no such table: main.gone"},
            id="views of a missing table",
        ),
        pytest.param(
            f"{PLAIN} CREATE VIEW v AS SELECT b FROM t;", {"t": ["a"]}, {"v": "no such column: b"}, id="missing column"
        ),
        pytest.param(
            f"{PLAIN} CREATE VIEW v AS SELECT distance_in_km(a) FROM t;",
            {"t": ["a"]},
            {"v": "no such function: distance_in_km"},
            id="a view with a missing function",
        ),
        pytest.param(
            f"{PLAIN} CREATE VIRTUAL TABLE f USING fts5(b, content='gone');",
            {"t": ["a"]},
            {"f": "no such table: main.gone"},
            id="full text of a missing table",
        ),
        pytest.param(
            f"{PLAIN} CREATE VIRTUAL TABLE f USING fts5(b); PRAGMA writable_schema = ON;"
            "DELETE FROM sqlite_master WHERE name = 'f_config';",
            {"t": ["a"]},
            {"f": "vtable constructor failed: f"},
            id="full text without a shadow table",
        ),
        pytest.param(
            f"{PLAIN} CREATE VIRTUAL TABLE r USING rtree(id, x0, x1); UPDATE r_node SET data = x'00';",
            {"t": ["a"]},
            {"r": 'undersize RTree blobs in "r_node"'},
            id="damaged R-tree",
        ),
        pytest.param(
            "CREATE TABLE t (a INTEGER PRIMARY KEY AUTOINCREMENT, b); CREATE INDEX i ON t (b);"
            "INSERT INTO t VALUES (1, 1); ANALYZE;",
            {"t": ["a", "b"]},
            {},
            id="SQLite's own tables",
        ),
        pytest.param(
            "CREATE TABLE s (a INT, b ANY) STRICT; CREATE TABLE w (k TEXT PRIMARY KEY) WITHOUT ROWID;"
            "CREATE TEMP TABLE x (a);",
            {"s": ["a", "b"], "w": ["k"]},
            {},
            id="strict, without rowid, temporary",
        ),
    ],
)
def test_a_schema_has_what_a_query_can_use(
    tmp_path: Path, executor: Executor, script: str, expected: dict[str, list[str]], omitted: dict[str, str]
) -> None:
    schema = Schema.from_sqlite(created(tmp_path, script), sample_values=1)
    assert {table.name: [column.name for column in table.columns] for table in schema.tables} == expected
    assert {item.name: item.reason for item in schema.omitted} == omitted
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(schema.render("ddl"))
    for table, columns in expected.items():
        query = f"SELECT {', '.join(map(quoted, columns))} FROM {quoted(table)}"
        assert executor.execute(tmp_path / "x.sqlite", query).failure == FailureMode.OK


def test_one_column_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.create_function("udf", 1, lambda value: value, deterministic=True)
        connection.create_collation("own", lambda a, b: (a > b) - (a < b))
        connection.executescript(
            """
            CREATE TABLE t (a INT, b AS (udf(a)), c TEXT COLLATE own);
            CREATE TABLE u (a INT CHECK (udf(a) > 0)); CREATE INDEX i ON u (udf(a));
            INSERT INTO t (a, c) VALUES (1, 'x'), (2, 'X'), (3, 'x');
            """
        )
        connection.commit()
    schema = Schema.from_sqlite(path, sample_values=5)
    assert schema.omitted == (Omitted("t.b", "unknown function: udf()"),)
    assert schema.render("ddl") == (
        "CREATE TABLE t (\na INT, -- e.g. 1, 2, 3\nc TEXT -- e.g. x, X\n);\nCREATE TABLE u (\na INT\n);"
    )


class OldConnection(sqlite3.Connection):
    """SQLite before 3.37 ignores the PRAGMA that lists tables."""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        return super().execute("SELECT 1 WHERE 0" if sql == "PRAGMA table_list" else sql, *parameters)


@pytest.mark.parametrize(
    "virtual", ["fts5(a)", "fts5(a, content='')", "fts4(a)", "fts3(a)", "rtree(a, x0, x1)", "rtree_i32(a, x0, x1)"]
)
def test_shadow_tables_are_recognized_by_an_older_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, virtual: str
) -> None:
    path = created(tmp_path, f"CREATE TABLE v_notes (n); CREATE VIRTUAL TABLE v USING {virtual};")
    current = Schema.from_sqlite(path)
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=OldConnection))
    assert [table.name for table in Schema.from_sqlite(path).tables] == ["v_notes", "v"]
    assert Schema.from_sqlite(path) == current


def test_a_database_whose_tables_cannot_be_read_names_them(tmp_path: Path) -> None:
    path = created(tmp_path, FOREIGN)
    with pytest.raises(InputError, match=r"no tables; vectors cannot be read \(no such module: vec0\)"):
        Schema.from_sqlite(path)


def test_a_full_text_table_can_be_queried_next_to_one_of_a_missing_extension(tmp_path: Path) -> None:
    path = created(tmp_path, FOREIGN)
    created(tmp_path, "CREATE VIRTUAL TABLE f USING fts5(a); INSERT INTO f VALUES ('moss'), ('fern');")
    with Executor() as executor:
        found = executor.execute(path, "SELECT a FROM f WHERE f MATCH 'moss' ORDER BY rank")
        assert (found.rows, found.message) == ([("moss",)], "")
        assert executor.execute(path, "SELECT * FROM vectors").message == "no such module: vec0"


@pytest.mark.parametrize(("form", "begin"), [("ddl", "CREATE TABLE {} ( -- {}\n"), ("m-schema", "# Table: {}, {}\n")])
def test_views_and_virtual_tables_are_named_as_such(tmp_path: Path, form: SchemaForm, begin: str) -> None:
    path = created(
        tmp_path,
        "CREATE VIEW day AS SELECT 1 AS number; CREATE VIRTUAL TABLE [a using b] USING fts5(body);"
        "CREATE VIRTUAL TABLE IF NOT EXISTS place USING\n rtree(id, x0, x1);",
    )
    text = Schema.from_sqlite(path).render(form)
    spaced = "a using b" if form == "m-schema" else '"a using b"'
    for name, kind in (("day", "view"), (spaced, "virtual table (fts5)"), ("place", "virtual table (rtree)")):
        assert begin.format(name, kind) in text
    assert "TEXT" not in text  # SQLite's versions report different types


def test_keys_of_several_columns_keep_their_order(tmp_path: Path) -> None:
    path = created(
        tmp_path,
        """
        CREATE TABLE room (number INT, hotel INT, PRIMARY KEY (hotel, number));
        CREATE TABLE stay (h INT, n INT, friend_h INT, friend_n INT, FOREIGN KEY (h, n) REFERENCES room,
            FOREIGN KEY (friend_h, friend_n) REFERENCES room (hotel, number));
        """,
    )
    schema = Schema.from_sqlite(path)
    text = schema.render("ddl")
    assert "PRIMARY KEY (hotel, number)" in text
    assert "FOREIGN KEY (h, n) REFERENCES room (hotel, number)" in text
    assert "FOREIGN KEY (friend_h, friend_n) REFERENCES room (hotel, number)" in text
    assert ForeignKey("stay", "n", "room", "number") in schema.foreign_keys


NAMES = [
    *sorted(KEYWORDS), "rowid", "oid", "_rowid_", "2024", "1st", "1e5", "0x1f", "", " ", "a b", "a.b", "a-b", "a]b",
    "[a", "x`y", 'q"q', '"', "n\nl", "tab\there", "it's", "a--b", "/*", ";", "$a", "@a", ":a", "?1", "名前", "größe",
    "_", "a(b)", "count", "date", "Current_Date", "null ", "*", "💡",
]  # fmt: skip


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with Executor() as executor:
        yield executor


@pytest.mark.parametrize("name", NAMES)
def test_an_identifier_selects_the_column_as_it_is_shown(tmp_path: Path, executor: Executor, name: str) -> None:
    path = created(tmp_path, f"CREATE TABLE {quoted(name)} ({quoted(name)} TEXT)")
    with closing(sqlite3.connect(path)) as connection:
        connection.executemany(f"INSERT INTO {quoted(name)} VALUES (?)", [("2",), ("1",), ("2",)])
        connection.commit()
    text = Schema.from_sqlite(path).render("ddl")
    table, _, column = text.removeprefix("CREATE TABLE ").removesuffix(" TEXT\n);").partition(" (\n")
    assert table == column
    queries = [
        f"SELECT {column} FROM {table}",
        f"SELECT a.{column} FROM {table} AS a",
        f"SELECT {column} FROM {table} WHERE {column} > '0'",
        f"SELECT {column} FROM {table} WHERE '1' = {column} OR {column} IN ('2') ORDER BY {column}",
        f"SELECT max({column}) FROM {table} GROUP BY {column} HAVING {column} > '0' ORDER BY {column} DESC",
        f"SELECT {column}, count(*) FROM {table} JOIN (SELECT 1 AS b) ON {column} > '0' GROUP BY {column}",
        f"SELECT {table}.{column} FROM {table} LEFT JOIN (SELECT 1 AS b) WHERE CASE WHEN {column} > '0' THEN 1 END",
    ]
    for result in executor.execute_all(path, queries):
        assert result.failure == FailureMode.OK, result.message
        assert {str(row[0]) for row in result.rows} == {"1", "2"}


@pytest.mark.parametrize(
    ("name", "text"),
    [("full name", "full name"), ("current_date", '"current_date"'), ("a\nb", '"a\nb"'), ("2024", '"2024"')],
)
def test_m_schema_quotes_what_is_no_name_without_quotes(tmp_path: Path, name: str, text: str) -> None:
    path = created(tmp_path, f"CREATE TABLE {quoted(name)} ({quoted(name)} INT PRIMARY KEY)")
    rendered = Schema.from_sqlite(path).render("m-schema")
    assert rendered.endswith(f"# Table: {text}\n[\n({text}:INT, Primary Key)\n]")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, ": no such database"),
        (b"text" * 99, " is not an SQLite database"),
        (b"", " is not .*: the file is empty"),
    ],
)
def test_a_file_that_is_not_a_database_is_an_error_that_names_it(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "x.sqlite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"x\.sqlite{message}"):
        Schema.from_sqlite(path)


def test_text_that_is_not_utf8_is_tolerated(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "x.sqlite")) as connection:
        connection.executescript("CREATE TABLE t (a TEXT); INSERT INTO t VALUES (CAST(x'63616665e9' AS TEXT))")
    schema = Schema.from_sqlite(tmp_path / "x.sqlite", sample_values=1)
    assert schema.tables[0].columns[0].samples == ("cafe\N{REPLACEMENT CHARACTER}",)


def test_distances_follow_foreign_keys_in_both_directions(database: Path) -> None:
    graph = JoinGraph(Schema.from_sqlite(database))
    assert graph.distances(["hotel"]) == {"hotel": 0, "city": 1, "booking": 1, "invoice": 2}
    assert graph.distances(["city", "invoice"]) == {"city": 0, "invoice": 0, "hotel": 1, "booking": 1}
    assert graph.distances([]) == {}


def test_pruning_keeps_the_order_and_the_keys_between_kept_tables(database: Path) -> None:
    pruned = Schema.from_sqlite(database).prune(["booking", "hotel"])
    assert [table.name for table in pruned.tables] == ["hotel", "booking"]
    assert pruned.foreign_keys == (ForeignKey("booking", "hotel_id", "hotel", "id"),)


@pytest.fixture
def entry() -> dict[str, Any]:
    return {
        "db_id": "hotel_1",
        "table_names_original": ["city", "hotel"],
        "column_names_original": [[-1, "*"], [0, "id"], [0, "name"], [1, "ID"], [1, "full name"], [1, "city_id"]],
        "column_names": [[-1, "*"], [0, "id"], [0, "town"], [1, "id"], [1, "full name"], [1, "city id"]],
        "column_types": ["text", "number", "text", "number", "text", "number"],
        "primary_keys": [1, 3],
        "foreign_keys": [[5, 1], [2, 4]],
    }


def test_tables_json_is_enough_without_a_database(entry: dict[str, Any]) -> None:
    schema = Schema.from_spider(entry, None)
    assert schema.render("ddl") == (
        "CREATE TABLE city (\nid number PRIMARY KEY,\nname text, -- town\n"
        'FOREIGN KEY (name) REFERENCES hotel ("full name")\n);\n'
        'CREATE TABLE hotel (\nID number PRIMARY KEY,\n"full name" text,\ncity_id number,\n'
        "FOREIGN KEY (city_id) REFERENCES city (id)\n);"
    )


def test_tables_json_adds_descriptions_and_keys_to_the_database(entry: dict[str, Any], database: Path) -> None:
    schema = Schema.from_spider(entry, database)
    assert schema.db_id == "hotel_1"
    assert [table.name for table in schema.tables] == ["city", "hotel", "booking", "invoice", "color"]
    assert schema.tables[0].columns[1].description == "town"
    assert schema.foreign_keys == (
        *Schema.from_sqlite(database).foreign_keys,
        ForeignKey("city", "name", "hotel", "full name"),
    )


@pytest.mark.parametrize("broken", [{"column_types": []}, {"foreign_keys": [[5, 99]]}, {"table_names_original": 3}])
def test_a_malformed_entry_of_tables_json_is_an_error_that_names_it(
    entry: dict[str, Any], broken: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=r"tables\.json: hotel_1: malformed"):
        Schema.from_spider(entry | broken, None)


@pytest.mark.skipif("CHATMETRICS_SPIDER_DIR" not in os.environ, reason="CHATMETRICS_SPIDER_DIR is not set")
def test_sqlite_accepts_the_ddl_of_every_spider_database() -> None:
    spider = Path(os.environ["CHATMETRICS_SPIDER_DIR"])
    described = {entry["db_id"]: entry for entry in json.loads((spider / "tables.json").read_bytes())}
    databases = sorted((spider / "database").glob("*/*.sqlite"))
    assert len(databases) == 165
    for path in databases:
        schema = Schema.from_spider(described[path.stem], path, sample_values=2)
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.executescript(schema.render("ddl"))
            names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert names == [table.name for table in schema.tables]


def test_sample_values_are_from_the_first_rows_of_a_large_table(tmp_path: Path) -> None:
    path = tmp_path / "large.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE sale (id INTEGER PRIMARY KEY, kind TEXT COLLATE NOCASE)")
        connection.execute(
            "INSERT INTO sale WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 100001) "
            "SELECT x, CASE x WHEN 1 THEN NULL WHEN 2 THEN 'A' WHEN 100000 THEN 'early' WHEN 100001 THEN 'late' "
            "ELSE 'a' END FROM n"
        )
        connection.commit()
    [kind] = [column for column in Schema.from_sqlite(path, 9).tables[0].columns if column.name == "kind"]
    assert kind.samples == ("A", "early")


def test_a_column_name_with_braces_has_sample_values(tmp_path: Path) -> None:
    path = tmp_path / "braces.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute('CREATE TABLE "{t}" ("{0}" TEXT, "{x}" TEXT, "{" TEXT)')
        connection.execute("INSERT INTO \"{t}\" VALUES ('a', 'b', 'c')")
        connection.commit()
    assert [column.samples for column in Schema.from_sqlite(path, 1).tables[0].columns] == [("a",), ("b",), ("c",)]
