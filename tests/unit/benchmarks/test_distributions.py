"""Statistics."""

from __future__ import annotations

import pytest

from benchmarks.distributions import distribution, needed, quantile, share_up_to


@pytest.mark.parametrize(("part", "expected"), [(0.0, 1.0), (0.5, 2.5), (0.25, 1.75), (1.0, 4.0)])
def test_a_quantile_lies_between_its_neighbours(part: float, expected: float) -> None:
    """Quantiles are linear between the neighbours, as numpy's are."""
    assert quantile([1.0, 2.0, 3.0, 4.0], part) == expected


@pytest.mark.parametrize(
    ("percentile", "count"), [(50.0, 200), (90.0, 1000), (95.0, 2000), (99.0, 10_000), (99.9, 100_000)]
)
def test_a_percentile_needs_a_hundred_values_beyond_it(percentile: float, count: int) -> None:
    """n has to be at least 100/(1-p)."""
    assert needed(percentile) == count


def test_a_percentile_of_too_few_values_is_not_given() -> None:
    """Of 999 values there is no p90, of 1000 there is."""
    assert dict(distribution([1.0] * 999).percentiles)[90.0] is None
    assert dict(distribution([1.0] * 1000).percentiles)[90.0] == 1.0


def test_nothing_is_said_of_no_values() -> None:
    """Without values every statistic is None, never 0."""
    empty = distribution([])
    assert (empty.count, empty.mean, empty.median, empty.std, empty.most) == (0, None, None, None, None)


def test_a_distribution_is_what_numpy_would_say() -> None:
    """Mean, median and standard deviation are those of the values themselves."""
    told = distribution([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    assert (told.mean, told.std, told.median, told.least, told.most) == (5.0, 2.0, 4.5, 2.0, 9.0)


def test_a_share_counts_equal_values() -> None:
    """A value is part of the share up to itself."""
    assert share_up_to([1.0, 2.0, 2.0, 3.0], 2.0) == 0.75
    assert share_up_to([], 1.0) == 0.0
