"""FROM before SELECT and back, for SQL of several dialects, and for answers that are wrong or truncated."""

import pytest

from chatmetrics.components.nl2sql.answers.extraction import sql_from_answer
from chatmetrics.components.nl2sql.answers.from_first import from_first, select_first

QUERIES = {
    "SELECT a FROM t": "FROM t SELECT a",
    "SELECT DISTINCT a, b FROM t WHERE x = 1 GROUP BY a HAVING b > 1 ORDER BY a DESC LIMIT 1 OFFSET 2": "FROM t WHERE x = 1 GROUP BY a HAVING b > 1 SELECT DISTINCT a, b ORDER BY a DESC LIMIT 1 OFFSET 2",
    "SELECT a FROM t JOIN u ON t.x = u.x LEFT JOIN v USING (y)": "FROM t JOIN u ON t.x = u.x LEFT JOIN v USING (y) SELECT a",
    "SELECT (SELECT max(b) FROM u) AS m, c FROM t WHERE a IN (SELECT b FROM u WHERE NOT EXISTS (SELECT 1 FROM v))": "FROM t WHERE a IN (FROM u WHERE NOT EXISTS (FROM v SELECT 1) SELECT b) SELECT (FROM u SELECT max(b)) AS m, c",
    "SELECT a FROM (SELECT b AS a FROM t) AS u": "FROM (FROM t SELECT b AS a) AS u SELECT a",
    "SELECT a FROM t UNION ALL SELECT b FROM u EXCEPT SELECT 1 ORDER BY 1": "FROM t SELECT a UNION ALL FROM u SELECT b EXCEPT SELECT 1 ORDER BY 1",
    "WITH c AS (SELECT a FROM t), d(x) AS (SELECT 1) SELECT a FROM c": "WITH c AS (FROM t SELECT a), d(x) AS (SELECT 1) FROM c SELECT a",
    "SELECT sum(a) OVER w FROM t WINDOW w AS (ORDER BY b)": "FROM t WINDOW w AS (ORDER BY b) SELECT sum(a) OVER w",
    "SELECT a IS DISTINCT FROM b FROM t WHERE c IS NOT DISTINCT FROM d": "FROM t WHERE c IS NOT DISTINCT FROM d SELECT a IS DISTINCT FROM b",
    "SELECT 'x FROM y', \"from\" FROM \"select\" WHERE a = 'it''s; SELECT'": "FROM \"select\" WHERE a = 'it''s; SELECT' SELECT 'x FROM y', \"from\"",
    'SELECT 订单."金 额" FROM 订单': 'FROM 订单 SELECT 订单."金 额"',
    # PostgreSQL
    "SELECT EXTRACT(YEAR FROM d)::int, trim(BOTH FROM s) FROM public.t WHERE n ILIKE 'a%' AND s ~ '^b' FETCH FIRST 5 ROWS ONLY": "FROM public.t WHERE n ILIKE 'a%' AND s ~ '^b' SELECT EXTRACT(YEAR FROM d)::int, trim(BOTH FROM s) FETCH FIRST 5 ROWS ONLY",
    # MySQL
    "SELECT `a b`, DATE_ADD(d, INTERVAL 1 DAY) FROM `t` ORDER BY d": "FROM `t` SELECT `a b`, DATE_ADD(d, INTERVAL 1 DAY) ORDER BY d",
    # SQL Server
    "SELECT TOP 3 [a] FROM [dbo].[t]": "FROM [dbo].[t] SELECT TOP 3 [a]",
}


@pytest.mark.parametrize(("sql", "reordered"), QUERIES.items())
def test_select_and_from_are_exchanged_and_back(sql: str, reordered: str) -> None:
    assert from_first(sql) == reordered
    assert select_first(reordered) == sql
    assert from_first(reordered) == reordered
    assert select_first(sql) == sql


@pytest.mark.parametrize("sql", QUERIES)
@pytest.mark.parametrize(
    "answer", ["{}", "{};", "```sql\n{}\n```", "```\n{};\n```", "<think>\nSELECT?\n</think>\n\n{}", '{{"sql": "{}"}}']
)
def test_an_answer_with_from_first_gives_sql(answer: str, sql: str) -> None:
    if '"' in answer and '"' in sql:
        pytest.skip("no JSON")
    assert sql_from_answer(answer.format(from_first(sql))) == sql


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SELECT",
        "SELECT 1",
        "FROM t",
        "FROM t WHERE x = (",
        "FROM t WHERE a = 'SELECT b",
        "DELETE FROM t WHERE a = 1",
        "INSERT INTO t SELECT a FROM u",
        "SELECT a FROM t WHERE x > (SELECT",
        "(((((",
        ")))",
        "From the tables, take those of 2024.",
        "SELECT count(*) FROM t",
    ],
)
def test_other_texts_are_not_changed(text: str) -> None:
    assert select_first(text) == text


@pytest.mark.parametrize(
    ("wrong", "turned_back"),
    [
        ("FROM t SELECT a WHERE b = 1", "SELECT a FROM t WHERE b = 1"),
        ("FROM t WHERE b = 1 SELECT", "SELECT FROM t WHERE b = 1"),
        ("FROM t WHERE x IN (FROM u SELECT", "FROM t WHERE x IN (SELECT FROM u"),
        ("FROM t SELECT a, ORDER BY", "SELECT a, FROM t ORDER BY"),
        ("from t select a;", "select a from t ;"),
    ],
)
def test_a_wrong_or_truncated_answer_stays_wrong(wrong: str, turned_back: str) -> None:
    assert select_first(wrong) == turned_back


def test_deep_nesting_is_not_changed() -> None:
    text = "FROM t WHERE x = " + "(" * 5000 + " SELECT a"
    assert select_first(text) == text
    assert from_first(f"SELECT {text}") == f"SELECT {text}"


@pytest.mark.parametrize(
    ("answer", "sql"),
    [
        ("From the tables above I use SELECT name FROM t.", "SELECT name FROM t"),
        ("FROM t SELECT a\n\nThis returns the names of all.", "SELECT a FROM t"),
        ("FROM t\nWHERE b = 1\nSELECT a", "SELECT a FROM t\nWHERE b = 1"),
        ("SELECT a,\nb\nFROM t\nWHERE c = 1", "SELECT a,\nb\nFROM t\nWHERE c = 1"),
        ("FROM t WHERE x > (SELECT", "FROM t WHERE x > (SELECT"),
        ("FROM t", "FROM t"),
    ],
)
def test_from_first_is_found_only_where_an_answer_begins_with_it(answer: str, sql: str) -> None:
    assert sql_from_answer(answer) == sql
