"""Anthropic's Messages API, inwards: its requests as chat requests. Pure.

Source: https://docs.anthropic.com/en/api/messages and the types of the `anthropic` package (src/anthropic/types). What
an engine of ours cannot be asked for is refused by its name; what only concerns Anthropic's own service is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from gateway.client_api import Fields, Json, refusal
from gateway.errors import BadRequest

SAME = ("model", "stream", "temperature", "top_p", "top_k", "max_tokens", "chat_template_kwargs")
"""What has the name and the meaning that it has in a chat request of our engines."""

SERVICE = frozenset({"metadata", "service_tier", "container", "inference_geo"})
"""What concerns Anthropic's service: who the user is, what is billed, where it runs."""

TRANSLATED = frozenset({"messages", "system", "stop_sequences", "tools", "tool_choice", "thinking"})

CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_request(body: Json) -> Json:
    """The chat request that *body* asks for. Raises BadRequest."""
    fields = Fields(body)
    unknown = [name for name in body if name not in TRANSLATED and name not in SERVICE and name not in SAME]
    for name in unknown:
        raise refusal(fields, name, "has no counterpart in the engines' APIs")
    chat: Json = {name: body[name] for name in SAME if body.get(name) is not None}
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        raise fields.wrong("messages", "must be a list with at least one message")
    if not isinstance(body.get("max_tokens"), int) or isinstance(body.get("max_tokens"), bool):
        raise fields.wrong("max_tokens", "must be a whole number: the most tokens of the answer")
    chat["messages"] = [*_system(fields), *(said for message in fields.items("messages") for said in _message(message))]
    if body.get("stop_sequences"):
        chat["stop"] = body["stop_sequences"]
    if tools := [_tool(tool) for tool in fields.items("tools")]:
        chat["tools"] = tools
    _choose_tools(chat, fields)
    _think(chat, fields)
    return chat


def _system(fields: Fields) -> Iterator[Json]:
    system = fields.value.get("system")
    if system is None or system == "" or system == []:
        return
    if not isinstance(system, str):
        system = "\n".join(_text_of(block, "a system prompt") for block in fields.items("system"))
    yield {"role": "system", "content": system}


def _text_of(block: Fields, of_what: str) -> str:
    if block.value.get("type") != "text":
        raise block.wrong("type", f"must be text: nothing else can be part of {of_what} here", "unsupported_content")
    return block.text("text")


def _message(message: Fields) -> Iterator[Json]:
    """One message as those it becomes: results of tools are messages of their own in a chat."""
    role, content = message.text("role"), message.value.get("content")
    if role not in ("user", "assistant"):
        raise message.wrong("role", "must be user or assistant")
    if isinstance(content, str):
        yield {"role": role, "content": content}
    elif role == "user":
        yield from _of_user(message)
    else:
        yield _of_assistant(message)


def _of_user(message: Fields) -> Iterator[Json]:
    parts: list[Json] = []
    for block in _blocks(message):
        kind = block.value.get("type")
        if kind == "tool_result":
            if parts:
                yield {"role": "user", "content": _content(parts)}
                parts = []
            yield {"role": "tool", "tool_call_id": block.text("tool_use_id"), "content": _result(block)}
        elif kind == "text":
            parts.append({"type": "text", "text": block.text("text")})
        elif kind == "image":
            parts.append({"type": "image_url", "image_url": {"url": _image(block)}})
        else:
            raise _unknown_kind(block, "text, image or tool_result")
    if parts:
        yield {"role": "user", "content": _content(parts)}


def _of_assistant(message: Fields) -> Json:
    texts, thoughts, calls = [], [], []
    for block in _blocks(message):
        kind = block.value.get("type")
        if kind == "text":
            texts.append(block.text("text"))
        elif kind == "thinking":
            thoughts.append(block.text("thinking"))
        elif kind == "tool_use":
            calls.append(_call(block))
        elif kind != "redacted_thinking":  # encrypted by another service: nothing in it is for us
            raise _unknown_kind(block, "text, thinking or tool_use")
    said: Json = {"role": "assistant", "content": "".join(texts) if texts or not calls else None}
    if thoughts:
        said["reasoning_content"] = "\n".join(thoughts)
    if calls:
        said["tool_calls"] = calls
    return said


def _blocks(message: Fields) -> Iterator[Fields]:
    if not isinstance(message.value.get("content"), list):
        raise message.wrong("content", "must be text or a list of blocks")
    return message.items("content")


def _unknown_kind(block: Fields, known: str) -> BadRequest:
    return block.wrong("type", f"is {block.value.get('type')!r}, and must be {known}", "unsupported_content")


def _content(parts: list[Json]) -> Any:
    # A single text as text: templates that know no parts are many.
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _result(block: Fields) -> str:
    content = block.value.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(_text_of(part, "a tool's result") for part in block.items("content"))


def _image(block: Fields) -> str:
    source = block.object("source")
    if source is None:
        raise block.wrong("source", "is missing")
    kind = source.value.get("type")
    if kind == "base64":
        return f"data:{source.text('media_type')};base64,{source.text('data')}"
    if kind == "url":
        return source.text("url")
    raise source.wrong("type", "must be base64 or url", "unsupported_content")


def _call(block: Fields) -> Json:
    given = block.object("input")
    arguments = orjson.dumps(given.value if given is not None else {}).decode()
    return {
        "id": block.text("id"),
        "type": "function",
        "function": {"name": block.text("name"), "arguments": arguments},
    }


def _tool(tool: Fields) -> Json:
    if tool.value.get("type") not in (None, "custom"):
        raise tool.wrong("type", "names a tool that Anthropic's servers run; only tools of your own can be used")
    function: Json = {"name": tool.text("name")}
    if (description := tool.optional_text("description")) is not None:
        function["description"] = description
    schema = tool.object("input_schema")
    if schema is None:
        raise tool.wrong("input_schema", "is missing")
    return {"type": "function", "function": {**function, "parameters": schema.value}}


def _choose_tools(chat: Json, fields: Fields) -> None:
    choice = fields.object("tool_choice")
    if choice is None:
        return
    kind = choice.text("type")
    if kind == "tool":
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.text("name")}}
    elif kind in CHOICES:
        chat["tool_choice"] = CHOICES[kind]
    else:
        raise choice.wrong("type", "must be auto, any, tool or none")
    if choice.value.get("disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False


def _think(chat: Json, fields: Fields) -> None:
    """Whether a model thinks is its template's to say, and that is asked for by a variable of the template."""
    thinking = fields.object("thinking")
    if thinking is None:
        return
    kind = thinking.text("type")
    if kind not in ("enabled", "disabled", "adaptive"):
        raise thinking.wrong("type", "must be enabled, disabled or adaptive")
    if kind == "enabled":
        message = (
            "cannot be enabled by the request: whether this model thinks is its template's to say"
            ' (where it reads a variable for it, send {"chat_template_kwargs": {"enable_thinking": true}})'
        )
        raise thinking.wrong("type", message, "unsupported_parameter")
