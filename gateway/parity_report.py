"""The proof of a backend's prompts as a person reads it: lines for a terminal, from the administration's JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from chat_templates.visible import visible

HASH_DIGITS = 12

MODES = {
    "native": "the engine renders",
    "tokens": "the gateway renders, and the engine is given ids",
    "text": "the gateway renders, and the engine is given text",
}
STYLES = {"exact": "green", "mismatch": "bold red", "refused": "yellow"}
CAUSE_WIDTH = 28


def is_all_exact(entry: Mapping[str, Any]) -> bool:
    """Whether nothing was seen to differ, and something was seen."""
    proof = entry["proof"]
    return proof is not None and not proof["problem"] and all(case["verdict"] != "mismatch" for case in proof["cases"])


def report_text(entry: Mapping[str, Any]) -> Text:
    """The report of one backend."""
    text = Text()
    for line, style in _lines(entry):
        text.append(f"{line}\n", style=style)
    return text


def _lines(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    proof = entry["proof"]
    if proof is None:
        yield f"{entry['backend']} on {entry['engine']}: nothing was proven; it is {entry['state']}", "yellow"
        return
    version = f" {proof['engine_version']}" if proof.get("engine_version") else ""
    contract = f"contract {proof['contract'][:HASH_DIGITS]} ({proof['contract_name']})"
    yield f"{entry['backend']} on {entry['engine']}{version}, {contract}", "bold"
    if proof.get("proven_at"):
        kept = ", and kept since" if proof["is_from_cache"] else ""
        yield f"  proven at {proof['proven_at']} in {proof['took_s']} s{kept}", "dim"
    if proof.get("template_shown"):
        yield f"  the template that the engine says it has: {proof['template_shown']}", ""
    yield from _modes(proof)
    yield from _cases(proof["cases"])
    yield from _others(proof)
    for note in proof.get("notes", ()):
        yield f"  note: {note}", "dim"
    if proof["problem"]:
        yield f"  {proof['problem']}", "bold red"
        if proof["remedy"]:
            yield f"  fix: {proof['remedy']}", "bold"


def _modes(proof: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    by_modes: dict[tuple[str, ...], list[str]] = {}
    for feature, modes in proof["modes"].items():
        by_modes.setdefault(tuple(modes), []).append(feature)
    for modes, features in by_modes.items():
        yield f"  proven      {', '.join(features)}: {'; or '.join(MODES[mode] for mode in modes)}", "green"
    if proof["unproven"]:
        yield f"  not proven  {', '.join(proof['unproven'])}", "bold red"


def _cases(cases: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    if not cases:
        return
    counts = Counter(case["verdict"] for case in cases)
    counted = ", ".join(f"{counts[verdict]} {verdict}" for verdict in STYLES if counts[verdict])
    yield f"  the engine's own prompts of {len(cases)} conversations: {counted}", ""
    for case in cases:
        if case["verdict"] == "mismatch":
            yield f"    {case['case']:{CAUSE_WIDTH}} {case['cause'] or 'unknown'}", STYLES["mismatch"]
            yield from ((f"      {line}", "") for text in case["lines"] for line in text.split("\n"))
    refused = [case["case"] for case in cases if case["verdict"] == "refused"]
    if refused:
        yield f"    refused by the contract, and so by the gateway: {', '.join(refused)}", "dim"


def _others(proof: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    strings, stops, finished = proof.get("tokenizer"), proof.get("stops"), proof.get("finished_prompts")
    if strings is not None:
        differing = [visible(text).replace("\n", "") for text in strings["differing"]]
        same = f"  tokenizer: {strings['compared']} texts"
        yield (f"{same}, other ids for {'  '.join(differing)}", "red") if differing else (f"{same}, all alike", "")
    if stops is not None:
        reached = [id_ for id_ in stops["wanted"] if id_ not in stops["missing"]]
        missing = f", and not at {_listed(stops['missing'])}" if stops["missing"] else ""
        yield f"  answers end at the stop ids {_listed(reached)}{missing}", "red" if missing else ""
    if finished is not None:
        problem = finished["problem"]
        outcome = problem or f"taken as they are, with {', '.join(finished['features'])}"
        yield f"  finished prompts ({finished['mode']}): {outcome}", "red" if problem else ""


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids)) or "(none)"
