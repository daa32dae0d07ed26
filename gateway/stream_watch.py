"""Reading over a stream's shoulder: its first token, its usage, its errors, whether it was finished. Pure.

Theory of operation
-------------------
A stream is a hundred times the same chunk around another piece of text. The first such chunk is opened; what stands
before and after its text is remembered as a *frame*, together with what is to be shown in its place. An event that
fits the frame is a token and nothing else, so it costs three comparisons and no JSON: it passes untouched, or, for an
engine whose every chunk has to be changed, gets its new surroundings. Whatever does not fit is looked at: searched for
the words that matter (usage, error, a finish reason, reasoning), and opened when it has one.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from backends.dialect import Quirk
from gateway.errors import BadGateway, translate
from gateway.normalisation import Appearance, Normaliser
from gateway.sse import error_event, event_data, is_done

LESSONS = 16
"""So many frames are learnt in one stream: enough for thinking, answer and tools, and a bound for what never fits."""

_QUOTE = 0x22
_WORDS = (b'"usage"', b'"error"', b'"reasoning"', b'"finish_reason":"', b'"finish_reason": "')
"""Inside a JSON text quotes are escaped, so these can be nothing but keys."""
_TEXT = re.compile(rb'"(?:content|text|reasoning_content|reasoning)": ?"((?:[^"\\]|\\.)+)"')


@dataclass(frozen=True, slots=True)
class Frame:
    """What surrounds the text of a chunk: as the engine writes it, and as it is *shown*."""

    head: bytes
    tail: bytes
    shown_head: bytes
    shown_tail: bytes
    is_shown_as_it_comes: bool
    start: int
    """Where a text begins."""
    end: int
    """Where it ends, counted from the event's end, so below 0."""

    def fits(self, event: bytes) -> bool:
        """Whether *event* is a text in this frame and nothing else."""
        return (
            event.startswith(self.head)
            and event.endswith(self.tail)
            and len(event) > self.start - self.end
            and (event.find(_QUOTE, self.start, self.end) < 0 or _has_only_escaped_quotes(event[self.start : self.end]))
        )

    def show(self, event: bytes) -> bytes:
        """*event*, which fits, as it is to be shown."""
        if self.is_shown_as_it_comes:
            return event
        return self.shown_head + event[self.start : self.end] + self.shown_tail


def _has_only_escaped_quotes(text: bytes) -> bool:
    """Whether every quote in a piece of JSON is part of its string. Pairs of backslashes are not gone into."""
    return rb"\\" not in text and text.count(b'"') == text.count(rb"\"")


class StreamWatch:
    """The state of one stream. *wants_usage*: the client asked for the usage chunk, so it may see it."""

    __slots__ = (
        "_edits_all",
        "_frame",
        "_lessons",
        "_needs_finish",
        "_normaliser",
        "completion_tokens",
        "has_finish",
        "has_token",
        "is_done",
        "is_failed",
        "prompt_tokens",
        "wants_usage",
    )

    def __init__(self, *, wants_usage: bool, appearance: Appearance | None = None) -> None:
        look = appearance or Appearance()
        self._normaliser = Normaliser(look, wants_usage)
        self._edits_all = look.edits_every_chunk
        self._needs_finish = Quirk.ALWAYS_FINISHES in look.dialect.quirks
        self._frame: Frame | None = None
        self._lessons = LESSONS
        self.wants_usage = wants_usage
        self.has_token = False
        """A non-empty delta has passed: content, reasoning or a tool call."""
        self.has_finish = False
        """A finish reason has passed."""
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
        if self._frame is not None and self._frame.fits(event):
            return self._frame.show(event)
        if is_done(event):
            return self._end(event)
        if self._edits_all or not self.has_token or self._lessons or any(word in event for word in _WORDS):
            return self._open(event)
        return event

    def _end(self, event: bytes) -> bytes | None:
        """``[DONE]``. Of an engine that always names a finish reason, one without is kept back: it is not true."""
        if self._needs_finish and not self.has_finish:
            return None
        self.is_done = True
        return event

    def _open(self, event: bytes) -> bytes | None:
        chunk = _json_of(event)
        if chunk is None:
            return event
        if chunk.get("error"):
            forms = self._normaliser.appearance.dialect.error_forms
            return self._fail(translate(500, orjson.dumps(chunk), forms).body())
        usage = chunk.get("usage")
        try:
            changed = self._normaliser.chunk(chunk)
        except BadGateway as broken_off:
            return self._fail(broken_off.body())
        self._look(chunk)
        shown = b"data: " + orjson.dumps(chunk) + b"\n\n" if changed else event
        self._learn(event, shown, chunk)
        return None if isinstance(usage, dict) and self._count_usage(usage, chunk) else shown

    def _count_usage(self, usage: dict[str, Any], chunk: dict[str, Any]) -> bool:
        """Take down what *usage* says; returns whether *chunk* is nothing but usage that the client did not ask for."""
        has_output = bool(chunk.get("choices"))
        if any(usage.values()) or not has_output:
            self.prompt_tokens = _count(usage, "prompt_tokens")
            self.completion_tokens = _count(usage, "completion_tokens")
        return not has_output and not self.wants_usage

    def _fail(self, payload: bytes) -> bytes:
        self.is_failed = True
        return error_event(payload)

    def _look(self, chunk: dict[str, Any]) -> None:
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            return
        for choice in choices:
            if isinstance(choice, dict):
                self.has_token = self.has_token or _has_token(choice)
                self.has_finish = self.has_finish or bool(choice.get("finish_reason"))

    def _learn(self, event: bytes, shown: bytes, chunk: dict[str, Any]) -> None:
        if not self._lessons or not self.has_token:
            return
        frame = _frame(event, shown) if _is_plain_token(chunk) else None
        if frame is None or frame != self._frame:
            self._lessons -= 1
        self._frame = frame or self._frame


def _is_plain_token(chunk: dict[str, Any]) -> bool:
    """Whether *chunk*, as it is shown, is what the next ones will be too but for its text."""
    choices = chunk.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict) or chunk.get("usage"):
        return False
    delta = choices[0].get("delta")
    is_repeated = not isinstance(delta, dict) or "role" not in delta
    return is_repeated and not choices[0].get("finish_reason") and not choices[0].get("logprobs")


def _frame(event: bytes, shown: bytes) -> Frame | None:
    """The frame in which *event* holds its one text, None if it holds none or several."""
    texts, shown_texts = list(_TEXT.finditer(event)), list(_TEXT.finditer(shown))
    if len(texts) != 1 or len(shown_texts) != 1 or not event.endswith(b"\n\n"):
        return None
    start, end = texts[0].span(1)
    shown_start, shown_end = shown_texts[0].span(1)
    head, tail = event[:start], event[end:]
    return Frame(head, tail, shown[:shown_start], shown[shown_end:], event is shown, start, -len(tail))


def _json_of(event: bytes) -> dict[str, Any] | None:
    data = event_data(event)
    if data is None:
        return None
    parsed: Any = None
    with contextlib.suppress(orjson.JSONDecodeError):
        parsed = orjson.loads(data)
    return parsed if isinstance(parsed, dict) else None


def _has_token(choice: dict[str, Any]) -> bool:
    """Whether a chat or completion choice carries output; a role alone is none."""
    delta = choice.get("delta")
    fields = delta if isinstance(delta, dict) else choice
    return any(fields.get(name) for name in ("content", "text", "reasoning_content", "reasoning", "tool_calls"))


def usage_of(answer: dict[str, Any]) -> tuple[int | None, int | None]:
    """Prompt and completion tokens of a whole answer, None where it does not say."""
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return None, None
    return _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")


def _count(usage: dict[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if isinstance(value, int) else None
