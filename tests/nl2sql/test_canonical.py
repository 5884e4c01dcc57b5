"""Queries that differ only in spelling have the same canonical form, and all others do not."""

import pytest

from chatmetrics.components.nl2sql.sql.canonical import canonical

QUERY = "SELECT name FROM item WHERE price > 1"
JOIN = "SELECT item.name FROM item JOIN sale ON item.id = sale.item_id"
CITY = "SELECT count(*) FROM hotel WHERE city = 'Tokyo'"


@pytest.mark.parametrize(
    ("sql", "same"),
    [
        (f"{QUERY};", QUERY),
        (f"{QUERY} ; ; ", QUERY),
        (f";{QUERY}", QUERY),
        ("select Name from ITEM where Price > 1", QUERY),
        ("SELECT name\n  FROM item\r\n\tWHERE price>1", QUERY),
        (f"-- all\n{QUERY} /* dear ones */ -- end", QUERY),
        (f"{QUERY}; -- end", QUERY),
        (f"/* all */; -- all\n ;{QUERY}\n;-- end\n;", QUERY),
        (f"\ufeff{QUERY}\u00a0", QUERY),
        (f"({QUERY})", QUERY),
        (f"(({QUERY}));", QUERY),
        ('SELECT "name" FROM [item] WHERE `Price` > 1', QUERY),
        ("SELECT (name) FROM item WHERE ((price > 1))", QUERY),
        ("SELECT ALL name FROM item WHERE price > 1", QUERY),
        ("SELECT item.name FROM item WHERE item.price > 1", QUERY),
        ("SELECT t1.name FROM item AS t1 WHERE t1.price > 1", QUERY),
        ("SELECT i.name FROM item i WHERE price > 1", QUERY),
        ("SELECT name AS title FROM item WHERE price > 1", QUERY),
        ("SELECT name title FROM item WHERE price > 1", QUERY),
        ("SELECT T1.name FROM item AS T1 INNER JOIN sale AS T2 ON T1.id = T2.item_id", JOIN),
        ("SELECT i.name FROM item i JOIN sale s ON (i.id == s.item_id)", JOIN),
        ('SELECT count( * ) FROM hotel WHERE city = "Tokyo"', CITY),
        ("SELECT COUNT(*) FROM hotel WHERE (city) = ('Tokyo')", CITY),
        ("SELECT a FROM t WHERE x = `b` AND y = [c]", "SELECT a FROM t WHERE x = b AND y = c"),
        ('SELECT a, b FROM t WHERE x = "b"', "SELECT a, b FROM t WHERE x = b"),
        ('SELECT a FROM t WHERE x IN ("K", "L")', "SELECT a FROM t WHERE x IN ('K', 'L')"),
        ('SELECT a FROM t WHERE x BETWEEN "K" AND "L"', "SELECT a FROM t WHERE x BETWEEN 'K' AND 'L'"),
        ('SELECT a FROM t WHERE x LIKE "%A"', "SELECT a FROM t WHERE x LIKE '%A'"),
        ('SELECT a FROM t JOIN u ON "t"."b" = "u"."c"', "SELECT a FROM t JOIN u ON t.b = u.c"),
        ("SELECT a FROM t WHERE x != 1", "SELECT a FROM t WHERE x <> 1"),
        ("SELECT a FROM t WHERE (x = 1) AND (y = 2 AND z = 3)", "SELECT a FROM t WHERE x = 1 AND y = 2 AND z = 3"),
        ("SELECT a FROM t WHERE (x = 1 AND y = 2) OR z = 3", "SELECT a FROM t WHERE x = 1 AND y = 2 OR z = 3"),
        ("SELECT a FROM t WHERE x NOTNULL", "SELECT a FROM t WHERE x IS NOT NULL"),
        ("SELECT a FROM t WHERE x NOT IN (1)", "SELECT a FROM t WHERE NOT x IN (1)"),
        ("SELECT a FROM t WHERE NOT (x = 1)", "SELECT a FROM t WHERE NOT x = 1"),
        ("SELECT a FROM t WHERE NOT (x IN (1))", "SELECT a FROM t WHERE x NOT IN (1)"),
        ("SELECT a FROM t ORDER BY a ASC LIMIT 1 OFFSET 0", "SELECT a FROM t ORDER BY a LIMIT 1"),
        ("SELECT a FROM t WHERE x = 'K' COLLATE NOCASE", "select a from t where x = 'K' collate nocase"),
        ('SELECT a FROM t ORDER BY a COLLATE "NoCase"', "SELECT a FROM t ORDER BY a COLLATE NOCASE"),
        (
            "SELECT CASE WHEN (a = 1) THEN (b) ELSE (c + 1) END FROM t",
            "SELECT CASE WHEN a = 1 THEN b ELSE c + 1 END FROM t",
        ),
        ("SELECT iif((a = 1 OR b), (c), 1) FROM t", "SELECT IIF(a = 1 OR b, c, 1) FROM t"),
        ("SELECT a FROM t LIMIT 2, 1", "SELECT a FROM t LIMIT 1 OFFSET 2"),
        ("SELECT DISTINCT (a) FROM t", "SELECT DISTINCT a FROM t"),
        ("SELECT a FROM t LEFT OUTER JOIN u ON t.a = u.b", "SELECT a FROM t LEFT JOIN u ON t.a = u.b"),
        ("SELECT * FROM a, b", "SELECT * FROM a CROSS JOIN b"),
        (
            "SELECT x.a FROM t x JOIN t y ON x.a = y.b",
            "SELECT T1.a FROM t AS T1 JOIN t AS T2 ON T1.a = T2.b",
        ),
        (
            "SELECT a FROM t WHERE a IN (SELECT s.b FROM u AS s WHERE s.c = 1)",
            "SELECT a FROM t WHERE a IN (SELECT b FROM u WHERE c = 1)",
        ),
        ("WITH w AS (SELECT a FROM t) SELECT a FROM w", "with W as (select a from t) select W.a from W;"),
        ("SELECT a FROM t WHERE x NOT b 'It''s' ;", "select A\nfrom T where X not B 'It''s' -- broken"),
        ("SELECT FROM WHERE a != 1", "select from where A <> 1;"),
    ],
)
def test_spelling_does_not_matter(sql: str, same: str) -> None:
    assert canonical(sql) == canonical(same)


@pytest.mark.parametrize(
    ("sql", "other"),
    [
        (QUERY, "SELECT name FROM item WHERE price > 2"),
        (QUERY, "SELECT name FROM item WHERE price >= 1"),
        (QUERY, "SELECT DISTINCT name FROM item WHERE price > 1"),
        (QUERY, "SELECT id FROM item WHERE price > 1"),
        (QUERY, "SELECT name FROM sale WHERE price > 1"),
        (CITY, CITY.replace("Tokyo", "tokyo")),
        (CITY, CITY.replace("Tokyo", "To kyo")),
        (CITY, CITY.replace("'Tokyo'", '"tokyo"')),
        ("SELECT a FROM t WHERE x = 'a;'", "SELECT a FROM t WHERE x = 'a'"),
        ("SELECT a FROM t WHERE x = 'a -- b'", "SELECT a FROM t WHERE x = 'a'"),
        ("SELECT a FROM t WHERE x = 1 AND (y = 2 OR z = 3)", "SELECT a FROM t WHERE x = 1 AND y = 2 OR z = 3"),
        ("SELECT a FROM t ORDER BY a COLLATE NOCASE", "SELECT a FROM t ORDER BY a COLLATE BINARY"),
        ("SELECT CASE WHEN (a OR b) AND c THEN 1 END FROM t", "SELECT CASE WHEN a OR b AND c THEN 1 END FROM t"),
        ("SELECT (a + b) * c FROM t", "SELECT a + b * c FROM t"),
        ("SELECT a - (b - c) FROM t", "SELECT a - b - c FROM t"),
        ("SELECT a FROM t WHERE NOT (x = 1 OR y = 2)", "SELECT a FROM t WHERE NOT x = 1 OR y = 2"),
        ("SELECT (a, b) = (1, 2) FROM t", "SELECT a, b = 1, 2 FROM t"),
        ("SELECT a FROM t ORDER BY a", "SELECT a FROM t ORDER BY a DESC"),
        ("SELECT a FROM t LIMIT 1", "SELECT a FROM t LIMIT 1 OFFSET 1"),
        ("SELECT a FROM t LEFT JOIN u ON t.a = u.b", "SELECT a FROM t JOIN u ON t.a = u.b"),
        ("SELECT x.a FROM t x JOIN t y ON x.a = y.b", "SELECT y.a FROM t x JOIN t y ON x.a = y.b"),
        (
            "SELECT a FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.a = t.a)",
            "SELECT a FROM t WHERE EXISTS (SELECT 1 FROM u)",
        ),
        ("SELECT a, b FROM t", "SELECT b, a FROM t"),
        ("SELECT a AS b FROM t ORDER BY b", "SELECT a FROM t ORDER BY b"),
        ("SELECT a FROM t WHERE x NOT b 'A'", "SELECT a FROM t WHERE x NOT b 'a'"),
    ],
)
def test_different_queries_stay_different(sql: str, other: str) -> None:
    assert canonical(sql) != canonical(other)


@pytest.mark.parametrize(
    "sql", ["", ";", "SELECT", "(" * 5000, "SELECT '", "\0", "SELECT 1; SELECT 2", "NOT " * 3000 + "1"]
)
def test_any_text_has_a_canonical_form(sql: str) -> None:
    assert canonical(sql) == canonical(f"{sql} ")
