"""Slot templates: what fine-tuning tools train with. A text around every message, by role, and nothing else.

`SlotTemplate.jinja` says in Jinja what a training writes, so that it can be rendered, enforced and proven like every
other template. Where Jinja would go on and write what no training wrote (tools, unknown roles, content that is no
text), the generated template refuses.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from chat_templates.forms.pinned_jinja import literal


class Blank(enum.Enum):
    """What is filled in. ROUND, of user messages only: how many of them there are so far, from 1. BOS, EOS: the
    tokenizer's, nothing where it has none."""

    CONTENT = "content"
    ROUND = "round"
    BOS = "bos_token"
    EOS = "eos_token"


Slot = tuple[str | Blank, ...]
"""Texts and blanks in the order in which they are written."""

CONTENT: Slot = (Blank.CONTENT,)


def around(before: str, after: str) -> Slot:
    """The slot that writes *before*, the content, and *after*."""
    return (before, Blank.CONTENT, after)


@dataclass(frozen=True, slots=True)
class Thoughts:
    """How a template trained with reasoning treats it.

    opening, closing: what stands around a thought in an answer. is_history_kept: False cuts the thoughts of earlier
    answers. prefill: what is written at the end of the prompt; an empty thought where the model is not to think.
    """

    opening: str
    closing: str
    is_history_kept: bool = False
    prefill: str = ""


@dataclass(frozen=True, slots=True)
class SlotTemplate:
    """Slots by role.

    prefix: written first. system: None where the template knows no system message. default_system: the system message
    of a conversation that has none or an empty one; None writes none. is_system_in_user: the filled system slot becomes
    the beginning of the first user message's content. joint: written before every user message but the first.

    The user's slot ends with the head of the answer.
    """

    user: Slot
    assistant: Slot
    system: Slot | None = CONTENT
    prefix: Slot = ()
    default_system: str | None = None
    is_system_in_user: bool = False
    joint: Slot = ()
    thoughts: Thoughts | None = None

    def jinja(self, maker: str) -> str:
        """The Jinja template: it renders what training writes, and refuses what training never wrote.

        maker: whose template it is, for the comment at its head; a name without Jinja's signs.
        """
        lines = [*self._head(maker), *self._body(), *self._end()]
        return "\n".join(line for line in lines if line) + "\n"

    @property
    def _cuts_thoughts(self) -> bool:
        return self.thoughts is not None and not self.thoughts.is_history_kept

    def _head(self, maker: str) -> list[str]:
        take_system = "{%- set ns.system = messages[0].content or ns.system -%}"
        if self.system is None:
            take_system = _refusal("this template knows no system message")
        lines = [
            f"{{#- made by Unigate from {maker} -#}}",
            _if("tools", _refusal("this template knows no tools")),
            f"{{%- set ns = namespace(system={literal(self.default_system)}, round=0, rest=messages) -%}}",
            _if(
                'messages[0].role == "system"',
                _text_only("messages[0]"),
                take_system,
                "{%- set ns.rest = messages[1:] -%}",
            ),
        ]
        if self.thoughts is not None and self._cuts_thoughts:
            lines.append(_cut_macro(self.thoughts))
        lines.append(_output(*_expressions(self.prefix)))
        if self.system is not None and not self.is_system_in_user:
            lines.append(_if("ns.system", _output(*_expressions(self.system, "ns.system"))))
        return lines

    def _body(self) -> list[str]:
        content = "message.content"
        if self.system is not None and self.is_system_in_user:
            head = " ~ ".join(_expressions(self.system, "ns.system")) or '""'
            content = f'(({head} if ns.round == 1 and ns.system else "") ~ message.content)'
        answer = "message.content"
        if self._cuts_thoughts:
            # the message that is continued is not history
            answer = "(message.content if loop.last else without_thoughts(message.content))"
        return [
            "{%- for message in ns.rest -%}",
            _text_only("message"),
            '{%- if message.role == "user" -%}',
            "{%- set ns.round = ns.round + 1 -%}",
            _if("ns.round > 1", _output(*_expressions(self.joint))) if self.joint else "",
            _output(*_expressions(self.user, content)),
            '{%- elif message.role == "assistant" and not message.tool_calls -%}',
            _output(*_expressions(self.assistant, answer)),
            "{%- else -%}",
            _refusal("this template knows no message of this role here"),
            "{%- endif -%}",
            "{%- endfor -%}",
        ]

    def _end(self) -> list[str]:
        prefill = "" if self.thoughts is None else self.thoughts.prefill
        sentence = "this template begins an answer only after a message of the user"
        return [
            _if(
                "add_generation_prompt",
                _if('messages[-1].role != "user"', _refusal(sentence)),
                _output(literal(prefill)) if prefill else "",
            )
        ]


def _expressions(slot: Sequence[str | Blank], content: str = '""') -> list[str]:
    filled = {
        Blank.CONTENT: content,
        Blank.ROUND: "ns.round",
        # an undefined name is nothing in Jinja too
        Blank.BOS: Blank.BOS.value,
        Blank.EOS: Blank.EOS.value,
    }
    return [literal(piece) if isinstance(piece, str) else filled[piece] for piece in slot if piece != ""]


def _output(*expressions: str) -> str:
    return f"{{{{- {' ~ '.join(expressions)} -}}}}" if expressions else ""


def _if(condition: str, *lines: str) -> str:
    body = "\n".join(line for line in lines if line)
    return f"{{%- if {condition} -%}}\n{body}\n{{%- endif -%}}" if body else ""


def _refusal(message: str) -> str:
    return f"{{{{- raise_exception({literal(message)}) -}}}}"


def _text_only(message: str) -> str:
    return _if(f"{message}.content is not string", _refusal("this template knows only content that is text"))


def _cut_macro(thoughts: Thoughts) -> str:
    """Cuts from each opening up to the next closing, and then newlines at the beginning."""
    opening, closing = literal(thoughts.opening), literal(thoughts.closing)
    return "\n".join(
        [
            "{%- macro without_thoughts(content) -%}",
            f"{{%- set parts = content.split({opening}) -%}}",
            '{%- set cut = namespace(text=parts[0], pending="") -%}',
            "{%- for part in parts[1:] -%}",
            f"{{%- if {closing} in part -%}}",
            f"{{%- set cut.text = cut.text ~ part.split({closing}, 1)[1] -%}}",
            '{%- set cut.pending = "" -%}',
            "{%- else -%}",
            f"{{%- set cut.pending = cut.pending ~ {opening} ~ part -%}}",
            "{%- endif -%}",
            "{%- endfor -%}",
            r'{{- (cut.text ~ cut.pending).lstrip("\n") -}}',
            "{%- endmacro -%}",
        ]
    )
