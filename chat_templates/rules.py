"""The rules of rendering, by version: what happens to a conversation before and after Jinja, and what Jinja offers.

The same Jinja text gives another prompt under other rules, so a contract names the rules it was made under, and rules
once released are never changed: what transformers changes becomes rules of another name. Each set is held equal to the
transformers it is named for by `tests/oracle` (same text, or the same refusal).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from chat_templates.conversation import Conversation, ConversationInvalid, Json, plain
from chat_templates.parsing import environment

GIVEN = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
"""What the conversation itself defines in a template; no variable may take its place."""

CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
"""Marks the end of the message that is continued. Templates see it, so it has to be transformers' own."""

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Under what names a message's reasoning may come; the first that is set wins."""


class Raised(TemplateError):
    """The template called ``raise_exception``."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A conversation as Jinja gets it. continued: the text the prompt has to end with, None if no message is open."""

    given: Mapping[str, Json]
    continued: str | None


@dataclass(frozen=True, slots=True)
class Rules:
    """One version of the rules.

    environment: where templates are compiled. names: what a clock adds to it. prepare: the conversation before Jinja,
    by the template's text; raises ConversationInvalid. finish: the prompt from what Jinja rendered; raises
    ConversationInvalid.
    """

    name: str
    environment: ImmutableSandboxedEnvironment
    names: Callable[[Callable[[], datetime]], dict[str, Any]]
    prepare: Callable[[Conversation, str], Prepared]
    finish: Callable[[str, Prepared], str]


# --- transformers 5.23.0: utils/chat_template_utils.py (render_jinja_template, _compile_jinja_template) and
# tokenization_utils_base.py (apply_chat_template), both under src/transformers


def _raise_exception(message: object) -> NoReturn:
    raise Raised(message)  # type: ignore[arg-type] # a template may pass anything


def _tojson(
    x: Json,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # without the HTML escapes of Jinja's own
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Dict:
    """``dict`` without its type: calling and ``fromkeys`` are all there is."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """``namespace`` that keeps no underscored names, so that nothing private of Python's can be put in its place."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # no parameter is called self: a template may name one of its attributes so
        self, attributes = args[0], dict(*args[1:], **kwargs)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace keeps no attribute whose name starts with an underscore: {name!r}")


def _environment() -> ImmutableSandboxedEnvironment:
    made = environment()
    made.filters["tojson"] = _tojson
    made.globals.update(raise_exception=_raise_exception, dict=_Dict(), namespace=_Namespace)
    return made


def _clock_names(now: Callable[[], datetime]) -> dict[str, Any]:
    def strftime_now(format: str) -> str:  # noqa: A002 - the name templates call it by
        return now().strftime(format)

    return {"strftime_now": strftime_now}


def _prepare(conversation: Conversation, template: str) -> Prepared:
    if not conversation.messages:
        raise ConversationInvalid("messages: there is none")
    if conversation.continue_final_message and conversation.add_generation_prompt:
        raise ConversationInvalid(
            "continue_final_message and add_generation_prompt exclude each other: either the last message goes on, or"
            " a new one begins"
        )
    messages = [_message(message, index) for index, message in enumerate(conversation.messages)]
    continued = None
    if conversation.continue_final_message:
        continued = _open_final_message(messages[-1], conversation.continue_final_message, template)
    return Prepared(
        {
            "messages": messages,
            "tools": _mappings(conversation.tools, "tools"),
            "documents": _mappings(conversation.documents, "documents"),
            "add_generation_prompt": conversation.add_generation_prompt,
        },
        continued,
    )


def _message(message: Mapping[str, Json], index: int) -> dict[str, Json]:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise ConversationInvalid(f"{where}: is no mapping")
    # OpenAI's API answers with nulls; templates test for the key
    copy: dict[str, Json] = plain({key: value for key, value in message.items() if value is not None}, where)
    reasoning = next((copy[field] for field in REASONING_FIELDS if field in copy), None)
    if reasoning is None:
        return copy
    # `thinking`, which gpt-oss's template reads, stays as it was where it is given
    return {"thinking": reasoning, **copy, "reasoning_content": reasoning}


def _mappings(values: Json, where: str) -> list[dict[str, Json]] | None:
    if values is None:
        return None
    for index, value in enumerate(values):
        if not isinstance(value, Mapping):
            raise ConversationInvalid(f"{where}[{index}]: is no mapping")
    made: list[dict[str, Json]] = plain(values, where)
    return made


def _open_final_message(message: dict[str, Json], wanted: bool | str, template: str) -> str:
    """Tag the end of *message* in place; the text that is continued."""
    field = wanted if isinstance(wanted, str) else "content"
    content = message.get(field)
    if content is None:
        raise ConversationInvalid(f"the last message has no {field!r} to continue")
    fields = [field]
    if field in REASONING_FIELDS:
        fields = [name for name in REASONING_FIELDS if message.get(name) == content]
    if not any(name in template for name in fields):
        raise ConversationInvalid(f"the template does not read {field!r}, so it cannot be continued")
    if isinstance(content, list):
        part = next((part for part in reversed(content) if isinstance(part, dict) and "text" in part), None)
        if part is None or not isinstance(part["text"], str):
            raise ConversationInvalid(f"the last message's {field!r} has no text to continue")
        text: str = part["text"]
        part["text"] = text + CONTINUE_TAG
        return text
    if not isinstance(content, str):
        raise ConversationInvalid(f"the last message's {field!r} is no text, so it cannot be continued")
    for name in fields:
        message[name] = content + CONTINUE_TAG
    return content


def _finish(rendered: str, prepared: Prepared) -> str:
    if prepared.continued is None:
        return rendered
    if prepared.continued.strip() not in rendered or CONTINUE_TAG.strip() not in rendered:
        raise ConversationInvalid(
            "the last message cannot be continued: the template does not render it as it is (it may drop or rewrite a"
            " part of it)"
        )
    end = rendered.rindex(CONTINUE_TAG.strip())
    if rendered.startswith(CONTINUE_TAG, end):
        return rendered[:end]
    # the template trims the message, and with it the tag's own space
    return rendered[:end].rstrip()


TRANSFORMERS_5_23 = Rules("transformers-5.23", _environment(), _clock_names, _prepare, _finish)

RULES: Mapping[str, Rules] = {rules.name: rules for rules in (TRANSFORMERS_5_23,)}
"""All versions there are."""
