"""What engines are given of a contract: one template that needs nothing more, and where answers end."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from backends.contract_texts import generation_config, template_problem, template_text, template_texts
from backends.prompting import ModeChoice, Prompting
from chat_templates.contract import Contract, Stop
from chat_templates.conversation import Conversation
from chat_templates.parity import Policy
from chat_templates.rendering import Renderer

HELLO = Conversation([{"role": "user", "content": "hello"}])
TEMPLATE = "{{ mood }}{{ strftime_now('%Y') }}{{ messages[0].content }}\n"
LATER = "{{ strftime_now(messages[0].role) }}"
NO_STOP = Stop()
CLOCK = datetime(2024, 7, 26)


def contract(*, stop: Stop = NO_STOP, **templates: str) -> Contract:
    return Contract("c", templates, "here", pinned={"mood": "calm"}, stop=stop, sampling={"top_k": 5}, clock=CLOCK)


def test_the_template_needs_nothing_more() -> None:
    """Pinned variables and the frozen clock are in the text, and what a request says of them changes nothing."""
    made = contract(default=TEMPLATE)
    other = Renderer({"default": template_text(made)}, variables={"mood": "wild"})
    assert other.render(HELLO).text == made.renderer().render(HELLO).text == "calm2024hello"


def test_two_templates_are_one_or_two() -> None:
    """An engine with one file gets a text that chooses, one that chooses by itself gets both."""
    made = contract(default=TEMPLATE, tool_use="{{ tools[0].type }}")
    with_tools = Conversation(HELLO.messages, [{"type": "function", "function": {"name": "f"}}])
    one = Renderer.of(template_text(made))
    assert [one.render(each).text for each in (HELLO, with_tools)] == ["calm2024hello", "function"]
    assert set(template_texts(made)) == {"default", "tool_use"}


@pytest.mark.parametrize(
    ("policy", "mode", "is_refused"),
    [
        ("enforce", "auto", False),
        ("enforce", "strict", False),
        ("enforce", "native", True),
        ("warn", "auto", False),
        ("off", "auto", True),
        ("off", "strict", False),
    ],
)
def test_what_cannot_be_pinned(policy: Policy, mode: ModeChoice, is_refused: bool) -> None:
    """A time that cannot be written down is refused where the engine is believed, and elsewhere left to the proof."""
    made = contract(default=LATER)
    problem = template_problem(Prompting(made, Path("/c"), None, policy, mode))
    assert (problem is not None) == is_refused
    assert problem is None or problem.startswith("/c: T07: ")
    assert template_text(made) == LATER


@pytest.mark.parametrize(
    ("own", "config", "stop", "expected"),
    [
        (None, None, (), {}),
        (None, {"eos_token_id": 7}, (), {"eos_token_id": 7}),
        (None, {"eos_token_id": 7}, (3, 1), {"eos_token_id": [1, 3]}),
        ({"eos_token_id": [2, 5]}, {"eos_token_id": 7}, (), {"eos_token_id": [2, 5]}),
        (
            {"eos_token_id": 2, "pad_token_id": 0, "temperature": 0.6, "top_k": 20, "max_new_tokens": 9},
            None,
            (4,),
            {"eos_token_id": [4], "pad_token_id": 0},
        ),
    ],
)
def test_where_answers_end(tmp_path: Path, own: Any, config: Any, stop: tuple[int, ...], expected: Any) -> None:
    """The contract's stop ids replace the weights' own, its sampling defaults all others; no limit is among them."""
    for name, content in (("generation_config.json", own), ("config.json", config)):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    found = json.loads(generation_config(contract(default="", stop=Stop(stop)), tmp_path))
    assert found == {**expected, "top_k": 5}


def test_weights_without_any() -> None:
    """What is no folder has no file of its own."""
    assert json.loads(generation_config(contract(default=""), None)) == {"top_k": 5}
