"""What is seen over a stream's shoulder: tokens, usage, errors, the end."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.sse import DONE
from gateway.stream_watch import StreamWatch, usage_of


def event(chunk: Any) -> bytes:
    """One event with *chunk* as its data."""
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def delta(**fields: Any) -> bytes:
    """One chat chunk."""
    return event({"choices": [{"index": 0, "delta": fields, "finish_reason": None}]})


ROLE, TOKEN = delta(role="assistant", content=""), delta(content="hi")
END = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
USAGE = event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
FAILURE = event({"error": {"message": "out of memory", "type": "InternalServerError", "code": 500}})


def test_a_whole_stream_passes_untouched() -> None:
    """A stream of a client that asked for usage comes out byte for byte, and its counts are known."""
    watch = StreamWatch(wants_usage=True)
    stream = [ROLE, TOKEN, TOKEN, END, USAGE, DONE]
    assert watch.take(stream) == stream
    assert (watch.has_token, watch.is_done, watch.is_failed) == (True, True, False)
    assert (watch.prompt_tokens, watch.completion_tokens) == (7, 3)


def test_usage_nobody_asked_for_is_kept_back_and_counted() -> None:
    """The usage chunk is left out when the client did not ask for it."""
    watch = StreamWatch(wants_usage=False)
    assert watch.take([TOKEN, USAGE, DONE]) == [TOKEN, DONE]
    assert (watch.prompt_tokens, watch.completion_tokens) == (7, 3)


def test_usage_beside_a_choice_is_never_kept_back() -> None:
    """A chunk that carries both usage and output is shown, whoever asked for what."""
    both = event({"choices": [{"index": 0, "delta": {"content": "x"}}], "usage": {"prompt_tokens": 1}})
    watch = StreamWatch(wants_usage=False)
    assert watch.take([both]) == [both]
    assert (watch.prompt_tokens, watch.completion_tokens) == (1, None)


@pytest.mark.parametrize(
    ("chunk", "is_token"),
    [
        (ROLE, False),
        (END, False),
        (b": keep-alive\n\n", False),
        (event({"choices": []}), False),
        (event({"choices": None}), False),
        (event({"choices": ["x", {"index": 0, "delta": None}]}), False),
        (event([1]), False),
        (b"data: not json\n\n", False),
        (TOKEN, True),
        (delta(reasoning_content="hm"), True),
        (delta(reasoning="hm"), True),
        (delta(tool_calls=[{"index": 0}]), True),
        (event({"choices": [{"index": 0, "text": "hi"}]}), True),
    ],
)
def test_what_counts_as_a_token(chunk: bytes, is_token: bool) -> None:
    """A first token is output, reasoning or a tool call; a role, a comment and the unreadable just pass."""
    watch = StreamWatch(wants_usage=False)
    assert watch.take([chunk]) == [chunk]
    assert watch.has_token is is_token


@pytest.mark.parametrize("before", [[], [ROLE], [TOKEN, TOKEN]])
def test_after_an_error_nothing_passes(before: list[bytes]) -> None:
    """An error in the stream is shown once, in our envelope; tokens and [DONE] behind it are not."""
    watch = StreamWatch(wants_usage=True)
    *passed, told = watch.take([*before, FAILURE, TOKEN, DONE])
    assert watch.take([FAILURE, DONE]) == []
    assert passed == before
    assert (watch.is_failed, watch.is_done) == (True, False)
    error = json.loads(told.removeprefix(b"data: "))["error"]
    assert error == {
        "message": "out of memory", "type": "api_error", "param": None, "code": None, "source": "backend",
    }  # fmt: skip


def test_an_error_that_is_null_is_none() -> None:
    """A chunk with "error": null is a chunk like any other."""
    chunk = event({"error": None, "choices": [{"index": 0, "delta": {"content": "x"}}]})
    watch = StreamWatch(wants_usage=False)
    assert watch.take([TOKEN, chunk]) == [TOKEN, chunk]
    assert not watch.is_failed


def test_a_token_that_speaks_of_usage_or_error_is_a_token() -> None:
    """Text that holds the words we look for passes as it is."""
    tokens = [delta(content='"usage"'), delta(content='{"error": 1}'), delta(content="[DONE]")]
    watch = StreamWatch(wants_usage=False)
    assert watch.take(tokens) == tokens
    assert (watch.is_failed, watch.is_done) == (False, False)


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        ({"usage": {"prompt_tokens": 7, "completion_tokens": 3}}, (7, 3)),
        ({"usage": {"prompt_tokens": 7, "total_tokens": 7}}, (7, None)),
        ({"usage": {"prompt_tokens": "7"}}, (None, None)),
        ({"usage": None}, (None, None)),
        ({}, (None, None)),
    ],
)
def test_usage_of_a_whole_answer(answer: dict[str, Any], usage: tuple[int | None, int | None]) -> None:
    """What a whole answer says of its tokens, None for what it does not say."""
    assert usage_of(answer) == usage
