"""Go templates and the Jinja made of them, on everything that our own form writes of the published templates."""

from __future__ import annotations

import pytest

from tests.oracle.go_templates import all_round_trips


@pytest.mark.timeout(600)
def test_published_templates_come_back_from_go() -> None:
    """Jinja as Go and as Jinja again: both run the same, on every conversation of texts, errors included."""
    found = all_round_trips()
    assert [(one.name, one.case) for one in found if one.jinja != one.running] == []
    # counts in chat_templates/DESIGN.md
    assert len({one.name for one in found}) == 695
