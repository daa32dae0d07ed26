"""What holds of the event splitter for every stream and every way of chopping it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.sse import EventSplitter, error_event, event_data

BYTES_THAT_MATTER = st.sampled_from(
    [b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"data: a", b"data:", b":", b" ", b"x", b"\0"]
)
STREAMS = st.lists(BYTES_THAT_MATTER, max_size=30).map(b"".join)


def chop(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[start:end] for start, end in pairwise(edges)]


def split(chunks: list[bytes]) -> tuple[list[bytes], bytes]:
    splitter = EventSplitter()
    events = [event for chunk in chunks for event in splitter.feed(chunk)]
    return events, splitter.pending


def events_by_the_book(stream: bytes) -> list[bytes]:
    """The standard's rules, one byte at a time; an open CR at the end holds its event back."""
    events, start, line_start, at = [], 0, 0, 0
    while at < len(stream):
        if stream[at : at + 1] not in (b"\r", b"\n"):
            at += 1
            continue
        end = at + (2 if stream[at : at + 2] == b"\r\n" else 1)
        if at == line_start and not (end == len(stream) and stream.endswith(b"\r")):
            events.append(stream[start:end])
            start = end
        at = line_start = end
    return events


@given(stream=STREAMS, cuts=st.lists(st.integers(0, 1000), max_size=12))
@example(stream=b"data: a\r\n\r\ndata: b\r\n\r\n", cuts=[8, 9, 10, 11])
@example(stream=b"data: a\r\r\n", cuts=[8, 9])
def test_chopping_changes_nothing(stream: bytes, cuts: list[int]) -> None:
    """However a stream is chopped, the same events come out and the same rest is pending."""
    assert split(chop(stream, cuts)) == split([stream])


@given(stream=STREAMS)
def test_single_bytes_change_nothing(stream: bytes) -> None:
    """A stream fed byte by byte gives the same events as the whole."""
    assert split([stream[at : at + 1] for at in range(len(stream))]) == split([stream])


@given(stream=STREAMS, cuts=st.lists(st.integers(0, 1000), max_size=12))
def test_no_byte_is_lost(stream: bytes, cuts: list[int]) -> None:
    """Events and pending, joined, are the stream."""
    events, pending = split(chop(stream, cuts))
    assert b"".join(events) + pending == stream


@given(stream=STREAMS)
def test_events_end_where_the_standard_says(stream: bytes) -> None:
    """The cuts are those of the standard's line-by-line reading."""
    assert split([stream])[0] == events_by_the_book(stream)


@given(stream=st.binary(max_size=200), cuts=st.lists(st.integers(0, 1000), max_size=5))
def test_any_bytes_are_survived(stream: bytes, cuts: list[int]) -> None:
    """Arbitrary bytes never raise, in the splitter or in reading an event's data."""
    events, _ = split(chop(stream, cuts))
    for event in events:
        event_data(event)


@given(payload=STREAMS)
def test_error_event_carries_its_payload(payload: bytes) -> None:
    """What error_event wraps is one event, and event_data unwraps it, line ends become LF."""
    event = error_event(payload)
    assert split([event]) == ([event], b"")
    assert event_data(event) == payload.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
