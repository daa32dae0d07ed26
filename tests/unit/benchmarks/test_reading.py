"""Reading answers: what counts as a token, what as a failure."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.load.reading import Reading, StreamReading, WholeReading
from benchmarks.load.sse import EventSplitter


def event(**fields: Any) -> bytes:
    """One event of a stream."""
    return f"data: {json.dumps(fields)}\n\n".encode()


def delta(reason: str | None = None, **fields: Any) -> bytes:
    """An event with one choice."""
    return event(model="m", choices=[{"index": 0, "delta": fields, "finish_reason": reason}])


def read(*pieces: bytes, status: int = 200, reading: Reading | None = None) -> Reading:
    """Read *pieces*, the first at 1 s, the next at 2 s and so on."""
    reading = reading or StreamReading()
    reading.head(status, 0.5)
    for at, piece in enumerate(pieces, 1):
        reading.body(piece, float(at))
    reading.end(float(len(pieces)))
    return reading


USAGE = event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 2})
DONE = b"data: [DONE]\n\n"


def test_a_role_is_no_token() -> None:
    """The first token is the first non-empty delta; a role, or empty content, is only the first chunk."""
    reading = read(
        delta(role="assistant", content=""), delta(content=""), delta(content="a"), delta("stop"), USAGE, DONE
    )
    assert (reading.first_chunk, reading.first_token, reading.last_chunk) == (1.0, 3.0, 4.0)
    assert reading.token_times == [3.0]
    assert (reading.finish_reason, reading.error_kind, reading.usage) == (
        "stop", None, {"prompt_tokens": 3, "completion_tokens": 2},
    )  # fmt: skip


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_a_token_and_no_output(name: str) -> None:
    """Thinking ends the wait for a token, not that for output; the answer is without it."""
    reading = read(delta(**{name: "hm"}), delta(content="yes"), delta("stop"), DONE)
    assert (reading.first_token, reading.first_output) == (1.0, 2.0)
    assert ("".join(reading.text), "".join(reading.answer)) == ("hmyes", "yes")


def test_arguments_of_a_tool_call_are_tokens() -> None:
    """A stream of tool arguments has its first token where the call begins."""
    call = {"index": 0, "function": {"name": "f", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": "{}"}}
    reading = read(delta(tool_calls=[call]), delta(tool_calls=[more]), delta("tool_calls"), DONE)
    assert (reading.first_token, reading.token_chars, reading.answer) == (1.0, [1, 2], [])


def test_a_text_completion_reads_as_a_chat_does() -> None:
    """Choices with text instead of a delta are tokens too."""
    piece = event(choices=[{"index": 0, "text": "ab", "finish_reason": "length"}])
    reading = read(piece, DONE)
    assert (reading.token_chars, reading.finish_reason, reading.error_kind) == ([2], "length", None)


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        ((delta(content="a"), event(error={"message": "broken"}), DONE), "stream_error"),
        ((delta(content="a"), event(object="error", message="broken", code=500)), "stream_error"),
        ((delta(content="a"), DONE), "no_finish_reason"),
        ((delta(content="a"), delta("stop")), "no_done"),
        ((delta(content="a"), b"data: <html>\n\n"), "garbage"),
        ((delta(content="a"), b"data: 3\n\n"), "garbage"),
    ],
)
def test_a_stream_that_does_not_end_as_it_should_has_failed(pieces: tuple[bytes, ...], kind: str) -> None:
    """An error inside a stream, no finish_reason, no [DONE], or no JSON: each is a failure of its own kind."""
    assert read(*pieces).error_kind == kind


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error":{"message":"too long"}}', "400: too long"),
        (b'{"error":"too long"}', "400: too long"),
        (b'{"object":"error","message":"too long"}', "400: too long"),
        (b'{"detail":"too long"}', "400: too long"),
        (b"too long\n", "400: too long"),
    ],
)
def test_a_refusal_is_told_in_its_own_words(body: bytes, text: str) -> None:
    """Whatever an engine's error looks like, its message is what is kept."""
    for reading in (read(body, status=400), read(body, status=400, reading=WholeReading())):
        assert (reading.error_kind, reading.error_text) == ("http", text)


def test_a_whole_answer_has_no_first_token() -> None:
    """When an answer comes whole, only its end is known."""
    answer = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}
    reading = read(json.dumps(answer).encode(), reading=WholeReading())
    assert (reading.first_token, reading.token_times, reading.error_kind) == (None, [], None)
    assert ("".join(reading.text), reading.finish_reason) == ("yes", "stop")


@pytest.mark.parametrize(
    ("body", "kind"), [(b"[]", "garbage"), (b"<", "garbage"), (b'{"choices":[]}', "no_finish_reason")]
)
def test_a_whole_answer_of_another_shape_has_failed(body: bytes, kind: str) -> None:
    """An answer that is no object, or does not say why it ended, is a failure."""
    assert read(body, reading=WholeReading()).error_kind == kind


def test_only_data_of_events_is_given() -> None:
    """Comments, other fields and events without data give nothing; several data lines are one datum."""
    splitter = EventSplitter()
    assert splitter.feed(b"\xef\xbb\xbf: ping\n\nevent: x\ndata: a\ndata:b\nid: 3\n\nretry: 1\n\ndata: c\n\n") == [
        b"a\nb",
        b"c",
    ]


def test_an_event_that_ends_with_a_carriage_return_is_not_lost() -> None:
    """A last CR may be half of a CRLF, so its event comes with what follows, or at the end."""
    splitter = EventSplitter()
    assert splitter.feed(b"data: a\r\rdata: [DONE]\r\r") == [b"a"]
    assert splitter.end() == [b"[DONE]"]
    assert EventSplitter().end() == []
