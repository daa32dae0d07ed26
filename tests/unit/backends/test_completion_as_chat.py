"""A chat that is asked for as a completion, and thinking told from answers."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.completion_as_chat import CompletionAsChat, completion_body, is_thinking
from backends.thinking import ThinkSplitter
from backends.translation import Untranslatable

TEXTS = st.text(st.sampled_from(list("<think>/ab \n")), max_size=40)


def split(pieces: list[str], *, is_open: bool) -> tuple[str, str]:
    splitter = ThinkSplitter(is_open=is_open)
    shown = [*(splitter.feed(piece) for piece in pieces), splitter.end()]
    return "".join(piece.thinking for piece in shown), "".join(piece.content for piece in shown)


@given(TEXTS, st.lists(st.integers(0, 40), max_size=6), st.booleans())
def test_the_cuts_do_not_matter(text: str, cuts: list[int], is_open: bool) -> None:
    """However an answer is cut into pieces, its thinking and its content are the same."""
    at = [0, *sorted(cuts), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(at)]
    assert split(pieces, is_open=is_open) == split([text], is_open=is_open)


@pytest.mark.parametrize(
    ("text", "is_open", "thinking", "content"),
    [
        ("plain", False, "", "plain"),
        (" <thing>", False, "", " <thing>"),
        ("<think>\nwhy\n</think>\n\nso", False, "why", "so"),
        ("why\n</think>\n\nso </think> on", True, "why", "so </think> on"),
        ("<think></think>x", False, "", "x"),
        ("never ends", True, "never ends", ""),
        ("a <think> b", False, "", "a <think> b"),
        ("<thi", False, "", "<thi"),
        ("", True, "", ""),
    ],
)
def test_thinking_stands_between_its_marks(text: str, is_open: bool, thinking: str, content: str) -> None:
    """What stands between the marks at the beginning is thinking; without them all is content."""
    assert split([text], is_open=is_open) == (thinking, content)


def test_a_prompt_that_opens_the_thinking() -> None:
    """Whether an answer begins within the thinking is seen at the prompt's end."""
    assert is_thinking("<|im_start|>assistant\n<think>\n")
    assert not is_thinking("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_what_a_completion_takes_of_a_chat() -> None:
    """Sampling stays, messages go; what a completion cannot give is not asked for."""
    body = {"model": "m", "messages": [], "max_completion_tokens": 3, "temperature": 0, "stop": ["x"], "tools": []}
    assert completion_body(body, [1, 2]) == {
        "model": "m", "max_tokens": 3, "temperature": 0, "stop": ["x"], "prompt": [1, 2],
    }  # fmt: skip
    asked: dict[str, Any]
    for asked in ({"tools": [{}]}, {"logprobs": True}, {"response_format": {"type": "json_object"}}):
        assert completion_body({"model": "m", **asked}, [1]) is None


def test_a_whole_answer() -> None:
    """A completion is a chat's message, its thinking beside it."""
    answer = CompletionAsChat(is_stream=False, is_thinking=True)
    completion = {
        "id": "x",
        "object": "text_completion",
        "choices": [{"index": 0, "text": "why</think>so", "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 2},
    }
    shown = json.loads(answer.whole(json.dumps(completion).encode()))
    assert shown["object"] == "chat.completion"
    assert shown["usage"] == {"prompt_tokens": 2}
    message = {"role": "assistant", "content": "so", "reasoning_content": "why"}
    assert shown["choices"] == [{"index": 0, "finish_reason": "stop", "message": message}]
    with pytest.raises(Untranslatable):
        CompletionAsChat(is_stream=False, is_thinking=False).whole(b"[]")


def events(shown: bytes) -> list[Any]:
    return [json.loads(event[6:]) if b"[DONE]" not in event else "DONE" for event in shown.split(b"\n\n") if event]


@given(st.lists(st.integers(0, 400), max_size=8))
def test_a_stream_cut_anywhere(cuts: list[int]) -> None:
    """However a stream is cut, its deltas are those of a chat: a role, the texts, the reason, the usage."""
    chunks = [
        {"choices": [{"index": 0, "text": "one ", "finish_reason": None}]},
        {"choices": [{"index": 0, "text": "two", "finish_reason": None}]},
        {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]},
        {"choices": [], "usage": {"prompt_tokens": 2}},
    ]
    stream = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
    at = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    answer = CompletionAsChat(is_stream=True, is_thinking=False)
    shown = events(b"".join(answer.feed(stream[a:b]) for a, b in itertools.pairwise(at)))
    assert shown[-1] == "DONE"
    assert shown[-2] == {"choices": [], "usage": {"prompt_tokens": 2}, "object": "chat.completion.chunk"}
    choices = [chunk["choices"][0] for chunk in shown[:-2]]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""}, {"content": "one "}, {"content": "two"}, {},
    ]  # fmt: skip
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "length"]


def test_errors_in_a_stream_end_it() -> None:
    """An error event passes as it is and is the last; what is no JSON becomes one."""
    answer = CompletionAsChat(is_stream=True, is_thinking=False)
    error = b'data: {"error":{"message":"gone"}}\n\n'
    assert answer.feed(error + b'data: {"choices":[]}\n\n') == error
    assert answer.feed(b"data: [DONE]\n\n") == b""
    broken = events(CompletionAsChat(is_stream=True, is_thinking=False).feed(b"data: {oops\n\n"))
    assert broken[0]["error"]["code"] == "backend_garbage"
