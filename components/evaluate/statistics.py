"""Statistics of accuracies and of differences between two systems on the same questions."""

import math

Z_95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution, for a two-sided test at 5 %
Z_POWER = 0.8416212335729143  # its 80 % quantile, for a power of 80 %


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion (Wilson 1927), which is valid for small samples and near 0 and 1.

    With the proportion p of n questions and the quantile z, it is

        (p + z²/2n ± z √(p(1 - p)/n + z²/4n²)) / (1 + z²/n)

    Returns:
        Lower and upper bound; (0, 1) if `total` is 0.
    """
    if total == 0:
        return 0.0, 1.0
    share, spread = correct / total, Z_95**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half = Z_95 / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """The p-value of McNemar's exact two-sided test of two systems on the same questions.

    Only the discordant questions count, those that exactly one system answers correctly. Under the null hypothesis each
    of them is equally likely to be the first or the second system's, so `only_first` is binomial with n = discordant
    and p = 1/2. The p-value is twice the probability of the smaller tail:

        2 · Σ_{k ≤ min(only_first, only_second)} C(n, k) / 2ⁿ

    Args:
        only_first: questions that only the first answers correctly.
        only_second: questions that only the second answers correctly.
    """
    discordant = only_first + only_second
    if discordant == 0:
        return 1.0
    # Exact integers: C(n, 0) = 1 and C(n, k + 1) = C(n, k) · (n - k) / (k + 1).
    coefficient = tail = 1
    for count in range(min(only_first, only_second)):
        coefficient = coefficient * (discordant - count) // (count + 1)
        tail += coefficient
    return min(1.0, 2 * tail / (1 << discordant))


def bootstrap_interval(only_first: int, only_second: int, total: int) -> tuple[float, float]:
    """The 95 % bootstrap percentile interval of the difference in accuracy, first minus second.

    The bootstrap draws `total` questions with replacement. Each adds 1, -1 or 0 to the difference, so the sum has the
    distribution of one question, convolved with itself `total` times. It is calculated exactly, by a Fourier transform,
    instead of by random draws.

    Returns:
        Lower and upper bound, between -1 and 1; (-1, 1) if `total` is 0.
    """
    if total == 0:
        return -1.0, 1.0
    # Imported here because a single system has no differences, and importing numpy takes longer than scoring it.
    import numpy as np

    size = 1 << (2 * total + 1).bit_length()
    question = np.zeros(size)  # probability of each sum, at its index modulo `size`
    question[[0, 1, -1]] = [total - only_first - only_second, only_first, only_second]
    sums = np.fft.irfft(np.fft.rfft(question / total) ** total, size)
    cumulative = np.cumsum(np.roll(sums, total))  # from -total on
    low, high = np.searchsorted(cumulative, [0.025, 0.975]) - total
    return float(low) / total, float(high) / total


def questions_needed(difference: float, discordant: float) -> int:
    """Number of questions needed to detect a difference between paired proportions (Connor 1987).

    The significance level is 5 % and the power 80 %. With the difference d and the share ψ of discordant questions, it
    is

        ((z₁ √ψ + z₂ √(ψ - d²)) / d)²

    Args:
        difference: difference of the two accuracies, not 0.
        discordant: share of the questions that exactly one of the systems answers correctly.
    """
    size = abs(difference)
    spread = max(discordant, size)
    root = Z_95 * math.sqrt(spread) + Z_POWER * math.sqrt(max(0.0, spread - size**2))
    return math.ceil((root / size) ** 2)
