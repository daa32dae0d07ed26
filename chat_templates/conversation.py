"""What a template is given: a conversation as plain JSON values, frozen for as long as anybody holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SCALARS = frozenset({str, int, float, bool})

Json = Any
"""A JSON value: str, int, float, bool, None, a sequence of them, or a mapping of str to them."""


class ConversationInvalid(Exception):
    """No template was asked: the conversation itself cannot be rendered; the message says what of it, and why."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages and what comes with them, as in the arguments of transformers' `apply_chat_template`.

    messages: each a mapping with at least a role, as in a chat request. tools: JSON schemas as in a chat request; None
    is "no tools", which a template can tell from an empty list. documents: mappings with title and text.
    continue_final_message: leave the last message open, so that the model goes on with it; a str names the field that
    is continued instead of ``content``.
    """

    messages: Sequence[Mapping[str, Json]]
    tools: Sequence[Mapping[str, Json]] | None = None
    documents: Sequence[Mapping[str, Json]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool | str = False


def plain(value: Json, where: str) -> Json:
    """A copy of *value* made of nothing but dict, list, str, int, float, bool and None.

    Templates run code on what they are given, so they are given nothing that has methods of its own. *where* is how a
    person finds the value. Raises ConversationInvalid.
    """
    if value is None or type(value) in _SCALARS:
        return value
    if isinstance(value, Mapping):
        copy = {}
        for key, item in value.items():
            if type(key) is not str:
                raise ConversationInvalid(f"{where}: the key {key!r} is no string")
            copy[key] = plain(item, f"{where}.{key}")
        return copy
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise ConversationInvalid(f"{where}: a {type(value).__name__} is no JSON value")
