"""OpenAI's Responses API, outwards: chat completions, whole or as a stream, as its responses. Pure.

Source: https://platform.openai.com/docs/api-reference/responses-streaming and the types of the `openai` package
(src/openai/types/responses, 3.54.0).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from gateway.client_api import Json, named_event

INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Finish reasons of an answer that is not whole -> the reason in ``incomplete_details``."""

ECHOED = ("instructions", "max_output_tokens", "metadata", "temperature", "top_p", "user")
"""What a response repeats of its request, null where that said nothing."""


class ResponsesReply:
    """The reply to *body*, one request. *clock*: seconds since the epoch."""

    def __init__(self, body: Json, answer_id: str, clock: Callable[[], float] = time.time) -> None:
        self._asked = body
        self._suffix = answer_id
        self._created_at = int(clock())
        self._number = 0
        self._items: list[Json] = []
        self._open: tuple[str, object] | None = None
        self._has_begun = False
        self._finish: str | None = None
        self._usage: Json | None = None

    # whole answers

    def whole(self, answer: Json) -> Json:
        """A whole chat completion as a response."""
        choice = answer["choices"][0]
        said = choice["message"]
        self._finish = choice.get("finish_reason")
        self._usage = _usage(answer.get("usage"))
        if thinking := said.get("reasoning_content"):
            self._items.append({**self._new("reasoning"), "content": [_thought(thinking)]})
        if text := said.get("content"):
            logprobs = _logprobs(choice.get("logprobs"))
            self._items.append({**self._new("message"), "content": [_text(text, logprobs)]})
        for call in said.get("tool_calls") or ():
            self._items.append({**self._new("function_call", call), "arguments": call["function"]["arguments"]})
        for item in self._items:
            self._settle(item)
        return self._response(self._status(), self._items)

    def _new(self, kind: str, call: Json | None = None) -> Json:
        """An item that has just begun."""
        item_id = f"{ {'reasoning': 'rs', 'message': 'msg', 'function_call': 'fc'}[kind] }_{self._suffix}"
        item: Json = {"id": f"{item_id}{len(self._items)}", "type": kind, "status": "in_progress"}
        if kind == "reasoning":
            return {**item, "summary": [], "content": []}
        if kind == "message":
            return {**item, "role": "assistant", "content": []}
        function = (call or {}).get("function") or {}
        return {**item, "call_id": (call or {}).get("id") or "", "name": function.get("name") or "", "arguments": ""}

    def _settle(self, item: Json) -> None:
        is_last = item is self._items[-1]
        item["status"] = "incomplete" if is_last and self._status() == "incomplete" else "completed"

    def _status(self) -> str:
        return "incomplete" if self._finish in INCOMPLETE else "completed"

    def _response(self, status: str, output: list[Json], error: Json | None = None) -> Json:
        asked = self._asked
        why = INCOMPLETE.get(self._finish or "") if status == "incomplete" else None
        return {
            "id": f"resp_{self._suffix}",
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "error": error,
            "incomplete_details": {"reason": why} if why else None,
            "model": asked.get("model"),
            "output": output,
            "parallel_tool_calls": asked.get("parallel_tool_calls", True),
            "tool_choice": asked.get("tool_choice") or "auto",
            "tools": asked.get("tools") or [],
            "text": asked.get("text") or {"format": {"type": "text"}},
            "reasoning": asked.get("reasoning") or {"effort": None, "summary": None},
            "previous_response_id": None,
            "truncation": "disabled",
            "store": False,
            "usage": self._usage if status in ("completed", "incomplete") else None,
            **{name: asked.get(name) for name in ECHOED},
        }

    # streams

    def chunk(self, chunk: Json) -> Iterator[bytes]:
        """The events of one chunk."""
        if isinstance(chunk.get("usage"), dict):
            self._usage = _usage(chunk["usage"])
        yield from self._begin()
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if thinking := delta.get("reasoning_content"):
                yield from self._go_on("reasoning", None, {})
                yield from self._more("reasoning_text", thinking)
            if text := delta.get("content"):
                yield from self._go_on("message", None, {})
                yield from self._more("output_text", text, _logprobs(choice.get("logprobs")))
            for call in delta.get("tool_calls") or ():
                yield from self._go_on("function_call", call.get("index", 0), call)
                if arguments := (call.get("function") or {}).get("arguments"):
                    self._items[-1]["arguments"] += arguments
                    yield self._of_item("response.function_call_arguments.delta", delta=arguments)
            if isinstance(reason := choice.get("finish_reason"), str):
                self._finish = reason

    def _event(self, kind: str, **fields: Any) -> bytes:
        shown = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return named_event(kind, shown)

    def _of_item(self, kind: str, **fields: Any) -> bytes:
        """An event about the item that is open."""
        return self._event(kind, item_id=self._items[-1]["id"], output_index=len(self._items) - 1, **fields)

    def _begin(self) -> Iterator[bytes]:
        if not self._has_begun:
            self._has_begun = True
            for kind in ("response.created", "response.in_progress"):
                yield self._event(kind, response=self._response("in_progress", []))

    def _go_on(self, kind: str, which: object, call: Json) -> Iterator[bytes]:
        """Begin an item, unless it is the one that is open."""
        if self._open == (kind, which):
            return
        yield from self._close()
        self._open = (kind, which)
        self._items.append(self._new(kind, call))
        shown = dict(self._items[-1])
        yield self._event("response.output_item.added", output_index=len(self._items) - 1, item=shown)
        if kind != "function_call":
            part = _text("", []) if kind == "message" else _thought("")
            self._items[-1]["content"] = [part]
            yield self._of_item("response.content_part.added", content_index=0, part=dict(part))

    def _more(self, kind: str, text: str, logprobs: list[Json] | None = None) -> Iterator[bytes]:
        part = self._items[-1]["content"][0]
        part["text"] += text
        more: Json = {}
        if kind == "output_text":
            part["logprobs"] += logprobs or []
            more = {"logprobs": logprobs or []}
        yield self._of_item(f"response.{kind}.delta", content_index=0, delta=text, **more)

    def _close(self) -> Iterator[bytes]:
        if self._open is None:
            return
        kind, _ = self._open
        self._open = None
        item = self._items[-1]
        self._settle(item)
        if kind == "function_call":
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield self._of_item("response.function_call_arguments.done", **done)
        else:
            part = item["content"][0]
            more = {"logprobs": part["logprobs"]} if kind == "message" else {}
            word = "output_text" if kind == "message" else "reasoning_text"
            yield self._of_item(f"response.{word}.done", content_index=0, text=part["text"], **more)
            yield self._of_item("response.content_part.done", content_index=0, part=part)
        yield self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)

    def end(self) -> Iterator[bytes]:
        """The events that end a response."""
        yield from self._begin()
        yield from self._close()
        status = self._status()
        yield self._event(f"response.{status}", response=self._response(status, self._items))

    # errors

    def error(self, status: int, error: Json) -> Json:
        """OpenAI's envelope, which is ours."""
        return {"error": error}

    def error_events(self, error: Json) -> Iterator[bytes]:
        """The events that end a broken stream."""
        yield from self._begin()
        said = {"code": "server_error", "message": error.get("message") or ""}
        yield self._event("response.failed", response=self._response("failed", self._items, said))


def _text(text: str, logprobs: list[Json]) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _thought(text: str) -> Json:
    return {"type": "reasoning_text", "text": text}


def _logprobs(given: Any) -> list[Json]:
    content = given.get("content") if isinstance(given, dict) else None
    return [entry for entry in content or () if isinstance(entry, dict)]


def _usage(usage: Any) -> Json | None:
    if not isinstance(usage, dict):
        return None
    prompt, answer = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": answer,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": prompt + answer,
    }
