"""The part of a schema that is shown for a question when the whole does not fit."""

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from chatmetrics.components.nl2sql.linking.found_values import FoundValue
from chatmetrics.components.nl2sql.linking.pruning import Pruner
from chatmetrics.components.nl2sql.linking.ranking import SchemaIndex
from chatmetrics.components.nl2sql.linking.words import words
from chatmetrics.components.nl2sql.schema import Column, ForeignKey, Schema, SchemaForm, Table


def table(name: str, columns: str, /, **samples: tuple[str, ...]) -> Table:
    """A table whose first column is its primary key."""
    return Table(
        name,
        tuple(
            Column(column, "TEXT", number == 0, samples=samples.get(column, ()))
            for number, column in enumerate(columns.split())
        ),
    )


HOTEL = Schema(
    "hotel",
    (
        table("city", "id name region", name=("上海", "北京")),
        table("hotel", "id full_name city_id stars phone", full_name=("Adler", "Ritz"), stars=("3", "5")),
        table("booking", "hotel_id day price", price=("10", "20")),
        table("invoice", "id hotel_id day total", total=("1", "2")),
        table("color", "code shade", code=("red", "blue")),
    ),
    (
        ForeignKey("hotel", "city_id", "city", "id"),
        ForeignKey("booking", "hotel_id", "hotel", "id"),
        ForeignKey("invoice", "hotel_id", "booking", "hotel_id", 1),
        ForeignKey("invoice", "day", "booking", "day", 1),
    ),
)


def at_most(characters: float) -> Callable[[str], float]:
    return lambda text: len(text) - characters


def shown(question: str, characters: float, schema: Schema = HOTEL, form: SchemaForm = "ddl") -> dict[str, str]:
    """The tables shown, with their columns; those with sample values have a star."""
    pruned = Pruner(schema, form).prune(question, at_most(characters))
    assert pruned is not None and len(pruned.render(form)) <= characters
    return {
        table.name: " ".join(column.name + "*" * bool(column.samples) for column in table.columns)
        for table in pruned.tables
    }


@pytest.mark.parametrize("form", ["ddl", "m-schema"])
def test_nothing_is_left_out_if_everything_fits(form: SchemaForm) -> None:
    assert Pruner(HOTEL, form).prune("Why?", at_most(len(HOTEL.render(form)))) == HOTEL


@pytest.mark.parametrize(
    ("question", "first"),
    [
        pytest.param("How many invoices are there?", {"invoice"}, id="a plural"),
        pytest.param("What does the hotel 'Adler' look like?", {"hotel"}, id="a value and a name"),
        pytest.param("How many shades?", {"color"}, id="a column"),
        pytest.param("北京有几个?", {"city"}, id="a value in a Chinese question"),
        pytest.param("Which FULL names?", {"hotel"}, id="a column of two words"),
    ],
)
def test_what_the_question_names_is_shown_first(question: str, first: set[str]) -> None:
    pruner = Pruner(HOTEL, "ddl")
    parts = (pruner.prune(question, at_most(size)) for size in range(60, 500, 5))
    assert {each.name for each in next(filter(None, parts)).tables} == first


def test_tables_that_join_the_named_ones_are_shown_with_their_keys() -> None:
    found = shown("total of invoices in each region", 440)
    assert list(found) == ["city", "hotel", "booking", "invoice"]
    assert found["hotel"].startswith("id") and "city_id" in found["hotel"] and "phone" not in found["hotel"]
    pruned = Pruner(HOTEL, "ddl").prune("total of invoices in each region", at_most(440))
    assert pruned is not None and pruned.foreign_keys == HOTEL.foreign_keys


def test_values_are_left_out_first_then_columns_then_tables() -> None:
    question = "What is the total of an invoice?"
    sizes = range(len(HOTEL.render("ddl")), 90, -1)
    steps = list(dict.fromkeys(tuple(shown(question, size).items()) for size in sizes))
    counts = [
        (sum(text.count("*") for _, text in step), sum(len(text.split()) for _, text in step), len(step))
        for step in steps
    ]
    tables = [count[2] for count in counts]
    assert tables[0] == len(HOTEL.tables) and tables[-1] == 1
    values, columns = ([count[kind] for count in counts if count[2] == len(HOTEL.tables)] for kind in range(2))
    assert values == sorted(values, reverse=True) and columns == sorted(columns, reverse=True)
    assert {columns[n] for n, count in enumerate(values) if count} == {columns[0]} and values[-1] == 0
    assert "total*" in dict(steps[values.index(1)])["invoice"]  # the value that the question is about is the last one


def test_what_is_left_after_the_last_table_is_for_its_columns_and_values() -> None:
    found = shown("How many shades?", 95)
    assert found == {"color": "code* shade"}  # no other table would fit


def test_the_longest_part_that_fits_is_shown() -> None:
    """However the search for it guesses, and if longer texts cannot be counted."""
    pruner, question = Pruner(HOTEL, "ddl"), "prices of bookings"
    whole = len(HOTEL.render("ddl"))
    lengths = set()
    for size in range(60, whole, 7):
        pruned = pruner.prune(question, at_most(size))
        found = len(pruned.render("ddl")) if pruned else 0
        uncounted = pruner.prune(question, lambda text, size=size: -1000.0 if len(text) <= size else math.inf)
        assert uncounted == pruned
        lengths.add(found)
    assert all(pruner.prune(question, at_most(length)).render("ddl").__len__() == length for length in lengths - {0})  # type: ignore[union-attr]


def test_there_is_no_schema_if_not_even_one_table_fits() -> None:
    assert Pruner(HOTEL, "ddl").prune("invoices", lambda _: 1.0) is None


def test_a_table_of_400_columns_is_shown_in_part() -> None:
    columns = [f"measure_{number}" for number in range(398)]
    wide = Schema("wide", (table("sensor", " ".join(["id", "place", *columns])), table("place", "id name")))
    found = shown("Which sensors have a measure 287 above 3?", 600, wide)
    assert {"id", "measure_287"} <= set(found["sensor"].split()) and len(found["sensor"].split()) > 10


@pytest.mark.parametrize("tables", [1000])
def test_each_question_takes_a_few_counts_of_texts_near_the_limit(tables: int) -> None:
    """However large the schema is, so that its tokens need not be counted for each question."""
    generator = random.Random(1)
    named = [f"t{number}_{generator.choice(['city', 'hotel', 'price', 'day'])}" for number in range(tables)]
    schema = Schema("many", tuple(table(name, "id name day price") for name in named))
    lengths = []

    def excess(text: str) -> float:
        lengths.append(len(text))
        return len(text) / 4 - 500

    pruned = Pruner(schema, "ddl").prune("price of t77 in each city", excess)
    assert pruned is not None and any(name.startswith("t77_") for name in (each.name for each in pruned.tables))
    assert len(lengths) <= 12 and max(lengths) <= 3 * 2000


def test_descriptions_are_compared_in_their_language() -> None:
    described = replace(
        HOTEL,
        tables=tuple(
            replace(each, description="宾馆的订单" if each.name == "booking" else "") for each in HOTEL.tables
        ),
    )
    assert next(iter(shown("有多少订单？", 90, described))) == "booking"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("homeCity_2", ["home", "city", "2"]),
        ("Cities, branches and BOXES", ["city", "branch", "and", "box"]),
        ("the class of this status", ["the", "class", "of", "this", "status"]),
        ("酒店订单", ["酒店", "店订", "订单"]),
        ("浦东A区", ["浦东", "a", "区"]),
    ],
)
def test_words_have_no_endings_and_chinese_has_pairs(text: str, found: list[str]) -> None:
    assert words(text) == found


def test_a_table_or_column_that_does_not_fit_does_not_keep_others_out() -> None:
    wide = Table("orders_of_all", tuple(Column(f"customer_order_key_{n}", "INTEGER", n + 1) for n in range(200)))
    schema = Schema("shop", (wide, table("small", "id name"), table("other", "id z")))
    found = shown("how many orders of all", 250, schema)
    assert len(found["orders_of_all"].split()) > 1  # a part of its key, which is too long as a whole
    long = replace(
        table("orders", "id note a b"),
        columns=(
            Column("id", "INT", 1),
            Column("note", "TEXT", description="x " * 2000),
            Column("a", "INT"),
            Column("b", "INT"),
        ),
    )
    assert shown("notes of orders", 150, Schema("shop", (long, table("other", "id z")))) == {
        "orders": "id a b",
        "other": "id z",
    }


def test_a_foreign_key_is_shown_with_both_its_columns_or_not_at_all() -> None:
    hub = table("hub", " ".join(["id", *(f"key_{number}" for number in range(60))]))
    spokes = [table(f"t{number}", "id v") for number in range(60)]
    keys = tuple(ForeignKey("hub", f"key_{number}", f"t{number}", "id") for number in range(60))
    pruner = Pruner(Schema("hub", (*spokes, hub), keys), "ddl")
    for question, size in ((question, size) for question in ("hub", "t 5 v") for size in range(40, 2500, 60)):
        pruned = pruner.prune(question, at_most(size))
        if pruned:
            names = {(each.name, column.name) for each in pruned.tables for column in each.columns}
            ends = {(key.table, key.column) for key in pruned.foreign_keys}
            ends |= {(key.referenced_table, key.referenced_column) for key in pruned.foreign_keys}
            assert ends <= names and len(pruned.render("ddl")) <= size
            assert len(pruned.render("ddl")) > 0.6 * size or size < 200


def test_a_schema_without_tables_has_no_part() -> None:
    empty = Schema("empty", ())
    assert Pruner(empty, "ddl").prune("Why?", at_most(100)) is None and Pruner(empty, "ddl").rank("Why?").tables == []


def test_the_beginning_of_a_word_counts_less_than_the_word() -> None:
    index = SchemaIndex(Schema("many", tuple(table(name, "id") for name in ("nation", "nationality", "national_park"))))
    scores = index.rank("nationality").scores
    assert scores["nationality"] > scores["nation"] > 0 and scores["nationality"] > scores["national_park"] > 0
    assert index.rank("nat").scores == dict.fromkeys(scores, 0.0)


SHANGHAI = FoundValue("city", "name", "Shanghai Pudong", "Shangai Pudong", 0.9)


def test_a_found_value_is_the_first_one_and_shown_before_other_columns() -> None:
    pruner, question = Pruner(HOTEL, "ddl"), "hotels in Shangai Pudong"
    text = pruner.schema.render("ddl")
    sizes = range(60, len(text), 10)
    parts = [pruner.prune(question, at_most(size), [SHANGHAI]) for size in sizes]
    names = [
        column for part in parts if part for table in part.tables for column in table.columns if column.name == "name"
    ]
    assert {column.samples for column in names} == {(), ("Shanghai Pudong",), ("Shanghai Pudong", "上海")}
    first = next(part for part in parts if part and "Shanghai Pudong" in part.render("ddl"))
    assert len(first.render("ddl")) < len(text) / 2


def test_a_found_value_brings_its_table_and_misspelled_ones_count_less() -> None:
    pruner = Pruner(HOTEL, "ddl")
    assert pruner.rank("Which are in Shangai Pudong?").scores["city"] == 0
    ranking = pruner.rank("Which are in Shangai Pudong?", [SHANGHAI])
    assert ranking.tables[: ranking.relevant] == ["city"] and ranking.values == {("city", "name"): [SHANGHAI]}
    exact = pruner.rank("Which are in Shangai Pudong?", [replace(SHANGHAI, similarity=1.0)])
    assert exact.scores["city"] > ranking.scores["city"]


def test_a_column_has_as_many_values_as_sample_values_so_none_if_prompts_show_none() -> None:
    bare = replace(
        HOTEL, tables=tuple(replace(t, columns=tuple(replace(c, samples=()) for c in t.columns)) for t in HOTEL.tables)
    )
    found = [SHANGHAI, replace(SHANGHAI, value="Bonn"), replace(SHANGHAI, value="Rome")]
    for schema, values in ((bare, ()), (HOTEL, ("Shanghai Pudong", "Bonn"))):
        part = Pruner(schema, "ddl").prune("name of a city", at_most(200), found)
        assert part is not None and part.tables[0].columns[1].samples == values


def test_without_found_values_nothing_changes() -> None:
    pruner, question = Pruner(HOTEL, "ddl"), "hotels in Shangai"
    assert pruner.prune(question, at_most(300)) == pruner.prune(question, at_most(300), [])
