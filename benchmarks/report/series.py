"""What is drawn over time, from rows and samples. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from benchmarks.journal import ClientSample
from benchmarks.measures import output_tokens, tokens_at
from benchmarks.records import Row

Points = list[tuple[float, float]]

MOST_POINTS = 1500
"""Of one line or cloud: more are not seen, and the file stays small."""


def bucket_s(duration: float) -> float:
    """The width of a bucket that makes about a hundred of them: 0.1, 0.2, 0.5, 1, 2, 5 ... seconds."""
    wanted = max(0.1, duration / 100)
    scale = 10.0 ** math.floor(math.log10(wanted))
    return next((step * scale for step in (1, 2, 5, 10) if step * scale >= wanted * 0.999), 10 * scale)


def rates(arrivals: Iterable[tuple[float, float]], duration: float, width: float) -> Points:
    """What came per second in each bucket, at the bucket's middle. The last one may be shorter."""
    count = max(1, math.ceil(duration / width))
    sums = [0.0] * count
    for at, amount in arrivals:
        sums[min(int(at / width), count - 1)] += amount
    points = []
    for number, total in enumerate(sums):
        length = min(width, duration - number * width)
        if length > width / 4:
            points.append((number * width + length / 2, total / length))
    return points


def token_arrivals(rows: Sequence[Row], recounts: dict[tuple[int, int], int]) -> Iterator[tuple[float, float]]:
    """When tokens of good requests came."""
    return (arrival for row in rows if row.is_good for arrival in tokens_at(row, output_tokens(row, recounts)))


def in_flight(rows: Sequence[Row]) -> Points:
    """Requests under way, at every change of it, thinned out."""
    steps = sorted([(row.sent, 1) for row in rows] + [(row.end, -1) for row in rows])
    points: Points = [(0.0, 0.0)]
    now = 0
    for at, step in steps:
        now += step
        points.append((at, float(now)))
    return thinned(points)


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> Points:
    """At most about *most* of *points*: of each stretch the highest and the lowest, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / (most / 2))
    kept: Points = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        kept += sorted({min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])})
    return kept


def cumulative(values: Sequence[float]) -> Points:
    """The share (0..1) of *values* up to each value: an empirical distribution, thinned out."""
    ordered = sorted(values)
    count = len(ordered)
    if not count:
        return []
    step = max(1, count // (MOST_POINTS // 2))
    places = [*range(0, count, step)]
    if places[-1] != count - 1:
        places.append(count - 1)
    return [(ordered[place], (place + 1) / count) for place in places]


def histogram(values: Sequence[float], bins: int = 40) -> list[tuple[float, float, int]]:
    """(from, to, count) of equal bins up to the 99th percentile; the last one takes all above."""
    ordered = sorted(values)
    if not ordered:
        return []
    low = ordered[0]
    high = ordered[min(len(ordered) - 1, math.ceil(len(ordered) * 0.99))]
    width = (high - low) / bins or max(abs(high), 1e-6) / bins
    counts = [0] * bins
    for value in ordered:
        counts[min(bins - 1, int((value - low) / width))] += 1
    return [(low + number * width, low + (number + 1) * width, count) for number, count in enumerate(counts)]


def server_lines(samples: Sequence[ClientSample], offsets: dict[int, float]) -> dict[tuple[str, str], Points]:
    """(dialect, quantity) -> what the server's metrics said over time."""
    lines: dict[tuple[str, str], Points] = {}
    for sample in samples:
        at = sample.at + offsets.get(sample.session, 0.0)
        for name, quantities in sample.servers.items():
            for quantity in ("running", "waiting", "kv"):
                if quantity in quantities:
                    lines.setdefault((name, quantity), []).append((at, quantities[quantity]))
    return lines


def client_lines(samples: Sequence[ClientSample], offsets: dict[int, float]) -> dict[str, Points]:
    """``cpu``: share of a core between two samples; ``lag``: the latest tick in milliseconds."""
    cpu: Points = []
    lag: Points = []
    for before, sample in pairwise(samples):
        if before.session != sample.session or sample.at <= before.at:
            continue
        at = sample.at + offsets.get(sample.session, 0.0)
        cpu.append((at, (sample.cpu_s - before.cpu_s) / (sample.at - before.at)))
        if sample.lag_us:
            lag.append((at, max(sample.lag_us) / 1000))
    return {"cpu": cpu, "lag": lag}
