"""The official evaluator's rules that need no database."""

import itertools
import random
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlparse.lexer import tokenize

from chatmetrics.components.evaluate.official import official_gold, official_prediction, same_official_result

Rows = list[tuple[Any, ...]]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT DISTINCT a FROM t", "SELECT  a FROM t"),
        ("SELECT count(distinct a) FROM t", "SELECT count( a) FROM t"),
        ("SELECT 'distinct' FROM t", "SELECT 'distinct' FROM t"),
        ("SELECT a; SELECT b", "SELECT a;"),
        ("SELECT ';' ; ", "SELECT ';' ;"),
        ("SELECT a WHERE b > = 1 AND c ! = 2", "SELECT a WHERE b >= 1 AND c != 2"),
        ("SELECT year ( CurDate ( ) ) - a", "SELECT 2020- a"),
    ],
)
def test_the_query_that_is_run(sql: str, expected: str) -> None:
    assert official_gold(sql).strip() == expected


WORDS = ("DISTINCT", "distinct", "select", "a", "_distinct", "1", "2.5", "count", "group by", "not null", "union all")
MARKS = (" ", "\n", "(", ")", ",", ".", "*", "=", "'", '"', "`", "--", "/*", "[", "$", "é", "-", "+")


@given(st.lists(st.sampled_from(WORDS + MARKS)).map("".join))
def test_distinct_is_removed_if_it_is_a_token(sql: str) -> None:
    """The official evaluator splits the text with sqlparse, which plain text does not need."""
    assert official_gold(sql) == "".join(value for _, value in tokenize(sql) if value.lower() != "distinct")


def test_the_word_value_is_replaced_in_predictions_only() -> None:
    assert official_prediction("SELECT values_of, Value, 'value' FROM t") == "SELECT 1s_of, Value, '1' FROM t"
    assert official_gold("SELECT 'value'") == "SELECT 'value'"


def same_by_permutation(gold: Rows, predicted: Rows, ordered: bool) -> bool:
    """Compare as the official evaluator does, with all orders of the columns."""
    if not gold and not predicted:
        return True
    if len(gold) != len(predicted) or len(gold[0]) != len(predicted[0]):
        return False
    for order in itertools.permutations(range(len(gold[0]))):
        rows = [tuple(row[index] for index in order) for row in predicted]
        if rows == gold if ordered else Counter(rows) == Counter(gold):
            return True
    return False


@pytest.mark.parametrize("ordered", [True, False])
def test_the_verdict_is_the_same_as_with_all_column_orders(ordered: bool) -> None:
    generator = random.Random(1)
    agreed = Counter[bool]()
    for _ in range(3000):
        width, height = generator.randint(1, 4), generator.randint(1, 4)
        gold = [tuple(generator.choice("ab") for _ in range(width)) for _ in range(height)]
        order = generator.sample(range(width), width)
        predicted = [tuple(row[index] for index in order) for row in gold]
        if generator.random() < 0.5:
            generator.shuffle(predicted)
        if generator.random() < 0.4:
            predicted[0] = tuple(generator.choice("ab") for _ in range(width))
        expected = same_by_permutation(gold, predicted, ordered)
        assert same_official_result(gold, predicted, ordered) is expected
        agreed[expected] += 1
    assert min(agreed.values()) > 300


def test_many_columns_are_compared_quickly() -> None:
    rows = [tuple(range(index, index + 40)) for index in range(100)]
    swapped = [tuple(reversed(row)) for row in rows]
    equal = [(1,) * 40] * 50
    started = time.process_time()
    assert same_official_result(rows, swapped, ordered=False)
    assert not same_official_result(equal, [*equal[1:], (1,) * 39 + (2,)], ordered=False)
    assert time.process_time() - started < 5  # trying 40! orders would never end


def test_hostile_text_is_split_quickly() -> None:
    started = time.process_time()
    assert official_prediction("SELECT DISTINCT " + "(1)+" * 240_000 + "1").startswith("SELECT DISTINCT")
    official_prediction("SELECT DISTINCT " + "[" * 99_000)
    assert time.process_time() - started < 5
