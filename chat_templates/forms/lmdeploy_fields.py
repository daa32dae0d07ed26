"""LMDeploy's own chat template: eleven fields in JSON, for ``--chat-template FILE``.

Source: lmdeploy/model.py of LMDeploy 0.18.0 (`ChatTemplateConfig`, `BaseChatTemplate.messages2prompt`). It has one text
before and after each role, so it says less than a linear template; `lmdeploy_overlay` says everything. A field that is
null is dropped and becomes empty, so that there is always a system block: `T10`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from chat_templates.conversation import Conversation
from chat_templates.probing import END, START, Linear, NoPlace
from chat_templates.refusals import CannotDerive, Refusal
from chat_templates.visible import parting

ROLE_FIELDS: Mapping[str, tuple[str, str]] = {
    "system": ("system", "eosys"),
    "user": ("user", "eoh"),
    "assistant": ("assistant", "eoa"),
    "tool": ("tool", "eotool"),
}


@dataclass(frozen=True, slots=True)
class LmdeployFields:
    """The fields by LMDeploy's names. meta_instruction: the system text where none is given."""

    model_name: str
    system: str = ""
    meta_instruction: str = ""
    eosys: str = ""
    user: str = ""
    eoh: str = ""
    assistant: str = ""
    eoa: str = ""
    separator: str = ""
    capability: str = "chat"
    stop_words: tuple[str, ...] = ()

    def text(self) -> str:
        """The JSON file."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n"

    def prompt(self, conversation: Conversation) -> str:
        """The prompt that LMDeploy makes with it, tools left out. Raises NoPlace for what it refuses."""
        messages = [(message["role"], _content(message.get("content"))) for message in conversation.messages]
        pieces = []
        if messages[0][0] != "system":
            pieces.append(self.system + self.meta_instruction + self.eosys)
        for role, content in messages:
            opening, closing = self._around(role)
            pieces += [opening, content, closing]
        if messages[-1][0] == "assistant":
            # the last answer is left open, for the model to go on with
            return "".join(pieces[:-1])
        return "".join([*pieces, self.assistant])

    def _around(self, role: str) -> tuple[str, str]:
        match role:
            case "system":
                return self.system, self.eosys
            case "user":
                return self.user, self.eoh
            case "assistant":
                return self.assistant, self.eoa + self.separator
            case "tool":
                return "", ""
        raise NoPlace(f"a message of {role}")


def _content(content: object) -> str:
    """serve/processors/multimodal.py (`merge_message_content`): text parts are joined by a line end."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "\n".join(part["text"] for part in content)
    raise NoPlace("a content that is no text")


def lmdeploy_fields(
    linear: Linear, closings: tuple[str, str], *, name: str, stop_words: Sequence[str] = ()
) -> LmdeployFields:
    """*linear* in fields, to be compared with the template. Raises CannotDerive.

    closings: as `closings_of` finds them. They decide what belongs to which of two fields that stand side by side,
    which matters outside the core only. name: of the template; LMDeploy takes its own where it has one of that name.
    """
    borders = linear.borders
    head, answer = borders["user", "assistant"], borders["user", END]
    if head != answer:
        sentence = "the head of the answer to come is not the head of a past answer, and LMDeploy has one text for both"
        raise CannotDerive(Refusal("T05", sentence, "the end of a conversation, and its middle", answer, head))
    after_system = borders["system" if linear.has_system else START, "user"]
    user = _user(borders["assistant", "user"], after_system, closings[1])
    # without a place for a system message it would be rendered bare, which the comparison finds
    system = borders.get((START, "system"), "")
    eosys = after_system.removesuffix(user) if linear.has_system else ""
    eoh = closings[0] if head.startswith(closings[0]) else ""
    return LmdeployFields(
        name,
        system,
        _meta_instruction(borders[START, "user"], system, eosys + user),
        eosys,
        user,
        eoh,
        head.removeprefix(eoh),
        borders["assistant", "user"].removesuffix(user),
        stop_words=tuple(stop_words),
    )


def _user(after_answer: str, after_system: str, closing: str) -> str:
    """The text before a user message: an end that both have."""
    wanted = after_answer.removeprefix(closing)
    if after_system.endswith(wanted):
        return wanted
    length = parting(after_answer[::-1], after_system[::-1])
    return after_answer[len(after_answer) - length :]


def _meta_instruction(first: str, system: str, rest: str) -> str:
    """What a conversation without a system message is given for one. Raises CannotDerive."""
    if len(first) >= len(system) + len(rest) and first.startswith(system) and first.endswith(rest):
        return first[len(system) : len(first) - len(rest)]
    sentence = "LMDeploy's fields always render a system block, and the template leaves it out where there is no system"
    raise CannotDerive(Refusal("T10", sentence, "the beginning of a conversation", first, system + rest))
