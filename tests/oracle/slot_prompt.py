"""What a training writes with slots, said without Jinja."""

from __future__ import annotations

import re

from chat_templates.conversation import Conversation
from chat_templates.sources.slots import Blank, Slot, SlotTemplate, Thoughts


def prompt(template: SlotTemplate, conversation: Conversation, bos: str = "", eos: str = "") -> str:
    """The prompt. *conversation*: a system message or none, then user and assistant in turn, the user last."""
    messages = list(conversation.messages)
    system = template.default_system
    if messages[0]["role"] == "system":
        system = messages.pop(0)["content"] or system

    def fill(slot: Slot, content: str = "", rounds: int = 0) -> str:
        filled = {Blank.CONTENT: content, Blank.ROUND: str(rounds), Blank.BOS: bos, Blank.EOS: eos}
        return "".join(piece if isinstance(piece, str) else filled[piece] for piece in slot)

    head = fill(template.system, system) if system and template.system is not None else ""
    written = fill(template.prefix) + ("" if template.is_system_in_user else head)
    rounds = 0
    for message in messages:
        content = message["content"]
        if message["role"] == "user":
            rounds += 1
            written += fill(template.joint) if rounds > 1 else ""
            first = head if template.is_system_in_user and rounds == 1 else ""
            written += fill(template.user, first + content, rounds)
        else:
            written += fill(template.assistant, remembered(template.thoughts, content))
    return written + ("" if template.thoughts is None else template.thoughts.prefill)


def remembered(thoughts: Thoughts | None, answer: str) -> str:
    """An earlier *answer*, as it stands in a later prompt."""
    if thoughts is None or thoughts.is_history_kept:
        return answer
    pattern = f"{re.escape(thoughts.opening)}.*?{re.escape(thoughts.closing)}"
    return re.sub(pattern, "", answer, flags=re.DOTALL).lstrip("\n")
