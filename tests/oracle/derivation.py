"""The table of derived forms over all published templates: `python -m tests.oracle.derivation [--go GO] [--json]`.

For each template: can it be had as a Go template for Ollama, and as LMDeploy's fields? What is said to be exact is
rendered again over the whole core, by another implementation of the engine's language than the one that was asked, and
a difference is counted as silent. --go: a Go command; with it Go's own text/template renders every emitted template.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chat_templates.conversation import Conversation
from chat_templates.derivation import Derivation, derive, trimmed
from chat_templates.forms.go_template import GoTemplate, collated, go_template
from chat_templates.forms.lmdeploy_fields import LmdeployFields, lmdeploy_fields
from chat_templates.probing import NoPlace, closings_of
from chat_templates.refusals import CannotDerive
from chat_templates.rendering import DEFAULT, Renderer
from tests.oracle import field_prompt, go_itself, go_text
from tests.oracle.reference import NOW, SPECIAL_TOKENS, TEMPLATES

FORMS = ("go", "lmdeploy_fields")
EXACT, TRIMMED = "exact", "exact with trim rules"


@dataclass(slots=True)
class Findings:
    """What was found of some templates.

    verdicts: how many of each form and verdict. unpinned: of those that are exact, how many read a variable that ought
    to be pinned (T09). silent: what was said to be exact and is not. beyond: by form, case and comparison. emitted: a
    Go template, messages, and the prompt it has to make, None where it has to fail.
    """

    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)
    unpinned: int = 0
    silent: list[str] = field(default_factory=list)
    beyond: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    emitted: list[tuple[str, list[tuple[str, str]], str | None]] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        """Take *other* in."""
        self.verdicts += other.verdicts
        self.unpinned += other.unpinned
        self.silent += other.silent
        self.beyond += other.beyond
        self.emitted += other.emitted


def examined(paths: Sequence[Path]) -> Findings:
    """What is found of the templates at *paths*."""
    found = Findings()
    for path in paths:
        text = path.read_text(encoding="utf-8")
        renderer = Renderer({DEFAULT: text}, special_tokens=SPECIAL_TOKENS, clock=NOW)
        try:
            derivation = derive(renderer, accept={"T09"})
        except CannotDerive as problem:
            found.verdicts.update((form, problem.refusal.code) for form in FORMS)
            continue
        found.unpinned += bool(derivation.accepted)
        _go(found, path.name, derivation)
        _fields(found, path.name, derivation, renderer)
    return found


def _go(found: Findings, name: str, derivation: Derivation) -> None:
    form = go_template(derivation.linear)
    if not _verdict(found, "go", derivation, form):
        return
    for case, _ in derivation.said.values():
        conversation = trimmed(case.conversation, derivation.trim)
        try:
            expected, messages = form.prompt(conversation), collated(conversation)
        except NoPlace:
            if conversation.tools or any(not isinstance(one.get("content", ""), str) for one in conversation.messages):
                continue
            expected, messages = None, collated(conversation)
        found.emitted.append((form.text, messages, expected))
        if _go_says(form.text, messages) != expected:
            found.silent.append(f"go {name} {case.name}: the emitted text is not the form")
    _core_again(found, "go", name, derivation, lambda conversation: _go_says(form.text, collated(conversation)))


def _go_says(text: str, messages: Sequence[tuple[str, str]]) -> str | None:
    data = {"Messages": [{"Role": role, "Content": content} for role, content in messages]}
    try:
        return go_text.render(text, data)
    except go_text.GoError:
        return None


def _fields(found: Findings, name: str, derivation: Derivation, renderer: Renderer) -> None:
    try:
        form = lmdeploy_fields(derivation.linear, closings_of(Renderer.render, renderer), name="unigate")
    except CannotDerive as problem:
        found.verdicts["lmdeploy_fields", problem.refusal.code] += 1
        return
    if _verdict(found, "lmdeploy_fields", derivation, form):
        fields = json.loads(form.text())

        def says(conversation: Conversation) -> str | None:
            return field_prompt.prompt(fields, conversation.messages)

        _core_again(found, "lmdeploy_fields", name, derivation, says)


def _verdict(found: Findings, form: str, derivation: Derivation, made: GoTemplate | LmdeployFields) -> bool:
    try:
        derivation.check(made.prompt)
    except CannotDerive as problem:
        found.verdicts[form, problem.refusal.code] += 1
        return False
    found.verdicts[form, EXACT if derivation.trim.are_none else TRIMMED] += 1
    found.beyond.update((form, case, said) for case, said in derivation.comparisons(made.prompt).items())
    return True


def _core_again(found: Findings, form: str, name: str, derivation: Derivation, says: Any) -> None:
    for case, wanted in derivation.core_said():
        if says(trimmed(case.conversation, derivation.trim)) != wanted.text:
            found.silent.append(f"{form} {name} {case.name}")


def all_examined(workers: int | None = None) -> Findings:
    """What is found of every published template. Takes tens of seconds."""
    found = Findings()
    shards = [TEMPLATES[start::64] for start in range(64)]
    # started afresh, not forked: a test run has threads
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        for shard in pool.map(examined, shards):
            found.add(shard)
    return found


def rows(found: Findings) -> Iterator[str]:
    """The table."""
    verdicts = [EXACT, TRIMMED, *sorted({verdict for _, verdict in found.verdicts} - {EXACT, TRIMMED})]
    yield f"{'':24}{'Go template':>14}{'LMDeploy fields':>18}"
    for verdict in verdicts:
        label = verdict if verdict in (EXACT, TRIMMED) else f"refused {verdict}"
        yield f"{label:24}{found.verdicts['go', verdict]:14}{found.verdicts['lmdeploy_fields', verdict]:18}"
    yield f"{'silent mismatches':24}{len(found.silent):14}"
    yield f"read a variable that is to be pinned (T09): {found.unpinned}"
    yield ""
    yield "outside the core, where not exact:"
    for (form, case, said), count in sorted(found.beyond.items()):
        if said != "exact":
            yield f"  {form:16} {case:32} {said:12} {count:4}"


def go_differences(go: str, found: Findings) -> list[str]:
    """Where Go's own text/template does not say what it has to. *go* is its command."""
    jobs = (
        {"template": text, "root": {"Messages": [{"Role": role, "Content": said} for role, said in messages]}}
        for text, messages, _ in found.emitted
    )
    answers = go_itself.answers(go, jobs)
    return [
        f"{text[:60]!r} {messages!r:.200}: {answer} instead of {expected!r}"
        for (text, messages, expected), answer in zip(found.emitted, answers, strict=True)
        if answer.get("text") != expected
    ]


def main() -> int:
    """Print the table; 1 where something is silently different."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--go", metavar="GO", help="a Go command, for Go's own text/template")
    options.add_argument("--json", action="store_true", help="print the counts as JSON")
    chosen = options.parse_args()
    found = all_examined()
    if chosen.json:
        print(json.dumps({f"{form} {verdict}": count for (form, verdict), count in sorted(found.verdicts.items())}))
    else:
        print("\n".join(rows(found)))
    wrong = list(found.silent)
    if chosen.go:
        differences = go_differences(chosen.go, found)
        print(f"Go's own text/template: {len(found.emitted)} renderings, {len(differences)} differ")
        wrong += differences
    print("\n".join(wrong[:20]))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
