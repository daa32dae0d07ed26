"""What happens to a conversation around Jinja, and what templates are given, rule by rule."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from chat_templates.conversation import Conversation, ConversationInvalid
from chat_templates.rendering import Renderer, TemplateBroken

USER = {"role": "user", "content": "hello"}
SHOW = "{{ messages|tojson }}"


def rendered(template: str, messages: Sequence[Mapping[str, Any]] = (USER,), **options: Any) -> str:
    """What *template* makes of *messages*."""
    return Renderer.of(template).render(Conversation(messages, **options)).text


def continued(template: str, *messages: Mapping[str, Any], field: bool | str = True) -> str:
    """What *template* makes of *messages* with the last one left open."""
    return rendered(template, messages, add_generation_prompt=False, continue_final_message=field)


def test_keys_without_a_value_are_removed() -> None:
    """A message's key whose value is null is not there for the template; nested ones are."""
    message = {"role": "user", "content": None, "tool_calls": None, "x": {"y": None}}
    assert rendered(SHOW, [message]) == '[{"role": "user", "x": {"y": null}}]'


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({"reasoning": "r"}, {"thinking": "r", "reasoning_content": "r", "reasoning": "r"}),
        ({"thinking": "t"}, {"thinking": "t", "reasoning_content": "t"}),
        ({"reasoning_content": "c"}, {"thinking": "c", "reasoning_content": "c"}),
        (
            {"reasoning": "r", "thinking": "t", "reasoning_content": "c"},
            {"thinking": "t", "reasoning_content": "c", "reasoning": "r"},
        ),
        ({"reasoning": "r", "reasoning_content": None}, {"thinking": "r", "reasoning_content": "r", "reasoning": "r"}),
        ({"reasoning_content": ""}, {"thinking": "", "reasoning_content": ""}),
    ],
)
def test_reasoning_is_there_under_the_names_templates_read(given: dict[str, Any], seen: dict[str, Any]) -> None:
    """Whatever name a message's reasoning comes under, templates find it under the two that they read."""
    assert json.loads(rendered(SHOW, [USER | given])) == [USER | seen]


def test_the_callers_messages_stay_as_they_are() -> None:
    """Rendering changes nothing of what it was given, not even to continue a message."""
    messages: list[dict[str, Any]] = [USER, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]
    continued("{% for m in messages %}{{ m.content }}{% endfor %}", *messages)
    assert messages == [USER, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]


LAST = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
TRIMMED = LAST.replace("m.content", "m.content|trim")
PARTS = "{% for m in messages %}{% for p in m.content %}[{{ p.text }}]{% endfor %}</s>{% endfor %}"
THOUGHTS = "{{ messages[0].reasoning_content }}</think>"


@pytest.mark.parametrize(
    ("template", "message", "field", "prompt"),
    [
        (LAST, {"content": "The answer "}, True, "<assistant>The answer "),
        (TRIMMED, {"content": "The answer "}, True, "<assistant>The answer"),
        (LAST, {"content": ""}, True, "<assistant>"),
        (PARTS, {"content": [{"text": "a "}, {"text": "b "}]}, True, "[a ][b "),
        (THOUGHTS, {"thinking": "hm"}, "thinking", "hm"),
        (THOUGHTS, {"reasoning_content": "hm"}, "reasoning_content", "hm"),
    ],
)
def test_a_message_that_is_continued_is_left_open(
    template: str, message: dict[str, Any], field: bool | str, prompt: str
) -> None:
    """The prompt ends with the last message's text; where the template trims it, with the trimmed text."""
    assert continued(template, {"role": "assistant", **message}, field=field) == prompt


@pytest.mark.parametrize(
    ("template", "message", "field", "complaint"),
    [
        (LAST, {}, True, "no 'content' to continue"),
        (LAST, {"content": None}, True, "no 'content' to continue"),
        (LAST, {"content": 42}, True, "is no text"),
        (PARTS, {"content": []}, True, "no text to continue"),
        (PARTS, {"content": [{"type": "image"}]}, True, "no text to continue"),
        (PARTS, {"content": [{"text": 1}]}, True, "no text to continue"),
        ("{{ messages[0].role }} content", {"content": "a"}, True, "does not render it as it is"),
        ("{{ messages[0].content|upper }}", {"content": "a"}, True, "does not render it as it is"),
        (LAST, {"reasoning": "a"}, "reasoning", "does not read 'reasoning'"),
    ],
)
def test_a_message_that_cannot_be_continued_is_refused(
    template: str, message: dict[str, Any], field: bool | str, complaint: str
) -> None:
    """Where the template hides the end of the last message, or there is none, nothing is rendered."""
    with pytest.raises(ConversationInvalid, match=complaint):
        continued(template, {"role": "assistant", **message}, field=field)


@pytest.mark.parametrize(
    ("conversation", "complaint"),
    [
        (Conversation([]), "messages: there is none"),
        (Conversation([USER], continue_final_message=True), "exclude each other"),
        (Conversation([USER, "hello"]), r"messages\[1\]: is no mapping"),  # type: ignore[list-item]
        (Conversation([USER], tools=["f"]), r"tools\[0\]: is no mapping"),  # type: ignore[list-item]
        (Conversation([USER], documents=[1]), r"documents\[0\]: is no mapping"),  # type: ignore[list-item]
        (Conversation([USER | {"content": [{"text": b"x"}]}]), r"messages\[0\].content\[0\].text: a bytes"),
        (Conversation([USER | {"content": {1: "x"}}]), r"messages\[0\].content: the key 1 is no string"),
    ],
)
def test_what_is_no_conversation_is_refused_by_its_place(conversation: Conversation, complaint: str) -> None:
    """A conversation that cannot be rendered is refused with what is wrong, and where."""
    with pytest.raises(ConversationInvalid, match=complaint):
        Renderer.of(SHOW).render(conversation)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("x|tojson", '{"b": "<é&\'>", "a": [1, null, true]}'),
        ("x|tojson(ensure_ascii=true)", '{"b": "<\\u00e9&\'>", "a": [1, null, true]}'),
        ("x|tojson(sort_keys=true)", '{"a": [1, null, true], "b": "<é&\'>"}'),
        ("x|tojson(separators=(',', ':'))", '{"b":"<é&\'>","a":[1,null,true]}'),
        ("[1]|tojson(indent=2)", "[\n  1\n]"),
        ("dict(a=1)|tojson", '{"a": 1}'),
        ("dict.fromkeys(['a'], 2)|tojson", '{"a": 2}'),
        ("namespace(self=1).self", "1"),
        ("namespace({'a': 1}, b=2).a", "1"),
        ("tools is none", "True"),
        ("tools is defined", "True"),
        ("documents is none", "True"),
        ("add_generation_prompt", "True"),
        ("bos_token is defined", "False"),
    ],
)
def test_what_templates_find(expression: str, text: str) -> None:
    """Filters, functions and variables are those of transformers."""
    renderer = replace(Renderer.of("{{ " + expression + " }}"), variables={"x": {"b": "<é&'>", "a": [1, None, True]}})
    assert renderer.render(Conversation([USER])).text == text


@pytest.mark.parametrize(
    "template",
    [
        "{% set ns = namespace(_a=1) %}",
        "{% set ns = namespace() %}{% set ns._a = 1 %}",
        "{{ dict.__class__.mro() }}",
        "{{ messages.append(1) }}",
        "{{ dict(a=1).update(b=2) }}",
    ],
)
def test_the_sandbox_holds(template: str) -> None:
    """Nothing private is kept in a namespace, and no list or dict is changed."""
    with pytest.raises(TemplateBroken):
        rendered(template)


def test_blocks_are_trimmed() -> None:
    """A block takes the newline after it, and the blanks before it, away."""
    assert rendered("a\n  {% if true %}\nb\n  {% endif %}\nc\n") == "a\nb\nc"


def test_loops_have_controls() -> None:
    """``break`` and ``continue`` work."""
    template = "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}"
    assert rendered(template + "{{ i }}{% endfor %}") == "02"


def test_the_generation_block_renders_its_content_in_a_scope_of_its_own() -> None:
    """What is set within ``generation`` is not seen after it, as in transformers."""
    template = "{% set x = 1 %}{% generation %}{% set x = 2 %}<{{ x }}>{% endgeneration %}{{ x }}"
    assert rendered(template) == "<2>1"
