"""What a conversation needs of an engine: the features by which parity is proven."""

from __future__ import annotations

from chat_templates.battery import Feature
from chat_templates.conversation import Conversation
from chat_templates.rules import REASONING_FIELDS

_INSTRUCTIONS = frozenset({"system", "developer"})


def features_of(conversation: Conversation) -> frozenset[Feature]:
    """Every feature that *conversation* has; ``text`` always."""
    found: set[Feature] = {"text"}
    messages = conversation.messages
    if any(message.get("role") in _INSTRUCTIONS for message in messages):
        found.add("system")
    if sum(message.get("role") not in _INSTRUCTIONS for message in messages) > 1:
        found.add("multi_turn")
    if conversation.tools is not None or any(
        message.get("tool_calls") or message.get("role") == "tool" for message in messages
    ):
        found.add("tools")
    if any(message.get("role") == "assistant" and _thinks(message) for message in messages):
        found.add("reasoning_history")
    if messages and messages[-1].get("role") == "assistant":
        found.add("prefill")
    if any(isinstance(message.get("content"), list) for message in messages):
        found.add("parts")
    return frozenset(found)


def _thinks(message: object) -> bool:
    assert hasattr(message, "get")
    content = message.get("content")
    texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content or ()]
    return any(message.get(field) for field in REASONING_FIELDS) or any("</think>" in text for text in texts)
