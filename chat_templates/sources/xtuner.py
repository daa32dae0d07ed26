"""XTuner's prompt templates, by name, from the user's own copy of it.

What is read: ``PROMPT_TEMPLATE`` in ``utils/templates.py``; what it means: ``template_map_fn`` in
``dataset/map_fns/template_map_fn.py`` and ``encode_fn`` in ``dataset/utils.py`` (xtuner 0.2.0): BOS before the first
turn, SYSTEM before the first INSTRUCTION, SUFFIX after an answer, then EOS (and BOS before the next turn) unless the
suffix takes its place, then SEP.
"""

from __future__ import annotations

import ast
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chat_templates.derivation import CARRIED
from chat_templates.rendering import DEFAULT
from chat_templates.sources.found import Found, SourceUnreadable
from chat_templates.sources.registry import literal, package_file, parse_python, unknown_name
from chat_templates.sources.slots import Blank, Slot, SlotTemplate

PACKAGE, REGISTRY = "xtuner", "utils/templates.py"
PREFIX = "xtuner:"

_BLANKS = {"input": Blank.CONTENT, "system": Blank.CONTENT, "round": Blank.ROUND}
_TEXTS = ("SYSTEM", "INSTRUCTION", "SUFFIX", "SEP")


def read_xtuner(name: str, folder: Path | None = None) -> Found:
    """The template called *name*.

    folder: XTuner's own, or an environment's; None takes the installed one. Raises SourceUnreadable.
    """
    path = package_file(PACKAGE, REGISTRY, folder)
    entries = _entries(path)
    if name not in entries:
        raise unknown_name("XTuner", name, entries, path)
    found = {word.arg: literal(word.value, path) for word in entries[name].keywords if word.arg is not None}
    for text in _TEXTS:
        if not isinstance(found.get(text, ""), str):
            raise SourceUnreadable(f"{path}: {name}: {text}: is no text")
    if "INSTRUCTION" not in found:
        raise SourceUnreadable(f"{path}: {name}: has no INSTRUCTION")
    stops = found.get("STOP_WORDS", [])
    if not isinstance(stops, list) or not all(isinstance(word, str) for word in stops):
        raise SourceUnreadable(f"{path}: {name}: STOP_WORDS: is no list of texts")
    template = _slots(found, f"{path}: {name}")
    return Found(
        f"{PREFIX}{name}",
        {DEFAULT: template.jinja(f"XTuner's template {name}")},
        path,
        stop_strings=tuple(stops),
        notes=("XTuner writes the tokenizer's BOS before the first turn, but for the tokenizers of Qwen and ChatGLM",),
        speaks_of=CARRIED if template.system is not None else CARRIED - {"system"},
    )


def template_names(folder: Path | None = None) -> list[str]:
    """The names there are. Raises SourceUnreadable."""
    return sorted(_entries(package_file(PACKAGE, REGISTRY, folder)))


def _slots(found: Mapping[str, Any], where: str) -> SlotTemplate:
    is_ended = not found.get("SUFFIX_AS_EOS", False)
    eos: Slot = (Blank.EOS,) if is_ended else ()
    return SlotTemplate(
        user=_slot(found["INSTRUCTION"], where),
        assistant=(Blank.CONTENT, found.get("SUFFIX", ""), *eos, found.get("SEP", "")),
        system=_slot(found["SYSTEM"], where) if "SYSTEM" in found else None,
        prefix=(Blank.BOS,),
        joint=(Blank.BOS,) if is_ended else (),
    )


def _slot(text: str, where: str) -> Slot:
    pieces: list[str | Blank] = []
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as problem:
        raise SourceUnreadable(f"{where}: {text!r}: {problem}") from problem
    for written, field, form, conversion in parts:
        pieces.append(written)
        if field is None:
            continue
        if field not in _BLANKS or form or conversion:
            raise SourceUnreadable(f"{where}: has the blank {{{field}}}, which is not known here")
        pieces.append(_BLANKS[field])
    return tuple(pieces)


def _entries(path: Path) -> dict[str, ast.Call]:
    for node in parse_python(path).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            target = node.targets[0]
            if isinstance(target, ast.Name) and target.id == "PROMPT_TEMPLATE":
                return {
                    word.arg: word.value
                    for word in node.value.keywords
                    if word.arg is not None and isinstance(word.value, ast.Call)
                }
    raise SourceUnreadable(f"{path}: has no PROMPT_TEMPLATE; this reads XTuner 0.1 and 0.2")
