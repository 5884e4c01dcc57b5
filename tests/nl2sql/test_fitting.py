"""Examples that fit with the whole schema, with part of it, or not at all."""

from dataclasses import replace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from chatmetrics.components.nl2sql.linking.found_values import FoundValue
from chatmetrics.components.nl2sql.prompts.fitting import bare_example, fit
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


def test_a_bare_example_asks_its_question_and_answers_with_its_query() -> None:
    assert (BARE.input, BARE.output, BARE.system) == ("How many items?", "SELECT count(*) FROM item", "")
    assert BARE.instruction.startswith("Using the database 'shop'")


@pytest.mark.parametrize("form", ["ddl", "m-schema"])
def test_an_example_that_fits_is_not_changed(counter: TokenCounter, form: SchemaForm) -> None:
    whole = replace(BARE, system=SHOP.render(form))
    assert fit(whole, SHOP, form, counter.count(whole), counter) == whole


def test_a_schema_that_is_one_token_too_long_is_pruned_to_the_relevant_tables(counter: TokenCounter) -> None:
    whole = replace(BARE, system=SHOP.render("ddl"))
    fitted = fit(whole, SHOP, "ddl", counter.count(whole) - 1, counter)
    assert fitted is not None and counter.count(fitted) < counter.count(whole)
    assert "CREATE TABLE item" in fitted.system and fitted.system.count("CREATE TABLE") == 2


def test_there_is_no_example_if_not_even_one_table_fits(counter: TokenCounter) -> None:
    whole = replace(BARE, system=SHOP.render("ddl"))
    assert fit(whole, SHOP, "ddl", counter.count(BARE), counter) is None
    assert fit(whole, SHOP, "ddl", counter.count(BARE) - 1, counter) is None


def test_without_a_schema_the_bare_example_must_fit(counter: TokenCounter) -> None:
    assert fit(BARE, SHOP, None, counter.count(BARE), counter) == BARE
    assert fit(BARE, SHOP, None, counter.count(BARE) - 1, counter) is None


def test_a_text_is_counted_without_bos_and_eos(counter: TokenCounter) -> None:
    assert counter.count_text("酒店") == 6
    assert counter.count(replace(BARE, output=BARE.output + "12")) == counter.count(BARE) + counter.count_text("12")


def test_values_are_looked_up_only_if_the_schema_is_pruned(counter: TokenCounter) -> None:
    asked: list[str] = []

    def find_values(question: str) -> list[FoundValue]:
        asked.append(question)
        return [FoundValue("sale", "id", "many", "many")]

    whole = replace(BARE, system=SHOP.render("ddl"))
    assert fit(whole, SHOP, "ddl", counter.count(whole), counter, find_values) == whole
    assert asked == []
    fitted = fit(whole, SHOP, "ddl", counter.count(whole) - 1, counter, find_values)
    assert asked == [BARE.input] and fitted is not None
    assert "CREATE TABLE sale" in fitted.system and fitted.system.count("CREATE TABLE") == 2
