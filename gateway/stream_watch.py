"""Reading over a stream's shoulder: its first token, its usage, its errors, whether it was finished. Pure.

Events pass untouched. Only three kinds are opened: those before the first token, those that speak of usage, and those
that speak of an error; a substring search tells, so an ordinary token costs no JSON.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import orjson

from gateway.errors import translate
from gateway.sse import error_event, event_data, is_done

USAGE = b'"usage"'
ERROR = b'"error"'


class StreamWatch:
    """The state of one stream. *wants_usage*: the client asked for the usage chunk, so it may see it."""

    __slots__ = ("completion_tokens", "has_token", "is_done", "is_failed", "prompt_tokens", "wants_usage")

    def __init__(self, *, wants_usage: bool) -> None:
        self.wants_usage = wants_usage
        self.has_token = False
        """A non-empty delta has passed: content, reasoning or a tool call."""
        self.is_done = False
        self.is_failed = False
        """The engine has reported an error within the stream; nothing after it counts, a ``[DONE]`` least of all."""
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None

    def take(self, events: Iterable[bytes]) -> list[bytes]:
        """The events to forward, in order: *events*, without what the client did not ask for."""
        return [shown for event in events if (shown := self._take_one(event)) is not None]

    def _take_one(self, event: bytes) -> bytes | None:
        if self.is_failed:
            return None
        if is_done(event):
            self.is_done = True
            return event
        if self.has_token and USAGE not in event and ERROR not in event:
            return event
        return self._open(event)

    def _open(self, event: bytes) -> bytes | None:
        chunk = _json_of(event)
        if chunk is None:
            return event
        if chunk.get("error"):
            self.is_failed = True
            return error_event(translate(500, orjson.dumps(chunk)).body())
        if not self.has_token:
            self.has_token = _has_token(chunk)
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self.prompt_tokens = _count(usage, "prompt_tokens")
            self.completion_tokens = _count(usage, "completion_tokens")
            if not self.wants_usage and not chunk.get("choices"):
                return None
        return event


def _json_of(event: bytes) -> dict[str, Any] | None:
    data = event_data(event)
    if data is None:
        return None
    parsed: Any = None
    with contextlib.suppress(orjson.JSONDecodeError):
        parsed = orjson.loads(data)
    return parsed if isinstance(parsed, dict) else None


def _has_token(chunk: dict[str, Any]) -> bool:
    """Whether a chat or completion chunk carries output; a role alone is none."""
    choices = chunk.get("choices")
    if not isinstance(choices, list):
        return False
    for choice in choices:
        if not isinstance(choice, dict):
            continue
        delta = choice.get("delta")
        fields = delta if isinstance(delta, dict) else choice
        if any(fields.get(name) for name in ("content", "text", "reasoning_content", "reasoning", "tool_calls")):
            return True
    return False


def usage_of(body: bytes) -> tuple[int | None, int | None]:
    """Prompt and completion tokens of a whole answer, None where it does not say."""
    parsed: Any = None
    with contextlib.suppress(orjson.JSONDecodeError):
        parsed = orjson.loads(body)
    usage = parsed.get("usage") if isinstance(parsed, dict) else None
    if not isinstance(usage, dict):
        return None, None
    return _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")


def _count(usage: dict[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if isinstance(value, int) else None
