"""Two templates in one text render as transformers would have chosen between them."""

from __future__ import annotations

import pytest

from chat_templates.battery import BATTERY
from chat_templates.forms.one_jinja import one_template
from chat_templates.probing import outcome
from chat_templates.rendering import Renderer

SAID = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.mark.parametrize(
    "default", [f"D {SAID}", f"D{SAID}\n", f"D\n\n{SAID}\n\n", f"\n{SAID}\r\n", f"{SAID}\n   ", ""]
)
@pytest.mark.parametrize(
    "tool_use", [f"T {SAID}", f"\n{SAID}{{{{ tools | tojson }}}}\r", "{% set x = 1 %}{{ x }}\n  ", "{{ 1 -}}\n \n"]
)
def test_one_text_for_two(default: str, tool_use: str) -> None:
    """Over the whole battery the one text gives what the two give, whitespace at their ends included."""
    two = Renderer({"default": default, "tool_use": tool_use})
    one = Renderer.of(one_template(two.templates))
    for case in BATTERY:
        left, right = (outcome(Renderer.render, each, case.conversation) for each in (one, two))
        # of what is refused, only the words differ
        assert left.text == right.text, case.name


def test_a_single_template_stays_as_it_is() -> None:
    """Nothing is changed where there is nothing to choose, and what nobody asks for by name is left out."""
    assert one_template({"default": "a\n"}) == "a\n"
    assert one_template({"default": "a", "rag": "b"}) == "a"
    assert one_template({"tool_use": "a"}) == "a"
