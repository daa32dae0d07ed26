"""OpenAI's Responses API, inwards: its requests as chat requests. Pure.

Source: https://platform.openai.com/docs/api-reference/responses and the types of the `openai` package
(src/openai/types/responses, 3.54.0). Nothing is stored here, so what refers to something stored is refused; what an
engine cannot be asked for is refused by its name; what concerns OpenAI's own service alone is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway.client_api import Fields, Json, objects, refusal

SAME = ("model", "stream", "temperature", "top_p", "parallel_tool_calls", "top_logprobs", "chat_template_kwargs")
"""What has the name and the meaning that it has in a chat request."""

SERVICE = frozenset(
    {
        "store", "metadata", "user", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options",
        "prompt_cache_retention", "stream_options", "access_programs",
    }
)  # fmt: skip
"""What concerns OpenAI's service: what it keeps, whom it bills, how it caches."""

TRANSLATED = frozenset({"input", "instructions", "max_output_tokens", "text", "tools", "tool_choice", "reasoning"})

HARMLESS = {"truncation": "disabled", "background": False, "include": [], "previous_response_id": None}
"""What asks for nothing with this value, and cannot be had with another."""

ROLES = ("user", "assistant", "system", "developer")


def chat_request(body: Json) -> Json:
    """The chat request that *body* asks for. Raises BadRequest."""
    fields = Fields(body)
    for name, value in body.items():
        known = name in TRANSLATED or name in SERVICE or name in SAME
        if not known and value is not None and HARMLESS.get(name) != value:
            what = "refers to what was stored, and this gateway stores no answers"
            if name not in ("previous_response_id", "conversation", "prompt"):
                what = "has no counterpart in the engines' APIs"
            raise refusal(fields, name, what)
    chat: Json = {name: body[name] for name in SAME if body.get(name) is not None}
    if "top_logprobs" in chat:
        chat["logprobs"] = True
    if body.get("max_output_tokens") is not None:
        chat["max_tokens"] = body["max_output_tokens"]
    chat["messages"] = [*_instructions(fields), *_input(fields)]
    if tools := [_tool(tool) for tool in fields.items("tools")]:
        chat["tools"] = tools
    _choose_tools(chat, fields)
    _format(chat, fields)
    reasoning = fields.object("reasoning")
    if reasoning is not None and reasoning.value.get("effort") is not None:
        chat["reasoning_effort"] = reasoning.text("effort")
    return chat


def _instructions(fields: Fields) -> Iterator[Json]:
    if instructions := fields.optional_text("instructions"):
        yield {"role": "system", "content": instructions}


def _input(fields: Fields) -> list[Json]:
    given = fields.value.get("input")
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise fields.wrong("input", "must be text, or a list with at least one item")
    said: list[Json] = []
    for item in objects(given, "input"):
        _add(said, item)
    return said


def _add(said: list[Json], item: Fields) -> None:
    """One item of the input; what the assistant thought, said and called in one turn is one message of a chat."""
    kind = item.value.get("type", "message")
    if kind == "message":
        role = item.text("role")
        if role not in ROLES:
            raise item.wrong("role", f"must be one of {', '.join(ROLES)}")
        content = _content(item)
        if role == "assistant" and (turn := _open_turn(said)) is not None and turn.get("content") is None:
            turn["content"] = content
        else:
            said.append({"role": role, "content": content})
    elif kind == "reasoning":
        _turn(said)["reasoning_content"] = _thoughts(item)
    elif kind == "function_call":
        call = {"name": item.text("name"), "arguments": item.text("arguments")}
        calls = _turn(said).setdefault("tool_calls", [])
        calls.append({"id": item.text("call_id"), "type": "function", "function": call})
    elif kind == "function_call_output":
        output = item.value.get("output")
        text = output if isinstance(output, str) else "\n".join(_text_of(part) for part in item.items("output"))
        said.append({"role": "tool", "tool_call_id": item.text("call_id"), "content": text})
    else:
        known = "message, reasoning, function_call or function_call_output"
        raise item.wrong("type", f"is {kind!r}, and must be {known}", "unsupported_content")


def _open_turn(said: list[Json]) -> Json | None:
    return said[-1] if said and said[-1]["role"] == "assistant" and "tool_calls" not in said[-1] else None


def _turn(said: list[Json]) -> Json:
    """The assistant's message to which more is added: the last one, or a new one."""
    if said and said[-1]["role"] == "assistant":
        return said[-1]
    said.append({"role": "assistant", "content": None})
    return said[-1]


def _thoughts(item: Fields) -> str:
    texts = [part.text("text") for part in item.items("content")]
    return "\n".join(texts or [part.text("text") for part in item.items("summary")])


def _content(item: Fields) -> Any:
    content = item.value.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise item.wrong("content", "must be text or a list of parts")
    parts = [_part(part) for part in item.items("content")]
    # A single text as text: templates that know no parts are many.
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _part(part: Fields) -> Json:
    kind = part.value.get("type")
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": part.text("text")}
    if kind == "input_image":
        if part.value.get("image_url") is None:
            raise part.wrong("image_url", "is missing, and files are not kept here", "unsupported_content")
        image: Json = {"url": part.text("image_url")}
        if (detail := part.optional_text("detail")) is not None:
            image["detail"] = detail
        return {"type": "image_url", "image_url": image}
    raise part.wrong("type", f"is {kind!r}, and must be input_text, output_text or input_image", "unsupported_content")


def _text_of(part: Fields) -> str:
    if part.value.get("type") not in ("input_text", "output_text"):
        raise part.wrong("type", "must be input_text: a tool's result is text here", "unsupported_content")
    return part.text("text")


def _tool(tool: Fields) -> Json:
    if tool.value.get("type") != "function":
        raise tool.wrong("type", "must be function: this gateway runs no tools of its own", "unsupported_parameter")
    function: Json = {"name": tool.text("name")}
    for name in ("description", "parameters", "strict"):
        if tool.value.get(name) is not None:
            function[name] = tool.value[name]
    return {"type": "function", "function": function}


def _choose_tools(chat: Json, fields: Fields) -> None:
    choice = fields.value.get("tool_choice")
    if choice is None:
        return
    if isinstance(choice, str):
        chat["tool_choice"] = choice
        return
    named = fields.object("tool_choice")
    assert named is not None
    if named.value.get("type") != "function":
        raise named.wrong("type", "must be function", "unsupported_parameter")
    chat["tool_choice"] = {"type": "function", "function": {"name": named.text("name")}}


def _format(chat: Json, fields: Fields) -> None:
    text = fields.object("text")
    form = text.object("format") if text is not None else None
    if form is None or form.value.get("type") == "text":
        return
    kind = form.text("type")
    if kind == "json_object":
        chat["response_format"] = {"type": "json_object"}
    elif kind == "json_schema":
        schema = {name: value for name, value in form.value.items() if name != "type"}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    else:
        raise form.wrong("type", "must be text, json_object or json_schema")
