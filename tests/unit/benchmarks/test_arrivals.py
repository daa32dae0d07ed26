"""When requests are to be sent."""

from __future__ import annotations

from random import Random

import pytest

from benchmarks.load.arrivals import at_rate, on_ramp, replayed, resumed, unit_arrivals


def test_constant_arrivals_are_evenly_spaced() -> None:
    """Without chance, the n-th request goes out n intervals after the start."""
    assert at_rate(unit_arrivals(4, None, Random(1)), 2.0) == [0.5, 1.0, 1.5, 2.0]


def test_a_seed_decides_the_arrivals() -> None:
    """The same seed gives the same times, another one others."""
    assert unit_arrivals(50, 1.0, Random(3)) == unit_arrivals(50, 1.0, Random(3))
    assert unit_arrivals(50, 1.0, Random(3)) != unit_arrivals(50, 1.0, Random(4))


@pytest.mark.parametrize(("burstiness", "expected"), [(1.0, 1.0), (0.25, 2.0), (4.0, 0.5)])
def test_burstiness_is_the_shape_of_the_gaps(burstiness: float, expected: float) -> None:
    """Gaps of shape k vary, relative to their mean, by 1/sqrt(k): Poisson by 1, bursts by more."""
    times = unit_arrivals(20_000, burstiness, Random(5))
    gaps = [later - before for before, later in zip([0.0, *times], times, strict=False)]
    mean = sum(gaps) / len(gaps)
    variation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 / mean
    assert variation == pytest.approx(expected, rel=0.05)


def test_a_ramp_goes_from_one_rate_to_the_other() -> None:
    """At its beginning a ramp sends at the first rate, at its end at the second, and on average at their mean."""
    times = on_ramp(unit_arrivals(3000, None, Random(1)), 10.0, 50.0)
    assert times[-1] == pytest.approx(100.0)
    assert sum(time < 10 for time in times) / 10 == pytest.approx(12, abs=0.2)
    assert sum(time >= 90 for time in times) / 10 == pytest.approx(48, abs=0.2)


def test_a_level_ramp_is_a_rate() -> None:
    """A ramp between equal rates is that rate."""
    assert on_ramp([1.0, 2.0], 4.0, 4.0) == at_rate([1.0, 2.0], 4.0)


def test_a_trace_is_played_from_its_first_time_on() -> None:
    """Times of a trace count from its first, in order, at the speed asked for."""
    assert replayed([30.0, 10.0, 20.0], 2.0) == [0.0, 5.0, 10.0]


def test_a_resumed_schedule_keeps_its_gaps() -> None:
    """What is left of a schedule begins at once and keeps the gaps it had."""
    assert resumed([1.0, 2.0, 4.0, 7.0], [1, 3]) == [0.0, 5.0]
    assert resumed([1.0], []) == []
