"""How much a number of right answers says."""

import math

Z_95 = 1.959963984540054  # the standard normal distribution's 97.5 % quantile


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
