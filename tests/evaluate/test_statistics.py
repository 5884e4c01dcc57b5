"""Intervals and p-values, compared with published or independently computed ones."""

import pytest

from chatmetrics.components.evaluate.statistics import mcnemar_p_value, wilson_interval


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # Newcombe (1998), table I, method 3 (Wilson without continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_interval(correct: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_without_questions_nothing_is_known() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [
        # Two-sided binomial tests with p = 1/2, by hand: 2 * sum(C(n, k)) / 2**n.
        (0, 5, 2 * 1 / 32),
        (1, 6, 2 * (1 + 7) / 128),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar(only_first: int, only_second: int, p_value: float) -> None:
    assert mcnemar_p_value(only_first, only_second) == pytest.approx(p_value)
    assert mcnemar_p_value(only_second, only_first) == pytest.approx(p_value)


def test_mcnemar_of_thousands_of_questions() -> None:
    assert 0 <= mcnemar_p_value(9000, 100) < 1e-300
    assert mcnemar_p_value(5000, 5000) == 1.0
