"""Joins that no foreign key declares: found in databases and training queries, published, and used."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from chatmetrics.components.nl2sql.binding.binder import bind_names
from chatmetrics.components.nl2sql.databases.databases import open_databases
from chatmetrics.components.nl2sql.databases.execution import Executor, Result
from chatmetrics.components.nl2sql.descriptions import Descriptions, DiscoveredJoin, read_descriptions
from chatmetrics.components.nl2sql.join_graph import JoinGraph
from chatmetrics.components.nl2sql.linking.explanation import explain
from chatmetrics.components.nl2sql.linking.pruning import Pruner
from chatmetrics.components.nl2sql.schema import Column, Schema, Table
from chatmetrics.components.preprocess.joins.candidates import candidates
from chatmetrics.components.preprocess.joins.discovery import MAX_JOINS, discover
from chatmetrics.components.preprocess.joins.used import with_uses
from chatmetrics.components.preprocess.preprocess import preprocess
from chatmetrics.components.preprocess.settings import PreprocessSettings
from tests.nl2sql.hotels import DIALECTS

HOTEL = (
    "CREATE TABLE hotels (id INTEGER PRIMARY KEY, name TEXT); INSERT INTO hotels VALUES (1, 'a'), (2, 'b'), (3, 'c')"
)
HOSTILE = 'we"ird; DROP TABLE x -- `'


def texts(joins: Sequence[DiscoveredJoin]) -> list[str]:
    return [f"{join.table}.{join.column} = {join.referenced_table}.{join.referenced_column}" for join in joins]


def database(folder: Path, script: str) -> Path:
    path = folder / "shop.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    return path


def found(folder: Path, script: str, known: Descriptions | None = None) -> list[DiscoveredJoin]:
    path = database(folder, script)
    with Executor(5.0) as executor:
        return discover(Schema.from_sqlite(path, descriptions=known), partial(executor.execute_all, path))


@pytest.mark.parametrize(
    ("script", "join"),
    [
        (
            f"{HOTEL}; CREATE TABLE orders (hotel_id INT); INSERT INTO orders VALUES (1), (3), (3), (NULL)",
            "orders.hotel_id = hotels.id",
        ),
        (
            "CREATE TABLE city (cityCode TEXT PRIMARY KEY); INSERT INTO city VALUES ('x'), ('y');"
            "CREATE TABLE trip (city_code TEXT); INSERT INTO trip VALUES ('y')",
            "trip.city_code = city.cityCode",
        ),
        (
            f"{HOTEL}; CREATE TABLE trip (from_hotel_id INT); INSERT INTO trip VALUES (2)",
            "trip.from_hotel_id = hotels.id",
        ),
        (f"{HOTEL}; CREATE TABLE stay (hotel INT); INSERT INTO stay VALUES (2)", "stay.hotel = hotels.id"),
        (
            "CREATE TABLE 酒店信息 (编号 INTEGER PRIMARY KEY, 名称 TEXT); INSERT INTO 酒店信息 VALUES (1, '甲');"
            "CREATE TABLE 订单 (酒店编号 INT, 名称 TEXT); INSERT INTO 订单 VALUES (1, '甲')",
            "订单.酒店编号 = 酒店信息.编号",
        ),
        (
            f"{HOTEL}; CREATE TABLE raw (x INT, y INT); INSERT INTO raw VALUES (1, 2);"
            "CREATE VIEW sold AS SELECT x AS hotel_id FROM raw",
            "sold.hotel_id = hotels.id",
        ),
        (
            f"{HOTEL}; CREATE TABLE orders (hotel_id TEXT); INSERT INTO orders VALUES ('1'), ('3')",
            "orders.hotel_id = hotels.id",
        ),
        (
            "CREATE TABLE room (hotel INT, room_no INT, PRIMARY KEY (hotel, room_no)); INSERT INTO room VALUES (1, 1);"
            "CREATE TABLE customers (customer_id INTEGER PRIMARY KEY); INSERT INTO customers VALUES (7);"
            "CREATE TABLE bill (customer_id INT, room_no INT); INSERT INTO bill VALUES (7, 1)",
            "bill.customer_id = customers.customer_id",
        ),
    ],
    ids=["table and id", "spelling", "role", "table alone", "chinese", "view", "text and number", "composite"],
)
def test_a_join_is_found_with_its_evidence(tmp_path: Path, script: str, join: str) -> None:
    joins = found(tmp_path, script)
    assert texts(joins)[:1] == [join]
    assert 0.5 <= joins[0].score <= 1
    assert "sampled values are in" in joins[0].evidence


def test_evidence_is_in_words_and_numbers_and_has_no_values(tmp_path: Path) -> None:
    script = "CREATE TABLE city (city_code TEXT PRIMARY KEY); INSERT INTO city VALUES ('secret'), ('other');"
    [join] = found(tmp_path, script + "CREATE TABLE trip (city_code TEXT); INSERT INTO trip VALUES ('secret')")
    assert join.score == 1.0
    assert join.evidence == "same name city_code; 1 of 1 sampled values are in city.city_code, which is unique"


def test_numbers_compared_with_text_score_less(tmp_path: Path) -> None:
    [join] = found(tmp_path, f"{HOTEL}; CREATE TABLE o (hotel_id TEXT); INSERT INTO o VALUES ('1'), ('3')")
    assert join.score == 0.8
    assert "compared as text" in join.evidence


@pytest.mark.parametrize(
    "script",
    [
        f"{HOTEL}; CREATE TABLE guest (id INTEGER PRIMARY KEY, age INT); INSERT INTO guest VALUES (1, 2), (2, 3)",
        f"{HOTEL}; CREATE TABLE guest (name TEXT, status TEXT, year INT); INSERT INTO guest VALUES ('a', 'b', 1)",
        f"{HOTEL}; CREATE TABLE orders (hotel_id INT); INSERT INTO orders VALUES (1), (77), (78)",
        f"{HOTEL}; CREATE TABLE orders (hotel_id REAL); INSERT INTO orders VALUES (1.0)",
        f"{HOTEL}; CREATE TABLE orders (hotel_id INT REFERENCES hotels); INSERT INTO orders VALUES (1)",
    ],
    ids=["small numbers", "common names", "other values", "floats", "declared"],
)
def test_what_is_not_a_join_is_not_found(tmp_path: Path, script: str) -> None:
    assert found(tmp_path, script) == []


def test_of_an_empty_table_only_clear_names_count_and_less(tmp_path: Path) -> None:
    [join] = found(tmp_path, f"{HOTEL}; CREATE TABLE a (hotel_id INT); CREATE TABLE b (my_hotel_no INT)")
    assert texts([join]) == ["a.hotel_id = hotels.id"]
    assert join.score == 0.6
    assert "no values to compare" in join.evidence


def test_private_columns_are_not_queried(tmp_path: Path) -> None:
    script = (
        f"{HOTEL}; CREATE TABLE orders (hotel_id INT, city_id INT); CREATE TABLE city (city_id INTEGER PRIMARY KEY)"
    )
    path = database(tmp_path, script + "; INSERT INTO orders VALUES (1, 1); INSERT INTO city VALUES (1)")
    schema = Schema.from_sqlite(path, descriptions=Descriptions(private={"orders": ("hotel_id",)}))
    asked: list[str] = []
    with Executor(5.0) as executor:

        def execute(queries: Sequence[str]) -> list[Result]:
            asked.extend(queries)
            return executor.execute_all(path, queries)

        assert texts(discover(schema, execute)) == ["orders.city_id = city.city_id"]
    assert asked
    assert not any("hotel_id" in sql for sql in asked)


def test_hostile_names_are_quoted(tmp_path: Path) -> None:
    name = HOSTILE.replace('"', '""')
    script = f'CREATE TABLE "{name}" ("select" INTEGER PRIMARY KEY); INSERT INTO "{name}" VALUES (1);'
    script += f'CREATE TABLE x ("w" INT, "{name}_id" INT); INSERT INTO x VALUES (1, 1)'
    assert texts(found(tmp_path, script)) == [f"x.{HOSTILE}_id = {HOSTILE}.select"]


def test_a_query_that_fails_is_left_out_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = f"{HOTEL}; CREATE TABLE orders (hotel_id INT); INSERT INTO orders VALUES (1);"
    endless = "WITH RECURSIVE n(hotel_id) AS (SELECT 1 UNION ALL SELECT hotel_id FROM n)"
    script += f"CREATE VIEW v AS {endless} SELECT * FROM n WHERE hotel_id > 1"
    path = database(tmp_path, script)
    with Executor(0.2) as executor:
        joins = discover(Schema.from_sqlite(path), partial(executor.execute_all, path))
    assert texts(joins) == ["orders.hotel_id = hotels.id"]
    assert "shop: 1 joins could not be checked" in capsys.readouterr().err


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_kind_of_database_is_queried(addresses: dict[str, str], dialect: str) -> None:
    if dialect not in addresses:
        pytest.skip(f"{dialect} is not installed")
    with open_databases(addresses[dialect], 5.0) as opened:
        schema = opened.structure("hotels")
        hidden = replace(schema, foreign_keys=())
        joins = discover(hidden, partial(opened.execute, "hotels"))
    declared = {(key.table, key.column, key.referenced_table) for key in schema.foreign_keys}
    assert declared & {(join.table, join.column, join.referenced_table) for join in joins}


def test_a_schema_of_3000_tables_takes_seconds_and_gives_a_bounded_number() -> None:
    tables = [
        Table(
            f"t{n}_item", (Column("id", "INTEGER", 1), Column(f"t{n - 1}_item_id", "INTEGER"), Column("shop_id", "INT"))
        )
        for n in range(3000)
    ]
    schema = Schema("large", (Table("shop", (Column("shop_id", "INTEGER", 1),)), *tables))
    assert candidates(schema)
    assert len(discover(schema, None)) == MAX_JOINS


def test_joins_of_training_queries_are_counted_and_found() -> None:
    item = Table("item", (Column("id", "INTEGER", 1), Column("maker", "TEXT")))
    firm, sale = Table("firm", (Column("label", "TEXT", 1),)), Table("sale", (Column("item_id", "INTEGER"),))
    schema = Schema("shop", (item, firm, sale))
    known = DiscoveredJoin("sale", "item_id", "item", "id", 0.8, "same name")
    queries = [
        "SELECT * FROM item AS T1 JOIN firm AS T2 ON T1.maker = T2.label",
        "SELECT count(*) FROM firm JOIN item ON maker = label WHERE label = 'x'",
        "SELECT id FROM item, sale WHERE item.id = sale.item_id",
        "no query",
        "SELECT nothing FROM nowhere",
    ]
    first, second = with_uses([known], schema, queries)
    assert (texts([first]), first.uses, first.evidence) == (
        ["sale.item_id = item.id"],
        1,
        "same name; used by 1 training query",
    )
    assert (texts([second]), second.uses, second.score) == (["item.maker = firm.label"], 2, 0.75)
    assert second.evidence == "used by 2 training queries"


def test_joins_are_published_and_read_but_not_rendered(shop: Path, tokenizer: Path, tmp_path: Path) -> None:
    path = shop / "databases" / "shop" / "shop.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE stock (item_id INT, number INT); INSERT INTO stock VALUES (1, 5), (2, 6)"
        )
    common = {"source": str(shop), "format": "jsonl", "databases": str(shop / "databases"), "tokenizer": str(tokenizer)}
    settings = PreprocessSettings.model_validate({**common, "workers": 1})
    card = preprocess(settings, tmp_path / "on")
    off = preprocess(settings.model_copy(update={"discovered_joins": "off"}), tmp_path / "off")
    assert (card.discovered_joins, off.discovered_joins) == (1, 0)
    assert "joins that no foreign key declares" in card.markdown()
    for name in ("train.jsonl", "dev.jsonl"):
        assert (tmp_path / "on" / name).read_bytes() == (tmp_path / "off" / name).read_bytes()
    known = read_descriptions(tmp_path / "on")["shop"]
    assert texts(known.joins) == ["stock.item_id = item.id"]
    schema = Schema.from_sqlite(path, descriptions=known)
    assert texts(schema.discovered) == ["stock.item_id = item.id"]
    assert schema.render("ddl") == Schema.from_sqlite(path).render("ddl")
    assert JoinGraph(schema).distances(["stock"]) == {"stock": 0, "item": 1, "sale": 2}
    assert not read_descriptions(tmp_path / "off")


def test_pruning_keeps_the_columns_of_a_discovered_join_and_says_so() -> None:
    filler = tuple(Column(f"filler_{n}", "TEXT") for n in range(40))
    stock = Table("stock", (*filler, Column("thing", "INTEGER"), Column("number", "INTEGER")))
    item = Table("item", (Column("id", "INTEGER", 1), Column("price", "REAL"), *filler))
    join = DiscoveredJoin("stock", "thing", "item", "id", 0.9, "used by 5 training queries", 5)
    schema = Schema("shop", (stock, item), discovered=(join,))
    pruner, question = Pruner(schema, "ddl"), "What is the stock and the price of each item?"
    part = pruner.prune(question, lambda text: len(text) - 200)
    assert part is not None
    assert {table.name for table in part.tables} == {"stock", "item"}
    assert "thing" in next(table for table in part.tables if table.name == "stock").column_names
    assert part.discovered == (join,)
    assert "stock.thing = item.id (discovered, 0.90: used by 5 training queries)" in explain(
        pruner.rank(question), schema, part
    )


def test_a_missing_join_is_added_along_a_discovered_one() -> None:
    stock = Table("stock", (Column("thing", "INTEGER"), Column("number", "INTEGER")))
    item = Table("item", (Column("id", "INTEGER", 1), Column("price", "REAL")))
    join = DiscoveredJoin("stock", "thing", "item", "id", 0.9, "used by 5 training queries", 5)
    bound, *_ = bind_names(
        "SELECT price FROM stock WHERE number > 3", Schema("shop", (stock, item), discovered=(join,))
    )
    assert "JOIN item ON stock.thing = item.id" in bound.sql


def test_a_foreign_key_comes_before_a_discovered_join() -> None:
    path = [Table(name, (Column("id", "INTEGER", 1), Column("x", "INTEGER"))) for name in ("a", "b")]
    keys = Descriptions(
        foreign_keys=(("a", "x", "b", "id"),), joins=(DiscoveredJoin("a", "id", "b", "id", 1.0, "same name"),)
    )
    schema = Schema("db", tuple(path)).described_by(keys)
    assert [link[0].columns for link in JoinGraph(schema).paths(["a"], "b")] == [(("x", "id"),), (("id", "id"),)]
