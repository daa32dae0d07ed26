"""When requests are to be sent: absolute times from a seed, decided before the first one goes out.

Relative sleeps drift: each one adds its own lateness, and a generator that sleeps between requests reaches 70-80 % of
its rate (evalscope tells so of its own past, evalscope/perf/core/strategies/open_loop.py). Absolute times do not.

Every open-loop process is a *unit* process, one arrival per unit of operational time, mapped through the inverse of the
cumulative rate. So a ramp and a burst are the same thing with another clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random


def unit_arrivals(count: int, burstiness: float | None, rng: Random) -> list[float]:
    """*count* ascending times in ``(0, count]``, on average one per unit.

    *burstiness* is the shape of the gamma distribution of the gaps, as in `vllm bench serve`
    (vllm/benchmarks/serve.py get_request, 0.32.0): 1 is a Poisson process, less is burstier, more is more even; None
    is exactly constant. The gaps are rescaled so that the last time is *count*: a seed does not change the rate that
    is offered.
    """
    if burstiness is None:
        return [float(number + 1) for number in range(count)]
    gaps = [rng.gammavariate(burstiness, 1 / burstiness) for _ in range(count)]
    total = math.fsum(gaps)
    times = []
    passed = 0.0
    for gap in gaps:
        passed += gap
        times.append(passed * count / total)
    return times


def at_rate(units: Sequence[float], rate: float) -> list[float]:
    """Seconds at which arrivals come at *rate* per second."""
    return [unit / rate for unit in units]


def on_ramp(units: Sequence[float], start_rate: float, end_rate: float) -> list[float]:
    """Seconds at which arrivals come while the rate goes in a straight line, over time, from one rate to the other."""
    if start_rate == end_rate:
        return at_rate(units, start_rate)
    count = len(units)
    lasts = 2 * count / (start_rate + end_rate)
    slope = (end_rate - start_rate) / lasts
    # unit = start*t + slope/2*t^2, solved for t
    return [(math.sqrt(max(0.0, start_rate * start_rate + 2 * slope * unit)) - start_rate) / slope for unit in units]


def replayed(times: Sequence[float], speed: float) -> list[float]:
    """The times of a trace, in its order, from 0 on and *speed* times as fast."""
    first = min(times, default=0.0)
    return sorted((time - first) / speed for time in times)


def resumed(times: Sequence[float], todo: Sequence[int]) -> list[float]:
    """The times of what is left *todo* of a schedule, begun again at its first one that is left."""
    if not todo:
        return []
    first = times[todo[0]]
    return [times[number] - first for number in todo]
