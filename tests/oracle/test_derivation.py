"""Every published template is exact in another form, or refused with a code."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from chat_templates.forms.pinned_jinja import pinned
from chat_templates.rendering import DEFAULT, Renderer
from tests.oracle.derivation import EXACT, FORMS, TRIMMED, all_examined
from tests.oracle.reference import NOW, SPECIAL_TOKENS, TEMPLATES


@pytest.mark.timeout(600)
def test_no_published_template_is_silently_different() -> None:
    """What is called exact renders the whole core as the template does, in another implementation of the language."""
    found = all_examined()
    assert found.silent == []
    for form in FORMS:
        assert sum(count for (one, _), count in found.verdicts.items() if one == form) == len(TEMPLATES)
    # else little would be proven; counts in chat_templates/DESIGN.md
    assert (found.verdicts["go", EXACT], found.verdicts["go", TRIMMED]) == (524, 171)
    assert (found.verdicts["lmdeploy_fields", EXACT], found.verdicts["lmdeploy_fields", TRIMMED]) == (163, 33)


def pinned_count(paths: Sequence[Path]) -> int:
    """In how many of *paths* something was pinned, thinking on and thinking off. Raises CannotDerive."""
    count = 0
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for thinking in (True, False):
            renderer = Renderer(
                {DEFAULT: text}, "transformers-5.23", {"enable_thinking": thinking}, SPECIAL_TOKENS, NOW
            )
            count += pinned(renderer)[DEFAULT] != text
    return count


@pytest.mark.timeout(600)
def test_every_published_template_can_have_its_variables_and_its_clock_written_in() -> None:
    """Thinking on and off and a frozen clock, set in the template itself, give the prompts of the whole battery."""
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        counts = list(pool.map(pinned_count, [TEMPLATES[start::16] for start in range(16)]))
    assert sum(counts) > 300
