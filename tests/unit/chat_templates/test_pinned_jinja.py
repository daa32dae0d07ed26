"""A pinned template says without variables what the template says with them."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_templates.conversation import Conversation
from chat_templates.forms.pinned_jinja import literal, pinned, with_variables
from chat_templates.refusals import CannotDerive, Unwritable
from chat_templates.rendering import Renderer
from tests.unit.chat_templates.test_derivation import CHATML

HELLO = Conversation([{"role": "user", "content": "hello"}])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def test_nothing_pinned_changes_no_byte() -> None:
    """A template without variables is written as it is, and one that does not read them too."""
    assert pinned(Renderer.of("\n" + CHATML)) == {"default": "\n" + CHATML}
    assert pinned(Renderer({"default": CHATML}, variables={"mood": 1}, clock=datetime(2024, 7, 26))) == {
        "default": CHATML
    }


def test_variables_and_the_clock_are_in_the_template() -> None:
    """A template with its variables and a frozen clock in it renders the same anywhere, within macros too."""
    template = (
        "\n  {% macro m() %}{{ mood }}{{ strftime_now('%d %b') }}{% endmacro %}{{ m() }}"
        "{% if thinking is defined and not thinking %}no{% endif %}{{ strftime_now(format='%Y') }}" + CHATML
    )
    renderer = Renderer(
        {"default": template}, variables={"mood": 'a"\n🕷', "thinking": False}, clock=datetime(2024, 7, 26)
    )
    assert with_variables(renderer) == pinned(renderer)
    made = Renderer.of(pinned(renderer)["default"])
    assert made.render(HELLO).text == renderer.render(HELLO).text
    assert 'a"\n🕷26 Julno2024' in made.render(HELLO).text


def test_a_time_that_cannot_be_written_down_is_refused() -> None:
    """A format that is made when rendering cannot be frozen in the template."""
    renderer = Renderer({"default": "{{ strftime_now(messages[0].role) }}" + CHATML}, clock=datetime(2024, 7, 26))
    with pytest.raises(CannotDerive, match="T07"):
        pinned(renderer)


def test_a_template_that_looks_at_its_variables_otherwise_is_refused() -> None:
    """Pinning is compared with the template: what tells a variable of the context from one that is set is refused."""
    template = (
        "{% macro m(mood) %}{{ mood }}{% endmacro %}{{ m() }}{% for mood in messages %}{{ mood.role }}{% endfor %}"
    )
    assert pinned(Renderer({"default": template}, variables={"mood": 1})) == {"default": template}
    with pytest.raises(CannotDerive, match="T01"):
        pinned(Renderer({"default": "{% if %}"}, variables={"mood": 1}))


@given(JSON)
def test_a_literal_is_its_value(value: object) -> None:
    """Any JSON value, written in a template, is that value."""
    renderer = Renderer({"default": "{{ (" + literal(value) + ") == value }}"}, variables={"value": value})
    assert renderer.render(HELLO).text == "True"


def test_what_has_no_literal_is_refused() -> None:
    """Infinity is no number that a template can be given in writing."""
    with pytest.raises(Unwritable):
        literal(float("inf"))
