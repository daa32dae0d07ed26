"""A contract's message rules: what happens to a conversation before any template sees it, the same for every engine.

What comes out is what is rendered here and what an engine is asked with, so none of the engines' own habits (parts
joined otherwise, a null that becomes a text, a developer's message moved) has anything left to work on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from chat_templates.contract import MessageRules
from chat_templates.conversation import Conversation, ConversationInvalid, Json
from chat_templates.rules import REASONING_FIELDS

Message = dict[str, Json]

WRITTEN_BY_USERS = frozenset({"user", "tool"})
"""The roles in whose texts special tokens are not the model's own."""

ESCAPE = "\u200b"
"""What is put behind the first character of a special token that is to be no token: a space without width."""


def ruled(rules: MessageRules, conversation: Conversation, special_tokens: Collection[str] = ()) -> Conversation:
    """*conversation* as *rules* have it; twice is as once. special_tokens: the texts of the tokenizer's.

    Raises ConversationInvalid, which names the message.
    """
    control = _any_of(special_tokens) if rules.control_tokens_in_text != "allow" else None
    messages = [
        _message(rules, message, f"messages[{at}]", control) for at, message in enumerate(conversation.messages)
    ]
    has_system = bool(messages) and messages[0]["role"] == "system"
    if rules.system_default is not None and not has_system:
        messages.insert(0, {"role": "system", "content": rules.trim.trimmed("system", rules.system_default)})
    return _ended(rules, replace(conversation, messages=messages))


def _message(rules: MessageRules, message: Json, where: str, control: re.Pattern[str] | None) -> Message:
    if not isinstance(message, Mapping):
        raise ConversationInvalid(f"{where}: is no object")
    copy = dict(message)
    role = copy.get("role")
    if not isinstance(role, str):
        raise ConversationInvalid(f"{where}.role: is missing, or no text")
    if role == "developer" and rules.developer != "as_given":
        if rules.developer == "reject":
            raise ConversationInvalid(f"{where}.role: is developer, which this model's contract does not take")
        role = copy["role"] = "system"
    _set_content(rules, copy, where)
    _set_reasoning(rules, copy)
    if copy.get("tool_calls") is not None:
        copy["tool_calls"] = _calls(copy["tool_calls"], f"{where}.tool_calls")
    if "content" in copy:
        copy["content"] = _each_text(copy["content"], lambda text: rules.trim.trimmed(role, text))
        if control is not None and role in WRITTEN_BY_USERS:
            copy["content"] = _each_text(copy["content"], lambda text: _controlled(rules, text, where, control))
    return copy


def _set_content(rules: MessageRules, message: Message, where: str) -> None:
    content = message.get("content")
    if content is None:
        if rules.content_null == "reject":
            raise ConversationInvalid(f"{where}.content: is missing, which this model's contract does not take")
        message.pop("content", None)
        if rules.content_null == "empty":
            message["content"] = ""
    elif isinstance(content, Sequence) and not isinstance(content, str):
        message["content"] = _parts(rules, content, f"{where}.content")
    elif not isinstance(content, str):
        raise ConversationInvalid(f"{where}.content: is neither text nor a list of parts")


def _parts(rules: MessageRules, parts: Sequence[Json], where: str) -> Json:
    if rules.parts == "reject":
        raise ConversationInvalid(f"{where}: is a list of parts, and this model's contract takes text only")
    for at, part in enumerate(parts):
        if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
            raise ConversationInvalid(f"{where}[{at}]: is no part: it needs a type")
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise ConversationInvalid(f"{where}[{at}].text: is missing, or no text")
        if part["type"] != "text" and rules.parts == "join_newline":
            raise ConversationInvalid(f"{where}[{at}].type: is {part['type']}; this model's contract takes text only")
    if rules.parts == "as_given":
        return [dict(part) for part in parts]
    return "\n".join(part["text"] for part in parts)


def _set_reasoning(rules: MessageRules, message: Message) -> None:
    thoughts = [message.pop(field, None) for field in REASONING_FIELDS]
    thought = next((thought for thought in thoughts if thought is not None), None)
    if thought is not None and rules.reasoning_field != "none":
        message[rules.reasoning_field] = thought


def _calls(calls: Json, where: str) -> Json:
    """Tool calls with their arguments as objects: what templates are written for, and what engines make of them."""
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise ConversationInvalid(f"{where}: is no list")
    made = []
    for at, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            raise ConversationInvalid(f"{where}[{at}].function: is missing, or no object")
        made.append({**call, "function": {**function, **_arguments(function, f"{where}[{at}].function.arguments")}})
    return made


def _arguments(function: Mapping[str, Json], where: str) -> Message:
    given = function.get("arguments")
    if not isinstance(given, str):
        return {}
    try:
        parsed = json.loads(given) if given.strip() else {}
    except (ValueError, RecursionError) as problem:
        raise ConversationInvalid(f"{where}: is no JSON: {problem}") from problem
    if not isinstance(parsed, dict):
        raise ConversationInvalid(f"{where}: is no JSON object")
    return {"arguments": parsed}


def _each_text(content: Json, change: Any) -> Json:
    if isinstance(content, str):
        return change(content)
    return [{**part, "text": change(part["text"])} if part["type"] == "text" else part for part in content]


def _any_of(tokens: Collection[str]) -> re.Pattern[str] | None:
    # one character cannot be broken up, nor what is made of that which breaks
    known = sorted({token for token in tokens if len(token) > 1 and ESCAPE not in token}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, known))) if known else None


def _controlled(rules: MessageRules, text: str, where: str, control: re.Pattern[str]) -> str:
    found = control.search(text)
    if found is None:
        return text
    if rules.control_tokens_in_text == "reject":
        raise ConversationInvalid(f"{where}.content: holds {found[0]!r}, which is a special token of this model")
    while control.search(text) is not None:  # what is left of one may be another
        text = control.sub(lambda token: f"{token[0][0]}{ESCAPE}{token[0][1:]}", text)
    return text


def _ended(rules: MessageRules, conversation: Conversation) -> Conversation:
    """How the answer begins after a last message of the assistant's. A conversation that says so itself keeps it."""
    last = conversation.messages[-1] if conversation.messages else {}
    if last.get("role") != "assistant" or not conversation.add_generation_prompt:
        return conversation
    if rules.trailing_assistant == "reject":
        raise ConversationInvalid("messages: the last one is the assistant's, and nobody has asked anything after it")
    if rules.trailing_assistant == "continue":
        return replace(conversation, add_generation_prompt=False, continue_final_message=True)
    return conversation


def as_openai(messages: Sequence[Mapping[str, Json]]) -> list[Message]:
    """*messages* as a chat request has them: the arguments of tool calls are JSON text there."""
    return [
        {**message, "tool_calls": [_call_as_openai(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else dict(message)
        for message in messages
    ]


def _call_as_openai(call: Mapping[str, Json]) -> Message:
    function = call["function"]
    if not isinstance(function.get("arguments"), Mapping):
        return dict(call)
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
