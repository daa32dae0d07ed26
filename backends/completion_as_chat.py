"""A chat that is asked for as a completion: the engine is given the finished prompt, and its answer becomes a chat's.

For engines whose chat endpoint takes no finished prompt. What only a chat endpoint can do (tools, log probabilities in
a chat's form) cannot be asked for so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from backends.adapter import Body
from backends.thinking import OPEN, Piece, ThinkSplitter
from backends.translation import AnswerTranslation, Untranslatable

ONLY_IN_CHATS = frozenset({"tools", "tool_choice", "functions", "logprobs", "top_logprobs", "response_format"})
"""Parameters of a chat that a completion has not, or has with another meaning."""

OF_MESSAGES = frozenset({"messages", "chat_template_kwargs", "parallel_tool_calls", *ONLY_IN_CHATS})
"""What has no place beside a finished prompt."""

_DONE = b"data: [DONE]\n\n"
_LIMIT_BYTES = 16 * 1024 * 1024


def completion_body(body: Body, prompt: Any) -> Body | None:
    """The chat request *body* as a completion of *prompt*; None where it asks for what a completion cannot give."""
    asked = [name for name in ONLY_IN_CHATS if body.get(name) not in (None, False, [], {"type": "text"})]
    if asked:
        return None
    kept = {name: value for name, value in body.items() if name not in OF_MESSAGES}
    if "max_completion_tokens" in kept:
        kept["max_tokens"] = kept.pop("max_completion_tokens")
    return {**kept, "prompt": prompt}


def is_thinking(prompt: str) -> bool:
    """Whether an answer to *prompt* begins within the thinking."""
    return prompt.rstrip().endswith(OPEN)


class CompletionAsChat:
    """The answer to one such completion. *inner*: how the engine's own answer becomes a completion of OpenAI's."""

    def __init__(self, *, is_stream: bool, is_thinking: bool, inner: AnswerTranslation | None = None) -> None:
        self.is_stream = is_stream
        self._is_thinking = is_thinking
        self._inner = inner
        self._splitters: dict[int, ThinkSplitter] = {}
        self._pending = bytearray()
        self._is_over = False

    def whole(self, body: bytes) -> bytes:
        """A chat completion. Raises Untranslatable."""
        completion = _object(self._inner.whole(body) if self._inner is not None else body)
        choices = completion.get("choices") if completion is not None else None
        if completion is None or not isinstance(choices, list):
            raise Untranslatable("the backend's answer cannot be read")
        shown = {**completion, "object": "chat.completion", "choices": [self._choice(one) for one in choices]}
        return _dump(shown)

    def _choice(self, choice: Body) -> Body:
        splitter = ThinkSplitter(is_open=self._is_thinking)
        pieces = [splitter.feed(str(choice.get("text") or "")), splitter.end()]
        message: Body = {"role": "assistant", "content": "".join(piece.content for piece in pieces)}
        if thinking := "".join(piece.thinking for piece in pieces):
            message["reasoning_content"] = thinking
        return {**_kept(choice), "message": message}

    def feed(self, chunk: bytes) -> bytes:
        """The events that *chunk*, cut anywhere, completes. What cannot be read becomes an error event, the last."""
        if self._is_over:
            return b""
        self._pending += self._inner.feed(chunk) if self._inner is not None else chunk
        *events, rest = bytes(self._pending).replace(b"\r\n", b"\n").split(b"\n\n")
        self._pending = bytearray(rest)
        if len(self._pending) > _LIMIT_BYTES:
            return b"".join(map(self._event, events)) + self._fail(
                "the backend sent an event longer than any should be"
            )
        return b"".join(map(self._event, events))

    def _event(self, event: bytes) -> bytes:
        data = b"\n".join(line[5:].lstrip() for line in event.split(b"\n") if line.startswith(b"data:"))
        if not data or self._is_over:
            return b""
        if data == b"[DONE]":
            self._is_over = True
            return _DONE
        completion = _object(data)
        if completion is None:
            return self._fail("the backend sent an event that is not JSON")
        if completion.get("error") is not None:
            self._is_over = True
            return b"data: " + data + b"\n\n"
        return b"".join(_shown(chunk) for chunk in self._chunks(completion))

    def _chunks(self, completion: Body) -> Iterator[Body]:
        head = {**completion, "object": "chat.completion.chunk"}
        choices = completion.get("choices") or []
        for choice in choices:
            yield from ({**head, "choices": [one]} for one in self._deltas(choice))
        if not choices:
            yield head

    def _deltas(self, choice: Body) -> Iterator[Body]:
        index = choice.get("index", 0)
        kept = {**_kept(choice), "finish_reason": None}
        splitter = self._splitters.get(index)
        if splitter is None:
            splitter = self._splitters[index] = ThinkSplitter(is_open=self._is_thinking)
            yield {**kept, "delta": {"role": "assistant", "content": ""}}
        has_ended = choice.get("finish_reason") is not None
        for piece in (splitter.feed(str(choice.get("text") or "")), splitter.end() if has_ended else Piece()):
            if piece.thinking:
                yield {**kept, "delta": {"reasoning_content": piece.thinking}}
            if piece.content:
                yield {**kept, "delta": {"content": piece.content}}
        if has_ended:
            yield {**_kept(choice), "delta": {}}

    def _fail(self, message: str) -> bytes:
        self._is_over = True
        return _shown({"error": {"message": message, "type": "api_error", "code": "backend_garbage"}})


def _kept(choice: Body) -> Body:
    return {name: value for name, value in choice.items() if name not in ("text", "logprobs")}


def _object(raw: bytes) -> Body | None:
    try:
        parsed = json.loads(raw)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _shown(value: Mapping[str, Any]) -> bytes:
    return b"data: " + _dump(value) + b"\n\n"


def _dump(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
