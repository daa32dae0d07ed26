"""Causes put into the prompts of published templates."""

from __future__ import annotations

import pytest

from tests.oracle.causes import INJECTIONS, table

EVERY = 19
"""42 templates of 786; `python -m tests.oracle.causes` takes all."""


@pytest.mark.timeout(240)
def test_causes_put_into_published_templates_are_named() -> None:
    """Whatever is put in is found; and it is called what it is, by that name or by one that is as right."""
    counts, silent = table(EVERY)
    assert silent == []
    wrong = {pair: count for pair, count in counts.items() if pair[1] != "right"}
    assert wrong == {}
    assert {put_in for put_in, _ in counts} == {name.partition(",")[0] for name in INJECTIONS}
