"""Reading an answer: what it says, and when each part of it came.

Nothing here waits or sends: bytes go in with the time at which they came, so a recorded stream reads as a live one
does.
"""

from __future__ import annotations

from typing import Any

import orjson

from benchmarks.load.sse import EventSplitter

TEXT_LIMIT = 2000
"""Characters of an error's text that are kept."""


class Reading:
    """What has been read of one answer. Times are those that were handed in; ``None`` while something has not come.

    ``first_chunk``: first event with a choice in it, a mere role too; what `vllm bench serve` calls the first token.
    ``first_token``: first non-empty content, reasoning or tool argument. ``first_output``: the first that is not
    reasoning. ``last_chunk``: last event with a choice in it. ``token_times``: when each event with something in it
    came, and ``token_chars`` how much that was. ``text``: all of that, reasoning too; ``answer``: without reasoning
    and tool calls.
    """

    __slots__ = (
        "answer",
        "error_kind",
        "error_text",
        "fingerprint",
        "finish_reason",
        "first_byte",
        "first_chunk",
        "first_output",
        "first_token",
        "is_done",
        "last_chunk",
        "model",
        "status",
        "text",
        "token_chars",
        "token_times",
        "usage",
    )

    def __init__(self) -> None:
        self.status: int | None = None
        self.first_byte: float | None = None
        self.first_chunk: float | None = None
        self.first_token: float | None = None
        self.first_output: float | None = None
        self.last_chunk: float | None = None
        self.token_times: list[float] = []
        self.token_chars: list[int] = []
        self.text: list[str] = []
        self.answer: list[str] = []
        self.usage: dict[str, Any] | None = None
        self.finish_reason: str | None = None
        self.model: str | None = None
        self.fingerprint: str | None = None
        self.is_done = False
        self.error_kind: str | None = None
        self.error_text: str | None = None

    def head(self, status: int, at: float) -> None:
        """The answer's head came."""
        self.status = status
        self.first_byte = at

    def body(self, piece: bytes, at: float) -> None:
        """A piece of the body came."""
        raise NotImplementedError

    def end(self, at: float) -> None:
        """The answer is complete as HTTP has it; decides what is missing from it."""
        raise NotImplementedError

    def fail(self, kind: str, text: str) -> None:
        """Note what went wrong; the first failure stays."""
        if self.error_kind is None:
            self.error_kind = kind
            self.error_text = text[:TEXT_LIMIT]

    def _refuse(self, body: bytes) -> None:
        self.fail("http", f"{self.status}: {message_of(body)}")

    def _take(self, chunk: dict[str, Any], at: float) -> None:
        error = chunk.get("error")
        if error is None and chunk.get("object") == "error":  # LMDeploy's flat shape, lmdeploy/serve/openai/protocol.py
            error = chunk
        if error is not None:
            self.fail("stream_error", _message_in(error))
            return
        if self.model is None:
            self.model = _text_or_none(chunk.get("model"))
            self.fingerprint = _text_or_none(chunk.get("system_fingerprint"))
        usage = chunk.get("usage")
        if usage and isinstance(usage, dict):
            self.usage = usage
        choices = chunk.get("choices")
        if choices:
            if self.first_chunk is None:
                self.first_chunk = at
            self.last_chunk = at
            self._take_choice(choices[0], at)

    def _take_choice(self, choice: dict[str, Any], at: float) -> None:
        part = choice.get("delta")
        if part is None:
            part = choice.get("message")
        if part is None:
            output = choice.get("text") or ""
            reasoning = ""
        else:
            output = part.get("content") or ""
            reasoning = part.get("reasoning_content") or part.get("reasoning") or ""
            if output:
                self.answer.append(output)
            if part.get("tool_calls"):
                output += _arguments(part["tool_calls"])
        length = len(output) + len(reasoning)
        if length:
            self.token_times.append(at)
            self.token_chars.append(length)
            if self.first_token is None:
                self.first_token = at
            if output and self.first_output is None:
                self.first_output = at
            self.text.append(reasoning + output)
        reason = choice.get("finish_reason")
        if reason:
            self.finish_reason = reason


class StreamReading(Reading):
    """Reads an event stream."""

    __slots__ = ("_refusal", "_splitter")

    def __init__(self) -> None:
        super().__init__()
        self._splitter = EventSplitter()
        self._refusal: list[bytes] = []

    def body(self, piece: bytes, at: float) -> None:
        """Take the events that *piece* completes."""
        if self.status != 200:
            self._refusal.append(piece)
            return
        for payload in self._splitter.feed(piece):
            self._read(payload, at)

    def end(self, at: float) -> None:
        """A stream has to say why it ended, and that it has."""
        for payload in self._splitter.end():
            self._read(payload, at)
        if self.status != 200:
            self._refuse(b"".join(self._refusal))
        elif self.finish_reason is None:
            self.fail("no_finish_reason", "the stream ended without a finish_reason")
        elif not self.is_done:
            self.fail("no_done", "the stream ended without [DONE]")

    def _read(self, payload: bytes, at: float) -> None:
        if payload == b"[DONE]" or payload.strip() == b"[DONE]":
            self.is_done = True
            return
        try:
            chunk = orjson.loads(payload)
        except orjson.JSONDecodeError:
            chunk = None
        if isinstance(chunk, dict):
            self._take(chunk, at)
        else:
            self.fail("garbage", f"an event is not a JSON object: {payload[:200]!r}")


class WholeReading(Reading):
    """Reads an answer that comes as one JSON object. It has no first token: that time is not known to a client."""

    __slots__ = ("_pieces",)

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []

    def body(self, piece: bytes, at: float) -> None:
        """Keep *piece*."""
        self._pieces.append(piece)

    def end(self, at: float) -> None:
        """Read the object."""
        body = b"".join(self._pieces)
        if self.status != 200:
            self._refuse(body)
            return
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            self.fail("garbage", f"the answer is not a JSON object: {body[:200]!r}")
            return
        self._take(answer, at)
        self.token_times.clear()
        self.token_chars.clear()
        self.first_chunk = self.first_token = self.first_output = self.last_chunk = None
        if self.finish_reason is None:
            self.fail("no_finish_reason", "the answer has no finish_reason")
        self.is_done = True


def _arguments(calls: list[dict[str, Any]]) -> str:
    functions = [call.get("function") or {} for call in calls]
    return "".join((function.get("name") or "") + (function.get("arguments") or "") for function in functions)


def message_of(body: bytes) -> str:
    """What an error body says, whatever its shape."""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode("utf-8", "replace").strip()[:TEXT_LIMIT]
    return _message_in(said.get("error", said) if isinstance(said, dict) else said)


def _message_in(error: object) -> str:
    if isinstance(error, dict):
        for name in ("message", "detail"):
            if error.get(name):
                return str(error[name])
    return str(error)


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
