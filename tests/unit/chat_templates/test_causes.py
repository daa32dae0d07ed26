"""Causes: each, put into a prompt, is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_templates.battery import CASES, Case
from chat_templates.comparison import Comparison, Context, compare
from chat_templates.conversation import Conversation
from chat_templates.fixes import FINISHED, MEANINGS, fixes, meaning
from chat_templates.prompts import Prompt, Refused, Seen
from chat_templates.rendering import Renderer

THINKING = """\
{{ bos_token }}{% if messages[0].role != 'system' %}<|im_start|>system
Be kind.<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{% if tools and loop.first %}{{ tools | tojson }}
{% endif %}{% if m.reasoning_content %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content or [] %}{{ p.text }}
{% endfor %}{% endif %}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

SILENT = THINKING.replace("m.reasoning_content %}<think>", "false %}")

RENDERER = Renderer({"default": THINKING}, special_tokens={"bos_token": "<s>"})
BY_NAME = {case.name: case for case in CASES}
TOOLS_USED = BY_NAME["tool_round_trip"].conversation


def said(case: Case, renderer: Renderer = RENDERER) -> str:
    return renderer.render(case.conversation).text


def compared(case: Case, seen: str, renderer: Renderer = RENDERER) -> Comparison:
    return compare(case, Prompt(said(case, renderer)), Seen(text=seen), Context(renderer))


def rendered(template: str) -> Callable[[Case], str]:
    """As an engine with another template."""
    return lambda case: said(case, replace(RENDERER, templates={"default": template}))


def changed(**fields: object) -> Callable[[Case], str]:
    return lambda case: RENDERER.render(replace(case.conversation, **fields)).text  # type: ignore[arg-type]


def each(form: Callable[[dict[str, object]], dict[str, object]]) -> Callable[[Case], str]:
    def made(case: Case) -> str:
        messages = [form(dict(message)) for message in case.conversation.messages]
        return RENDERER.render(replace(case.conversation, messages=messages)).text

    return made


def each_tool(form: Callable[[Mapping[str, object]], object]) -> Callable[[Case], str]:
    return lambda case: changed(tools=[form(tool) for tool in case.conversation.tools or ()])(case)


def bare(tool: Mapping[str, object]) -> object:
    return tool["function"]


def with_null(tool: Mapping[str, object]) -> object:
    function = tool["function"]
    assert isinstance(function, dict)
    return {**tool, "function": {"name": None, "description": None, "parameters": None, **function}}


def of_its_own(tool: Mapping[str, object]) -> object:
    return {"tool": json.dumps(tool)[:30]}


HEAD = "<|im_start|>system\nBe kind.<|im_end|>\n"

INJECTIONS: list[tuple[str, str, Callable[[Case], str]]] = [
    ("double_bos", "user", lambda case: f"<s>{said(case)}"),
    ("missing_bos", "user", lambda case: said(case).removeprefix("<s>")),
    ("missing_generation_prompt", "user", changed(add_generation_prompt=False)),
    ("default_system_lost", "user", lambda case: said(case).replace(HEAD, "")),
    ("default_system_added", "system_user", lambda case: said(case).replace("<s>", f"<s>{HEAD}", 1)),
    ("empty_system_block", "system_user", lambda case: said(case).replace(
        "<s>", "<s><|im_start|>system\n<|im_end|>\n", 1)),
    ("system_lost", "system_multi_turn", each(lambda one: one | ({"role": "x"} if one["role"] == "x" else {}))),
    ("system_moved_into_user", "system_user", lambda case: changed(messages=[
        {"role": "user", "content": "You are terse.\n\nHow many legs has a spider?"}])(case)),
    ("trailing_newline", "user", lambda case: said(case) + "\n"),
    ("trailing_newline", "user", lambda case: said(case).removesuffix("\n")),
    ("content_trimmed", "whitespace", each(lambda one: one | {"content": str(one["content"]).strip()})),
    ("content_trimmed", "whitespace", each(
        lambda one: one | ({"content": str(one["content"]).lstrip()} if one["role"] == "user" else {}))),
    ("think_prefill_added", "user", lambda case: said(case) + "<think>\n"),
    ("think_prefill_added", "user", lambda case: said(case) + "<think>\n\n</think>\n\n"),
    ("history_think_dropped", "reasoning_content", rendered(SILENT)),
    ("tools_wrapper", "one_tool", each_tool(bare)),
    ("tools_wrapper", "two_tools", each_tool(of_its_own)),
    ("tools_wrapper", "one_tool", changed(tools=None)),
    ("parts_joined", "text_parts", each(lambda one: one | {"content": "".join(
        part["text"] for part in one["content"])})),  # type: ignore[attr-defined]
    ("same_role_merged", "two_users", changed(messages=[
        {"role": "user", "content": "How many legs has a spider?\n\nAnd an ant?"}])),
    ("continued_instead_of_new_turn", "final_answer", changed(
        add_generation_prompt=False, continue_final_message=True)),
    ("role_header", "user", each(lambda one: one | {"role": "human"})),
    ("tool_calls", "tool_round_trip", each(lambda one: {k: v for k, v in one.items() if k != "tool_calls"})),
]  # fmt: skip
INJECTIONS = [entry for entry in INJECTIONS if entry[0] != "system_lost"] + [
    ("system_lost", "late_system", lambda case: changed(
        messages=[one for one in case.conversation.messages if one["role"] != "system"])(case)),
]  # fmt: skip


@pytest.mark.parametrize(("cause", "name", "inject"), INJECTIONS, ids=[f"{c}-{n}" for c, n, _ in INJECTIONS])
def test_what_was_put_in_is_named(cause: str, name: str, inject: Callable[[Case], str]) -> None:
    """A prompt with one cause in it is a mismatch, and the report names exactly that cause."""
    case = BY_NAME[name]
    seen = inject(case)
    assert seen != said(case)
    found = compared(case, seen)
    assert (found.verdict, found.cause) == ("mismatch", cause)


def test_a_bos_that_the_contract_has_not_is_named() -> None:
    """A template without a BOS, on an engine whose tokenizer adds one."""
    bare = replace(RENDERER, templates={"default": THINKING.removeprefix("{{ bos_token }}")})
    case = BY_NAME["user"]
    assert compared(case, f"<s>{said(case, bare)}", bare).cause == "added_bos"


def test_thinking_that_is_missing_is_named() -> None:
    """A template that begins answers with thinking, on an engine that does not."""
    thinking = replace(RENDERER, templates={"default": THINKING + "{% if add_generation_prompt %}<think>\n{% endif %}"})
    case = BY_NAME["user"]
    assert compared(case, said(case), thinking).cause == "think_prefill_missing"


def test_thinking_that_is_kept_is_named() -> None:
    """A template that leaves earlier thinking out, on an engine that keeps it."""
    silent = THINKING.replace("m.reasoning_content %}<think>", "false %}<think>")
    case = BY_NAME["reasoning_content"]
    found = compared(case, said(case), replace(RENDERER, templates={"default": silent}))
    assert found.cause == "history_think_kept"


@pytest.mark.parametrize("roles", [{"tool"}, {"user", "assistant", "tool"}], ids=["tool", "every"])
def test_results_of_tools_that_are_trimmed_are_named(roles: set[str]) -> None:
    """What a tool gave back has whitespace around it too, which an engine may cut, with the others' or alone."""
    spaced = [message | {"content": f"\n {message['content']} \n"} for message in map(dict, TOOLS_USED.messages)]
    case = replace(BY_NAME["tool_round_trip"], conversation=replace(TOOLS_USED, messages=spaced))
    trims = each(lambda one: one | ({"content": str(one["content"]).strip()} if one["role"] in roles else {}))
    assert compared(case, trims(case)).cause == "content_trimmed"


def test_another_date_is_named() -> None:
    """The same prompt of another day."""
    dated = "{{ strftime_now('%d %B %Y') }}\n{{ messages[0].content }}"
    one, other = (Renderer({"default": dated}, clock=datetime(2024, 7, day)) for day in (1, 26))
    case = BY_NAME["user"]
    assert compared(case, said(case, other), one).cause == "date"


def test_two_causes_are_named_together() -> None:
    """A second BOS and a lost generation prompt at once are both told."""
    case = BY_NAME["user"]
    found = compared(case, "<s>" + changed(add_generation_prompt=False)(case))
    assert set((found.cause or "").split("+")) == {"double_bos", "missing_generation_prompt"}
    assert meaning(found.cause or "").count(", and ") == 1


def test_what_nothing_explains_is_unknown() -> None:
    """A prompt with another word has no cause, and is shown where it differs."""
    case = BY_NAME["user"]
    found = compared(case, said(case).replace("spider", "cat"))
    assert found.cause == "unknown"
    assert found.texts is not None
    assert "cat" in found.texts[1]
    assert "cat" not in found.texts[0]


def test_refusals() -> None:
    """A conversation that the template refuses is no mismatch; one that only the engine refuses is."""
    case, context = BY_NAME["user"], Context(RENDERER)
    assert compare(case, Refused("no"), Refused("no"), context).verdict == "refused"
    lost = compare(case, Refused("no"), Seen(text="x"), context)
    assert (lost.verdict, lost.note) == ("refused", "the engine would have rendered it")
    refused = compare(case, Prompt("x"), Refused("bad tools"), context)
    assert (refused.verdict, refused.cause, refused.note) == ("mismatch", "engine_refuses", "it says: bad tools")


def test_a_count_proves_nothing_but_a_difference() -> None:
    """Where only the number of tokens is seen, another one is a mismatch, and the right one is said to be a count."""
    case, context = BY_NAME["user"], Context(RENDERER)
    same = compare(case, Prompt("x", (1, 2)), Seen(count=2), context)
    assert (same.verdict, same.basis) == ("exact", "count")
    other = compare(case, Prompt("x", (1, 2)), Seen(count=3), context)
    assert (other.verdict, other.note) == ("mismatch", "it has 3 tokens, the contract's prompt has 2")


@given(st.sampled_from(CASES), st.text(max_size=20), st.integers(0, 200))
def test_equal_is_exact_and_nothing_else_is(case: Case, more: str, at: int) -> None:
    """The contract's own prompt is exact; any other text is a mismatch, whatever its cause."""
    try:
        text = said(case)
    except Exception:
        return
    seen = text[:at] + more + text[at:]
    found = compared(case, seen)
    assert found.verdict == ("exact" if seen == text else "mismatch")


@pytest.mark.parametrize("code", sorted(MEANINGS))
def test_every_cause_has_a_sentence_and_a_remedy(code: str) -> None:
    """Whatever the cause, a person is told what it is and what to do."""
    assert meaning(code)
    assert fixes(code)["*"] == FINISHED


def test_a_report_reads() -> None:
    """The lines for a person: what, where, why, what to do."""
    found = compared(BY_NAME["user"], said(BY_NAME["user"]) + "<think>\n")
    lines = found.lines("llamacpp")
    assert lines[0] == "the engine begins the answer with thinking, or with having thought ('<think>\\n')"
    assert lines[-1] == "to mend it: pin enable_thinking: unigate template import --var enable_thinking=…"
    assert json.loads(json.dumps(found.as_json()))["cause"] == "think_prefill_added"


def test_conversations_stay_as_they_are() -> None:
    """Looking for a cause changes nothing of the conversation."""
    case = BY_NAME["parallel_tool_calls"]
    before = json.dumps(case.conversation.messages)
    compared(case, "something else")
    assert json.dumps(case.conversation.messages) == before
    assert isinstance(case.conversation, Conversation)
