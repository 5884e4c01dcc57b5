"""Examples that fit with the whole schema, with part of it, or not at all."""

from dataclasses import replace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from chatmetrics.components.nl2sql.descriptions import Descriptions
from chatmetrics.components.nl2sql.example import Example
from chatmetrics.components.nl2sql.linking.found_values import FindValues, FoundValue, no_values
from chatmetrics.components.nl2sql.prompts.fitting import FittedExample, bare_example, fit_example
from chatmetrics.components.nl2sql.prompts.prompt_fitter import PromptFitter
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3
from chatmetrics.components.nl2sql.prompts.token_counter import TokenCounter
from chatmetrics.components.nl2sql.schema import Column, Schema, SchemaForm, Table

SHOP = Schema("shop", tuple(Table(name, (Column("id", "INTEGER"),)) for name in ("city", "item", "sale")))
BARE = bare_example("1", "shop", "How many items?", "SELECT count(*) FROM item", "train", "aggregate")


@pytest.fixture(scope="module")
def counter() -> TokenCounter:
    """Counts every byte as a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return TokenCounter(tokenizer, DEEPSEEK3)


def fit(
    schema: Schema,
    form: SchemaForm | None,
    cutoff: int,
    counter: TokenCounter,
    find_values: FindValues = no_values,
    example: Example = BARE,
    known: Descriptions | None = None,
) -> FittedExample | None:
    return fit_example(example, PromptFitter(schema, form, known, find_values), "", cutoff, counter)


def test_a_bare_example_asks_its_question_and_answers_with_its_query() -> None:
    assert (BARE.input, BARE.output, BARE.system) == ("How many items?", "SELECT count(*) FROM item", "")
    assert BARE.instruction.startswith("Using the database 'shop'")


@pytest.mark.parametrize("form", ["ddl", "m-schema"])
def test_an_example_that_fits_is_not_changed(counter: TokenCounter, form: SchemaForm) -> None:
    whole = replace(BARE, system=SHOP.render(form))
    assert fit(SHOP, form, counter.count(whole), counter) == FittedExample(whole, SHOP)


def test_a_schema_that_is_one_token_too_long_is_pruned_to_the_relevant_tables(counter: TokenCounter) -> None:
    whole = replace(BARE, system=SHOP.render("ddl"))
    fitted = fit(SHOP, "ddl", counter.count(whole) - 1, counter)
    assert fitted is not None and counter.count(fitted.example) < counter.count(whole)
    assert [table.name for table in fitted.schema.tables] == ["city", "item"]
    assert fitted.example.system == fitted.schema.render("ddl")


def test_there_is_no_example_if_not_even_one_table_fits(counter: TokenCounter) -> None:
    assert fit(SHOP, "ddl", counter.count(BARE), counter) is None
    assert fit(SHOP, "ddl", counter.count(BARE) - 1, counter) is None


def test_without_a_schema_the_bare_example_must_fit(counter: TokenCounter) -> None:
    assert fit(SHOP, None, counter.count(BARE), counter) == FittedExample(BARE, SHOP)
    assert fit(SHOP, None, counter.count(BARE) - 1, counter) is None


def test_a_text_is_counted_without_bos_and_eos(counter: TokenCounter) -> None:
    assert counter.count_text("酒店") == 6
    assert counter.count(replace(BARE, output=BARE.output + "12")) == counter.count(BARE) + counter.count_text("12")


def test_values_are_looked_up_only_if_the_schema_is_pruned(counter: TokenCounter) -> None:
    asked: list[str] = []

    def find_values(question: str) -> list[FoundValue]:
        asked.append(question)
        return [FoundValue("sale", "id", "many", "many")]

    whole = replace(BARE, system=SHOP.render("ddl"))
    assert fit(SHOP, "ddl", counter.count(whole), counter, find_values) == FittedExample(whole, SHOP)
    assert asked == []
    fitted = fit(SHOP, "ddl", counter.count(whole) - 1, counter, find_values)
    assert asked == [BARE.input] and fitted is not None
    assert [table.name for table in fitted.schema.tables] == ["item", "sale"]


LONG = "We met in Oslo. " * 20 + "How many items are there? Thanks."


def test_a_long_question_is_condensed_to_what_the_whole_schema_leaves(counter: TokenCounter) -> None:
    long = replace(BARE, question=LONG, input=LONG)
    whole = replace(BARE, system=SHOP.render("ddl"))
    limit = counter.count(whole) + 200
    fitted = fit(SHOP, "ddl", limit, counter, example=long)
    assert fitted is not None and fitted.is_condensed and fitted.schema == SHOP
    assert fitted.example.question == LONG and fitted.example.input.endswith("How many items are there? Thanks.")
    assert limit - len("We met in Oslo. ") <= counter.count(fitted.example) <= limit


def test_without_a_schema_a_long_question_is_condensed_too(counter: TokenCounter) -> None:
    fitted = fit(SHOP, None, counter.count(BARE) + 10, counter, example=replace(BARE, question=LONG))
    assert fitted is not None and fitted.is_condensed and fitted.example.input == "How many items are there?"


def test_a_long_question_leaves_room_for_tables(counter: TokenCounter) -> None:
    schema = replace(SHOP, tables=tuple(replace(table, description="x" * 300) for table in SHOP.tables))
    long = replace(BARE, question="How many items cost 3 in this city? And who sold them? " * 20)
    fitted = fit(schema, "ddl", counter.count(BARE) + 600, counter, example=long)
    assert fitted is not None and fitted.is_condensed and 0 < len(fitted.schema.tables) < 3
    assert len(fitted.example.input) <= 300


def test_the_terms_of_a_condensed_question_are_those_that_it_still_names(counter: TokenCounter) -> None:
    known = Descriptions(terms={"items": "rows of item", "Oslo": "a city of long meaning"})
    fitted = fit(SHOP, "ddl", 300, counter, example=replace(BARE, question=LONG), known=known)
    assert fitted is not None and fitted.example.evidence == "items: rows of item"
    assert fitted.example.input == "How many items are there?\nEvidence: items: rows of item"


@pytest.mark.parametrize(("spare", "condensed", "longer"), [(0, True, False), (30, True, True), (10_000, False, True)])
def test_a_long_question_takes_spare_tokens_before_it_is_condensed(spare: int, condensed: bool, longer: bool) -> None:
    fitted = PromptFitter(SHOP, "ddl").fit(LONG, "", lambda system, asked: len(system) + len(asked) - 200, spare)
    assert fitted is not None and (fitted.is_condensed, fitted.is_longer) == (condensed, longer)
    assert fitted.schema == SHOP and len(fitted.system) + len(fitted.asked) <= 200 + spare
    short = PromptFitter(SHOP, "ddl").fit("How many?", "", lambda system, asked: len(system) + len(asked) - 105, spare)
    assert short is not None and not short.is_longer and len(short.schema.tables) < 3
