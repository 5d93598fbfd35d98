"""Statistics over the runs of several seeds: means, spreads, and differences that are paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The probability with which an interval covers the true mean difference.
COVERED = 0.95


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The values that are finite numbers; JSON has null in place of the others."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def spread(values: Sequence[float]) -> float | None:
    """The sample standard deviation, with n - 1 in its denominator; None for fewer than two values."""
    if len(values) < 2:
        return None
    middle = mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))


@dataclass(frozen=True)
class Difference:
    """A mean difference and its uncertainty.

    Attributes:
        mean: of the differences, one per seed.
        interval: half the width of the interval in which the true mean difference lies; None for one seed.
        values: the differences by seed.
        largest_spread: the larger of the two sides' spreads; None for one seed.
    """

    mean: float
    interval: float | None
    values: dict[str, float]
    largest_spread: float | None

    @property
    def is_beyond_the_spread(self) -> bool:
        """Whether the difference exceeds its own uncertainty and the spread of either side."""
        if self.interval is None or self.largest_spread is None:
            return False
        return abs(self.mean) > max(self.interval, self.largest_spread)


def paired(own: Mapping[str, float], other: Mapping[str, float]) -> Difference | None:
    """The mean difference between two models over the seeds that both have; None where there is no such seed.

    A student and its control share the seed, the data and its order, so the two are compared seed by seed:
    with d the n differences, m their mean and s their sample standard deviation, the true mean difference
    lies in m ± t s / sqrt(n), where t is the 0.975 quantile of Student's distribution with n - 1 degrees of
    freedom (Student 1908, https://doi.org/10.1093/biomet/6.1.1: 12.7 for two seeds, 4.3 for three, 2.8 for
    five).

    Args:
        own, other: values by seed.
    """
    seeds = [seed for seed in own if seed in other]
    if not seeds:
        return None
    values = {seed: own[seed] - other[seed] for seed in seeds}
    middle, deviation = mean(list(values.values())), spread(list(values.values()))
    if deviation is None:
        return Difference(middle, None, values, None)
    sides = [spread([side[seed] for seed in seeds]) or 0.0 for side in (own, other)]
    interval = student_quantile((1 + COVERED) / 2, len(seeds) - 1) * deviation / math.sqrt(len(seeds))
    return Difference(middle, interval, values, max(sides))


def student_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t distribution, for a probability of at least one half, by bisection.

    Args:
        probability: in [0.5, 1).
        freedom: degrees of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while _student_within(high, freedom) < 2 * probability - 1:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        if _student_within(middle, freedom) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return high


def _student_within(t: float, freedom: int) -> float:
    """The probability of a value between -t and t (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    square = math.cos(angle) ** 2
    odd = freedom % 2 == 1
    term = math.cos(angle) if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= square * (k - 1) / k
        total += term
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
