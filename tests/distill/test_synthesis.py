"""Questions made up about real databases by a teacher with canned answers."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from chatmetrics.components.distill.answers.similarity import canonical, question_similarity, words_of
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.distill.synthesis.parse_pairs import parse_pairs
from chatmetrics.components.distill.synthesis.question_plan import (
    Coverage,
    even_shares,
    plan_cells,
    possible_query_types,
)
from chatmetrics.components.distill.synthesis.synthesis import Ask, database_names, synthesize
from chatmetrics.components.distill.teacher.request import Request, TeacherAnswer
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.query_type import QUERY_TYPES, query_type_of
from chatmetrics.components.nl2sql.schema import Schema
from tests.distill.shop import answer, make_shop, question, settings

# Queries of each kind; {} is a number that makes each another.
QUERIES = {
    "single table": "SELECT name FROM item WHERE id < {}",
    "2-3 table join": "SELECT item.name FROM sale JOIN item ON sale.item_id = item.id LIMIT {}",
    "larger join": "SELECT city.name FROM sale JOIN item ON item_id = item.id JOIN customer USING (id) "
    "JOIN city ON customer.city_id = city.id LIMIT {}",
    "subquery": "SELECT name FROM customer WHERE id IN (SELECT customer_id FROM sale) LIMIT {}",
    "aggregate": "SELECT count(*) + {} FROM item",
    "window function": "SELECT name, rank() OVER (ORDER BY price) + {} FROM item",
    "set operation": "SELECT name FROM item UNION SELECT name FROM city LIMIT {}",
}
Write = Callable[[str, int], Sequence[Any]]  # query type and number of the request: the items of the JSON list


class Teacher:
    """Answers requests for questions; counts them."""

    def __init__(self, asked_by: DistillSettings, write: Write) -> None:
        self._settings, self._write = asked_by, write
        self.requests: list[Request] = []
        self.batches = 0

    def __call__(self, requests: Sequence[Request]) -> Mapping[str, TeacherAnswer]:
        self.batches += 1
        return {request.key(self._settings): self._answer(request) for request in requests}

    def _answer(self, request: Request) -> TeacherAnswer:
        self.requests.append(request)
        found = re.search(r"Kind of query: (.*?):", request.messages[1][1])
        assert found is not None
        return answer(f"Here:\n```json\n{json.dumps(self._write(found[1], len(self.requests)))}\n```")


def pair(sql: str, words: str) -> dict[str, str]:
    return {"question": words, "sql": sql}


def good(query_type: str, number: int) -> list[dict[str, str]]:
    """As many pairs of the kind as one request can want, none like another."""
    numbers = [10 * number + place for place in range(5)]
    return [pair(QUERIES[query_type].format(n + 10), f"{query_type} {n} x{n} y{n} z{n} w{n}") for n in numbers]


def made_up(tmp_path: Path, write: Write, known: Sequence[Example] = (), hold_out: bool = False, **values: Any) -> Any:
    if not (tmp_path / "shop").exists():
        make_shop(tmp_path)
    wanted = settings(synthesis={"questions_per_database": 14, **values})
    teacher = Teacher(wanted, write)
    examples, reports = synthesize(tmp_path, known, teacher, wanted, hold_out)
    return examples, reports["shop"], teacher


def test_every_kind_of_query_gets_its_even_share(tmp_path: Path) -> None:
    examples, report, teacher = made_up(tmp_path, good, questions_per_database=17)
    assert report.by_query_type == dict.fromkeys(QUERY_TYPES, 2) | dict.fromkeys(QUERY_TYPES[:3], 3)
    assert (report.wanted, report.questions, report.batches, report.missing) == (17, 17, 1, {})
    assert report.rejected == {"more of its kind than wanted": 7 * 5 - 17}
    assert [example.id for example in examples] == [f"synthesized:shop:{number}" for number in range(1, 18)]
    assert all(example.query_type == query_type_of(example.sql) and example.system == "" for example in examples)
    assert {example.split for example in examples} == {"train"}
    assert teacher.batches == 1 and {request.purpose for request in teacher.requests} == {"synthesis"}
    assert report.by_table == {"city": 5, "customer": 5, "item": 15, "sale": 8}  # `returned` has no rows
    assert report.by_foreign_key["sale.item_id = item.id"] == 6
    assert report.by_foreign_key["sale.customer_id = customer.id"] == 2


def test_what_is_refused_is_counted_by_reason_and_asked_for_again(tmp_path: Path) -> None:
    known = [question("SELECT name FROM item WHERE id = 3", id="k", words="What is item number three called?")]
    first = [
        pair("SELECT price FROM item WHERE id = 1", "How dear is the first item?"),
        pair("select price from item where id=1", "What does the first of the items cost?"),
        pair("SELECT price FROM item WHERE id = 2", "How dear is the first item ?!"),
        pair("SELECT id FROM item WHERE name = 'cup'", "what is ITEM number three called"),
        pair("SELECT name FROM item WHERE id = 3", "Which one is third?"),
        pair("SELECT title FROM item", "Titles?"),
        pair("SELECT name FROM item WHERE price > 50", "Which are dear?"),
        pair("SELECT count(*) FROM item", "How many?"),
        {"question": "No SQL?"},
        {"question": 5, "sql": "SELECT 1"},
        {"question": "half \ud800", "sql": "SELECT 1"},
    ]
    later = [pair("SELECT name FROM city", "Which cities are there?"), pair("SELECT id FROM city", "City numbers?")]
    examples, report, teacher = made_up(
        tmp_path,
        lambda query_type, number: [first, [], later][number - 1],
        known,
        questions_per_database=3,
        query_types=["single table"],
    )
    assert [example.question for example in examples] == [
        "How dear is the first item?",
        "Which cities are there?",
        "City numbers?",
    ]
    assert report.rejected == {
        "no JSON list of questions in the answer": 1,
        "question or SQL is missing or no text": 3,
        "a kind of query that is not wanted": 1,
        "much like another question": 2,
        "the same query as another's": 2,
        "the SQL fails": 1,
        "the SQL returns no rows": 1,
    }
    assert report.batches == teacher.batches == 3
    texts = [request.messages[1][1] for request in teacher.requests]
    assert ["Make up 3 questions" in texts[0], "Make up 2 questions" in texts[1]] == [True, True]
    assert "- What is item number three called?\n- How dear is the first item?" in texts[1]
    assert len({request.key(settings()) for request in teacher.requests}) == 3


def test_the_same_answers_give_the_same_requests(tmp_path: Path) -> None:
    def slow(query_type: str, number: int) -> list[dict[str, str]]:
        return good(query_type, number)[:1]

    examples, report, teacher = made_up(tmp_path, slow, questions_per_database=21, questions_per_request=3)
    again, _, second = made_up(tmp_path, slow, questions_per_database=21, questions_per_request=3)
    assert (again, second.requests) == (examples, teacher.requests)
    assert report.batches == 3 and report.questions == 21


def test_after_five_waves_it_says_what_is_missing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def no_joins(query_type: str, number: int) -> list[dict[str, str]]:
        return good("aggregate" if "join" in query_type else query_type, number)

    examples, report, teacher = made_up(tmp_path, no_joins)
    assert teacher.batches == report.batches == 5
    assert report.missing == {"2-3 table join": 2, "larger join": 2}
    # What was paid for beyond the shares fills the place of what is missing, evenly.
    assert sorted(report.by_query_type.values()) == [0, 0, 2, 3, 3, 3, 3]
    assert len(examples) == report.questions == 14
    assert "distill: shop: after 5 batches lacks 2 of 2-3 table join, 2 of larger join" in capfd.readouterr().err


def test_without_answers_it_ends_at_once(tmp_path: Path) -> None:
    make_shop(tmp_path)
    batches: list[int] = []

    def silent(requests: Sequence[Request]) -> Mapping[str, TeacherAnswer]:
        batches.append(len(requests))
        return {}

    examples, reports = synthesize(tmp_path, [], silent, settings(synthesis={"questions_per_database": 7}), True)
    assert (examples, batches, reports["shop"].rejected) == ([], [7], {"no answer": 7})


def test_a_part_is_held_out_by_query(tmp_path: Path) -> None:
    examples, _, _ = made_up(tmp_path, good, hold_out=True, dev_fraction=0.25)
    splits = Counter(example.split for example in examples)
    assert splits == {"train": 10, "synthesized": 4}
    queries = {split: {canonical(e.sql) for e in examples if e.split == split} for split in splits}
    assert not queries["train"] & queries["synthesized"]
    few, _, _ = made_up(tmp_path, good, hold_out=True, questions_per_database=3)
    assert Counter(example.split for example in few) == {"train": 2, "synthesized": 1}


def test_languages_take_turns(tmp_path: Path) -> None:
    examples, report, teacher = made_up(tmp_path, good, languages=["English", "Chinese"])
    asked = Counter(
        "Chinese" if "Language of the questions: Chinese" in request.messages[1][1] else "English"
        for request in teacher.requests
    )
    assert asked == {"English": 7, "Chinese": 7}
    assert sum(report.by_language.values()) == len(examples)


def test_all_databases_are_asked_about_in_one_wave(tmp_path: Path) -> None:
    make_shop(tmp_path)
    make_shop(tmp_path, "empty", rows="")
    (tmp_path / "flat.sqlite").write_bytes((tmp_path / "shop" / "shop.sqlite").read_bytes())
    assert database_names(tmp_path) == ["empty", "flat", "shop"]
    wanted = settings(synthesis={"questions_per_database": 7})
    teacher = Teacher(wanted, good)
    examples, reports = synthesize(tmp_path, [], teacher, wanted, False)
    assert Counter(example.db_id for example in examples) == {"flat": 7, "shop": 7}
    assert teacher.batches == 1 and len(teacher.requests) == 14
    assert (reports["empty"].questions, reports["empty"].batches) == (0, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"query_types": ["joins"]}, "'joins' is none of single table"), ({"databases": ["mall"]}, "'mall' is missing")],
)
def test_what_does_not_exist_is_named(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made_up(tmp_path, good, **values)


def schema_of(tmp_path: Path, *tables: str) -> Schema:
    return Schema.from_sqlite(make_shop(tmp_path)).prune(tables)


def test_only_what_the_schema_bears_is_asked_for(tmp_path: Path) -> None:
    whole = schema_of(tmp_path, "city", "customer", "item", "sale")
    assert possible_query_types(whole, QUERY_TYPES) == list(QUERY_TYPES)
    assert "larger join" not in possible_query_types(whole.prune(["city", "customer", "sale"]), QUERY_TYPES)
    assert "2-3 table join" in possible_query_types(whole.prune(["city", "item"]), QUERY_TYPES)  # no key: nobody knows
    alone = possible_query_types(whole.prune(["item"]), QUERY_TYPES)
    assert alone == ["single table", "subquery", "aggregate", "window function", "set operation"]
    assert even_shares(["a", "b", "c"], 8) == {"a": 3, "b": 3, "c": 2}


def test_tables_and_foreign_keys_come_up_evenly(tmp_path: Path) -> None:
    schema = schema_of(tmp_path, "city", "customer", "item", "sale")
    cells = plan_cells(schema, {"single table": 8, "2-3 table join": 6, "larger join": 1}, ["English"], Coverage())
    assert Counter(name for cell in cells[:8] for name in cell.tables) == dict.fromkeys(cell_names(schema), 2)
    joins = cells[8:14]
    assert [len(cell.tables) for cell in joins] == [2, 3] * 3
    uses = Counter(key for cell in joins for key in cell.foreign_keys)
    assert len(uses) == 3 and max(uses.values()) - min(uses.values()) <= 1
    assert len(set(cells[14].tables)) == 4 and len(cells[14].foreign_keys) == 3


def cell_names(schema: Schema) -> list[str]:
    return [table.name for table in schema.tables]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param('[{"question": "a", "sql": "SELECT 1;"}]', [("a", "SELECT 1")], id="list"),
        pytest.param('Sure!\n```json\n[{"sql": "SELECT 1", "question": "a"},]\n```', [("a", "SELECT 1")], id="fence"),
        pytest.param('{"question": "a", "sql": "SELECT 1"}\n{"question": "b", "sql": "SELECT 2"}', 2, id="lines"),
        pytest.param('{"questions": [{"question": "a", "sql": "SELECT 1"}]}', 1, id="wrapped"),
        pytest.param('[{"question": "a", "sql": "SELECT 1"}, {"question": "b", "sq', 1, id="cut"),
        pytest.param('[{"question": "a", "sql": "SELECT\n1"}]', [("a", "SELECT\n1")], id="line break in a string"),
        pytest.param('{"question": "a"} {"question": " ", "sql": "SELECT 1"}', [None, None], id="incomplete"),
        pytest.param('{"question": "a", "sql": "none"}', [None], id="no SQL"),
        pytest.param("SELECT 1", [], id="no JSON"),
    ],
)
def test_pairs_are_found_whatever_stands_around_them(text: str, expected: Any) -> None:
    found = list(parse_pairs(text))
    assert (len(found) if isinstance(expected, int) else found) == expected


@pytest.mark.parametrize("piece", ["[", '{"', '{"a":', '[{"question": "', '{"a": [', "```", '\\"', '{"question":"a"},'])
def test_a_hundred_kilobytes_of_anything_hold_no_pair(piece: str) -> None:
    assert set(parse_pairs((piece * 100_000)[:100_000])) <= {None}


def test_questions_are_compared_by_words_and_by_pairs_of_chinese_characters() -> None:
    assert words_of("How many ＩＴＥＭＳ cost 5?") == {"how", "many", "items", "cost", "5"}
    assert words_of("上海有多少酒店?") == {"上海", "海有", "有多", "多少", "少酒", "酒店"}
    assert words_of("茶 costs?") == {"茶", "costs"}
    shanghai, beijing = words_of("上海有多少家五星级酒店?"), words_of("北京有多少家五星级酒店?")
    assert 0.5 < question_similarity(shanghai, beijing) < 0.8
    assert question_similarity(shanghai, words_of("上海有多少家五星级酒店")) == 1


def test_the_ask_type_is_what_synthesize_takes() -> None:
    teacher: Ask = Teacher(settings(), good)
    assert teacher([]) == {}
