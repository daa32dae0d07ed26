"""The statistics every number here is made of. Pure; seconds in, milliseconds out where a name says so."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


def quantile(ordered: Sequence[float], part: float) -> float:
    """The value below which *part* (0..1) of *ordered* lies, linear between neighbours as numpy has it. Not empty."""
    place = (len(ordered) - 1) * part
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def needed(percentile: float) -> int:
    """How many samples a percentile takes to mean something: a hundred beyond it."""
    return math.ceil(round(100 / (1 - percentile / 100), 6))


@dataclass(frozen=True, slots=True)
class Distribution:
    """What is said of many values, in their own unit. All but *count* are None without a value.

    ``std`` is that of the values themselves (numpy's default), not an estimate. ``percentiles`` holds None where
    there are too few values for one; see `needed`.
    """

    count: int
    mean: float | None = None
    std: float | None = None
    median: float | None = None
    least: float | None = None
    most: float | None = None
    percentiles: tuple[tuple[float, float | None], ...] = tuple((percentile, None) for percentile in PERCENTILES)


def distribution(values: Sequence[float]) -> Distribution:
    """What there is to say of *values*."""
    if not values:
        return Distribution(0)
    ordered = sorted(values)
    count = len(ordered)
    mean = math.fsum(ordered) / count
    return Distribution(
        count,
        mean,
        math.sqrt(math.fsum((value - mean) ** 2 for value in ordered) / count),
        quantile(ordered, 0.5),
        ordered[0],
        ordered[-1],
        tuple(
            (percentile, quantile(ordered, percentile / 100) if count >= needed(percentile) else None)
            for percentile in PERCENTILES
        ),
    )


def share_up_to(ordered: Sequence[float], value: float) -> float:
    """The part (0..1) of *ordered* that is not above *value*; 0 of nothing."""
    return bisect_right(ordered, value) / len(ordered) if ordered else 0.0
