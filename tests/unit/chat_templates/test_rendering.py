"""A renderer is a value; what it says is text, a refusal of the template's, or an error with its line."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from chat_templates.conversation import Conversation, ConversationInvalid
from chat_templates.parsing import TemplateUnreadable, read_template
from chat_templates.rendering import Rendered, Renderer, TemplateBroken, TemplateRefused

HELLO = Conversation([{"role": "user", "content": "hello"}])


@pytest.mark.parametrize(
    ("template", "line", "message"),
    [
        ("a\n{{ b.c }}", 2, "'b' is undefined"),
        ("a\n\n{% if %}", 3, "Expected an expression, got 'end of statement block'"),
        ("{{ 1|nothing }}", 1, "No filter named 'nothing'."),
        ("{{ x }}\n{{ 1 / 0 }}", 2, "ZeroDivisionError: division by zero"),
        ("\n{{ messages + 1 }}", 2, 'TypeError: can only concatenate list (not "int") to list'),
        ("{% macro f() %}\n{{ g.h }}{% endmacro %}\n\n{{ f() }}", 2, "'g' is undefined"),
        ("{% include 'x' %}", 1, "TypeError: no loader for this environment specified"),
        ("{{ raise_exception() }}", 1, "TypeError: "),
        ("{% generation %}", 1, "Unexpected end of template"),
    ],
)
def test_a_broken_template_is_told_with_its_line(template: str, line: int, message: str) -> None:
    """What is wrong with a template is said with the line it is in."""
    with pytest.raises(TemplateBroken) as broken:
        Renderer.of(template).render(HELLO)
    assert message in broken.value.message
    assert broken.value.line == line
    assert str(broken.value).startswith(f"line {line}: ")


@pytest.mark.parametrize(
    ("argument", "message"), [("'no system'", "no system"), ("42", "42"), ("none", "None"), ("a.b|default(1)", "1")]
)
def test_a_template_that_refuses_is_quoted(argument: str, message: str) -> None:
    """What a template gives to ``raise_exception`` is the refusal's message, whatever it is."""
    with pytest.raises(TemplateRefused) as refused:
        Renderer(
            {"default": "{{ raise_exception(" + argument + ") }}"}, variables={"a": {}}
        ).render(HELLO)  # fmt: skip
    assert str(refused.value) == message


def test_a_refusal_with_an_undefined_reason_is_a_refusal() -> None:
    """A template that refuses with something undefined still refuses."""
    with pytest.raises(TemplateRefused):
        Renderer.of("{{ raise_exception(reason) }}").render(HELLO)


def test_the_template_for_tools_is_used_where_there_are_tools() -> None:
    """Of named templates ``tool_use`` serves conversations with a list of tools, an empty one too."""
    renderer = Renderer({"default": "plain", "tool_use": "tools", "rag": "rag"})
    assert renderer.render(HELLO) == Rendered("plain", "default")
    assert renderer.render(replace(HELLO, tools=[])) == Rendered("tools", "tool_use")
    assert Renderer.of("plain").render(replace(HELLO, tools=[])) == Rendered("plain", "default")


def test_a_missing_default_is_told_with_the_names_there_are() -> None:
    """Without a template called default nothing is guessed."""
    with pytest.raises(ConversationInvalid, match="there are: rag, tool_use"):
        Renderer({"tool_use": "a", "rag": "b"}).render(HELLO)


def test_variables_come_before_special_tokens() -> None:
    """A variable that has a special token's name takes its place."""
    renderer = replace(
        Renderer.of("{{ bos_token }}{{ eos_token }}"), special_tokens={"bos_token": "<s>", "eos_token": "</s>"}
    )
    assert renderer.render(HELLO).text == "<s></s>"
    assert replace(renderer, variables={"bos_token": "!"}).render(HELLO).text == "!</s>"


@pytest.mark.parametrize("name", ["messages", "tools", "documents", "add_generation_prompt"])
def test_no_variable_takes_the_conversations_place(name: str) -> None:
    """What the conversation defines cannot be set as a variable."""
    with pytest.raises(ConversationInvalid, match=name):
        replace(Renderer.of(""), variables={name: 1})


def test_variables_are_json() -> None:
    """A variable that has methods of its own never reaches a template."""
    with pytest.raises(ConversationInvalid, match=r"variables.path: a PosixPath is no JSON value"):
        replace(Renderer.of(""), variables={"path": Path("/")})


def test_unknown_rules_are_refused() -> None:
    """There is no rendering by rules that are not known."""
    with pytest.raises(KeyError):
        replace(Renderer.of(""), rules="transformers-1.0")


def test_a_frozen_clock_stands_still() -> None:
    """With a clock of its own a renderer tells one time for ever; without, the machine's."""
    template = Renderer.of("{{ strftime_now('%d %B %Y') }}")
    frozen = replace(template, clock=datetime(2024, 7, 26))
    assert frozen.render(HELLO).text == "26 July 2024"
    assert replace(template, clock=datetime(1999, 1, 1)).render(HELLO).text == "01 January 1999"
    days = {datetime.now().strftime("%d %B %Y")}
    shown = template.render(HELLO).text
    assert shown in days | {datetime.now().strftime("%d %B %Y")}


def test_threads_share_a_renderer() -> None:
    """Renderings at the same time in several threads do not see each other."""
    renderer = Renderer.of(
        "{% set ns = namespace(n='') %}{% for m in messages * 50 %}{% set ns.n = m.content %}{% endfor %}{{ ns.n }}"
    )
    start = threading.Barrier(4)

    def work(name: int) -> set[str]:
        start.wait()
        conversation = Conversation([{"role": "user", "content": f"{name}"}])
        return {renderer.render(conversation).text for _ in range(50)}

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [{"0"}, {"1"}, {"2"}, {"3"}]


def test_a_template_nested_too_deeply_is_unreadable(tmp_path: Path) -> None:
    """A template that no parser can follow is told as such, without a traceback."""
    path = tmp_path / "deep.jinja"
    path.write_text("{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}")
    with pytest.raises(TemplateUnreadable, match="nested too deeply"):
        read_template(path)
