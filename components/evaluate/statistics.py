"""How much a number of right answers says, and how much a difference between two systems does."""

import math

import numpy as np

Z_95 = 1.959963984540054  # the standard normal distribution's 97.5 % quantile
Z_POWER = 0.8416212335729143  # its 80 % quantile
RESAMPLES = 10_000


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a proportion, after Wilson (1927): sound for few questions and near 0 and 1.

    Returns:
        Lower and upper bound; (0, 1) when nothing was asked.
    """
    if total == 0:
        return 0.0, 1.0
    share, spread = correct / total, Z_95**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half = Z_95 / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """McNemar's exact two-sided test of two systems on the same questions.

    Under the null hypothesis each question that exactly one of them answers is as likely the one's as the other's.

    Args:
        only_first: questions that only the first answers correctly.
        only_second: questions that only the second answers correctly.
    """
    discordant = only_first + only_second
    if discordant == 0:
        return 1.0
    coefficient = tail = 1  # "discordant over 0", then over 1, 2, ...
    for count in range(min(only_first, only_second)):
        coefficient = coefficient * (discordant - count) // (count + 1)
        tail += coefficient
    return min(1.0, 2 * tail / (1 << discordant))


def bootstrap_interval(only_first: int, only_second: int, total: int, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the difference first minus second, by drawing the questions anew.

    A question adds 1, -1 or 0 to the difference, so drawing `total` questions is drawing from a multinomial
    distribution.

    Returns:
        Bounds between -1 and 1; (-1, 1) when nothing was asked.
    """
    if total == 0:
        return -1.0, 1.0
    shares = [only_first / total, only_second / total, (total - only_first - only_second) / total]
    drawn = np.random.default_rng(seed).multinomial(total, shares, size=RESAMPLES)
    low, high = np.percentile((drawn[:, 0] - drawn[:, 1]) / total, [2.5, 97.5])
    return float(low), float(high)


def questions_needed(difference: float, discordant: float) -> int:
    """How many questions show a difference of paired proportions, at 5 % and with 80 % power (Connor 1987).

    Args:
        difference: of the two accuracies, not 0.
        discordant: share of the questions that exactly one of the systems answers correctly.
    """
    size = abs(difference)
    spread = max(discordant, size)
    root = Z_95 * math.sqrt(spread) + Z_POWER * math.sqrt(max(0.0, spread - size**2))
    return math.ceil((root / size) ** 2)
