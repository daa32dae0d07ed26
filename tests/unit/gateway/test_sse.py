"""Events cut from streams as engines write them."""

from __future__ import annotations

import pytest

from gateway.sse import DONE, EventSplitter, EventTooLong, error_event, event_data, is_done


def test_one_event_per_chunk_is_passed_on_as_it_is() -> None:
    """A chunk that is exactly one event comes back as the same object, without a copy."""
    chunk = b'data: {"choices":[]}\n\n'
    events = EventSplitter().feed(chunk)
    assert events == [chunk]
    assert events[0] is chunk


def test_several_events_and_a_rest() -> None:
    """All whole events of a chunk come out at once; the rest is pending and completed by the next chunk."""
    splitter = EventSplitter()
    assert splitter.feed(b"data: a\n\ndata: b\n\ndata: c") == [b"data: a\n\n", b"data: b\n\n"]
    assert splitter.pending == b"data: c"
    assert splitter.feed(b"\n\n") == [b"data: c\n\n"]
    assert splitter.pending == b""


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_every_line_end_of_the_standard(line_end: bytes) -> None:
    """LF, CR LF and CR end lines alike, and a two-line event is one event."""
    event = b"event: x" + line_end + b"data: a" + line_end + line_end
    assert EventSplitter().feed(event + b"data: b") == [event]


def test_a_cr_at_the_end_waits_for_its_lf() -> None:
    """An event ending in CR is held until the next byte shows whether an LF belongs to it."""
    splitter = EventSplitter()
    assert splitter.feed(b"data: a\r\n\r") == []
    assert splitter.feed(b"\ndata: b") == [b"data: a\r\n\r\n"]
    assert splitter.pending == b"data: b"


def test_crlf_is_one_line_end() -> None:
    """A lone CR LF ends a line, not an event."""
    splitter = EventSplitter()
    assert splitter.feed(b"data: a\r\ndata: b\r\n") == []
    assert splitter.feed(b"\r\nx") == [b"data: a\r\ndata: b\r\n\r\n"]


def test_superfluous_empty_lines_are_events_of_their_own() -> None:
    """Empty lines between events stay apart from them, so no event begins with one."""
    assert EventSplitter().feed(b"\ndata: a\n\n\ndata: b\n\n") == [b"\n", b"data: a\n\n", b"\n", b"data: b\n\n"]


def test_an_event_without_end_is_refused() -> None:
    """More pending bytes than the limit raise, whether they came in one chunk or in many."""
    with pytest.raises(EventTooLong, match="100 bytes"):
        EventSplitter(limit_bytes=100).feed(b"x" * 101)
    splitter = EventSplitter(limit_bytes=100)
    assert splitter.feed(b"x" * 60) == []
    with pytest.raises(EventTooLong):
        splitter.feed(b"x" * 60)


def test_many_events_longer_than_the_limit_together_pass() -> None:
    """The limit is on one unfinished event, not on a chunk or a stream."""
    assert len(EventSplitter(limit_bytes=100).feed(b"data: a\n\n" * 1000)) == 1000


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: a\n\n", b"a"),
        (b"data:a\n\n", b"a"),
        (b"data:  a\n\n", b" a"),
        (b"data: \n\n", b""),
        (b"data\n\n", b""),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"data: a\r\ndata: b\r\n\r\n", b"a\nb"),
        (b"data: a\r\r", b"a"),
        (b"event: error\ndata: a\nid: 1\n\n", b"a"),
        (b"\xef\xbb\xbfdata: a\n\n", b"a"),
        (b": ping\n\n", None),
        (b"event: ping\n\n", None),
        (b"dataset: a\n\n", None),
        (b"\n", None),
    ],
)
def test_event_data(event: bytes, data: bytes | None) -> None:
    """An event's data is its data lines joined by LF, each without one leading space; no data line, no data."""
    assert event_data(event) == data


def test_error_event_keeps_a_payload_of_several_lines_in_one_event() -> None:
    """A line break in a payload cannot end the event early."""
    assert error_event(b'{"error":{}}') == b'data: {"error":{}}\n\n'
    assert error_event(b"a\n\nb\rc") == b"data: a\ndata: \ndata: b\ndata: c\n\n"


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (DONE, True),
        (b"data:[DONE]\n\n", True),
        (b"data: [DONE] \r\n\r\n", True),
        (b'data: {"content":"[DONE]"}\n\n', False),
        (b": [DONE]\n\n", False),
        (b"data: a\n\n", False),
    ],
)
def test_is_done(event: bytes, expected: bool) -> None:
    """Only an event whose whole data is [DONE] is the end mark, however it is spaced."""
    assert is_done(event) is expected
