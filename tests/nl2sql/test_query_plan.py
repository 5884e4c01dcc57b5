"""The plan before a query, and its removal."""

import pytest

from chatmetrics.components.nl2sql.answers.extraction import sql_from_answer
from chatmetrics.components.nl2sql.answers.query_plan import plan_of, without_plan

PLANS = {
    "SELECT 1": "",
    "SELECT COUNT(*) FROM city": "Tables: city\n",
    "SELECT city.name FROM city JOIN country ON city.country_id = country.id WHERE country.name = 'Japan' AND (city.population > 1 OR city.id IN (SELECT visit.city_id FROM visit WHERE visit.year = 2024)) GROUP BY city.id HAVING COUNT(*) > 2": "Tables: city, country, visit\nJoins: city.country_id = country.id\nConditions: country.name = 'Japan'; city.population > 1 OR city.id IN (...); visit.year = 2024; COUNT(*) > 2\n",
    "SELECT a.x FROM city AS a JOIN city AS b ON a.x = b.y UNION SELECT city.x FROM city WHERE NOT city.x IS NULL": "Tables: city AS a, city AS b, city\nJoins: a.x = b.y\nConditions: city.x IS NOT NULL\n",
    "SELECT x FROM t JOIN u USING (x) NATURAL JOIN v": "Tables: t, u, v\nJoins: USING (x)\n",
    "WITH c AS (SELECT t.a FROM t) SELECT c.a FROM c": "Tables: t\n",
    "SELECT t.a FROM t WHERE NOT EXISTS (SELECT u.b FROM u WHERE u.c = 'x\ny')": "Tables: t, u\nConditions: NOT EXISTS(...); u.c = 'x y'\n",
    "SELECT t.a FROM t WHERE t.a > (SELECT 1 UNION SELECT 2)": "Tables: t\nConditions: t.a > (...)\n",
}


@pytest.mark.parametrize(("sql", "plan"), PLANS.items())
def test_a_plan_has_tables_joins_and_conditions(sql: str, plan: str) -> None:
    assert plan_of(sql, "conditions") == plan
    assert plan_of(sql, "tables") == plan.partition("Conditions")[0]
    assert plan_of(sql, "none") == ""
    assert without_plan(plan + sql) == sql
    assert sql_from_answer(plan + sql) == sql
    assert sql_from_answer(f"<think>\nHow?\n</think>\n\n{plan}{sql};\n") == sql


@pytest.mark.parametrize("cut", ["Tables: city", "Tables: city\nJoins: city.id = ", "Tables: city\nConditions: a = 'S"])
def test_an_answer_that_is_cut_in_its_plan_has_no_sql(cut: str) -> None:
    assert sql_from_answer(cut) == ""


@pytest.mark.parametrize("answer", ["SELECT a FROM t", "Joins: a\nSELECT a FROM t", "The tables: t\nSELECT a FROM t"])
def test_other_answers_are_not_changed(answer: str) -> None:
    assert without_plan(answer) == answer
