"""Means, intervals and paired effects, against printed tables and worked examples."""

import math

import pytest

from fastcifar.stats import describe, paired_effect, t_probability, t_quantile


@pytest.mark.parametrize(
    ("df", "level", "expected"),  # Student's table, two-sided
    [(1, 0.95, 12.706), (2, 0.95, 4.303), (3, 0.95, 3.182), (4, 0.95, 2.776), (9, 0.95, 2.262), (30, 0.95, 2.042),
     (99, 0.95, 1.984), (1, 0.5, 1.0), (5, 0.99, 4.032), (6, 0.9, 1.943), (1000, 0.95, 1.962)],
)  # fmt: skip
def test_quantiles_are_those_of_the_table(df: int, level: float, expected: float) -> None:
    assert round(t_quantile(df, level), 3) == expected
    assert t_probability(t_quantile(df, level), df) == pytest.approx(level)


@pytest.mark.parametrize(("df", "level"), [(0, 0.95), (3, 0.0), (3, 1.0)])
def test_what_has_no_quantile_is_refused(df: int, level: float) -> None:
    with pytest.raises(ValueError, match="df = "):
        t_quantile(df, level)


def test_a_sample_of_three_by_hand() -> None:
    sample = describe([0.46, 0.47, 0.48])
    half = 4.302652729749464 * 0.01 / math.sqrt(3)
    assert (sample.n, sample.mean, sample.sd) == (3, pytest.approx(0.47), pytest.approx(0.01))
    assert sample.interval == pytest.approx((0.47 - half, 0.47 + half))


def test_too_few_values_give_no_interval() -> None:
    one, two = describe([2.0]), describe([1.0, 2.0])
    assert (one.mean, one.sd, one.interval) == (2.0, None, None)
    assert (two.mean, two.sd, two.interval) == (1.5, pytest.approx(math.sqrt(0.5)), None)
    with pytest.raises(ValueError, match="no value"):
        describe([])


def test_effects_are_paired_over_the_seeds_that_both_have() -> None:
    """The seeds differ by far more than the trials, so that only pairing shows the effect."""
    before = {0: 10.0, 1: 20.0, 2: 30.0, 5: 99.0}
    after = {2: 31.1, 1: 21.0, 0: 10.9, 4: -50.0}
    effect = paired_effect(before, after)
    assert effect is not None and effect.values == pytest.approx((0.9, 1.0, 1.1))
    assert effect.interval == pytest.approx((1 - 4.302652729749464 * 0.1 / math.sqrt(3), 1.2484137712))
    assert paired_effect({0: 1.0}, {1: 1.0}) is None


def test_an_interval_keeps_to_what_can_be() -> None:
    """The bug: an accuracy of 110 %."""
    sample = describe([0.9, 0.99, 0.999])
    assert sample.interval is not None and sample.interval[1] > 1
    cut = sample.within(0, 1)
    assert cut.interval == (sample.interval[0], 1) and cut.values == sample.values
    assert describe([0.0, 0.1, 0.0]).within(0, 1).interval == pytest.approx((0, 0.176764), abs=1e-5)
    assert describe([0.5, 0.6]).within(0, 1).interval is None
