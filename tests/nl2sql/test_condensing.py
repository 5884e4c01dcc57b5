"""Questions that are too long: what is kept of them, in English and Chinese."""

import random

import pytest

from chatmetrics.components.nl2sql.linking.condensing import Condenser
from chatmetrics.components.nl2sql.linking.found_values import FoundValue
from chatmetrics.components.nl2sql.linking.ranking import SchemaIndex
from chatmetrics.components.nl2sql.linking.sentences import LONGEST, sentences
from chatmetrics.components.nl2sql.schema import Column, ForeignKey, Schema, Table

HOTELS = Schema(
    "hotels",
    (
        Table(
            "hotel", (Column("id", "INT", 1), Column("name", "TEXT"), Column("rating", "REAL"), Column("city_id", ""))
        ),
        Table("city", (Column("id", "INT", 1), Column("name", "TEXT", samples=("Shanghai", "Hangzhou")))),
        Table("酒店订单", (Column("订单编号", "INT", 1), Column("入住日期", "TEXT"), Column("城区", "TEXT"))),
    ),
    (ForeignKey("hotel", "city_id", "city", "id"),),
)
CONDENSER = Condenser(SchemaIndex(HOTELS))
MAIL = (
    "Dear all,\n\n"
    "Thank you for the pleasant dinner on Tuesday. The train back was late, as usual! My slides are on the share.\n"
    "We talked about the holidays of my colleague, who is in Norway. "
    "Only hotels with a rating of at least 4.5 matter to the board. "
    "Could you tell me how many hotels there are in Shanghai? "
    "Please do not count those that have no name. "
    "By the way, did you see the match? It was great.\n\n"
    "Best regards,\nJ. Smith, St. Gallen\nTel. 555 0199"
)
WANTED = (
    "Only hotels with a rating of at least 4.5 matter to the board. "
    "Could you tell me how many hotels there are in Shanghai? "
    "Please do not count those that have no name."
)
NEWS = "各位同事：\n感谢大家上周的支持，会议很顺利。新来的同事来自广东，喜欢打篮球。天气转凉，请注意保暖！"
ASKED = "请统计2024年浦东新区的酒店订单有多少？不要包括已取消的订单。"


def length(limit: int):  # type: ignore[no-untyped-def]
    return lambda text: len(text) - limit


def test_a_question_that_fits_is_not_changed() -> None:
    assert CONDENSER.condense(MAIL, length(len(MAIL))) == MAIL


def test_what_names_the_schema_and_what_asks_is_kept_in_order() -> None:
    kept = CONDENSER.condense(MAIL, length(len(WANTED)))
    assert kept == WANTED


def test_the_request_itself_is_kept_longest() -> None:
    assert CONDENSER.condense(MAIL, length(70)) == "Could you tell me how many hotels there are in Shanghai?"


@pytest.mark.parametrize("text", [f"{NEWS}{ASKED}祝好！", f"{ASKED}{NEWS}", f"{NEWS * 40}{ASKED}{NEWS * 40}"])
def test_chinese_needs_no_spaces(text: str) -> None:
    assert CONDENSER.condense(text, length(len(ASKED))) == ASKED


@pytest.mark.parametrize("place", range(0, 101, 20))
def test_a_request_is_found_anywhere_in_a_long_text(place: int) -> None:
    noise = [
        "The quarterly review went well and everyone was happy.",
        "Our new office has 12 rooms and a kitchen.",
        "Did you hear about the strike?",
        "Anna moved to Bergen, and Tom did not.",
    ]
    generator = random.Random(place)
    around = [generator.choice(noise) for _ in range(1000)]
    question = "List the names of all hotels in Hangzhou, best rating first."
    around.insert(place * 10, question)
    kept = CONDENSER.condense(" ".join(around), length(400))
    assert question in kept and len(kept) <= 400


def test_values_of_the_database_and_terms_of_the_glossary_count() -> None:
    text = "The weather is fine. Mrs Li works in Pudong. Frequent guests get a gift. The sea is blue. So is the sky."

    def find_values(sentence: str) -> list[FoundValue]:
        return [FoundValue("酒店订单", "城区", "Pudong", "Pudong")] if "Pudong" in sentence else []

    condenser = Condenser(SchemaIndex(HOTELS), ["frequent guest"], find_values)
    assert condenser.condense(text, length(56)) == "Mrs Li works in Pudong. Frequent guests get a gift."


def test_nothing_fits() -> None:
    assert CONDENSER.condense("Which hotels are in Shanghai? Thank you.", length(5)) == ""


def test_repeated_sentences_are_kept_once() -> None:
    text = "Which hotels are in Shanghai? " * 50 + "Only those with a rating above 4."
    assert CONDENSER.condense(text, length(80)) == "Which hotels are in Shanghai? Only those with a rating above 4."


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One. Two! Three?", ["One. ", "Two! ", "Three?"]),
        ("It costs 3.50 at example.com. Yes.", ["It costs 3.50 at example.com. ", "Yes."]),
        ("Ask Dr. J. Smith, e.g. No. 5. Then go.", ["Ask Dr. J. Smith, e.g. No. 5. ", "Then go."]),
        ('He said "stop." Then he left.', ['He said "stop." ', "Then he left."]),
        ("一。二！三？四", ["一。", "二！", "三？", "四"]),
        ("a\n\n- b\n- c", ["a\n\n", "- b\n", "- c"]),
        ("", []),
    ],
)
def test_sentences(text: str, parts: list[str]) -> None:
    assert sentences(text) == parts


@pytest.mark.parametrize(
    "text",
    ["word " * 500, "x" * 5000, "浦东新区" * 700, "clause, " * 300, "." * 5000, "?!" * 3000, "\n" * 4000, "a.b" * 2000],
)
def test_a_text_without_sentences_is_cut_into_parts_and_nothing_is_lost(text: str) -> None:
    parts = sentences(text)
    assert "".join(parts) == text and max(map(len, parts)) <= max(LONGEST, len(text) if not text.strip("\n.?!") else 0)


@pytest.mark.parametrize(
    "text", [f"{MAIL} ", NEWS, "word ", ".", "?", "\n", "'", "(", "a, ", "how many and ", "\ud800"]
)
def test_a_text_of_any_kind_may_have_200_000_characters(text: str) -> None:
    """If an expression took quadratic time, this would not end."""
    assert len(CONDENSER.condense((text * 200_000)[:200_000], length(2000))) <= 2000
