"""Go templates and the Jinja made of them, side by side: `python -m tests.oracle.go_templates [--go GO] [FILE ...]`.

What is compared, over every case of the battery that has texts alone: the templates of `go_styles`, any FILE with a Go
template, and all that `forms/go_template.py` writes of the 786 published templates, translated back. --go: a command;
with it Go's own text/template says what is right, and without it `go_running`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chat_templates.battery import CASES, Case
from chat_templates.derivation import core, derive
from chat_templates.forms.go_template import go_template
from chat_templates.refusals import CannotDerive
from chat_templates.rendering import DEFAULT, Renderer, TemplateRefused
from chat_templates.sources.go_jinja import jinja_of
from chat_templates.sources.go_parsing import GoTemplateRefused, Node, parse
from tests.oracle import go_itself
from tests.oracle.go_running import chat_text, roots, with_response
from tests.oracle.go_styles import STYLES
from tests.oracle.reference import NOW, SPECIAL_TOKENS, TEMPLATES

RESPONSE = "{{ .Response }}"


@dataclass(frozen=True, slots=True)
class Compared:
    """One template and one conversation: what the Jinja says of it, and what `go_running` does; None for an error."""

    name: str
    case: str
    text: str
    jinja: str | None
    running: str | None
    messages: Sequence[Mapping[str, Any]]


def plain_cases() -> list[Case]:
    """The conversations that a Go template can be asked about: texts of the three roles, and no tools."""
    cases = {case.name: case for case in (*core(), *CASES)}
    return [case for case in cases.values() if _is_plain(case)]


def _is_plain(case: Case) -> bool:
    return case.conversation.tools is None and all(
        set(message) == {"role", "content"}
        and message["role"] in ("system", "user", "assistant")
        and isinstance(message["content"], str)
        for message in case.conversation.messages
    )


def compared(name: str, text: str) -> Iterator[Compared]:
    """*text* on every conversation. Raises GoTemplateRefused."""
    nodes = parse(text)
    renderer = Renderer.of(jinja_of(nodes))
    for case in plain_cases():
        messages = case.conversation.messages
        yield Compared(name, case.name, text, _jinja_says(renderer, case), _go_says(nodes, messages), messages)


def _jinja_says(renderer: Renderer, case: Case) -> str | None:
    try:
        return renderer.render(case.conversation).text
    except TemplateRefused:
        return None


def _go_says(nodes: Sequence[Node], messages: Sequence[Mapping[str, Any]]) -> str | None:
    try:
        return chat_text(nodes, messages)
    except GoTemplateRefused:
        return None


def round_trips(paths: Sequence[Path]) -> list[Compared]:
    """The published templates at *paths* as Go, and back, where they can be had as Go."""
    found: list[Compared] = []
    for path in paths:
        renderer = Renderer({DEFAULT: path.read_text(encoding="utf-8")}, special_tokens=SPECIAL_TOKENS, clock=NOW)
        try:
            derivation = derive(renderer, accept={"T09"})
            form = go_template(derivation.linear)
            derivation.check(form.prompt)
        except CannotDerive:
            continue
        found += compared(path.name, form.text)
    return found


def all_round_trips(workers: int | None = None) -> list[Compared]:
    """All of them. Takes a minute."""
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        shards = pool.map(round_trips, [TEMPLATES[start::32] for start in range(32)])
        return [one for shard in shards for one in shard]


def go_answers(go: str, found: Sequence[Compared]) -> list[str | None]:
    """What Go itself says of each."""
    jobs, of = [], []
    for number, one in enumerate(found):
        nodes = parse(one.text)
        # Ollama adds the action; it stands at the end, where nothing is to trim it
        text = one.text if with_response(nodes) is nodes else one.text + RESPONSE
        for root, is_last_turn in roots(nodes, one.messages):
            jobs.append({"template": text, "root": root, "cut": is_last_turn})
            of.append(number)
    said: list[str | None] = [""] * len(found)
    for number, answer in zip(of, go_itself.answers(go, jobs), strict=True):
        so_far = said[number]
        said[number] = None if so_far is None or "error" in answer else so_far + answer["text"]
    return said


def main() -> int:
    """Print what was compared and every difference; 1 where there is one."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--go", metavar="GO", help="a Go command, for Go's own text/template")
    options.add_argument("--no-round-trips", action="store_true", help="leave the 786 out")
    options.add_argument("files", nargs="*", type=Path, metavar="FILE")
    chosen = options.parse_args()
    found = [] if chosen.no_round_trips else all_round_trips()
    named = [*STYLES.items(), *((path.name, path.read_text(encoding="utf-8")) for path in chosen.files)]
    refused = 0
    for name, text in named:
        try:
            found += compared(name, text)
        except GoTemplateRefused as refusal:
            refused += 1
            print(f"{name}: refused: {refusal}")
    go = go_answers(chosen.go, found) if chosen.go else [one.running for one in found]
    wrong = 0
    for one, said in zip(found, go, strict=True):
        if not one.jinja == one.running == said:
            wrong += 1
            print(f"{one.name} {one.case}: Jinja {one.jinja!r:.200}; running {one.running!r:.200}; Go {said!r:.200}")
    count = len({one.name for one in found})
    print(f"{count} templates, {refused} refused, {len(found)} renderings, {wrong} differences")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
