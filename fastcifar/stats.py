"""What a few seeds allow to say: mean, standard deviation, Student's interval, and effects paired over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

LEAST_FOR_INTERVAL = 3
"""Of two values Student's interval is 12.7 standard errors to each side: it says nothing."""


@dataclass(frozen=True)
class Sample:
    """Values of one quantity, one a seed.

    Attributes:
        mean: of `values`.
        sd: standard deviation (ddof 1); None for a single value.
        interval: 95 % interval of the mean by Student's t; None for fewer than `LEAST_FOR_INTERVAL` values.
    """

    values: tuple[float, ...]
    mean: float
    sd: float | None
    interval: tuple[float, float] | None

    @property
    def n(self) -> int:
        """How many values there are."""
        return len(self.values)

    def within(self, low: float, high: float) -> Sample:
        """The same with the interval cut at what the quantity can be, such as 0 and 1 for an accuracy.

        Student's interval knows no such limits. Where it is cut, the values are too few or too far apart for it.
        """
        if self.interval is None:
            return self
        return replace(self, interval=(max(self.interval[0], low), min(self.interval[1], high)))


def describe(values: Sequence[float]) -> Sample:
    """The `Sample` of one value or more."""
    n = len(values)
    if not n:
        raise ValueError("there is no value to describe")
    mean = math.fsum(values) / n
    if n == 1:
        return Sample(tuple(values), mean, None, None)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_quantile(n - 1) * sd / math.sqrt(n)
    return Sample(tuple(values), mean, sd, (mean - half, mean + half) if n >= LEAST_FOR_INTERVAL else None)


def paired_effect(before: Mapping[int, float], after: Mapping[int, float]) -> Sample | None:
    """`after` minus `before`, seed by seed (seed -> value), over the seeds that both have; None if there is none."""
    seeds = sorted(before.keys() & after.keys())
    return describe([after[seed] - before[seed] for seed in seeds]) if seeds else None


def t_quantile(df: int, level: float = 0.95) -> float:
    """The t with P(|T| < t) = `level` for Student's T with `df` >= 1 degrees of freedom."""
    if df < 1 or not 0 < level < 1:
        raise ValueError(f"df = {df}, level = {level}: df must be at least 1, level between 0 and 1")
    low, high = 0.0, 1.0
    while t_probability(high, df) < level:
        low, high = high, 2 * high
    for _ in range(80):  # below the spacing of doubles
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, df) < level else (low, middle)
    return (low + high) / 2


def t_probability(t: float, df: int) -> float:
    """P(|T| < `t`), exactly for whole `df`: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3-4."""
    theta = math.atan(t / math.sqrt(df))
    cos2, odd = math.cos(theta) ** 2, df % 2
    total, term = 0.0, math.cos(theta) if odd else 1.0
    for k in range((df - odd) // 2):  # odd: cos + 2/3 cos^3 + ...; even: 1 + 1/2 cos^2 + ...
        total += term
        term *= cos2 * (2 * k + 1 + odd) / (2 * k + 2 + odd)
    area = math.sin(theta) * total
    return 2 / math.pi * (theta + area) if odd else area
