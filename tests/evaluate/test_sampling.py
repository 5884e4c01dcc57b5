"""Samples of questions are deterministic and of the kind that was asked for."""

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.sampling import sample
from chatmetrics.components.nl2sql.sql.query_type import is_complex

SIMPLE = [f"SELECT a FROM t{number}" for number in range(50)]
JOINS = [f"SELECT a FROM t{number} JOIN u ON u.id = t{number}.id" for number in range(50)]
EVERY = [sql for pair in zip(SIMPLE, JOINS, strict=True) for sql in pair]


def draw(drawn: str, seed: int = 0) -> list[str]:
    return sample(EVERY, str, drawn, seed)


def test_an_empty_sample_takes_all_questions() -> None:
    assert draw("") == EVERY


def test_equal_seeds_draw_equal_questions_in_order_and_other_seeds_others() -> None:
    drawn = draw("complex:20", seed=3)
    assert drawn == draw("complex:20", seed=3) and drawn != draw("complex:20", seed=4)
    assert len(set(drawn)) == 20 and all(map(is_complex, drawn))
    assert drawn == [sql for sql in EVERY if sql in drawn]


def test_query_types_and_levels_can_be_drawn() -> None:
    assert set(draw("2-3 table join:50")) == set(JOINS)
    assert set(draw("all:100")) == set(EVERY)
    assert set(draw("easy:10")) <= set(EVERY)


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        ("complex:51", "only 50 questions are of the kind 'complex'"),
        ("hard:1", "only 0 questions"),
        ("complex", "write KIND:NUMBER"),
        ("complx:5", "with a KIND of all, complex, single table"),
    ],
)
def test_an_invalid_sample_is_an_error(drawn: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw(drawn)
