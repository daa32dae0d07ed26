"""The numbers, from rows whose truth is known."""

from __future__ import annotations

import pytest

from benchmarks.measures import (
    Goal,
    Numbers,
    is_within,
    measure,
    most_at_once,
    on_one_axis,
    output_tokens,
    session_offsets,
    steady_window,
    tokens_at,
    tpot,
    ttft,
)
from benchmarks.records import Row
from tests.unit.benchmarks.rows import failed, row

NO_GOAL = Goal()


def numbers(rows: list[Row], goal: Goal = NO_GOAL, *, is_open: bool = True, concurrency: int | None = None) -> Numbers:
    """The numbers of *rows*."""
    return measure(rows, {}, goal, is_open=is_open, concurrency=concurrency)


def test_latencies_are_what_was_planted() -> None:
    """TTFT, TPOT, gaps and E2E of a stream are its own times."""
    told = numbers([row(sent=1.0, first=0.2, tokens=11, gap=0.03)])
    assert told.ttft.mean == pytest.approx(0.2)
    assert told.tpot.mean == pytest.approx(0.03)
    assert told.inter_chunk.mean == pytest.approx(0.03)
    assert told.e2e.mean == pytest.approx(0.5)


def test_waiting_in_the_client_counts_from_the_intended_start() -> None:
    """A request sent 3 s late is 3 s slower from when it was to be sent, and as fast as ever from when it was."""
    told = numbers([row(sent=4.0, intended=1.0, held=3.0, first=0.1)])
    assert told.ttft.mean == pytest.approx(0.1)
    assert told.ttft_intended.mean == pytest.approx(3.1)
    assert told.lag.mean == pytest.approx(0.0)


def test_failures_are_in_no_latency_and_in_the_denominator_of_goodput() -> None:
    """Of 3 good and 1 failed request, 3 of 4 are good, and the failure's second is in no mean."""
    told = numbers([row(0), row(1), row(2), failed(3)], Goal(ttft_s=0.5))
    assert (told.sent, told.completed, told.failed, told.good) == (4, 3, 1, 3)
    assert told.errors == {"http": 1}
    assert told.e2e.most == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (Goal(ttft_s=0.1), True),
        (Goal(ttft_s=0.09), False),
        (Goal(tpot_s=0.011), True),
        (Goal(tpot_s=0.009), False),
        (Goal(e2e_s=0.21), True),
        (Goal(e2e_s=0.19), False),
    ],
)
def test_a_good_request_keeps_every_limit(goal: Goal, expected: bool) -> None:
    """Each limit decides by itself."""
    assert is_within(row(first=0.1, tokens=11, gap=0.01), 11, goal) is expected


def test_a_whole_answer_keeps_no_limit_on_its_first_token() -> None:
    """What could not be measured was not kept; one token has no time per token to keep."""
    whole = row(first_token=None, token_us=())
    assert not is_within(whole, 11, Goal(ttft_s=9.0))
    assert not is_within(whole, 11, Goal(tpot_s=9.0))
    assert is_within(row(tokens=1), 1, Goal(tpot_s=0.001))


def test_one_token_has_no_time_per_token() -> None:
    """TPOT takes two tokens, and a first one."""
    assert tpot(row(tokens=1), 1) is None
    assert tpot(row(first_token=None), 11) is None
    assert ttft(row(first_token=None)) is None


def test_tokens_come_from_usage_then_from_our_tokenizer_then_from_chunks() -> None:
    """The server's count is believed first; the number of chunks is the last resort."""
    silent = row(tokens=5, output_tokens=None)
    assert output_tokens(row(tokens=5), {(0, 0): 7}) == 5
    assert output_tokens(silent, {(0, 0): 7}) == 7
    assert output_tokens(silent, {}) == 5
    assert numbers([silent]).tokens_from == "chunks"
    assert numbers([silent, row(1)]).tokens_from == "mixed"


def test_a_bundle_of_tokens_is_no_token() -> None:
    """Two tokens per chunk are told, and the gaps are not called inter-token then."""
    bundled = numbers([row(tokens=10, token_us=(100,) * 5)])
    assert bundled.tokens_per_chunk == 2.0
    assert not bundled.is_one_token_per_chunk
    assert numbers([row()]).is_one_token_per_chunk


def test_the_token_that_ends_an_answer_is_no_bundle() -> None:
    """A stop is charged as a token and has no text."""
    stopped = row(tokens=11, token_us=(100,) * 10, finish_reason="stop")
    assert numbers([stopped]).tokens_per_chunk == 1.0


def test_an_answer_that_came_whole_came_at_its_end() -> None:
    """Its tokens are counted at the end; an answer without tokens nowhere."""
    whole = row(token_us=(), sent=1.0)
    assert tokens_at(whole, 11) == [(whole.end, 11.0)]
    assert tokens_at(whole, 0) == []


def test_throughput_counts_the_tail_and_the_steady_window_does_not() -> None:
    """A last answer that takes ten seconds more is in the duration, not in the steady window."""
    rows = [row(number, sent=number * 0.1, in_flight=2) for number in range(100)]
    rows.append(row(100, sent=10.0, tokens=101, gap=0.1))
    told = numbers(rows)
    assert told.duration == pytest.approx(20.1)
    assert told.steady is not None
    assert told.steady == pytest.approx((0.2, 10.0))
    assert told.steady_requests == pytest.approx(10.0, rel=0.03)


def test_a_closed_loop_is_steady_once_it_is_full() -> None:
    """From the time that C are under way until the last was sent."""
    rows = [row(number, sent=number * 1.0, in_flight=min(number + 1, 3)) for number in range(10)]
    assert steady_window(rows, 3) == (2.0, 9.0)


def test_a_window_that_is_hardly_there_is_none() -> None:
    """When everything is sent at once there is no steady state to speak of."""
    rows = [row(number, sent=0.001 * number, tokens=1001) for number in range(5)]
    assert steady_window(rows, None) is None
    assert steady_window([], None) is None


def test_the_most_at_once_is_exact() -> None:
    """Requests that only touch do not overlap."""
    touching = [row(0, sent=0.0, first=1.0, tokens=1), row(1, sent=1.0, first=1.0, tokens=1)]
    assert most_at_once(touching) == 1
    assert most_at_once([*touching, row(2, sent=0.5, first=1.0, tokens=1)]) == 2


def test_sessions_follow_each_other_without_the_pause() -> None:
    """A resumed run is one axis: the second session begins where the first's last answer ended."""
    rows = [row(0, sent=0.0), row(1, sent=1.0), row(2, sent=0.5, session=1)]
    assert session_offsets(rows) == {0: 0.0, 1: pytest.approx(1.2)}
    assert [one.sent for one in on_one_axis(rows)] == [0.0, 1.0, pytest.approx(1.7)]
    assert on_one_axis(rows)[2].first_token == pytest.approx(1.8)


def test_no_rows_are_no_numbers() -> None:
    """Nothing measured is zero requests, not an exception."""
    told = numbers([])
    assert (told.sent, told.duration, told.ttft.mean, told.steady) == (0, 0.0, None, None)
