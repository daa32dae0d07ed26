"""OpenAI's Responses as chats, and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from gateway.client_apis import RESPONSES
from gateway.errors import BadRequest
from gateway.responses_reply import ResponsesReply
from gateway.sse import EventSplitter, event_data

EVENTS: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


def chat(**fields: Any) -> dict[str, Any]:
    return RESPONSES.request({"model": "m", "input": "hi", **fields})


def reply(**fields: Any) -> ResponsesReply:
    return ResponsesReply({"model": "m", "input": "hi", **fields}, "1", clock=lambda: 7.9)


def test_a_plain_request() -> None:
    """Text, instructions and limits go where a chat has them; what is OpenAI's own affair is left out."""
    asked = chat(instructions="be terse", max_output_tokens=5, store=True, metadata={"a": "b"}, truncation="disabled")
    assert asked == {
        "model": "m",
        "max_tokens": 5,
        "messages": [{"role": "system", "content": "be terse"}, {"role": "user", "content": "hi"}],
    }


def test_a_turn_of_the_assistant_is_one_message() -> None:
    """What was thought, said and called in one turn is one message of a chat, results follow it."""
    asked = chat(
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
            {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "look"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "c", "name": "w", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "4"},
        ]
    )
    assert asked["messages"] == [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "look",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "w", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "4"},
    ]


def test_formats_and_tools() -> None:
    """Structured output and functions have the chat's form."""
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    asked = chat(
        text={"format": form},
        tools=[{"type": "function", "name": "w", "parameters": {}, "strict": False}],
        tool_choice={"type": "function", "name": "w"},
        top_logprobs=2,
    )
    assert asked["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
    }
    assert asked["tools"] == [{"type": "function", "function": {"name": "w", "parameters": {}, "strict": False}}]
    assert asked["tool_choice"] == {"type": "function", "function": {"name": "w"}}
    assert (asked["top_logprobs"], asked["logprobs"]) == (2, True)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "critic", "content": "x"}]}, "input[0].role"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].image_url",
        ),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"smell": 1}, "smell"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_its_place(fields: dict[str, Any], param: str) -> None:
    """Whatever no engine of ours can be asked is an error that names the field."""
    with pytest.raises(BadRequest) as refusal:
        chat(**fields)
    assert refusal.value.param == param


def test_a_whole_answer() -> None:
    """A chat completion is a response of OpenAI's types."""
    call = {"id": "c", "type": "function", "function": {"name": "w", "arguments": "{}"}}
    said = {"content": "x", "reasoning_content": "y", "tool_calls": [call]}
    answer = {
        "choices": [{"message": said, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    }
    response = Response.model_validate(reply(temperature=0.5).whole(answer))
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    assert len({item.id for item in response.output}) == 3
    assert (response.output_text, response.status, response.temperature) == ("x", "completed", 0.5)
    assert response.usage is not None
    assert response.usage.total_tokens == 7


def test_an_answer_that_was_cut() -> None:
    """An answer that ran into its limit is incomplete, and says why."""
    answer = {"choices": [{"message": {"content": "x"}, "finish_reason": "length"}]}
    shown = reply().whole(answer)
    assert (shown["status"], shown["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert shown["output"][0]["status"] == "incomplete"


def events(shown: bytes) -> list[Any]:
    found = []
    for event in EventSplitter().feed(shown):
        data = event_data(event)
        assert data is not None
        parsed: Any = EVENTS.validate_json(data)
        assert event.startswith(b"event: " + parsed.type.encode())
        assert type(parsed).model_validate(json.loads(data))  # nothing the type requires is missing
        found.append(parsed)
    assert [event.sequence_number for event in found] == list(range(len(found)))
    return found


def test_a_stream_adds_up() -> None:
    """Deltas add up to the texts that the events after them repeat, and to the response at the end."""
    said = reply()
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "think"},
        {"content": "one "},
        {"content": "two"},
        {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
    ]
    shown = b"".join(event for delta in deltas for event in said.chunk({"choices": [{"delta": delta}]}))
    shown += b"".join(said.chunk({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}))
    shown += b"".join(said.chunk({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 8}}))
    found = events(shown + b"".join(said.end()))
    assert "".join(event.delta for event in found if event.type == "response.output_text.delta") == "one two"
    response = found[-1].response
    assert (found[-1].type, response.output_text, response.usage.output_tokens) == ("response.completed", "one two", 8)
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    assert response.output[2].arguments == '{"x":1}'
    kinds = [event.type.removeprefix("response.") for event in found]
    assert kinds == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip


def test_a_stream_that_breaks_says_so() -> None:
    """A stream that broke ends with a response that failed."""
    said = reply()
    shown = b"".join(said.chunk({"choices": [{"delta": {"content": "x"}}]}))
    found = events(shown + b"".join(said.error_events({"message": "gone"})))
    assert (found[-1].type, found[-1].response.error.message) == ("response.failed", "gone")
