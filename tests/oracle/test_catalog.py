"""The catalog beside the published templates that it is compared with."""

from __future__ import annotations

import pytest

from chat_templates.catalog.index import ENTRIES
from tests.oracle.catalog import Row, published_rows

ROWS = {row.name: row for row in published_rows()}


@pytest.mark.parametrize("name", ROWS)
def test_a_template_says_what_its_reference_says(name: str) -> None:
    """Within its features a template differs in the cases that its entry names, and in no other."""
    row: Row = ROWS[name]
    assert row.unlike == row.entry.unlike.keys()
    assert row.equal > row.compared * 0.8


def test_every_template_has_a_reference() -> None:
    """Those without a published one are compared by `python -m tests.oracle.catalog` with the code of their family."""
    assert ENTRIES.keys() - ROWS.keys() == {"alpaca", "vicuna"}
