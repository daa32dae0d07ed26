"""What is asked: conversations of one turn or more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]
"""An OpenAI message: ``role``, ``content`` and what else the API takes."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A sequence of questions, each asked once the one before is answered.

    ``name``: where it is from, ``FILE:12`` or ``synthetic:12``. ``turns``: per question the messages it adds to what
    has been said; the answers in between are the server's own. ``prompt_tokens``: of the first question's text,
    without what a chat template adds, where that is known. ``output_tokens``: asked for instead of the run's own
    number.
    """

    name: str
    turns: tuple[tuple[Message, ...], ...]
    prompt_tokens: int | None = None
    output_tokens: int | None = None


def as_text(messages: Sequence[Message]) -> str:
    """The prompt of a text completion: the contents, one after the other, an empty line between."""
    return "\n\n".join(str(message.get("content") or "") for message in messages)
