"""What the fake Ollama's models say: the prompt they see, and the same words always."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jinja2

from tests.fake_ollama.store import CHATML_GO, Model

WORDS = ("I", "'m", " glad", " to", " make", " your", " acquaintance", ".")
ENDLESS = "never stop"
"""A prompt with these words is answered without an end, until something bounds it."""
OPEN_ENDED = 10
"""No num_predict: so many times the context (llm/llama_server.go openEndedGenerationContextMultiplier)."""


def uses_go_template(model: Model, go_templates: str) -> bool:
    """Whether the Modelfile's template is in force. *go_templates*: OLLAMA_GO_TEMPLATE, empty when unset."""
    return bool(model.go_template) and go_templates not in ("0", "false")


def chat_prompt(model: Model, messages: list[dict[str, Any]], go_templates: str) -> str:
    """The rendered prompt: by the Go template in force (ChatML is the one we know), else by the GGUF's own."""
    if model.system and not any(message.get("role") == "system" for message in messages):
        messages = [{"role": "system", "content": model.system}, *messages]
    plain = [{"role": message.get("role", ""), "content": message.get("content") or ""} for message in messages]
    if not uses_go_template(model, go_templates) and model.chat_template:
        environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string(model.chat_template)
        return template.render(messages=plain, add_generation_prompt=True)
    if uses_go_template(model, go_templates) and model.go_template != CHATML_GO:
        return "".join(message["content"] for message in plain)
    turns = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in plain)
    return f"{turns}<|im_start|>assistant\n"


def count(prompt: str) -> int:
    """Tokens of a prompt: its words."""
    return len(prompt.split())


def tokens(prompt: str, options: dict[str, Any], num_ctx: int) -> Iterator[tuple[str, str | None]]:
    """Each token of the answer and, with the last, why it was the last."""
    limit = int(options.get("num_predict", -1))
    most = OPEN_ENDED * num_ctx
    limit = most if limit < 0 or limit > most else limit
    number = 0
    while True:
        word = WORDS[number % len(WORDS)]
        number += 1
        is_last = number >= len(WORDS) and ENDLESS not in prompt
        if number >= limit:
            yield word, "length"
            return
        if is_last:
            yield word, "stop"
            return
        yield word, None


def tool_call(tools: list[dict[str, Any]]) -> dict[str, Any]:
    """A call of the first tool, in the native form."""
    function = tools[0]["function"]
    return {"id": "call_op1wchyr", "function": {"index": 0, "name": function["name"], "arguments": {"tz": "UTC"}}}


def too_long(prompt_tokens: int, num_ctx: int) -> str:
    """llama-server's refusal, a JSON text within Ollama's."""
    message = (
        f"request ({prompt_tokens} tokens) exceeds the available context size ({num_ctx} tokens), try increasing it"
    )
    error = {"code": 400, "message": message, "type": "exceed_context_size_error"}
    return json.dumps({"error": {**error, "n_prompt_tokens": prompt_tokens, "n_ctx": num_ctx}}, separators=(",", ":"))
