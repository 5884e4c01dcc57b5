"""Queries with qualified columns: one spelling, the same rows, and errors for names that cannot be resolved."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlglot.errors import SqlglotError

from chatmetrics.components.nl2sql.answers.answer_form import Execute
from chatmetrics.components.nl2sql.answers.from_first import from_first, select_first
from chatmetrics.components.nl2sql.answers.qualified_names import UnresolvedNameError, qualify
from chatmetrics.components.nl2sql.binding.binder import BoundQuery, bind_names
from chatmetrics.components.nl2sql.binding.shown_names import name_not_shown
from chatmetrics.components.nl2sql.databases.execution import FailureMode
from chatmetrics.components.nl2sql.schema import Column, Schema, Table

# A query, and its qualified form.
QUERIES = {
    # Spelling
    "select  NAME\nFROM City -- why\n;": "SELECT city.name FROM city",
    "SELECT DISTINCT (country_id) FROM city": "SELECT DISTINCT (city.country_id) FROM city",
    "SELECT count(*), COUNT(DISTINCT country_id) FROM city": "SELECT COUNT(*), COUNT(DISTINCT city.country_id) FROM city",
    "SELECT name FROM city ORDER BY id ASC LIMIT 1, 2": "SELECT city.name FROM city ORDER BY city.id LIMIT 2 OFFSET 1",
    "SELECT name FROM city ORDER BY population DESC, name COLLATE NOCASE ASC LIMIT 2 OFFSET 0": "SELECT city.name FROM city ORDER BY city.population DESC, city.name COLLATE NOCASE LIMIT 2",
    "SELECT name FROM city WHERE population NOT BETWEEN 2 AND 5 AND name NOT LIKE 'O%' AND country_id NOT NULL": "SELECT city.name FROM city WHERE city.population NOT BETWEEN 2 AND 5 AND city.name NOT LIKE 'O%' AND city.country_id IS NOT NULL",
    'SELECT name FROM city WHERE NOT id IN (SELECT city_id FROM "my visits")': 'SELECT city.name FROM city WHERE city.id NOT IN (SELECT "my visits".city_id FROM "my visits")',
    "SELECT name FROM city WHERE country_id != 1 AND NOT (population > 2 OR id == 1)": "SELECT city.name FROM city WHERE city.country_id <> 1 AND NOT (city.population > 2 OR city.id = 1)",
    "SELECT name FROM city WHERE country_id IS NOT DISTINCT FROM 1": "SELECT city.name FROM city WHERE city.country_id IS 1",
    "SELECT ifnull(country_id, 0), name || '!', 2 * (id + 1) - -1 FROM city": "SELECT COALESCE(city.country_id, 0), city.name || '!', 2 * (city.id + 1) - -1 FROM city",
    "SELECT * FROM city": "SELECT * FROM city",
    "SELECT 1": "SELECT 1",
    # Names and texts in quotes
    'SELECT name FROM city WHERE name = "Tokyo"': "SELECT city.name FROM city WHERE city.name = 'Tokyo'",
    'SELECT "name", \'name\' FROM city WHERE name <> "it\'s"': "SELECT city.name, 'name' FROM city WHERE city.name <> 'it''s'",
    "SELECT `Head of State`, [order] FROM country": 'SELECT country."Head of State", country."order" FROM country',
    'SELECT "日期", "SELECT" FROM "My Visits" v WHERE v."select" > 5': 'SELECT "my visits".日期, "my visits"."select" FROM "my visits" WHERE "my visits"."select" > 5',
    'SELECT 金额 FROM "订单" ORDER BY 金额 DESC LIMIT 1': "SELECT 订单.金额 FROM 订单 ORDER BY 订单.金额 DESC LIMIT 1",
    'SELECT CASE WHEN population > 5 THEN "big" ELSE name END FROM city': "SELECT CASE WHEN city.population > 5 THEN 'big' ELSE city.name END FROM city",
    # Joins
    "SELECT T1.name, T2.name FROM city AS T1 INNER JOIN country T2 ON T1.country_id = T2.id": "SELECT city.name, country.name FROM city JOIN country ON city.country_id = country.id",
    "SELECT T1.* FROM city AS T1 JOIN country AS T2 ON T1.country_id = T2.id": "SELECT city.* FROM city JOIN country ON city.country_id = country.id",
    'SELECT T1.name FROM city T1, country T2, "my visits" WHERE country_id = T2.id AND city_id = T1.id': 'SELECT city.name FROM city, country, "my visits" WHERE city.country_id = country.id AND "my visits".city_id = city.id',
    "SELECT c.name, d.name FROM country c LEFT OUTER JOIN city d ON c.id = d.country_id ORDER BY c.id, d.id": "SELECT country.name, city.name FROM country LEFT JOIN city ON country.id = city.country_id ORDER BY country.id, city.id",
    "SELECT id, T1.name, population FROM city T1 JOIN country USING (id)": "SELECT id, city.name, city.population FROM city JOIN country USING (id)",
    "SELECT id, population FROM city NATURAL JOIN city_1": "SELECT id, city.population FROM city NATURAL JOIN city_1",
    # Tables that occur twice; city_1 is the name of a table
    "SELECT a.name, b.name FROM city a JOIN city b ON a.country_id = b.country_id AND a.id < b.id": "SELECT city_2.name, city_3.name FROM city AS city_2 JOIN city AS city_3 ON city_2.country_id = city_3.country_id AND city_2.id < city_3.id",
    "SELECT name FROM city WHERE population > (SELECT avg(population) FROM city)": "SELECT city.name FROM city WHERE city.population > (SELECT AVG(city.population) FROM city)",
    "SELECT name FROM city T1 WHERE population > (SELECT avg(population) FROM city T2 WHERE T2.country_id = T1.country_id)": "SELECT city.name FROM city WHERE city.population > (SELECT AVG(city_2.population) FROM city AS city_2 WHERE city_2.country_id = city.country_id)",
    "SELECT T1.name FROM city T1 WHERE EXISTS (SELECT 1 FROM country T2 WHERE T2.id IN (SELECT T3.country_id FROM city T3 WHERE T3.id = T1.id))": "SELECT city.name FROM city WHERE EXISTS(SELECT 1 FROM country WHERE country.id IN (SELECT city_2.country_id FROM city AS city_2 WHERE city_2.id = city.id))",
    'SELECT T1.name FROM city AS T1 WHERE T1.id IN (SELECT T1.city_id FROM "my visits" AS T1)': 'SELECT city.name FROM city WHERE city.id IN (SELECT "my visits".city_id FROM "my visits")',
    # Names of result columns
    "SELECT name AS n FROM city ORDER BY n": "SELECT city.name AS n FROM city ORDER BY n",
    "SELECT -population AS population FROM city ORDER BY population": "SELECT -city.population AS population FROM city ORDER BY population",
    "SELECT -population AS population FROM city ORDER BY abs(population)": "SELECT -city.population AS population FROM city ORDER BY ABS(city.population)",
    "SELECT country_id AS k, count(*) AS n FROM city GROUP BY k HAVING n > 1": "SELECT city.country_id AS k, COUNT(*) AS n FROM city GROUP BY k HAVING n > 1",
    # Set operations
    "SELECT name FROM city UNION SELECT name FROM country ORDER BY name": "SELECT city.name FROM city UNION SELECT country.name FROM country ORDER BY name",
    "SELECT T1.id FROM city T1 UNION ALL SELECT id FROM country ORDER BY T1.id LIMIT 3": "SELECT city.id FROM city UNION ALL SELECT country.id FROM country ORDER BY city.id LIMIT 3",
    "SELECT id FROM city INTERSECT SELECT id FROM country EXCEPT SELECT 2": "SELECT city.id FROM city INTERSECT SELECT country.id FROM country EXCEPT SELECT 2",
    # Subqueries in FROM, and common table expressions
    "SELECT t.n FROM (SELECT name AS n, population AS p FROM city) AS t WHERE p > 2": "SELECT t.n FROM (SELECT city.name AS n, city.population AS p FROM city) AS t WHERE t.p > 2",
    "SELECT avg(n) FROM (SELECT count(*) AS n FROM city GROUP BY country_id)": "SELECT AVG(n) FROM (SELECT COUNT(*) AS n FROM city GROUP BY city.country_id)",
    "SELECT x.name FROM (SELECT * FROM city) x JOIN country c ON country_id = c.id": "SELECT x.name FROM (SELECT * FROM city) AS x JOIN country ON x.country_id = country.id",
    "SELECT city.name FROM (SELECT name FROM country) AS city JOIN city AS T2 ON T2.name <> city.name": "SELECT city.name FROM (SELECT country.name FROM country) AS city JOIN city AS city_2 ON city_2.name <> city.name",
    "WITH big AS (SELECT id, name FROM city) SELECT b.name FROM big b JOIN country c ON c.id = b.id": "WITH big AS (SELECT city.id, city.name FROM city) SELECT big.name FROM big JOIN country ON country.id = big.id",
    "WITH city AS (SELECT 1 AS id, 'x' AS n) SELECT n FROM city": "WITH city AS (SELECT 1 AS id, 'x' AS n) SELECT city.n FROM city",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3) SELECT i FROM n": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT n.i + 1 FROM n WHERE n.i < 3) SELECT n.i FROM n",
    "WITH c AS (SELECT NAME, ID FROM city) SELECT c.name, d.Id FROM c JOIN (SELECT Id FROM country) AS d ON d.iD = c.iD": "WITH c AS (SELECT city.name, city.id FROM city) SELECT c.name, d.id FROM c JOIN (SELECT country.id FROM country) AS d ON d.id = c.id",
    "WITH RECURSIVE c AS (SELECT ID FROM city WHERE Id = 1 UNION SELECT C.ID + 1 FROM c WHERE C.Id < 3) SELECT Id FROM c": "WITH RECURSIVE c AS (SELECT city.id FROM city WHERE city.id = 1 UNION SELECT c.id + 1 FROM c WHERE c.id < 3) SELECT c.id FROM c",
    "SELECT CAST(id AS numeric), CAST(id AS decimal(3, 1)), CAST(id AS int), CAST(id AS varchar(9)), CAST(id AS float), CAST(name AS date), CAST(name AS blob) FROM city": "SELECT CAST(city.id AS NUMERIC), CAST(city.id AS NUMERIC), CAST(city.id AS INTEGER), CAST(city.id AS TEXT), CAST(city.id AS REAL), CAST(city.name AS NUMERIC), CAST(city.name AS BLOB) FROM city",
    # Windows, and what is not in the schema
    "SELECT name, rank() OVER (PARTITION BY country_id ORDER BY population) FROM city": "SELECT city.name, RANK() OVER (PARTITION BY city.country_id ORDER BY city.population) FROM city",
    "SELECT sum(population) OVER w FROM city WINDOW w AS (ORDER BY id)": "SELECT SUM(city.population) OVER w FROM city WINDOW w AS (ORDER BY city.id)",
    "SELECT total(population) FILTER (WHERE id > 1) FROM city": "SELECT TOTAL(city.population) FILTER(WHERE city.id > 1) FROM city",
    "SELECT rowid, c.rowid FROM city c": "SELECT rowid, city.rowid FROM city",
    "SELECT name, value FROM city, json_each('[1]') AS j": "SELECT city.name, value FROM city, JSON_EACH('[1]') AS j",
}


@pytest.mark.parametrize(("sql", "expected"), QUERIES.items())
def test_columns_are_qualified_and_the_rows_stay(sql: str, expected: str, schema: Schema, execute: Execute) -> None:
    assert qualify(sql, schema) == expected
    assert qualify(expected, schema) == expected
    gold, rewritten, turned_back = execute([sql, expected, select_first(from_first(expected))])
    assert gold.failure == FailureMode.OK
    assert gold.rows
    assert gold.rows == rewritten.rows == turned_back.rows
    assert select_first(from_first(expected)) == expected


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT nothing FROM city", "no such column: nothing"),
        ("SELECT T1.nothing FROM city AS T1", "no such column: t1.nothing"),
        ("SELECT T2.name FROM city AS T1", "no such table or alias: t2"),
        ("SELECT name FROM nowhere", "no such table: nowhere"),
        ("SELECT name FROM city JOIN country ON country_id = country.id", "ambiguous column: name"),
        ("SELECT name FROM city WHERE id IN city_1", "a table as the right side of IN"),
        ("SELECT name FROM main.city", "a FROM clause with nested joins or a database's name"),
        ("SELECT name FROM (city JOIN city_1 USING (id))", "a FROM clause with nested joins or a database's name"),
        ("SELECT x FROM (VALUES (1)) AS t", "a FROM clause with nested joins or a database's name"),
        ("DELETE FROM city", "not a query"),
        ("PRAGMA table_info(city)", "not a query"),
    ],
)
def test_a_name_that_cannot_be_resolved_is_named(sql: str, message: str, schema: Schema) -> None:
    with pytest.raises(UnresolvedNameError) as raised:
        qualify(sql, schema)
    assert str(raised.value) == message


@pytest.mark.parametrize("sql", ["", "SELECT name FROM", "SELECT 'x FROM city", "SELECT 1; SELECT 2"])
def test_a_text_that_is_not_sql_is_an_error_of_the_parser(sql: str, schema: Schema) -> None:
    with pytest.raises((SqlglotError, UnresolvedNameError)):
        qualify(sql, schema)


def test_deeply_nested_sql_is_an_error(schema: Schema) -> None:
    with pytest.raises((SqlglotError, RecursionError)):
        qualify(f"SELECT {'(' * 5000}id{')' * 5000} FROM city", schema)


def test_views_and_hidden_columns_of_virtual_tables_are_known(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "pages.sqlite")) as connection:
        connection.executescript(
            "CREATE VIRTUAL TABLE page USING fts5(title); CREATE VIEW titled AS SELECT title AS t FROM page;"
        )
    schema = Schema.from_sqlite(tmp_path / "pages.sqlite")
    assert qualify("SELECT title FROM page ORDER BY rank", schema) == "SELECT page.title FROM page ORDER BY page.rank"
    assert qualify("SELECT T FROM Titled", schema) == "SELECT titled.t FROM titled"


HOTELS = Schema(
    "hotels",
    tuple(
        Table(name, tuple(Column(column, "INT") for column in columns.split()))
        for name, columns in {"city": "id name", "Guest": "id hotelId order", "hotel": "id name price city_id"}.items()
    ),
)
# A query in another dialect, its qualified form, and the first name that a schema with the table hotel alone lacks.
OTHERS = [
    (
        "postgres",
        """SELECT h.Name, G."hotelId" FROM Hotel H INNER JOIN "Guest" AS G ON G."hotelId" = h.id, city WHERE Price::int > 2""",
        """SELECT hotel.name, "Guest"."hotelId" FROM hotel JOIN "Guest" ON "Guest"."hotelId" = hotel.id, city WHERE CAST(hotel.price AS INT) > 2""",
        "no such table: Guest",
    ),
    (
        "postgres",
        "SELECT a.name FROM hotel a CROSS JOIN hotel b JOIN city c ON c.id = b.city_id",
        "SELECT hotel_1.name FROM hotel AS hotel_1 CROSS JOIN hotel AS hotel_2 JOIN city ON city.id = hotel_2.city_id",
        "no such table: city",
    ),
    (
        "postgres",
        "WITH Dear AS (SELECT City_Id AS C FROM hotel WHERE name NOT ILIKE 'a%' ORDER BY ctid) SELECT DEAR.c FROM dear",
        "WITH dear AS (SELECT hotel.city_id AS c FROM hotel WHERE hotel.name NOT ILIKE 'a%' ORDER BY ctid) SELECT dear.c FROM dear",
        "",
    ),
    (
        "mysql",
        'SELECT IFNULL(h.PRICE, 0) DIV 2, `order` FROM Guest g JOIN hotel h ON g.hotelid = h.id WHERE name = "it\'s"',
        "SELECT COALESCE(hotel.price, 0) DIV 2, Guest.`order` FROM Guest JOIN hotel ON Guest.hotelId = hotel.id WHERE hotel.name = 'it''s'",
        "no such table: Guest",
    ),
    (
        "duckdb",
        "SELECT NAME, list_filter([1, 2], x -> x > 1) FROM hotel h QUALIFY row_number() OVER (ORDER BY Price) = 1",
        "SELECT hotel.name, LIST_FILTER([1, 2], LAMBDA x : x > 1) FROM hotel QUALIFY ROW_NUMBER() OVER (ORDER BY hotel.price) = 1",
        "",
    ),
]


@pytest.mark.parametrize(("dialect", "sql", "qualified", "not_shown"), OTHERS)
def test_other_dialects_have_their_own_names(dialect: str, sql: str, qualified: str, not_shown: str) -> None:
    schema = replace(HOTELS, dialect=dialect)
    assert qualify(sql, schema) == qualified == qualify(qualified, schema)
    for query in (sql, qualified):
        assert name_not_shown(schema, query) == ""
        assert name_not_shown(replace(schema, tables=schema.tables[2:]), query) == not_shown


@pytest.mark.parametrize(
    ("dialect", "sql"),
    [
        ("postgres", "SELECT DISTINCT ON (yr) price AS yr, name FROM hotel ORDER BY yr"),
        ("postgres", "SELECT Ärger FROM hotel"),
        ("mysql", "SELECT NOW() FROM DUAL"),
        ("mysql", "SELECT id FROM hotel WHERE name < UTC_TIMESTAMP"),
    ],
)
def test_names_that_the_server_knows_count_as_shown_and_are_not_repaired(dialect: str, sql: str) -> None:
    schema = replace(HOTELS, dialect=dialect, tables=(*HOTELS.tables, Table("duals", (Column("year", "INT"),))))
    columns = (*schema.tables[2].columns, Column("Ärger", "INT"))
    schema = replace(schema, tables=(*schema.tables[:2], replace(schema.tables[2], columns=columns), schema.tables[3]))
    assert name_not_shown(schema, sql) == ""
    assert bind_names(sql, schema) == (BoundQuery(sql),)


def test_what_would_change_its_meaning_is_not_qualified() -> None:
    schema = replace(HOTELS, dialect="duckdb")
    distinct = "SELECT DISTINCT ON (name) LOWER(name) AS name, price FROM hotel ORDER BY name"
    assert "DISTINCT ON (name) LOWER(hotel.name) AS name" in qualify(distinct, schema)
    for sql in ("SELECT s.name FROM hotel AS s(price, name)", "SELECT t.a FROM (SELECT id FROM hotel) AS t(a)"):
        with pytest.raises(UnresolvedNameError, match="an alias that names columns"):
            qualify(sql, schema)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ('SELECT "Name" FROM hotel', "no such column: Name"),
        ("SELECT guest.id FROM guest", "no such table: guest"),
        ('SELECT h.id FROM "Guest" H JOIN city ON "H".id = city.id', "no such column: H.id"),
    ],
)
def test_postgresql_distinguishes_the_case_of_quoted_names(sql: str, message: str) -> None:
    schema = replace(HOTELS, dialect="postgres")
    assert name_not_shown(schema, sql) == message
    with pytest.raises(UnresolvedNameError, match="no such"):
        qualify(sql, schema)
