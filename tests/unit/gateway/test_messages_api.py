"""Anthropic's Messages as chats, and back."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from anthropic import Anthropic
from anthropic.types import Message

from gateway.client_apis import MESSAGES
from gateway.errors import BadRequest
from gateway.messages_reply import MessagesReply
from gateway.sse import event_data


def chat(**fields: Any) -> dict[str, Any]:
    return MESSAGES.request({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], **fields})


def test_a_plain_request() -> None:
    """System prompt, texts and sampling go where a chat has them."""
    asked = chat(system=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], stop_sequences=["x"], top_k=3)
    assert asked == {
        "model": "m",
        "max_tokens": 9,
        "top_k": 3,
        "stop": ["x"],
        "messages": [{"role": "system", "content": "a\nb"}, {"role": "user", "content": "hi"}],
    }


def test_a_round_of_tools() -> None:
    """Calls, thinking and results become the messages that templates know."""
    asked = chat(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "weather?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "look", "signature": "s"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "w", "input": {"city": "Oslo"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "4"}]},
                    {"type": "text", "text": "and?"},
                ],
            },
        ],
        tools=[{"name": "w", "description": "d", "input_schema": {"type": "object"}}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    )
    assert asked["messages"] == [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "look",
            "tool_calls": [{"id": "t1", "type": "function", "function": {"name": "w", "arguments": '{"city":"Oslo"}'}}],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "4"},
        {"role": "user", "content": "and?"},
    ]
    function = {"name": "w", "description": "d", "parameters": {"type": "object"}}
    assert asked["tools"] == [{"type": "function", "function": function}]
    assert (asked["tool_choice"], asked["parallel_tool_calls"]) == ("required", False)


def test_an_image_is_a_part() -> None:
    """Images become parts with a URL, those that are sent along too."""
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    asked = chat(messages=[{"role": "user", "content": [{"type": "image", "source": source}]}])
    assert asked["messages"][0]["content"] == [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"max_tokens": None}, "max_tokens"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "w"}]}, "tools[0].input_schema"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking.type"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_its_place(fields: dict[str, Any], param: str) -> None:
    """Whatever no engine of ours can be asked is an error that names the field."""
    with pytest.raises(BadRequest) as refusal:
        chat(**fields)
    assert refusal.value.param == param


def test_a_whole_answer() -> None:
    """A chat completion is a message of Anthropic's types."""
    call = {"id": "t", "type": "function", "function": {"name": "w", "arguments": '{"a": 1}'}}
    said = {"role": "assistant", "content": "x", "reasoning_content": "y", "tool_calls": [call]}
    answer = {
        "choices": [{"message": said, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}},
    }
    message = Message.model_validate(MessagesReply({"model": "m"}, "1").whole(answer))
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert message.content[2].model_dump()["input"] == {"a": 1}
    assert (message.stop_reason, message.usage.input_tokens, message.usage.output_tokens) == ("tool_use", 3, 4)


def test_arguments_that_are_no_object_are_kept() -> None:
    """What a model wrote instead of JSON is in the call as text, for the client to see."""
    call = {"id": "t", "function": {"name": "w", "arguments": "{oops"}}
    answer = {"choices": [{"message": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}
    assert MessagesReply({"model": "m"}, "1").whole(answer)["content"][0]["input"] == {"arguments": "{oops"}


@pytest.mark.parametrize(
    ("reason", "shown"), [("stop", "end_turn"), ("length", "max_tokens"), ("content_filter", "refusal")]
)
def test_why_it_ended(reason: str, shown: str) -> None:
    """Finish reasons have Anthropic's names."""
    answer = {"choices": [{"message": {"content": "x"}, "finish_reason": reason}]}
    assert MessagesReply({"model": "m"}, "1").whole(answer)["stop_reason"] == shown


def test_a_stop_sequence_is_named() -> None:
    """An engine that says which text ended the answer is quoted."""
    answer = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop", "stop_reason": "##"}]}
    shown = MessagesReply({"model": "m"}, "1").whole(answer)
    assert (shown["stop_reason"], shown["stop_sequence"]) == ("stop_sequence", "##")


def final_message(stream: bytes) -> Message:
    """What Anthropic's own client makes of the bytes of a stream."""
    head = {"content-type": "text/event-stream"}
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, headers=head, content=stream))
    with (
        Anthropic(api_key="k", base_url="http://gateway", http_client=httpx2.Client(transport=transport)) as client,
        client.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}]) as events,
    ):
        return events.get_final_message()


def test_a_stream_adds_up() -> None:
    """The events of a stream, added up by Anthropic's own client, are the whole message."""
    reply = MessagesReply({"model": "m"}, "1")
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "th"},
        {"reasoning_content": "ink"},
        {"content": "one "},
        {"content": "two"},
        {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"x":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
        {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "g", "arguments": "{}"}}]},
    ]
    shown = b"".join(event for delta in deltas for event in reply.chunk({"choices": [{"delta": delta}]}))
    shown += b"".join(reply.chunk({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}))
    shown += b"".join(reply.chunk({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 8}}))
    shown += b"".join(reply.end())
    message = final_message(shown)
    content = [block.model_dump(exclude_none=True) for block in message.content]
    assert [block["type"] for block in content] == ["thinking", "text", "tool_use", "tool_use"]
    assert (content[0]["thinking"], content[1]["text"]) == ("think", "one two")
    assert [(block["id"], block["name"], block["input"]) for block in content[2:]] == [
        ("a", "f", {"x": 1}), ("b", "g", {}),
    ]  # fmt: skip
    assert (message.stop_reason, message.usage.input_tokens, message.usage.output_tokens) == ("tool_use", 3, 8)


def test_errors_have_anthropics_words() -> None:
    """An error is Anthropic's envelope, with what we know beside it."""
    reply = MessagesReply({}, "")
    assert reply.error(429, {"message": "full", "code": "queue_full"}) == {
        "type": "error",
        "error": {"type": "rate_limit_error", "message": "full", "code": "queue_full"},
    }
    event = b"".join(reply.error_events({"message": "gone"}))
    assert json.loads(event_data(event) or b"")["error"]["type"] == "api_error"
