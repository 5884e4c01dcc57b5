"""Binding names: a table of repairs by kind on Spider's schemas, and queries that must stay as they are."""

import json
import os
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest

from chatmetrics.components.nl2sql.binding.binder import MAX_CHARACTERS, BoundQuery, bind_names
from chatmetrics.components.nl2sql.binding.edit import Repair, RepairKind
from chatmetrics.components.nl2sql.schema import Column, ForeignKey, Omitted, Schema, Table
from chatmetrics.components.nl2sql.sqlite_compiler import unresolved_name

SPIDER, PREDICTIONS = (os.environ.get(f"CHATMETRICS_{name}_DIR", "") for name in ("SPIDER", "PREDICTIONS"))
needs_spider = pytest.mark.skipif(not SPIDER, reason="CHATMETRICS_SPIDER_DIR is not set")

SHOP = Schema(
    "shop",
    (
        Table("customer", (Column("customer_id", "INT", 1), Column("name", "TEXT"), Column("order date", "TEXT"))),
        Table("purchase", (Column("purchase_id", "INT", 1), Column("customer_id", "INT"), Column("total", "REAL"))),
        Table("line", (Column("purchase_id", "INT"), Column("item_id", "INT"), Column("amount", "INT"))),
        Table("item", (Column("item_id", "INT", 1), Column("title", "TEXT"), Column("price", "REAL"))),
        Table("note", (Column("text", "TEXT"),)),
    ),
    (
        ForeignKey("purchase", "customer_id", "customer", "customer_id"),
        ForeignKey("line", "purchase_id", "purchase", "purchase_id"),
        ForeignKey("line", "item_id", "item", "item_id"),
    ),
    (Omitted("broken", "no such module: x"),),
)


@lru_cache
def spider(db_id: str) -> Schema:
    entries = {entry["db_id"]: entry for entry in json.loads((Path(SPIDER) / "tables.json").read_text("utf-8"))}
    path = Path(SPIDER) / "database" / db_id / f"{db_id}.sqlite"
    return Schema.from_spider(entries[db_id], path if path.exists() else None)


REPAIRS = [
    (
        "concert_singer",
        "SELECT T2.name, T1.concert_name FROM stadium AS T1 JOIN concert AS T2 ON T1.stadium_id = T2.stadium_id",
        "SELECT T2.name, T1.concert_name FROM concert AS T1 JOIN stadium AS T2 ON T1.stadium_id = T2.stadium_id",
        "alias",
        "aliases exchanged: T2 is stadium, T1 is concert",
    ),
    (
        "pets_1",
        "SELECT T2.weight, T2.stuid FROM has_pet AS T1 JOIN pets AS T2 ON T1.petid = T2.petid",
        "SELECT T2.weight, T1.stuid FROM has_pet AS T1 JOIN pets AS T2 ON T1.petid = T2.petid",
        "alias",
        "T2.stuid is T1.stuid",
    ),
    (
        "pets_1",
        "SELECT pets.weight FROM pets AS T1 WHERE T1.pettype = 'cat'",
        "SELECT T1.weight FROM pets AS T1 WHERE T1.pettype = 'cat'",
        "alias",
        "pets.weight is T1.weight",
    ),
    (
        "concert_singer",
        "SELECT name FROM singer WHERE singer_id IN (SELECT singerid FROM singer_in_concert)",
        "SELECT name FROM singer WHERE singer_id IN (SELECT Singer_ID FROM singer_in_concert)",
        "near_name",
        "singerid is Singer_ID",
    ),
    (
        "concert_singer",
        "SELECT T1.nmae FROM singers AS T1",
        "SELECT T1.Name FROM singer AS T1",
        "near_name",
        "table singers is singer",
    ),
    (
        "concert_singer",
        "SELECT T2.name FROM concert AS T1 JOIN stadium AS T2 ON T1.concert_id = T2.concert_id",
        "SELECT T2.name FROM concert AS T1 JOIN stadium AS T2 ON T1.Stadium_ID = T2.Stadium_ID",
        "on_by_key",
        "joined by key: stadium ON T1.Stadium_ID = T2.Stadium_ID",
    ),
    (
        "concert_singer",
        "SELECT T1.name FROM stadium AS T1 JOIN concert AS T2 USING (concert_id) WHERE T2.year = 2014",
        "SELECT T1.name FROM stadium AS T1 JOIN concert AS T2 ON T1.Stadium_ID = T2.Stadium_ID WHERE T2.year = 2014",
        "on_by_key",
        "joined by key: concert ON T1.Stadium_ID = T2.Stadium_ID",
    ),
    (
        "concert_singer",
        "SELECT concert_name, capacity FROM concert WHERE year = 2014",
        "SELECT concert_name, stadium.capacity FROM concert JOIN stadium ON concert.Stadium_ID = stadium.Stadium_ID "
        "WHERE year = 2014",
        "added_join",
        "join added: stadium ON concert.Stadium_ID = stadium.Stadium_ID",
    ),
    (
        "concert_singer",
        "SELECT T1.concert_name, T1.country FROM concert AS T1",
        "SELECT T1.concert_name, T3.country FROM concert AS T1 JOIN singer_in_concert AS T2 ON T1.concert_ID = "
        "T2.concert_ID JOIN singer AS T3 ON T2.Singer_ID = T3.Singer_ID",
        "added_join",
        "join added: singer_in_concert AS T2 ON T1.concert_ID = T2.concert_ID, singer AS T3 ON "
        "T2.Singer_ID = T3.Singer_ID",
    ),
    (
        "concert_singer",
        "SELECT T1.concert_name, T2.country FROM concert AS T1 JOIN singer AS T2 ON T1.singer_id = T2.concert_id",
        "SELECT T1.concert_name, T2.country FROM concert AS T1 JOIN singer_in_concert AS T3 ON T1.concert_ID = "
        "T3.concert_ID JOIN singer AS T2 ON T3.Singer_ID = T2.Singer_ID",
        "added_join",
        "join added: singer_in_concert AS T3 ON T1.concert_ID = T3.concert_ID, singer ON T3.Singer_ID = T2.Singer_ID",
    ),
    (
        "concert_singer",
        "SELECT country, age FROM concert WHERE is_male = 'T'",
        "SELECT country, age FROM singer WHERE is_male = 'T'",
        "other_table",
        "table singer instead of concert",
    ),
    (
        "car_1",
        "SELECT cars_data.horsepower, car_names.make FROM cars_data",
        "SELECT cars_data.horsepower, car_names.make FROM cars_data JOIN car_names ON cars_data.Id = car_names.MakeId",
        "added_join",
        "join added: car_names ON cars_data.Id = car_names.MakeId",
    ),
    (
        "concert_singer",
        "SELECT name FROM stadium EXCEPT SELECT T1.capacity FROM concert AS T1",
        "SELECT name FROM stadium EXCEPT SELECT T1.capacity FROM stadium AS T1",
        "other_table",
        "table stadium instead of concert",
    ),
    (
        "concert_singer",
        "SELECT name FROM stadium WHERE EXISTS (SELECT 1 FROM concert AS T2 WHERE T2.stadium_id = stadium.stadiumid)",
        "SELECT name FROM stadium WHERE EXISTS(SELECT 1 FROM concert AS T2 WHERE T2.stadium_id = stadium.Stadium_ID)",
        "near_name",
        "stadium.stadiumid is stadium.Stadium_ID",
    ),
    (
        "concert_singer",
        "SELECT AVG(x.n) FROM (SELECT COUNT(*) AS n FROM concert GROUP BY stadiumid) AS x",
        "SELECT AVG(x.n) FROM (SELECT COUNT(*) AS n FROM concert GROUP BY Stadium_ID) AS x",
        "near_name",
        "stadiumid is Stadium_ID",
    ),
    (
        "pets_1",
        "WITH cats AS (SELECT petid, weight AS w FROM pets WHERE pettyp = 'cat') SELECT MAX(cat.w) FROM cats",
        "WITH cats AS (SELECT petid, weight AS w FROM pets WHERE PetType = 'cat') SELECT MAX(cats.w) FROM cats",
        "near_name",
        "pettyp is PetType",
    ),
    (
        "pets_1",
        "SELECT pettype, COUNT(*) AS number_of_pets FROM pets GROUP BY pettype ORDER BY number_pets",
        "SELECT pettype, COUNT(*) AS number_of_pets FROM pets GROUP BY pettype ORDER BY number_of_pets",
        "near_name",
        "number_pets is number_of_pets",
    ),
    (
        "flight_2",
        "SELECT COUNT(*) FROM flights WHERE city = 'Aberdeen' AND destairport <> ''",
        "SELECT COUNT(*) FROM flights JOIN airports ON flights.DestAirport = airports.AirportCode WHERE airports.city "
        "= 'Aberdeen' AND destairport <> ''",
        "added_join",
        "join added: airports ON flights.DestAirport = airports.AirportCode",
    ),
]


@needs_spider
@pytest.mark.parametrize(("db_id", "sql", "expected", "kind", "message"), REPAIRS)
def test_the_smallest_repair_is_made(db_id: str, sql: str, expected: str, kind: RepairKind, message: str) -> None:
    schema = spider(db_id)
    assert unresolved_name(schema, sql)
    first = bind_names(sql, schema)[0]
    assert first.repairs and not unresolved_name(schema, first.sql), first
    assert (first.sql, first.repairs[0]) == (expected, Repair(kind, message))


@needs_spider
def test_two_repairs_that_are_equally_small_are_both_candidates_in_a_fixed_order() -> None:
    flights = "SELECT flightno FROM flights WHERE city = 'Aberdeen'"
    found = bind_names(flights, spider("flight_2"))
    assert [query.sql.split(" ON ")[1] for query in found] == [
        f"flights.{column} = airports.AirportCode WHERE airports.city = 'Aberdeen'"
        for column in ("SourceAirport", "DestAirport")
    ]
    assert found == bind_names(flights, spider("flight_2"))


@needs_spider
def test_a_query_whose_names_all_resolve_is_never_changed() -> None:
    files = ("dev.json", "train_spider.json", "train_others.json")
    records = [record for file in files for record in json.loads((Path(SPIDER) / file).read_text("utf-8"))]
    changed = [r["query"] for r in records if bind_names(r["query"], spider(r["db_id"])) != (BoundQuery(r["query"]),)]
    assert len(records) == 9693
    assert [sql for sql in changed if not unresolved_name(spider_of(records, sql), sql)] == []
    assert len(changed) <= 1  # one gold query of Spider names a table that does not exist


def spider_of(records: list[dict[str, str]], sql: str) -> Schema:
    return spider(next(record["db_id"] for record in records if record["query"] == sql))


@pytest.mark.skipif(not (SPIDER and PREDICTIONS), reason="CHATMETRICS_SPIDER_DIR or _PREDICTIONS_DIR is not set")
@pytest.mark.parametrize("file", sorted(Path(PREDICTIONS).glob("*.json")) if PREDICTIONS else [], ids=lambda f: f.stem)
def test_published_predictions_change_only_where_a_name_does_not_resolve(file: Path) -> None:
    for record in json.loads(file.read_text("utf-8")):
        sql, schema = record["predicted"] or "", spider(record["db_id"])
        found = bind_names(sql, schema)
        if not unresolved_name(schema, sql):
            assert found == (BoundQuery(sql),)
        for query in found:
            assert (query.sql == sql) == (not query.repairs)
            assert not query.repairs or not unresolved_name(schema, query.sql)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT orderdate FROM customer", 'SELECT "order date" FROM customer'),
        ("SELECT customer.name, total FROM purchase", "SELECT customer.name, total FROM purchase JOIN customer ON"),
        (
            "SELECT purchase_id, total, amount FROM purchase",
            "SELECT purchase.purchase_id, total, line.amount FROM purchase JOIN line",
        ),
        ("SELECT customer_id FROM customer JOIN purchase ON 1 = 1", "SELECT customer.customer_id FROM customer JOIN"),
    ],
)
def test_names_are_quoted_and_qualified_where_needed(sql: str, expected: str) -> None:
    found = bind_names(sql, SHOP)[0]
    assert found.sql.startswith(expected) and not unresolved_name(SHOP, found.sql)


def test_a_composite_key_joins_by_all_its_columns() -> None:
    keys = (
        ForeignKey("visit", "hotel", "room", "hotel", 1),
        ForeignKey("visit", "number", "room", "number", 1),
    )
    room = Table("room", (Column("hotel", "INT", 1), Column("number", "INT", 2), Column("beds", "INT")))
    visit = Table("visit", (Column("hotel", "INT"), Column("number", "INT"), Column("guest", "TEXT")))
    found = bind_names("SELECT guest, beds FROM visit", Schema("hotel", (room, visit), keys))
    assert [query.sql for query in found] == [
        "SELECT guest, room.beds FROM visit JOIN room ON visit.hotel = room.hotel AND visit.number = room.number"
    ]


UNCHANGED = {
    "empty": "",
    "blank": " \n ",
    "prose": "I cannot answer this question.",
    "does not parse": "SELECT FROM WHERE customr",
    "a deletion": "DELETE FROM customr",
    "an insertion": "INSERT INTO customr SELECT nam FROM custome",
    "a pragma": "PRAGMA table_info(customr)",
    "two statements": "SELECT nam FROM customer; DROP TABLE customer",
    "no table to be found": "SELECT zzz FROM qqq",
    "no column to be found": "SELECT zzz FROM customer",
    "a table that no key reaches": "SELECT name, text FROM customer",
    "an unknown function comes first": "SELECT frobnicate(name) FROM customer",
    "long": f"SELECT nam FROM customer WHERE name IN ({', '.join(map(str, range(MAX_CHARACTERS)))})",
    "100 kB": "SELECT nam FROM customer WHERE " + " OR ".join(["nam = 1"] * 10_000),
    "nested parentheses": "SELECT " + "(" * 3000 + "nam" + ")" * 3000 + " FROM customer",
    "unclosed parentheses": "SELECT " + "(" * 4000 + "nam FROM customer",
    "long name": f"SELECT {'n' * 9000} FROM customer",
}


@pytest.mark.parametrize("dialect", ["sqlite", "postgres", "mysql", "duckdb"])
@pytest.mark.parametrize("sql", UNCHANGED.values(), ids=UNCHANGED)
def test_text_that_cannot_be_repaired_is_unchanged(sql: str, dialect: str) -> None:
    started = time.process_time()
    assert bind_names(sql, SHOP, dialect) == (BoundQuery(sql),)
    assert time.process_time() - started < 2


HOSTILE = {
    "many wrong names": "SELECT " + ", ".join(f"nam{n}" for n in range(300)) + " FROM customer",
    "many wrong aliases": "SELECT " + ", ".join(f"t{n}.name" for n in range(300)) + " FROM customer AS t",
    "many subqueries": " UNION ".join(["SELECT nam FROM customer"] * 150),
    "nested subqueries": "SELECT nam FROM customer WHERE name IN (" * 40 + "SELECT 1" + ")" * 40,
    "many joins": "SELECT nam FROM customer AS a0 "
    + " ".join(f"JOIN line AS a{n} ON a{n}.x = a0.y" for n in range(60)),
    "a long chain": "SELECT nam FROM customer WHERE " + " AND ".join(["name = 1"] * 600),
    "lone surrogate": "SELECT nam\ud800 FROM customer",
    "null character": "SELECT nam\0 FROM customer",
    "deep": "SELECT " + "(" * 900 + "nam" + ")" * 900 + " FROM customer",
}


@pytest.mark.parametrize("dialect", ["sqlite", "postgres", "mysql", "duckdb"])
@pytest.mark.parametrize("sql", HOSTILE.values(), ids=HOSTILE)
def test_hostile_queries_take_bounded_time(sql: str, dialect: str) -> None:
    started = time.process_time()
    found = bind_names(sql, SHOP, dialect)
    assert time.process_time() - started < 5
    assert 1 <= len(found) <= 4 and found == bind_names(sql, SHOP, dialect)


def test_large_schemas_take_bounded_time() -> None:
    names = ("id", "hub_id", *(f"value_{number}" for number in range(30)))
    spokes = tuple(Table(f"spoke_{number}", tuple(Column(name, "INT") for name in names)) for number in range(1000))
    hub = Table("hub", (Column("key", "INT", 1), Column("title", "TEXT")))
    keys = tuple(ForeignKey(table.name, "hub_id", "hub", "key") for table in spokes)
    schema = Schema("large", (hub, *spokes), keys)
    bind_names("SELECT 1", schema)
    started = time.process_time()
    found = bind_names("SELECT h.title, h.id, h.value_1, x.value_29, wrong FROM hub AS h WHERE h.hub = 1", schema)
    assert time.process_time() - started < 5
    assert not found[0].repairs
    found = bind_names("SELECT h.title, h.value_1 FROM hub AS h", schema)
    assert time.process_time() - started < 5
    assert [query.sql for query in found][:1] == [
        'SELECT h.title, spoke_0.value_1 FROM hub AS h JOIN spoke_0 ON h."key" = spoke_0.hub_id'
    ]


DIALECTS = [
    ("postgres", "SELECT c.nam FROM customer AS c", "SELECT c.name FROM customer AS c"),
    ("postgres", "SELECT c.orderdate FROM customer AS c", 'SELECT c."order date" FROM customer AS c'),
    ("postgres", 'SELECT "Name" FROM customer', "SELECT name FROM customer"),
    ("postgres", "SELECT title::text FROM line", "SELECT CAST(title AS TEXT) FROM item"),
    ("postgres", "SELECT name, total FROM customer, note WHERE text = name", None),
    ("mysql", "SELECT c.orderdate FROM customer AS c", "SELECT c.`order date` FROM customer AS c"),
    ("mysql", 'SELECT titel FROM item WHERE title = "nam"', "SELECT title FROM item WHERE title = 'nam'"),
    ("mysql", "SELECT `nam` FROM `customer`", "SELECT name FROM `customer`"),
    ("duckdb", "SELECT c.orderdate FROM customer AS c", 'SELECT c."order date" FROM customer AS c'),
    ("duckdb", 'SELECT "Nam" FROM CUSTOMER', "SELECT name FROM CUSTOMER"),
    ("duckdb", "SELECT title::text FROM line", "SELECT CAST(title AS TEXT) FROM item"),
    ("duckdb", "FROM customer SELECT nam", "SELECT name FROM customer"),
]


@pytest.mark.parametrize(("dialect", "sql", "expected"), DIALECTS)
def test_names_are_repaired_in_other_dialects(dialect: str, sql: str, expected: str | None) -> None:
    assert bind_names(sql, SHOP, dialect)[0].sql == (expected or sql)


RESOLVED = [
    ("postgres", "SELECT NAME, Total FROM Customer NATURAL JOIN purchase"),
    ("postgres", "SELECT c FROM customer c WHERE c.ctid IS NOT NULL AND CURRENT_USER = name"),
    ("postgres", "SELECT n FROM generate_series(1, 3) AS n"),
    ("postgres", "SELECT x.anything FROM jsonb_to_record('{}') AS x(anything int)"),
    ("postgres", "SELECT EXTRACT(year FROM now()), DATE_TRUNC('month', now()) FROM item"),
    ("postgres", "SELECT anything FROM pg_catalog.pg_tables"),
    ("postgres", "SELECT i.title, x.amount FROM item i, LATERAL (SELECT amount FROM line WHERE item_id = i.item_id) x"),
    ("postgres", "SELECT title AS t FROM item ORDER BY t"),
    ("postgres", "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 3) SELECT n FROM r"),
    ("mysql", 'SELECT NAME FROM customer WHERE name = "nowhere" AND TIMESTAMPDIFF(MONTH, name, name) IS NULL'),
    ("mysql", "SELECT title AS t, COUNT(*) AS n FROM item GROUP BY t HAVING n > 1 ORDER BY n"),
    ("mysql", "SELECT DATE_ADD(name, INTERVAL 1 DAY) FROM customer"),
    ("duckdb", 'SELECT "NAME", c.rowid FROM Customer c WHERE c IS NOT NULL'),
    (
        "duckdb",
        "SELECT title AS t, t || '!' AS loud FROM item WHERE t > 'a' GROUP BY ALL HAVING loud > '' ORDER BY ALL",
    ),
    ("duckdb", "SELECT list_transform([1, 2], x -> x + 1), [y * 2 FOR y IN [1]], COLUMNS('na.*') FROM customer"),
    ("duckdb", "SELECT name.first FROM customer"),
    ("duckdb", "SELECT * EXCLUDE (name) FROM customer QUALIFY row_number() OVER (ORDER BY name) = 1"),
    ("duckdb", "SELECT unnest(range(3)) AS n, epoch(now()), current_date FROM range(3) t(i) WHERE i > 1"),
    ("duckdb", "SELECT any_value(title) FILTER (title > 'a'), date_diff('day', DATE '2024-01-01', now()) FROM item"),
    ("sqlite", 'SELECT name FROM customer WHERE name = "nowhere" AND rowid > 0'),
    ("sqlite", "SELECT name AS n FROM customer WHERE n = 'x' GROUP BY n HAVING n > ''"),
    ("sqlite", "SELECT value FROM json_each('[1]')"),
    ("sqlite", "SELECT seq FROM sqlite_sequence"),
    ("sqlite", "SELECT anything FROM broken"),
    ("sqlite", "SELECT  name   FROM customer -- with a comment\n;"),
]


@pytest.mark.parametrize(("dialect", "sql"), RESOLVED)
def test_names_that_resolve_in_a_dialect_are_not_changed(dialect: str, sql: str) -> None:
    assert bind_names(sql, SHOP, dialect) == (BoundQuery(sql),)


@needs_spider
@pytest.mark.parametrize("dialect", ["postgres", "mysql", "duckdb"])
def test_gold_queries_are_not_changed_in_other_dialects(dialect: str) -> None:
    """PostgreSQL folds names to lower case, so the schemas are in lower case here."""
    changed = [
        record["query"]
        for record in json.loads((Path(SPIDER) / "dev.json").read_text("utf-8"))
        if '"' not in record["query"]
        and bind_names(record["query"], in_lower_case(record["db_id"]), dialect) != (BoundQuery(record["query"]),)
    ]
    assert changed == []


@lru_cache
def in_lower_case(db_id: str) -> Schema:
    tables = tuple(
        replace(
            table,
            name=table.name.lower(),
            columns=tuple(replace(column, name=column.name.lower()) for column in table.columns),
        )
        for table in spider(db_id).tables
    )
    return Schema(db_id, tables)
