"""Message rules: what a contract does with a conversation before any template sees it, the same for every engine.

Whoever renders, an engine or we, is given the conversation that comes out. To apply the rules twice changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from chat_templates.contract import MessageRules
from chat_templates.conversation import Conversation, ConversationInvalid, Json, plain
from chat_templates.rules import REASONING_FIELDS

TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
"""The kinds of parts that are text, in OpenAI's two APIs; each has it in ``text``."""

BREAK = "\u2060"
"""WORD JOINER: what escaping puts after a special token's first character, so that no tokenizer knows it."""

_Message = dict[str, Json]


def ruled(rules: MessageRules, conversation: Conversation, control_tokens: Collection[str] = ()) -> Conversation:
    """*conversation* as *rules* have it. control_tokens: the texts that the model's tokenizer takes for special tokens.

    Arguments of tool calls become mappings, as every engine makes them; a key whose value is null is left out, as
    transformers does; an empty list of tools is no tools, which some engines refuse, some pass over and some write
    into the prompt. Raises ConversationInvalid, whose message names the message and the rule at fault.
    """
    messages = [_ruled(rules, message, f"messages[{index}]") for index, message in enumerate(conversation.messages)]
    if not messages:
        raise ConversationInvalid("messages: there is none")
    if rules.system_default is not None and not any(message["role"] in ("system", "developer") for message in messages):
        messages.insert(0, {"role": "system", "content": rules.trim.trimmed("system", rules.system_default)})
    made = replace(
        _ended(rules, conversation, messages[-1]["role"]),
        messages=messages,
        tools=_mappings(conversation.tools, "tools") or None,
        documents=_mappings(conversation.documents, "documents"),
    )
    return made if rules.control_tokens_in_text == "allow" else _without_control_tokens(rules, made, control_tokens)


def as_requested(messages: Sequence[Mapping[str, Json]]) -> list[dict[str, Json]]:
    """Ruled *messages* as a chat request has them: arguments of tool calls are JSON text in OpenAI's API."""
    return [_requested(message) for message in messages]


def request_fields(conversation: Conversation) -> dict[str, Json]:
    """The fields of a chat request that say a ruled *conversation*: its messages, its tools, and how it ends."""
    fields: dict[str, Json] = {"messages": as_requested(conversation.messages)}
    if conversation.tools is not None:
        fields["tools"] = list(conversation.tools)
    if conversation.continue_final_message:
        fields |= {"add_generation_prompt": False, "continue_final_message": True}
    elif not conversation.add_generation_prompt:
        fields["add_generation_prompt"] = False
    return fields


def _requested(message: Mapping[str, Json]) -> dict[str, Json]:
    if "tool_calls" not in message:
        return dict(message)
    return {**message, "tool_calls": [_called_with_text(call) for call in message["tool_calls"]]}


def _called_with_text(call: Mapping[str, Json]) -> dict[str, Json]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


# --- one message


def _ruled(rules: MessageRules, given: Json, where: str) -> _Message:
    if not isinstance(given, Mapping):
        raise ConversationInvalid(f"{where}: is no object")
    message: _Message = {key: value for key, value in plain(given, where).items() if value is not None}
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise ConversationInvalid(f"{where}.role: is no text")
    if role == "developer" and rules.developer == "reject":
        raise ConversationInvalid(f"{where}.role: this model has no developer messages; send it as a system message")
    if role == "developer" and rules.developer == "system":
        message["role"] = role = "system"
    _set_content(rules, message, where)
    if isinstance(message.get("content"), str):
        message["content"] = rules.trim.trimmed(role, message["content"])
    _set_reasoning(rules, message, where)
    _set_tool_calls(message, where)
    return message


def _set_content(rules: MessageRules, message: _Message, where: str) -> None:
    match message.get("content"):
        case None if rules.content_null == "reject":
            raise ConversationInvalid(f"{where}.content: is missing or null, which this model's contract rejects")
        case None if rules.content_null == "empty":
            message["content"] = ""
        case None | str():
            pass
        case list() as parts:
            message["content"] = _of_parts(rules, parts, f"{where}.content")
        case other:
            raise ConversationInvalid(f"{where}.content: is {_kind(other)}, and has to be text or a list of parts")


def _of_parts(rules: MessageRules, parts: list[Json], where: str) -> Json:
    if rules.parts == "reject":
        raise ConversationInvalid(f"{where}: is a list of parts, and this model's contract takes text only")
    if rules.parts == "as_given":
        return parts
    return "\n".join(_text_of(part, f"{where}[{index}]") for index, part in enumerate(parts))


def _text_of(part: Json, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise ConversationInvalid(f"{where}: is {_kind(part)}, and has to be an object")
    kind = part.get("type", "text")
    if kind not in TEXT_PARTS:
        raise ConversationInvalid(f"{where}: is a part of the type {kind!r}, and this model's contract takes text only")
    text = part.get("text")
    if not isinstance(text, str):
        raise ConversationInvalid(f"{where}.text: is {_kind(text)}, and has to be text")
    return text


def _set_reasoning(rules: MessageRules, message: _Message, where: str) -> None:
    """Under the one name that the contract has for it, or not at all."""
    found = [(name, message.pop(name)) for name in REASONING_FIELDS if name in message]
    for name, reasoning in found:
        if not isinstance(reasoning, str):
            raise ConversationInvalid(f"{where}.{name}: is {_kind(reasoning)}, and has to be text")
    if found and rules.reasoning_field != "none":
        message[rules.reasoning_field] = found[0][1]


def _set_tool_calls(message: _Message, where: str) -> None:
    calls = message.pop("tool_calls", [])
    if not isinstance(calls, list):
        raise ConversationInvalid(f"{where}.tool_calls: is {_kind(calls)}, and has to be a list")
    # an empty list says what a missing one says, and templates that only test for the key would take it for calls
    if calls:
        message["tool_calls"] = [_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls)]


def _call(call: Json, where: str) -> Json:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ConversationInvalid(f"{where}: is no call of a function with a name")
    return {**call, "function": {**function, "arguments": _arguments(function.get("arguments"), where)}}


def _arguments(given: Json, where: str) -> dict[str, Json]:
    parsed = given
    if isinstance(given, str):
        try:
            # what no arguments look like in OpenAI's API, where some clients stream nothing for them
            parsed = json.loads(given) if given.strip() else {}
        except (ValueError, RecursionError) as problem:
            raise ConversationInvalid(f"{where}.function.arguments: is no JSON: {problem}") from problem
    if parsed is None:
        return {}
    if not isinstance(parsed, dict):
        raise ConversationInvalid(f"{where}.function.arguments: is {_kind(parsed)}, and has to be a JSON object")
    return parsed


# --- the conversation


def _ended(rules: MessageRules, conversation: Conversation, last_role: str) -> Conversation:
    """Whether the last message is left open, by the contract's word for one of the assistant's."""
    if conversation.continue_final_message and (last_role != "assistant" or rules.trailing_assistant != "continue"):
        reason = "the last message is not the assistant's"
        if last_role == "assistant":
            reason = f"this model's contract has trailing_assistant: {rules.trailing_assistant}"
        raise ConversationInvalid(f"the last message cannot be continued: {reason}")
    if last_role != "assistant" or not conversation.add_generation_prompt:
        return conversation
    if rules.trailing_assistant == "reject":
        raise ConversationInvalid("the last message is the assistant's, which this model's contract rejects")
    if rules.trailing_assistant == "continue":
        return replace(conversation, add_generation_prompt=False, continue_final_message=True)
    return conversation


def _mappings(values: Json, where: str) -> list[dict[str, Json]] | None:
    if values is None:
        return None
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise ConversationInvalid(f"{where}: is {_kind(values)}, and has to be a list")
    for index, value in enumerate(values):
        if not isinstance(value, Mapping):
            raise ConversationInvalid(f"{where}[{index}]: is {_kind(value)}, and has to be an object")
    made: list[dict[str, Json]] = plain(values, where)
    return made


# --- special tokens that a user wrote out


def _without_control_tokens(rules: MessageRules, conversation: Conversation, tokens: Collection[str]) -> Conversation:
    # white space that is a token (Gemma's line ends) stands in every text, and one character cannot be broken
    known = sorted(
        (token for token in tokens if len(token) > 1 and not token.isspace() and BREAK not in token), key=len
    )
    if not known:
        return conversation
    pattern = re.compile("|".join(map(re.escape, reversed(known))))
    if rules.control_tokens_in_text == "reject":
        for where, text in _texts_of(conversation):
            if (found := pattern.search(text)) is not None:
                raise ConversationInvalid(
                    f"{where}: holds the special token {found.group()!r}, which this model's contract rejects"
                )
        return conversation

    def escaped(text: str) -> str:
        # again, because what is left of a broken one may be another
        while pattern.search(text):
            text = pattern.sub(lambda found: found.group()[0] + BREAK + found.group()[1:], text)
        return text

    return replace(
        conversation,
        messages=[
            {key: value if key == "role" else _mapped(value, escaped) for key, value in message.items()}
            for message in conversation.messages
        ],
        tools=_mapped(conversation.tools, escaped),
        documents=_mapped(conversation.documents, escaped),
    )


def _texts_of(conversation: Conversation) -> Iterator[tuple[str, str]]:
    """Every text that came with *conversation*, and where it is."""
    for name in ("messages", "tools", "documents"):
        yield from _texts(getattr(conversation, name), name)


def _texts(value: Json, where: str) -> Iterator[tuple[str, str]]:
    match value:
        case str():
            yield where, value
        case Mapping():
            for key, item in value.items():
                yield from _texts(item, f"{where}.{key}")
        case list() | tuple():
            for index, item in enumerate(value):
                yield from _texts(item, f"{where}[{index}]")


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    match value:
        case str():
            return change(value)
        case Mapping():
            return {key: _mapped(item, change) for key, item in value.items()}
        case list() | tuple():
            return [_mapped(item, change) for item in value]
        case _:
            return value


_KINDS: Mapping[type, str] = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def _kind(value: Json) -> str:
    return _KINDS.get(type(value), f"a {type(value).__name__}")
