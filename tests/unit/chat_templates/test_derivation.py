"""Derivation: what is exact is proven by rendering, and what is not is refused with its code and two renders."""

from __future__ import annotations

import functools
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_templates.battery import CASES
from chat_templates.conversation import Conversation
from chat_templates.derivation import Derivation, core, derive, trimmed
from chat_templates.forms.go_template import go_template
from chat_templates.probing import END, START, Linear, NoPlace
from chat_templates.refusals import CannotDerive, Refusal
from chat_templates.rendering import Renderer
from chat_templates.trimming import TRIMS, Trim, TrimRules, all_rules

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set sys = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set sys = none %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}<s>[INST] {% if loop.first and sys is not none %}<<SYS>>\n{{ sys }}\n"
    "<</SYS>>\n\n{% endif %}{{ m.content }} [/INST]{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)


def refusal(template: str, **renderer: object) -> Refusal:
    """Why *template* cannot be derived."""
    with pytest.raises(CannotDerive) as refused:
        derive(Renderer({"default": template}, **renderer))  # type: ignore[arg-type] # the tests' own
    return refused.value.refusal


def test_a_linear_template_is_the_texts_between_roles() -> None:
    """ChatML is read off as what stands before, between and after its messages."""
    derivation = derive(Renderer.of(CHATML))
    assert derivation.trim == TrimRules()
    assert derivation.linear.borders[START, "user"] == "<|im_start|>user\n"
    assert derivation.linear.borders["assistant", "user"] == "<|im_end|>\n<|im_start|>user\n"
    assert derivation.linear.borders["user", END] == "<|im_end|>\n<|im_start|>assistant\n"


def test_a_system_message_may_be_part_of_the_first_turn() -> None:
    """Llama 2's system block, which is inside the first user's turn, is exact."""
    derivation = derive(Renderer.of(LLAMA2))
    assert derivation.linear.borders["system", "user"] == "\n<</SYS>>\n\n"
    assert derivation.comparisons(go_template(derivation.linear).prompt)["system_multi_turn"] == "exact"


@pytest.mark.parametrize(
    ("content", "rules"),
    [
        ("m.content|trim", TrimRules("both", "both", "both")),
        ("m.content|trim if m.role == 'user' else m.content", TrimRules(user="both")),
        ("m.content.rstrip() if m.role == 'assistant' else m.content", TrimRules(assistant="right")),
        ("m.content.lstrip() if m.role != 'user' else m.content.strip()", TrimRules("left", "both", "left")),
    ],
)  # fmt: skip
def test_what_a_template_trims_is_found(content: str, rules: TrimRules) -> None:
    """A template that trims is exact once whoever sends to the form trims the same."""
    derivation = derive(Renderer.of("{% for m in messages %}[{{ m.role }}]{{ " + content + " }}{% endfor %}>"))
    for case, wanted in derivation.core_said():
        texts = [(one["role"], one["content"]) for one in trimmed(case.conversation, rules).messages]
        assert derivation.linear.prompt(texts) == wanted.text
    # fewer rules where they suffice: the battery's whitespace has no line end at an answer's beginning
    assert sum(rule != "none" for rule in derivation.trim.by_role().values()) <= sum(
        rule != "none" for rule in rules.by_role().values()
    )


def test_the_rules_for_what_is_trimmed_everywhere_are_the_plain_ones() -> None:
    """Where everything is trimmed, the rules are ``both`` for each role."""
    derivation = derive(Renderer.of("{% for m in messages %}[{{ m.role }}]{{ m.content|trim }}{% endfor %}>"))
    assert derivation.trim == TrimRules("both", "both", "both")


@pytest.mark.parametrize(
    ("code", "template", "words"),
    [
        ("T01", "{{ raise_exception('no') }}", "refuses a user message: no"),
        ("T01", "{% if %}", "cannot be parsed: line 1"),
        ("T02", "{% for m in messages %}[{{ m.role }}]{% endfor %}", "user message is in the prompt 0 times"),
        ("T02", "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "2 times"),
        ("T02", "{% for m in messages %}[{{ m.role }}]{{ m.content|upper }}{% endfor %}", "0 times"),
        ("T02", "{% for m in messages %}[{{ m.role }}]{{ m.content|e }}{% endfor %}", "is changed on its way"),
        ("T02", "{% for m in messages %}[{{ m.role }}]{{ m.content|trim if loop.first else m.content }}{% endfor %}",
         "no rule per role"),
        ("T02", "{% for m in messages|reverse %}[{{ m.role }}]{{ m.content }}{% endfor %}", "out of its order"),
        ("T03", "{% for m in messages %}[{{ m.role }} {{ loop.index }}]{{ m.content }}{% endfor %}",
         "between user and assistant depends on the turn"),
        ("T04", "{% for m in messages %}{% if loop.last %}LAST{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}",
         "between start and user is changed by later messages"),
        ("T05", "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ messages|length }}>",
         "depends on what was said before"),
        ("T08", "{% if messages|length > 2 %}{{ raise_exception('one turn') }}{% endif %}"
         "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}", "of this shape: one turn"),
        ("T07", "{{ strftime_now('%Y') }}" + CHATML, "depends on the clock"),
        ("T07", CHATML + "{{ [1, 2]|random }}", "depends on chance"),
        ("T09", CHATML + "{% if thinking %}<think>{% endif %}", "the variable `thinking`, which is not pinned"),
        ("T09", "{{ bos_token }}" + CHATML, "the variable `bos_token`"),
    ],
)  # fmt: skip
def test_each_reason_has_its_code(code: str, template: str, words: str) -> None:
    """What cannot be derived is refused with a code and a sentence that says what of it."""
    found = refusal(template)
    assert found.code == code
    assert words in found.sentence


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}[{{ m.role }}]{{ m.content|e }}{% endfor %}",
        "{% for m in messages %}[{{ m.role }} {{ loop.index }}]{{ m.content }}{% endfor %}",
        CHATML + "{% if thinking %}<think>{% endif %}",
        "{{ strftime_now('%Y') }}" + CHATML,
    ],
)
def test_a_refusal_shows_two_renders_that_part(template: str) -> None:
    """The pair of renders is shown about the place where they differ, with visible whitespace."""
    found = refusal(template)
    (_, one), (_, other) = found.pair()
    assert one != other
    assert " " not in one + other


def test_what_is_pinned_is_no_objection() -> None:
    """A pinned variable, a known special token and a frozen clock are part of the template, and so of the form."""
    template = "{{ bos_token }}{{ strftime_now('%Y') }}" + CHATML + "{% if thinking %}<think>{% endif %}"
    derivation = derive(
        Renderer(
            {"default": template}, variables={"thinking": True}, special_tokens={"bos_token": "<s>"},
            clock=datetime(2024, 7, 26),
        )
    )  # fmt: skip
    assert derivation.linear.borders[START, "user"] == "<s>2024<|im_start|>user\n"
    assert derivation.linear.borders["user", END].endswith("<think>")


def test_an_accepted_reason_is_kept() -> None:
    """A reason that somebody accepts does not refuse, and is told with the result."""
    derivation = derive(Renderer.of(CHATML + "{% if thinking %}<think>{% endif %}"), accept={"T09"})
    assert [one.code for one in derivation.accepted] == ["T09"]


def test_tools_are_not_carried() -> None:
    """A form that is to carry tools is refused with T06."""
    with pytest.raises(CannotDerive) as refused:
        derive(Renderer.of(CHATML), needs={"text", "tools"})
    assert refused.value.refusal.code == "T06"


def test_the_core_has_every_conversation_without_its_system_message_too() -> None:
    """Templates that refuse system messages are compared on the same texts as others."""
    names = [case.name for case in core()]
    assert {"whitespace", "whitespace.without_system", "unicode.without_system"} <= set(names)
    assert len(names) == len(set(names))
    assert all(case.conversation.add_generation_prompt for case in core())
    assert len(CASES) > len(names)


def test_a_border_that_is_not_known_has_no_place() -> None:
    """A linear template says which of two messages cannot follow one another."""
    with pytest.raises(NoPlace, match="system after user"):
        Linear({(START, "user"): ""}).prompt([("user", "a"), ("system", "b")])


@given(st.sampled_from(sorted(TRIMS)), st.text(st.sampled_from("ab \n\t\r\u3000"), max_size=9))
def test_trimming_twice_is_trimming_once(rule: Trim, text: str) -> None:
    """Every trim rule is idempotent: a form behind it may trim again."""
    assert TRIMS[rule](TRIMS[rule](text)) == TRIMS[rule](text)


def test_the_rules_are_all_different_and_none_comes_first() -> None:
    """The search begins with no rule at all and tries each set once."""
    every = list(all_rules())
    assert every[0].are_none
    assert len(set(every)) == len(TRIMS) ** 3


@functools.cache
def derived(template: str) -> Derivation:
    """*template*'s derivation."""
    return derive(Renderer.of(template))


TEXTS = st.text(st.sampled_from("ab \n\t{}<>|\\\"'%é你\u200b"), max_size=12)


@given(
    st.sampled_from([CHATML, LLAMA2, "{% for m in messages %}[{{ m.role }}]{{ m.content|trim }}{% endfor %}>"]),
    st.none() | TEXTS,
    st.lists(st.tuples(TEXTS, TEXTS), max_size=3),
    TEXTS,
)
def test_any_plain_conversation_is_the_templates(
    template: str, system: str | None, turns: list[tuple[str, str]], last: str
) -> None:
    """What was proven on the core holds for texts nobody thought of."""
    renderer = Renderer.of(template)
    messages = [] if system is None else [{"role": "system", "content": system}]
    for user, answer in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    conversation = Conversation([*messages, {"role": "user", "content": last}])
    derivation = derived(template)
    form = go_template(derivation.linear)
    assert form.prompt(trimmed(conversation, derivation.trim)) == renderer.render(conversation).text
