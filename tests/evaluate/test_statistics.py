"""Intervals and p-values, compared with published or independently computed ones."""

import math

import pytest

from chatmetrics.components.evaluate.statistics import bootstrap_interval, mcnemar_p_value, wilson_interval


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


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5])
@pytest.mark.parametrize("total", [20, 972])
def test_bootstrap_of_one_sided_differences_is_binomial(share: float, total: int) -> None:
    """If only the first system is ever better, the sum is binomial, whose quantiles are known."""
    better = round(share * total)
    chance = better / total
    cumulative, low, high = 0.0, None, None
    for count in range(total + 1):
        log = math.lgamma(total + 1) - math.lgamma(count + 1) - math.lgamma(total - count + 1)
        cumulative += math.exp(log + count * math.log(chance) + (total - count) * math.log1p(-chance))
        low = count if low is None and cumulative >= 0.025 else low
        high = count if high is None and cumulative >= 0.975 else high
    assert low is not None and high is not None
    assert bootstrap_interval(better, 0, total) == (low / total, high / total)
    assert bootstrap_interval(0, better, total) == pytest.approx((-high / total, -low / total), abs=1 / total)


@pytest.mark.parametrize(
    ("first", "second", "total", "interval"),
    [(0, 0, 100, (0.0, 0.0)), (7, 0, 7, (1.0, 1.0)), (0, 7, 7, (-1.0, -1.0)), (0, 0, 0, (-1.0, 1.0))],
)
def test_bootstrap_at_the_ends(first: int, second: int, total: int, interval: tuple[float, float]) -> None:
    assert bootstrap_interval(first, second, total) == interval


def test_bootstrap_agrees_with_random_draws() -> None:
    # numpy.random.default_rng(0).multinomial(972, [90/972, 60/972, 822/972], 1_000_000), percentiles 2.5 and 97.5.
    assert bootstrap_interval(90, 60, 972) == pytest.approx((0.0062, 0.0556), abs=0.0006)
