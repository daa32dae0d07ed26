"""Laws of the load generator and of its numbers."""

from __future__ import annotations

import math
from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.distributions import distribution, quantile
from benchmarks.load.arrivals import at_rate, on_ramp, unit_arrivals
from benchmarks.load.sse import EventSplitter
from benchmarks.measures import Goal, measure, most_at_once, on_one_axis, session_offsets
from benchmarks.records import Row
from tests.unit.benchmarks.rows import failed, row

LINES = st.sampled_from([b"data: a", b"data:b", b"data", b": ping", b"event: x", b"id", b"data: \xe4\xbd\xa0", b""])
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


def split_at(stream: bytes, cuts: list[int]) -> list[bytes]:
    """*stream* in pieces."""
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[begin:end] for begin, end in pairwise(places)]


@given(st.lists(st.tuples(LINES, ENDS)), st.lists(st.integers(0, 500)))
def test_events_do_not_depend_on_where_a_stream_is_cut(lines: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    """Whatever the line ends and the pieces, the same data comes out."""
    stream = b"".join(line + end for line, end in lines)
    whole, parts = EventSplitter(), EventSplitter()
    expected = whole.feed(stream) + whole.end()
    assert [data for piece in split_at(stream, cuts) for data in parts.feed(piece)] + parts.end() == expected


@given(st.lists(st.sampled_from([b"data: a", b"data: b\ndata: c", b": x"])))
def test_an_event_is_read_alike_with_every_line_end(events: list[bytes]) -> None:
    """LF, CRLF and CR are the same."""
    stream = b"".join(event + b"\n\n" for event in events)

    def read(text: bytes) -> list[bytes]:
        splitter = EventSplitter()
        return splitter.feed(text) + splitter.end()

    assert read(stream) == read(stream.replace(b"\n", b"\r\n")) == read(stream.replace(b"\n", b"\r"))


@given(st.integers(1, 300), st.one_of(st.none(), st.floats(0.05, 20)), st.floats(0.01, 1e4), st.integers())
def test_a_schedule_offers_the_rate_it_was_asked_for(count: int, shape: float | None, rate: float, seed: int) -> None:
    """Ascending, above 0, and the last of n requests goes out after n intervals, whatever chance did between."""
    times = at_rate(unit_arrivals(count, shape, Random(seed)), rate)
    assert len(times) == count
    assert times == sorted(times)
    assert times[0] >= 0
    assert math.isclose(times[-1], count / rate, rel_tol=1e-9)


@given(st.integers(1, 300), st.floats(0.1, 1e3), st.floats(0.1, 1e3), st.integers())
def test_a_ramp_ends_after_what_its_mean_rate_takes(count: int, begin: float, end: float, seed: int) -> None:
    """A ramp is ascending too, and lasts 2n/(from + to)."""
    times = on_ramp(unit_arrivals(count, 1.0, Random(seed)), begin, end)
    assert times == sorted(times)
    assert math.isclose(times[-1], 2 * count / (begin + end), rel_tol=1e-6)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_a_quantile_is_between_the_extremes(values: list[float], part: float) -> None:
    """No quantile is outside of the values, and the order of values does not matter."""
    ordered = sorted(values)
    assert ordered[0] <= quantile(ordered, part) <= ordered[-1] or math.isclose(quantile(ordered, part), ordered[-1])
    assert distribution(values) == distribution(values[::-1])


ROWS = st.lists(
    st.builds(
        lambda sent, first, tokens, gap, session, is_good: (
            row(0, sent, first=first, tokens=tokens, gap=gap, session=session)
            if is_good
            else failed(0, sent, session=session)
        ),
        st.floats(0, 50),
        st.floats(0.001, 2),
        st.integers(1, 30),
        st.floats(0.001, 0.2),
        st.integers(0, 2),
        st.booleans(),
    ),
    max_size=40,
)


def numbered(rows: list[Row]) -> list[Row]:
    """*rows*, each of a conversation of its own."""
    fields = Row.__dataclass_fields__
    return [
        Row(**{**{name: getattr(one, name) for name in fields}, "index": number}) for number, one in enumerate(rows)
    ]


@given(ROWS)
def test_nothing_is_lost_between_rows_and_numbers(rows: list[Row]) -> None:
    """Every request is answered or failed, and latencies are of all that were answered."""
    placed = on_one_axis(numbered(rows))
    told = measure(placed, {}, Goal(ttft_s=1.0), is_open=True, concurrency=None)
    assert told.sent == told.completed + told.failed == len(rows)
    assert sum(told.errors.values()) == told.failed
    assert told.e2e.count == told.ttft.count == told.completed
    assert told.good is not None
    assert told.good <= told.completed
    assert told.busiest_second <= told.output_tokens + 1e-6
    assert told.most_in_flight <= len(rows)
    if told.steady is not None:
        assert 0 <= told.steady[0] <= told.steady[1] <= told.duration


@given(ROWS)
def test_sessions_on_one_axis_do_not_overlap(rows: list[Row]) -> None:
    """A resumed run is as long as its sessions together, and no request of one is in another's time."""
    placed = on_one_axis(numbered(rows))
    offsets = session_offsets(rows)
    for one in placed:
        later = [offset for session, offset in offsets.items() if session > one.session]
        assert all(one.end <= offset + 1e-6 for offset in later)
    of_each = [most_at_once([one for one in placed if one.session == session]) for session in offsets]
    assert most_at_once(placed) == max(of_each, default=0)
