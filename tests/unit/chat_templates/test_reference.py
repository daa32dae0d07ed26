"""A look at what `tests/oracle` proves, quick enough for every run."""

from __future__ import annotations

from pathlib import Path

import pytest

from chat_templates.battery import CASES
from chat_templates.rendering import DEFAULT, Renderer
from tests.oracle.reference import NOW, SPECIAL_TOKENS, TEMPLATES, Reference, frozen_clock, ours


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in TEMPLATES[::80]])
def test_some_published_templates_render_as_in_transformers(path: Path) -> None:
    """Of the published templates each eightieth makes of the battery what transformers makes of it."""
    template = path.read_text(encoding="utf-8")
    renderer = Renderer({DEFAULT: template}, special_tokens=SPECIAL_TOKENS, clock=NOW)
    with frozen_clock():
        reference = Reference()
        for case in CASES:
            assert ours(renderer, case.conversation) == reference.outcome(template, case.conversation, {}), case.name
