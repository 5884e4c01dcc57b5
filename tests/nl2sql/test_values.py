"""Values that a question names: exactly, in another spelling, or with one mistake."""

import time

import pytest

from chatmetrics.components.nl2sql.linking.value_keys import has_one_mistake
from chatmetrics.components.nl2sql.linking.values import MOST_COLUMNS, MOST_FOUND, ValueIndex

CITY, CODE = ("hotels", "city"), ("hotels", "code")
CITIES = [
    "浦东新区",
    "北京",
    "上海外滩",
    "Shanghai",
    "São Paulo",
    "Straße 7",
    "New York",
    "York",
    "O'Brien",
    "Łódź",
    "Paris",
]
CODES = ["CA-123", "A", "F", "No", "3", "2014", "name", "Yes", "C++", "2018-03-01", "Golden Retriever"]
INDEX = ValueIndex([(CITY, CITIES), (CODE, CODES)], ["hotels", "city", "code", "firstName"])


def found(question: str, index: ValueIndex = INDEX) -> list[str]:
    return [value.value for value in index.find(question)]


@pytest.mark.parametrize(
    ("question", "values"),
    [
        ("浦东新区有多少酒店？", ["浦东新区"]),
        ("在浦东的酒店", []),
        ("北京的酒店和上海外滩的酒店", ["北京", "上海外滩"]),
        ("hotels in SHANGHAI or sao paulo", ["Shanghai", "São Paulo"]),
        ("hotels in Sa\u0303o Paulo", ["São Paulo"]),
        ("ＳＨＡＮＧＨＡＩ", ["Shanghai"]),
        ("STRASSE 7?", ["Straße 7"]),
        ("new-york", ["New York"]),
        ("Guests called o’brien", ["O'Brien"]),
        ("O'Brien's room", ["O'Brien"]),
        ("all golden retrievers", ["Golden Retriever"]),
        ("Shanghaihotel", []),
    ],
)
def test_another_spelling_of_the_same_words_makes_no_difference(question: str, values: list[str]) -> None:
    assert found(question) == values
    assert all(value.similarity == 1 for value in INDEX.find(question))


@pytest.mark.parametrize(
    ("question", "asked", "value"),
    [
        ("hotels in Shangai", "Shangai", "Shanghai"),
        ("hotels in Shangghai", "Shangghai", "Shanghai"),
        ("hotels in Shenghai", "Shenghai", "Shanghai"),
        ("hotels in Shanhgai", "Shanhgai", "Shanghai"),
        ("hotels in hanghai", "hanghai", "Shanghai"),
        ("hotels in Shangha", "Shangha", "Shanghai"),
        ("hotels in new yrok", "new yrok", "New York"),
        ("a goldn retriever", "goldn retriever", "Golden Retriever"),
        ("上海外滩，浦东心区的酒店", "浦东心区", "浦东新区"),
    ],
)
def test_one_mistake_is_recognized(question: str, asked: str, value: str) -> None:
    match = INDEX.find(question)[-1]
    assert (match.table, match.column, match.value, match.asked) == (*CITY, value, asked) or match.value == CODES[-1]
    assert 0.7 < match.similarity < 1


@pytest.mark.parametrize(
    "question", ["hotels in Shngai", "a perfect yok", "Pariss, Prs", "北就", "CA-124", "2015", "nams"]
)
def test_two_mistakes_short_words_and_other_numbers_are_not_values(question: str) -> None:
    assert found(question) == (["Paris"] if "Pariss" in question else [])


@pytest.mark.parametrize(
    ("question", "values"),
    [
        ("No hotel has a name, yes?", ["Yes"]),
        ("Hotels whose smoking is No", ["No"]),
        ("hotels with 'no' in it", []),
        ("A hotel with grade A", ["A"]),
        ("Is sex F? F is it.", ["F"]),
        ('Hotels with code "name"', ["name"]),
        ("The name of each hotel", []),
        ("The top 3 of 2014", ["2014"]),
        ("the code ca-123", ["CA-123"]),
        ("written in C++", ["C++"]),
        ("since 2018-03-01", ["2018-03-01"]),
    ],
)
def test_ordinary_words_and_numbers_count_only_if_they_are_meant(question: str, values: list[str]) -> None:
    assert found(question) == values


def test_a_longer_value_wins_over_its_parts() -> None:
    assert found("New York or York") == ["New York", "York"]


def test_a_value_is_found_in_each_column_that_contains_it_as_that_spells_it() -> None:
    columns = [(("t", f"c{number}"), ["RED", "Red"] if number else ["red"]) for number in range(MOST_COLUMNS + 2)]
    matches = ValueIndex(columns).find("Red roses")
    assert [(match.column, match.value) for match in matches] == [
        ("c0", "red"),
        *((f"c{number}", "Red") for number in range(1, MOST_COLUMNS)),
    ]


def test_a_question_has_a_limited_number_of_values() -> None:
    words = [f"{first}{second}xyz" for first in "abcdefgh" for second in "abcdefgh"]
    assert len(found(" ".join(words), ValueIndex([(CITY, words)]))) == MOST_FOUND


def test_identifiers_punctuation_and_long_texts_are_left_out() -> None:
    values = [
        "123e4567-e89b-12d3-a456-426614174000",
        "d41d8cd98f00b204e9800998ecf8427e",
        "--",
        "",
        "word " * 13,
        "kept",
    ]
    index = ValueIndex([(CITY, values)])
    assert index.number == 1 and found("kept", index) == ["kept"]


def test_a_full_index_keeps_what_it_has_and_names_the_first_incomplete_column() -> None:
    columns = [((f"t{number}", "c"), [f"value{number}x{place}" for place in range(100)]) for number in range(10)]
    index = ValueIndex(columns, max_bytes=30_000)
    assert index.incomplete == ("t3", "c") and 250 < index.number < 350
    assert found("value1x99 and value9x1", index) == ["value1x99"]
    assert ValueIndex(columns).incomplete is None


def test_hostile_values_and_questions_are_only_text() -> None:
    values = ["'; DROP TABLE value; --", 'say "hi"', "a%b_c*", "nul\0l", "\\xff broken", "ﬁne 𝒷old"]
    index = ValueIndex([(("'t\"", "c`"), values)])
    for value in values:
        assert found(f"Which is {value}?", index) == [value], value
    assert found("?lone", ValueIndex([(CITY, ["\ud800lone"])])) == ["?lone"]
    assert found('" OR 1=1 --\0 \ud800 NEAR(', index) == []
    assert ValueIndex([]).find("anything") == []


@pytest.mark.parametrize(
    "text", ["How many hotels are in Shangai and Prague? ", "浦东新区有多少酒店啊我问", "x", "1 ", "é\u0301"]
)
def test_a_long_question_takes_linear_time(text: str) -> None:
    question = (text * 200_000)[:200_000]
    started = time.monotonic()
    assert len(INDEX.find(question)) <= MOST_FOUND
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("first", "second", "has_one"),
    [
        ("abcd", "abcd", False),
        ("abcd", "abd", True),
        ("abd", "abcd", True),
        ("abcd", "abcde", True),
        ("abcd", "xabcd", True),
        ("abcd", "abxd", True),
        ("abcd", "bacd", True),
        ("abcd", "abdc", True),
        ("abcd", "badc", False),
        ("abcd", "abcdef", False),
        ("abcd", "axxd", False),
        ("", "a", True),
        ("", "", False),
    ],
)
def test_one_mistake(first: str, second: str, has_one: bool) -> None:
    assert has_one_mistake(first, second) == has_one == has_one_mistake(second, first)
