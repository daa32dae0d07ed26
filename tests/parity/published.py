"""What needs no engine, over all 786 published templates: our rendering beside transformers', and the derived forms."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from tests.oracle.derivation import EXACT, TRIMMED, all_examined
from tests.oracle.reference import TEMPLATES
from tests.oracle.test_renderer import SHARDS, differences

FORMS = {"go": "Go template (Ollama)", "lmdeploy_fields": "LMDeploy's fields"}


@dataclass(frozen=True, slots=True)
class Published:
    """renderings: by kind of outcome, each compared with transformers'; different: how many were not its.

    derived: by form and verdict. silent: derived forms that were said to be exact and are not.
    """

    templates: int
    renderings: dict[str, int]
    different: int
    derived: dict[tuple[str, str], int]
    silent: int


def published() -> Published:
    """All of it. Takes one to two minutes."""
    counts: Counter[str] = Counter()
    different = 0
    shards = [TEMPLATES[start::SHARDS] for start in range(SHARDS)]
    # started afresh, not forked, as the oracle's tests do
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        for shard_counts, found in pool.map(differences, shards):
            counts += shard_counts
            different += len(found)
    derived = all_examined()
    return Published(len(TEMPLATES), dict(counts), different, dict(derived.verdicts), len(derived.silent))


def rows(found: Published) -> list[str]:
    """Both tables, as Markdown."""
    total = sum(found.renderings.values())
    lines = [
        f"**Rendering.** {found.templates} templates, every case of the battery, thinking unset, on and off:"
        f" {_number(total)} renderings beside transformers' own, **{found.different} different**"
        f" ({', '.join(f'{_number(count)} {kind}' for kind, count in sorted(found.renderings.items()))}).",
        "",
        "**Derived forms.** The same templates in the languages of engines that do not read Jinja. What is called exact"
        " was rendered again by a second implementation of the language; what that makes otherwise is silent.",
        "",
        f"| | {' | '.join(FORMS.values())} |",
        f"|---|{'---:|' * len(FORMS)}",
    ]
    first = [EXACT, TRIMMED]
    for verdict in [*first, *sorted({verdict for _, verdict in found.derived} - set(first))]:
        label = verdict if verdict in first else f"refused, {verdict}"
        lines.append(f"| {label} | {' | '.join(str(found.derived.get((form, verdict), 0)) for form in FORMS)} |")
    lines.append(f"| **silent mismatches** | {' | '.join([f'**{found.silent}**'] * len(FORMS))} |")
    return lines


def _number(count: int) -> str:
    return f"{count:,}".replace(",", " ")
