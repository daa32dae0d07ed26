"""Every published template is exact in another form, or refused with a code."""

from __future__ import annotations

import pytest

from tests.oracle.derivation import EXACT, FORMS, TRIMMED, all_examined
from tests.oracle.reference import TEMPLATES


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
