"""Between OpenAI's API and an engine's own: what an adapter has to give for an engine whose OpenAI API falls short."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from backends.adapter import Body


class Untranslatable(Exception):
    """A request that the engine's own API cannot say, or an answer of it that says nothing we know.

    The message is for the client; *param* is the parameter at fault, *code* a short stable word.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class AnswerTranslation(Protocol):
    """One good answer (status 200) of an engine's own API on its way to becoming OpenAI's. Without any I/O."""

    @property
    def is_stream(self) -> bool:
        """Whether it comes piece by piece, for `feed`; else for `whole`."""

    def whole(self, body: bytes) -> bytes:
        """A whole answer. Raises Untranslatable."""

    def feed(self, chunk: bytes) -> bytes:
        """The server-sent events that *chunk*, cut anywhere, completes; maybe none. What cannot be read ends in an
        error event."""


@dataclass(frozen=True, slots=True)
class Translated:
    """A request in an engine's own API, and how its answer is to be read."""

    target: str
    body: Body
    answer: AnswerTranslation
