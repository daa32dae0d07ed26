"""Causes put into the prompts of published templates, and what they are called: `python -m tests.oracle.causes [N]`.

Each injection is what an engine is known to do, made here without `chat_templates.causes`. Where it changes the prompt,
the report has to name it. Two injections that make the same prompt cannot be told apart, so either name is right. N:
every Nth template; all without.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from chat_templates.battery import CASES, Case
from chat_templates.comparison import Context, compare
from chat_templates.contract import MessageRules
from chat_templates.conversation import Conversation, ConversationInvalid
from chat_templates.messages import ruled
from chat_templates.prompts import Prompt, Seen
from chat_templates.rendering import DEFAULT, Renderer, TemplateBroken, TemplateRefused
from tests.oracle.reference import NOW, SPECIAL_TOKENS, TEMPLATES

Injection = Callable[[Renderer, Conversation, str], str | None]
"""A renderer, a conversation and its prompt -> what an engine with the fault makes of it; None where it has none."""

AS_GIVEN = MessageRules(parts="as_given")


def _rendered(renderer: Renderer, conversation: Conversation) -> str | None:
    try:
        return renderer.render(conversation).text
    except (TemplateRefused, TemplateBroken, ConversationInvalid):
        return None


def _with(**fields: Any) -> Injection:
    return lambda renderer, given, _: _rendered(renderer, replace(given, **fields))


def _messages(form: Callable[[Sequence[Mapping[str, Any]]], Any]) -> Injection:
    return lambda renderer, given, _: _rendered(renderer, replace(given, messages=form(given.messages)))


def _each(form: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Injection:
    return _messages(lambda messages: [form(message) for message in messages])


def _stripped(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    return {**message, "content": content.strip()} if isinstance(content, str) else message


def _joined(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    return {**message, "content": "".join(part["text"] for part in content)} if isinstance(content, list) else message


def _collated(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """As Ollama's Go templates have it (template/template.go collate)."""
    made: list[dict[str, Any]] = []
    for message in messages:
        is_text = isinstance(message.get("content"), str)
        if (
            made
            and is_text
            and made[-1]["role"] == message["role"] != "tool"
            and isinstance(made[-1].get("content"), str)
        ):
            made[-1]["content"] += f"\n\n{message['content']}"
        else:
            made.append(dict(message))
    return made


def _tools(form: Callable[[Any], Any]) -> Injection:
    def inject(renderer: Renderer, given: Conversation, _: str) -> str | None:
        return _rendered(renderer, replace(given, tools=[form(tool) for tool in given.tools])) if given.tools else None

    return inject


def _null_description(tool: Any) -> Any:
    """As vLLM writes tools (entrypoints/generate/base/protocol.py FunctionDefinition), put in where it is missing."""
    function = dict(tool["function"])
    return {**tool, "function": {"name": function.pop("name"), "description": None, "parameters": None, **function}}


def _end(text: Callable[[str], str]) -> Injection:
    return lambda renderer, given, prompt: text(prompt) if given.add_generation_prompt else None


def _bos(text: Callable[[str, str], str]) -> Injection:
    bos = SPECIAL_TOKENS["bos_token"]
    return lambda renderer, given, prompt: text(bos, prompt) if prompt.startswith(bos) else None


INJECTIONS: Mapping[str, Injection] = {
    "double_bos": _bos(lambda bos, prompt: bos + prompt),
    "missing_bos": _bos(lambda bos, prompt: prompt.removeprefix(bos)),
    "missing_generation_prompt": _with(add_generation_prompt=False),
    "continued_instead_of_new_turn": lambda renderer, given, _: (
        _rendered(renderer, replace(given, add_generation_prompt=False, continue_final_message=True))
        if given.messages[-1]["role"] == "assistant"
        else None
    ),
    "trailing_newline": _end(lambda prompt: prompt.removesuffix("\n")),
    "think_prefill_added": _end(lambda prompt: f"{prompt}<think>\n\n</think>\n\n"),
    "content_trimmed": _each(_stripped),
    "system_lost": _messages(lambda messages: [one for one in messages if one["role"] != "system"]),
    "same_role_merged": _messages(_collated),
    "parts_joined": _each(_joined),
    "tools_wrapper": _tools(lambda tool: tool["function"]),
    "tools_wrapper, nulls": _tools(_null_description),
    "history_think_dropped": _each(lambda one: {key: value for key, value in one.items() if "reasoning" not in key}),
    "tool_calls": _each(lambda one: {key: value for key, value in one.items() if key != "tool_calls"}),
}


def named(paths: Sequence[Path]) -> tuple[Counter[tuple[str, str]], list[str]]:
    """(what was put in, what it was called) -> how often; and where a mismatch was called exact."""
    counts: Counter[tuple[str, str]] = Counter()
    silent = []
    for path in paths:
        renderer = Renderer({DEFAULT: path.read_text(encoding="utf-8")}, special_tokens=SPECIAL_TOKENS, clock=NOW)
        for case in CASES:
            for put_in, called in _of_case(renderer, case):
                counts[put_in, called] += 1
                if called == "exact":
                    silent.append(f"{path.name} {case.name} {put_in}")
    return counts, silent


def _of_case(renderer: Renderer, case: Case) -> list[tuple[str, str]]:
    try:
        conversation = ruled(AS_GIVEN, case.conversation)
    except ConversationInvalid:
        return []
    prompt = _rendered(renderer, conversation) if conversation.messages else None
    if prompt is None:
        return []
    made = {name: inject(renderer, conversation, prompt) for name, inject in INJECTIONS.items()}
    found = []
    for name, seen in made.items():
        if seen is None or seen == prompt:
            continue
        case = replace(case, conversation=conversation)
        outcome = compare(case, Prompt(prompt), Seen(text=seen), Context(renderer))
        alike = {other.partition(",")[0] for other, text in made.items() if text == seen}
        cause = outcome.cause or "exact"
        found.append((name.partition(",")[0], "right" if cause in alike else cause))
    return found


def table(step: int = 1) -> tuple[Counter[tuple[str, str]], list[str]]:
    """All of it, over every *step*-th template, on all cores."""
    paths = TEMPLATES[::step]
    shards = [paths[number::64] for number in range(64)]
    counts: Counter[tuple[str, str]] = Counter()
    silent: list[str] = []
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("forkserver")) as pool:
        for found, missed in pool.map(named, [shard for shard in shards if shard]):
            counts += found
            silent += missed
    return counts, silent


def main() -> int:
    """Print the table."""
    counts, silent = table(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    for put_in in sorted({one for one, _ in counts}):
        called = {name: count for (one, name), count in counts.items() if one == put_in}
        total = sum(called.values())
        others = ", ".join(f"{name} {count}" for name, count in sorted(called.items()) if name != "right")
        print(f"{put_in:30} {total:6} put in, {called.get('right', 0):6} named; {others or '-'}")
    print(f"silent: {len(silent)}")
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main())
