import math

import pytest

from chatmetrics.components.train.watch.divergence import POINTS_TO_MOVE, loss_warnings

FALLING = [4.0 * math.exp(-step / 20) + 0.1 for step in range(100)]


def noisy(losses: list[float]) -> list[float]:
    return [loss * (1 + 0.3 * math.sin(37 * step)) for step, loss in enumerate(losses)]


@pytest.mark.parametrize("losses", [[], [3.0], FALLING, noisy(FALLING), FALLING[:5], [0.01, 0.03] * 50])
def test_a_falling_or_low_loss_does_not_diverge(losses: list[float]) -> None:
    assert not [text for text in loss_warnings(losses) if "diverges" in text]


@pytest.mark.parametrize("losses", [[], FALLING, noisy(FALLING), [3.0] * (POINTS_TO_MOVE - 1)])
def test_a_loss_that_moves_or_is_new_causes_no_warning(losses: list[float]) -> None:
    assert not loss_warnings(losses)


def test_a_loss_that_rises_and_stays_high_diverges() -> None:
    climbing = [*FALLING, *[2.0] * 20]
    assert not loss_warnings(climbing[: len(FALLING) + 5])  # a spike may pass
    [text] = loss_warnings(climbing)
    assert text.startswith("the loss diverges") and "lower train.learning_rate" in text


def test_a_loss_that_recovers_does_not_diverge() -> None:
    assert not loss_warnings([*FALLING, *[2.0] * 20, *[0.1] * 40])


def test_a_loss_that_stays_the_same_does_not_move() -> None:
    [text] = loss_warnings(noisy([3.0] * 100))
    assert text.startswith("the loss does not move: ") and "after 100 points" in text
