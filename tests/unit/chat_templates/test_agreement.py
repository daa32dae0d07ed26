"""Which differences between sources refuse an import, and which are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from chat_templates.agreement import Agreement, agree
from chat_templates.derivation import CARRIED
from chat_templates.rendering import DEFAULT, Renderer
from chat_templates.sources.found import Found
from tests.unit.chat_templates.test_derivation import CHATML
from tests.unit.chat_templates.test_forms import DEFAULT_SYSTEM

TOOLS = "{% if tools %}{{ tools|tojson }}{% endif %}" + CHATML
NO_TOOLS = "{% if tools %}{{ raise_exception('no tools') }}{% endif %}" + CHATML
QUIETER = CHATML + (
    "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}"
)
LOUDER = CHATML + "{% if add_generation_prompt and enable_thinking is not false %}<think>\n{% endif %}"


def full(template: str, name: str = "jinja") -> Found:
    """A source that has a say on everything."""
    return Found(name, {DEFAULT: template}, Path(name))


def slots(template: str, *, is_given_bos: bool = False) -> Found:
    """A source that carries texts alone, as a trainer's slots do."""
    name = "llamafactory:own"
    return Found(name, {DEFAULT: template}, Path(name), speaks_of=CARRIED, is_given_bos=is_given_bos)


def agreed(*sources: Found, chosen: str | None = None) -> Agreement:
    return agree(sources, Renderer.render, {"bos_token": "<s>"}, chosen)


def test_a_difference_refuses_until_one_is_named() -> None:
    """Two that differ have no winner; the one that is named wins, and the difference is still known."""
    one, other = full(CHATML), full(DEFAULT_SYSTEM, "tokenizer_config")
    undecided = agreed(one, other)
    assert (undecided.winner, len(undecided.disagreements)) == (None, 1)
    named = agreed(one, other, chosen="tokenizer_config")
    assert named.winner is not None
    assert (named.winner.found, len(named.disagreements)) == (other, 1)


def test_a_difference_is_shown_where_the_two_part() -> None:
    """A person sees both prompts, with their whitespace, and how many more differ."""
    (found,) = agreed(full(CHATML), full(CHATML + " ", "gguf")).disagreements
    head, *shown = found.lines()
    assert head.startswith(f"jinja and gguf differ on {found.differing} of {found.compared} conversations")
    assert {len(line) - len(line.lstrip()) for line in shown} == {2, 9}
    assert shown[-1].strip() == "␠"


@pytest.mark.parametrize("other", [NO_TOOLS, CHATML])
def test_what_a_source_cannot_carry_is_no_difference(other: str) -> None:
    """Slots that know no tools do not disagree about tools, whether they refuse them or pass over them."""
    agreement = agreed(full(TOOLS), slots(other))
    assert agreement.winner is not None
    assert agreement.winner.found.name == "jinja"


def test_a_refusal_of_one_that_has_a_say_is_a_difference() -> None:
    """A Jinja that refuses what the training rendered is not what the model was trained with."""
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    (found,) = agreed(full(refusing), slots(CHATML)).disagreements
    assert "refuses: no system" in "\n".join(found.lines())


@pytest.mark.parametrize(("jinja", "given"), [(QUIETER, {}), (LOUDER, {"enable_thinking": False})])
def test_the_variable_that_says_what_was_trained_is_found(jinja: str, given: dict[str, bool]) -> None:
    """Unset stays unset where that is what was trained; else the value is found that is."""
    agreement = agreed(full(jinja), slots(CHATML))
    assert agreement.winner is not None
    assert agreement.winner.given == given


def test_no_value_of_the_variable_may_say_it() -> None:
    """Where no value gives what was trained, the import is refused, and nothing is set in vain."""
    agreement = agreed(full(LOUDER + "!"), slots(CHATML))
    assert agreement.winner is None
    assert all(voice.given == {} for voice in agreement.voices)


def test_the_bos_that_an_engine_adds_is_no_difference() -> None:
    """A form whose engine writes the BOS lacks it in its text, and says the same; another source has to have it."""
    assert agreed(full("{{ bos_token }}" + CHATML), slots(CHATML, is_given_bos=True)).winner is not None
    assert agreed(full("{{ bos_token }}" + CHATML), slots(CHATML)).winner is None
