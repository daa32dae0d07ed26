"""What a conversation needs proven: the features by which the battery's cases are told apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from chat_templates.battery import Feature
from chat_templates.conversation import Conversation, Json
from chat_templates.rules import REASONING_FIELDS

INLINE_REASONING = "<think>"
"""How earlier reasoning looks where it was left in an answer; templates search contents for it."""

_SYSTEM_ROLES = ("system", "developer")


def features_of(conversation: Conversation) -> frozenset[Feature]:
    """Every feature of *conversation*, which is as the contract's message rules made it."""
    return frozenset({"text", *_found(conversation)})


def _found(conversation: Conversation) -> Iterator[Feature]:
    messages = conversation.messages
    roles = [message.get("role") for message in messages]
    if any(role in _SYSTEM_ROLES for role in roles):
        yield "system"
    if sum(role not in _SYSTEM_ROLES for role in roles) > 1:
        yield "multi_turn"
    if conversation.tools is not None or any(_uses_tools(message) for message in messages):
        yield "tools"
    if any(_has_reasoning(message) for message in messages):
        yield "reasoning_history"
    if roles and roles[-1] == "assistant":
        yield "prefill"
    if any(isinstance(message.get("content"), list | tuple) for message in messages):
        yield "parts"


def _uses_tools(message: Mapping[str, Json]) -> bool:
    return message.get("role") == "tool" or bool(message.get("tool_calls"))


def _has_reasoning(message: Mapping[str, Json]) -> bool:
    if any(message.get(name) is not None for name in REASONING_FIELDS):
        return True
    return message.get("role") == "assistant" and INLINE_REASONING in _text(message.get("content"))


def _text(content: Json) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list | tuple):
        return "\n".join(str(part.get("text")) for part in content if isinstance(part, Mapping))
    return ""
