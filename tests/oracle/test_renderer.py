"""Our renderer and transformers' say the same of every published template and every conversation of the battery."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import transformers

from chat_templates.battery import BATTERY
from chat_templates.rendering import DEFAULT, Renderer
from chat_templates.rules import RULES, TRANSFORMERS_5_23
from tests.oracle.reference import NOW, SPECIAL_TOKENS, TEMPLATES, Reference, frozen_clock, ours

PUBLISHED = 786
SHARDS = 64


def test_the_rules_are_those_of_the_installed_reference() -> None:
    """The transformers that is compared with is the one the newest rules are named for."""
    assert f"transformers-{'.'.join(transformers.__version__.split('.')[:2])}" == TRANSFORMERS_5_23.name
    assert list(RULES)[-1] == TRANSFORMERS_5_23.name


def differences(paths: Sequence[Path]) -> tuple[Counter[str], list[str]]:
    """How often each kind of outcome came of *paths*, and every outcome in which the two differ."""
    counts: Counter[str] = Counter()
    found = []
    reference = Reference()
    with frozen_clock():
        for path in paths:
            template = path.read_text(encoding="utf-8")
            thinking = [{"enable_thinking": True}, {"enable_thinking": False}] if "enable_thinking" in template else []
            for variables in [{}, *thinking]:
                renderer = Renderer({DEFAULT: template}, TRANSFORMERS_5_23.name, variables, SPECIAL_TOKENS, NOW)
                for case in BATTERY:
                    expected = reference.outcome(template, case.conversation, variables)
                    counts[expected.kind] += 1
                    if (outcome := ours(renderer, case.conversation)) != expected:
                        found.append(f"{path.name} {case.name} {variables}: {outcome} instead of {expected}")
    return counts, found


@pytest.mark.timeout(600)
def test_every_published_template_renders_as_in_transformers() -> None:
    """786 templates, every case of the battery, thinking unset, on and off: the same text or the same refusal."""
    assert len(TEMPLATES) == PUBLISHED
    shards = [TEMPLATES[start::SHARDS] for start in range(SHARDS)]
    counts: Counter[str] = Counter()
    found: list[str] = []
    # started afresh, not forked: a test run has threads
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        for shard_counts, shard_found in pool.map(differences, shards):
            counts += shard_counts
            found += shard_found
    assert found == []
    # else the comparison would prove little
    assert counts["text"] > 80_000
    assert min(counts["refused"], counts["broken"]) > 3_000
    assert counts["invalid"] > 300
