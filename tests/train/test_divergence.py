import math

import pytest

from chatmetrics.components.train.watch.divergence import POINTS_TO_MOVE, loss_warnings

FALLING = [4.0 * math.exp(-step / 20) + 0.1 for step in range(100)]


def noisy(losses: list[float]) -> list[float]:
    return [loss * (1 + 0.3 * math.sin(37 * step)) for step, loss in enumerate(losses)]


@pytest.mark.parametrize("losses", [[], [3.0], FALLING, noisy(FALLING), FALLING[:5], [0.01, 0.03] * 50])
def test_a_loss_that_falls_or_is_low_is_no_worry(losses: list[float]) -> None:
    assert not [worry for worry in loss_warnings(losses) if "diverges" in worry]


@pytest.mark.parametrize("losses", [[], FALLING, noisy(FALLING), [3.0] * (POINTS_TO_MOVE - 1)])
def test_a_loss_that_moves_or_has_just_begun_is_no_worry(losses: list[float]) -> None:
    assert not loss_warnings(losses)


def test_a_loss_that_climbs_and_stays_there_diverges() -> None:
    climbing = [*FALLING, *[2.0] * 20]
    assert not loss_warnings(climbing[: len(FALLING) + 5])  # a spike may pass
    [worry] = loss_warnings(climbing)
    assert worry.startswith("the loss diverges") and "lower train.learning_rate" in worry


def test_a_loss_that_came_back_does_not_diverge() -> None:
    assert not loss_warnings([*FALLING, *[2.0] * 20, *[0.1] * 40])


def test_a_loss_that_stays_where_it_was_does_not_move() -> None:
    [worry] = loss_warnings(noisy([3.0] * 100))
    assert worry.startswith("the loss does not move: ") and "after 100 points" in worry
