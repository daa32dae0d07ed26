"""Anthropic's Messages API, outwards: chat completions, whole or as a stream, as its messages. Pure.

Source: https://docs.anthropic.com/en/api/messages, https://docs.anthropic.com/en/api/messages-streaming and
https://docs.anthropic.com/en/api/errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import orjson

from gateway.client_api import Json, named_event

STOPS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}

ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

Kind = Literal["text", "thinking", "tool_use"]


class MessagesReply:
    """The reply to *body*, one request."""

    def __init__(self, body: Json, answer_id: str) -> None:
        self._model = body.get("model")
        self._id = f"msg_{answer_id}"
        self._has_begun = False
        self._block: tuple[Kind, object] | None = None
        self._blocks = -1
        self._finish: str | None = None
        self._stop_sequence: str | None = None
        self._usage: Json = {}

    # whole answers

    def whole(self, answer: Json) -> Json:
        """A whole chat completion as a message; a count of tokens as one."""
        if "count" in answer:
            return {"input_tokens": answer["count"]}
        choice = answer["choices"][0]
        said = choice["message"]
        content: list[Json] = []
        if thinking := said.get("reasoning_content"):
            content.append({"type": "thinking", "thinking": thinking, "signature": ""})
        if text := said.get("content"):
            content.append({"type": "text", "text": text})
        content += [_tool_use(call) for call in said.get("tool_calls") or ()]
        self._note_finish(choice)
        self._usage = _usage(answer.get("usage"))
        return self._message(content, self._stop_reason(), self._usage)

    def _message(self, content: list[Json], stop_reason: str | None, usage: Json) -> Json:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": self._stop_sequence,
            "usage": usage,
        }

    def _note_finish(self, choice: Json) -> None:
        if isinstance(reason := choice.get("finish_reason"), str):
            self._finish = reason
        # vLLM says which of the stops it was (protocol.py ChatCompletionResponseChoice.stop_reason)
        if isinstance(said := choice.get("stop_reason"), str):
            self._stop_sequence = said

    def _stop_reason(self) -> str | None:
        if self._stop_sequence is not None:
            return "stop_sequence"
        return STOPS.get(self._finish or "", "end_turn")

    # streams

    def chunk(self, chunk: Json) -> Iterator[bytes]:
        """The events of one chunk."""
        if isinstance(usage := chunk.get("usage"), dict):
            self._usage = _usage(usage)
        yield from self._begin()
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if thinking := delta.get("reasoning_content"):
                yield from self._open("thinking", None, {"type": "thinking", "thinking": "", "signature": ""})
                yield self._delta({"type": "thinking_delta", "thinking": thinking})
            if text := delta.get("content"):
                yield from self._open("text", None, {"type": "text", "text": ""})
                yield self._delta({"type": "text_delta", "text": text})
            for call in delta.get("tool_calls") or ():
                yield from self._call(call)
            self._note_finish(choice)

    def _begin(self) -> Iterator[bytes]:
        if not self._has_begun:
            self._has_begun = True
            started = self._message([], None, {"input_tokens": 0, "output_tokens": 0})
            yield named_event("message_start", {"type": "message_start", "message": started})

    def _open(self, kind: Kind, which: object, block: Json) -> Iterator[bytes]:
        """Begin a block, unless it is the one that is open."""
        if self._block == (kind, which):
            return
        yield from self._close()
        self._block = (kind, which)
        self._blocks += 1
        shown = {"type": "content_block_start", "index": self._blocks, "content_block": block}
        yield named_event("content_block_start", shown)

    def _close(self) -> Iterator[bytes]:
        if self._block is not None:
            self._block = None
            yield named_event("content_block_stop", {"type": "content_block_stop", "index": self._blocks})

    def _delta(self, delta: Json) -> bytes:
        shown = {"type": "content_block_delta", "index": self._blocks, "delta": delta}
        return named_event("content_block_delta", shown)

    def _call(self, call: Json) -> Iterator[bytes]:
        function = call.get("function") or {}
        which = call.get("index", 0)
        if self._block != ("tool_use", which):
            block: Json = {
                "type": "tool_use",
                "id": call.get("id") or "",
                "name": function.get("name") or "",
                "input": {},
            }
            yield from self._open("tool_use", which, block)
        if arguments := function.get("arguments"):
            yield self._delta({"type": "input_json_delta", "partial_json": arguments})

    def end(self) -> Iterator[bytes]:
        """The events that end a message."""
        yield from self._begin()
        yield from self._close()
        delta = {"stop_reason": self._stop_reason(), "stop_sequence": self._stop_sequence}
        usage = self._usage or {"output_tokens": 0}
        yield named_event("message_delta", {"type": "message_delta", "delta": delta, "usage": usage})
        yield named_event("message_stop", {"type": "message_stop"})

    # errors

    def error(self, status: int, error: Json) -> Json:
        """An error in Anthropic's envelope; our own fields stay beside its two."""
        kind = ERRORS.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {**error, "type": kind}}

    def error_events(self, error: Json) -> Iterator[bytes]:
        """The event that ends a broken stream."""
        yield named_event("error", {"type": "error", "error": {**error, "type": "api_error"}})


def _tool_use(call: Json) -> Json:
    function = call["function"]
    return {
        "type": "tool_use",
        "id": call.get("id") or "",
        "name": function["name"],
        "input": _arguments(function.get("arguments")),
    }


def _arguments(text: Any) -> Json:
    """A call's arguments as the object they should be; as text in one where the model wrote no JSON object."""
    try:
        parsed = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        parsed = None
    return parsed if isinstance(parsed, dict) else {"arguments": text}


def _usage(usage: Any) -> Json:
    said = usage if isinstance(usage, dict) else {}
    shown: Json = {
        "input_tokens": said.get("prompt_tokens") or 0,
        "output_tokens": said.get("completion_tokens") or 0,
    }
    details = said.get("prompt_tokens_details")
    if isinstance(details, dict) and details.get("cached_tokens") is not None:
        shown["cache_read_input_tokens"] = details["cached_tokens"]
    return shown
