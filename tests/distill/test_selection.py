"""Which passing samples are chosen, and what the examples look like."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.distill.answers.selection import (
    Selected,
    StudentFormat,
    choose,
    select,
    trains_on_reasoning,
)
from chatmetrics.components.distill.answers.verified import Verified
from chatmetrics.components.distill.teacher.request import TeacherAnswer
from chatmetrics.components.nl2sql.answers.answer_form import AnswerForm
from chatmetrics.components.nl2sql.answers.extraction import sql_from_answer
from chatmetrics.components.nl2sql.databases.execution import Executor
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.prompts.template import PLAIN
from chatmetrics.components.nl2sql.schema import Schema, SchemaForm
from tests.distill.shop import answer, byte_counter, make_shop, question, samples, settings

COUNTER = byte_counter()
ROOMY = 10_000


@pytest.fixture
def shop(tmp_path: Path) -> Schema:
    return Schema.from_sqlite(make_shop(tmp_path))


def passed(asked: Example, *answers: str | TeacherAnswer) -> Verified:
    return Verified(asked, tuple(samples(asked, *answers)), {}, None)


def selected(
    shop: Schema, verified: Verified, cutoff: int = ROOMY, form: SchemaForm | None = "ddl", **values: Any
) -> tuple[list[Example], Selected]:
    return select([verified], settings(**values), StudentFormat(form, cutoff, COUNTER, lambda db_id: shop))


def reasoned(sql: str, reasoning: str) -> TeacherAnswer:
    return answer(f"```sql\n{sql}\n```", reasoning)


def chosen(keep: int, *queries: str) -> list[str]:
    found = samples(question(), *queries)
    return [sample.sql for sample in choose(found, keep, lambda sample: len(sample.sql))]


def test_the_shortest_query_comes_first_and_then_the_least_similar() -> None:
    join = "SELECT count(*) FROM sale JOIN item ON sale.item_id = item.id WHERE item.name = 'tea'"
    longer_join = "SELECT count(sale.id) FROM sale JOIN item ON sale.item_id = item.id WHERE item.name = 'tea'"
    subquery = "SELECT count(*) FROM sale WHERE item_id IN (SELECT id FROM item WHERE name = 'tea')"
    long = "SELECT sum(CASE WHEN item_id = 1 THEN 1 ELSE 0 END) AS tea_was_sold_so_often FROM sale AS every_single_sale"
    assert chosen(1, longer_join, long, subquery, join) == [subquery]
    assert chosen(2, longer_join, long, subquery, join) == [subquery, long]
    assert set(chosen(4, longer_join, long, subquery, join)) == {subquery, long, join, longer_join}
    assert chosen(9, longer_join, long, subquery, join) == chosen(4, join, subquery, long, longer_join)


def test_the_most_frequent_query_comes_before_a_shorter_one() -> None:
    meant = ("SELECT name FROM item WHERE price > 2", "SELECT name  FROM item WHERE price > 2")
    assert chosen(1, "SELECT name FROM item", *meant) == [meant[0]]


def test_the_same_query_in_another_layout_counts_once() -> None:
    queries = (
        "SELECT  name\nFROM item  WHERE price > 2",
        "select NAME from Item where price>2",
        "SELECT price FROM item",
    )
    assert len(chosen(9, *queries)) == 2
    literals = ("SELECT id FROM item WHERE name = 'Tea'", "SELECT id FROM item WHERE name = 'tea'")
    assert len(chosen(9, *literals)) == 2
    quoted = ('SELECT id FROM item WHERE name = "Tea"', 'SELECT id FROM item WHERE name = "tea"')
    assert len(chosen(9, *quoted)) == 2  # SQLite reads these as strings


def test_an_example_has_the_samples_query_and_the_whole_schema(shop: Schema) -> None:
    asked = question("SELECT count(*) FROM item", id="train:7", words="有多少商品?")
    (example,), counts = selected(shop, passed(asked, reasoned("SELECT sum(1) FROM item", "One each.")))
    assert (example.sql, example.output) == ("SELECT sum(1) FROM item",) * 2
    assert (example.id, example.split, example.query_type) == ("train:7", "train", "aggregate")
    assert example.system == shop.render("ddl")
    assert example.reasoning == "One each."
    assert example.input == "有多少商品?"
    assert counts == Selected(examples=1)


def test_further_samples_are_numbered(shop: Schema) -> None:
    verified = passed(question(id="q1"), "SELECT 1", "SELECT 1 + 0", "SELECT count(*) FROM city WHERE id = 1")
    examples, counts = selected(shop, verified, keep_samples=2)
    assert [(example.id, example.sql) for example in examples] == [
        ("q1", "SELECT 1"),
        ("q1#2", "SELECT count(*) FROM city WHERE id = 1"),
    ]
    assert counts.examples == 2


def test_reasoning_comes_before_the_query_in_think_tags(shop: Schema) -> None:
    verified = passed(question(), reasoned("SELECT 1", "Is it SELECT 2?\nNo."), reasoned("SELECT 1", "One."))
    (example,), counts = selected(shop, verified, train_on="reasoning")
    assert example.output == "<think>\nOne.\n</think>\n\nSELECT 1"  # the shorter reasoning wins
    assert (example.sql, sql_from_answer(example.output), example.reasoning) == ("SELECT 1", "SELECT 1", "One.")
    assert counts == Selected(examples=1, with_reasoning=1)


def test_an_answer_has_the_form_of_preprocess(shop: Schema, tmp_path: Path) -> None:
    given = 'SELECT T1.name FROM customer AS T1 JOIN city AS T2 ON T1.city_id = T2.id WHERE T2.name = "Paris"'
    turned = "FROM customer JOIN city ON customer.city_id = city.id WHERE city.name = 'Paris' SELECT customer.name"
    plan = "Tables: customer, city\nJoins: customer.city_id = city.id\n"
    asked = (passed(question(id="1"), reasoned(given, "Join.")), passed(question(id="2"), "SELECT random()"))
    with Executor() as executor:
        student = StudentFormat(
            "ddl",
            ROOMY,
            COUNTER,
            lambda db_id: shop,
            AnswerForm("from_first", "tables"),
            lambda db_id, queries: executor.execute_all(tmp_path / db_id / f"{db_id}.sqlite", queries),
        )
        plain, counts = select(asked, settings(), student)
        with_reasoning, _ = select(asked[:1], settings(train_on="reasoning"), student)
    assert [(example.sql, example.output) for example in plain] == [
        (given, plan + turned),
        ("SELECT random()", "SELECT random()"),
    ]
    assert (counts.examples, counts.not_rewritten) == (2, 1)
    assert with_reasoning[0].output == f"<think>\nJoin.\n</think>\n\n{plan}{turned}"
    assert sql_from_answer(with_reasoning[0].output) == sql_from_answer(plan + turned)


def test_without_reasoning_that_fits_only_the_query_is_trained_on(shop: Schema) -> None:
    (example,), counts = selected(shop, passed(question(), "SELECT 1"), train_on="reasoning")
    assert (example.output, counts) == ("SELECT 1", Selected(examples=1, without_reasoning=1))
    long = passed(question(), reasoned("SELECT 1", "x" * 1001))
    (example,), counts = selected(shop, long, train_on="reasoning", max_reasoning_tokens=1000)
    assert (example.output, counts) == ("SELECT 1", Selected(examples=1, long_reasoning=1))
    assert len(example.reasoning) == 1001
    fits = COUNTER.count(replace(example, system=shop.render("ddl")))
    (example,), counts = selected(shop, long, cutoff=fits, train_on="reasoning", max_reasoning_tokens=5000)
    assert (example.output, counts) == ("SELECT 1", Selected(examples=1, over_cutoff=1))
    assert example.system == shop.render("ddl")  # the schema is not pruned to make room for reasoning


def test_a_query_that_contains_the_end_of_an_answer_is_dropped() -> None:
    blank, format = "SELECT 1\n\nFROM item", StudentFormat(None, ROOMY, byte_counter(PLAIN), lambda db_id: None)  # type: ignore[arg-type, return-value]
    examples, counts = select([passed(question(), blank)], settings(), format)
    assert (examples, counts) == ([], Selected(dropped=1))
    assert len(select([passed(question(), "SELECT 1 FROM item")], settings(), format)[0]) == 1


def test_a_mixture_always_chooses_the_same_ids() -> None:
    mixture = settings(train_on="mixture", reasoning_share=0.3)
    first = [trains_on_reasoning(f"q{number}", mixture) for number in range(2000)]
    assert first == [trains_on_reasoning(f"q{number}", mixture) for number in range(2000)]
    assert 500 < sum(first) < 700
    assert not any(trains_on_reasoning(f"q{n}", settings(train_on="mixture", reasoning_share=0)) for n in range(99))
    assert all(trains_on_reasoning(f"q{n}", settings(train_on="mixture", reasoning_share=1)) for n in range(99))


def test_the_questions_schema_is_kept_if_it_fits_and_pruned_if_not(shop: Schema) -> None:
    asked = replace(question(words="How many items?"), system="CREATE TABLE of another time")
    (example,), _ = selected(shop, passed(asked, "SELECT 1"))
    assert example.system == asked.system
    whole = COUNTER.count(replace(asked, system=shop.render("ddl"), output="SELECT 1"))
    asked = replace(asked, system=shop.render("ddl"))
    longer = "SELECT count(*) FROM item WHERE id = id"
    (example,), counts = selected(shop, passed(asked, longer), cutoff=whole)
    assert COUNTER.count(example) <= whole and "CREATE TABLE item" in example.system
    assert len(example.system) < len(shop.render("ddl"))
    assert counts == Selected(examples=1)


def test_without_a_schema_in_prompts_no_database_is_read(shop: Schema) -> None:
    (example,), _ = selected(shop, passed(question(db_id="gone"), "SELECT 1"), form=None)
    assert (example.system, example.output) == ("", "SELECT 1")


@pytest.mark.parametrize("form", [None, "ddl"])
def test_samples_that_do_not_fit_or_cannot_be_parsed_back_are_dropped(shop: Schema, form: SchemaForm | None) -> None:
    verified = passed(question(), f"SELECT '{'x' * 900}'", "SELECT 12345")
    examples, counts = selected(shop, verified, form=form, cutoff=900, keep_samples=2)
    assert [(example.id, example.output) for example in examples] == [("q", "SELECT 12345")]
    assert counts == Selected(examples=1, dropped=1)
    found = samples(question(), "SELECT 1")
    misread = Verified(question(), (replace(found[0], sql="SELECT '</think>'"),), {}, None)
    assert selected(shop, misread, form=form) == ([], Selected(dropped=1))
