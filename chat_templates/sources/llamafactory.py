"""LLaMA-Factory's training templates, by name, from the user's own copy of it.

What is read: the ``register_template(…)`` calls of ``data/template.py``; what they mean: ``Template._encode``,
``Llama2Template``, ``ReasoningTemplate.encode_oneturn`` and ``fix_special_tokens`` there, and ``StringFormatter`` in
``data/formatter.py`` (llamafactory 0.9.5). Tools are not read: their formats are code. The prompt is the one that
LLaMA-Factory's own chat and a single turn's training have (``encode_oneturn``).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from chat_templates.derivation import CARRIED
from chat_templates.rendering import DEFAULT
from chat_templates.sources.found import Found, SourceUnreadable, read_text
from chat_templates.sources.registry import literal, package_file, parse_python, unknown_name
from chat_templates.sources.slots import Blank, Slot, SlotTemplate, Thoughts

PACKAGE, REGISTRY = "llamafactory", "data/template.py"
PREFIX = "llamafactory:"

_PLACEHOLDER = "{{content}}"
_CLASSES = ("Template", "Llama2Template", "ReasoningTemplate", "Glm47ReasoningTemplate")
_THINKING = ("<think>\n", "\n</think>\n\n")
"""The default of ``thought_words`` in ``register_template``."""


@dataclass(frozen=True, slots=True)
class Training:
    """What a training says of its template; the defaults are LLaMA-Factory's (``hparams/data_args.py``, 0.9.5)."""

    template: str
    default_system: str | None = None
    enable_thinking: bool | None = True
    preserve_thinking: bool = False


def read_training(path: Path) -> Training | None:
    """What the training YAML in *path* says; None where it names no template. Raises SourceUnreadable."""
    try:
        found = yaml.safe_load(read_text(path, "a training YAML"))
    except (yaml.YAMLError, ValueError, RecursionError) as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        raise SourceUnreadable(f"{where}: is no YAML: {getattr(problem, 'problem', None) or problem}") from problem
    if not isinstance(found, dict) or found.get("template") is None:
        return None
    training = Training(
        found["template"],
        found.get("default_system"),
        found.get("enable_thinking", True),
        found.get("preserve_thinking", False),
    )
    for key, kind in (
        ("template", str),
        ("default_system", str | None),
        ("enable_thinking", bool | None),
        ("preserve_thinking", bool),
    ):
        if not isinstance(value := getattr(training, key), kind):
            raise SourceUnreadable(f"{path}: {key}: {value!r} is not what LLaMA-Factory takes")
    return training


def read_llamafactory(training: Training, folder: Path | None = None) -> Found:
    """The template that *training* trained with.

    folder: LLaMA-Factory's own, or an environment's; None takes the installed one. Raises SourceUnreadable.
    """
    path = package_file(PACKAGE, REGISTRY, folder)
    calls = _registrations(path)
    call = calls.get(training.template)
    if call is None:
        raise unknown_name("LLaMA-Factory", training.template, calls, path)
    given = _Given(path, call)
    template = _slots(given, training)
    stops = given.plain("stop_words") or []
    replaces_eos = bool(given.plain("replace_eos") and stops)
    return Found(
        f"{PREFIX}{training.template}",
        {DEFAULT: template.jinja(f"LLaMA-Factory's template {training.template}")},
        path,
        stop_strings=tuple(stops),
        special_tokens={"eos_token": stops[0]} if replaces_eos else {},
        system_default=template.default_system,
        notes=tuple(_notes(given, template)),
        speaks_of=CARRIED | {"reasoning_history"} if template.thoughts is not None else CARRIED,
    )


def _notes(given: _Given, template: SlotTemplate) -> Iterator[str]:
    if "format_tools" in given.keywords or "format_function" in given.keywords:
        yield "its format of tools is code of LLaMA-Factory's: conversations with tools are refused"
    if template.default_system is not None:
        yield "an empty system message becomes the default one, as in training"
    if template.thoughts is not None and not template.thoughts.is_history_kept:
        yield (
            "thoughts of earlier answers are left out, as LLaMA-Factory's own chat does; a training on conversations of"
            " several turns saw them, and an empty one where an answer had none, unless it set mask_history"
        )
    if template.thoughts is not None and template.thoughts.prefill:
        yield "trained without thinking: every prompt ends with an empty thought"


def template_names(folder: Path | None = None) -> list[str]:
    """The names there are. Raises SourceUnreadable."""
    return sorted(_registrations(package_file(PACKAGE, REGISTRY, folder)))


def _registrations(path: Path) -> dict[str, ast.Call]:
    calls = {}
    for node in parse_python(path).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = node.value
            name = next((word.value for word in call.keywords if word.arg == "name"), None)
            is_registration = isinstance(call.func, ast.Name) and call.func.id == "register_template"
            if is_registration and isinstance(name, ast.Constant) and isinstance(name.value, str):
                calls[name.value] = call
    return calls


class _Given:
    """The keywords of one ``register_template`` call."""

    def __init__(self, path: Path, call: ast.Call) -> None:
        self.path = path
        self.keywords = {word.arg: word.value for word in call.keywords}

    def plain(self, name: str) -> Any:
        """A keyword's plain value; None where it is not given."""
        node = self.keywords.get(name)
        return None if node is None else literal(node, self.path)

    def name(self, name: str) -> str | None:
        """A keyword that is the name of something."""
        node = self.keywords.get(name)
        return node.id if isinstance(node, ast.Name) else None

    def slots(self, name: str) -> list[Any] | None:
        """The slots of a formatter; None where it is not given."""
        node = self.keywords.get(name)
        if node is None:
            return None
        if isinstance(node, ast.Call):
            given = next((word.value for word in node.keywords if word.arg == "slots"), None)
            given = given if given is not None else next(iter(node.args), None)
            found = None if given is None else literal(given, self.path)
            if isinstance(found, list):
                return found
        raise SourceUnreadable(f"{self.path}:{node.lineno}: {name}: has no plain slots, so it cannot be read")


def _slots(given: _Given, training: Training) -> SlotTemplate:
    kind = given.name("template_class") or "Template"
    where = f"{given.path}: {training.template}"
    if kind not in _CLASSES:
        raise SourceUnreadable(f"{where}: is of the class {kind}, which is not known here")
    stops = given.plain("stop_words") or []
    if given.plain("replace_eos") and not stops:
        raise SourceUnreadable(f"{where}: replaces the EOS by a stop word and has none")
    # what `fix_special_tokens` makes the tokenizer's
    eos = stops[0] if given.plain("replace_eos") else None
    ending = [_PLACEHOLDER] if given.plain("efficient_eos") else [_PLACEHOLDER, {"eos_token"}]
    default_system = given.plain("default_system") if training.default_system is None else training.default_system

    def slot(name: str, otherwise: list[Any]) -> Slot:
        found = given.slots(name)
        return _slot(otherwise if found is None else found, eos, f"{where}: {name}")

    prefix = slot("format_prefix", [])
    if Blank.CONTENT in prefix:
        raise SourceUnreadable(f"{where}: format_prefix: has a content")
    is_folded = kind == "Llama2Template"
    system = given.slots("format_system") or [_PLACEHOLDER]
    return SlotTemplate(
        user=slot("format_user", [_PLACEHOLDER]),
        assistant=slot("format_assistant", ending),
        # Llama2Template takes the first of its elements alone
        system=_slot(system[:1] if is_folded else system, eos, f"{where}: format_system"),
        prefix=prefix,
        default_system=default_system or None,
        is_system_in_user=is_folded,
        thoughts=_thoughts(kind, given, training) if kind.endswith("ReasoningTemplate") else None,
    )


def _thoughts(kind: str, given: _Given, training: Training) -> Thoughts:
    opening, closing = given.plain("thought_words") or _THINKING
    empty = closing if kind == "Glm47ReasoningTemplate" else opening + closing
    return Thoughts(opening, closing, training.preserve_thinking, "" if training.enable_thinking else empty)


def _slot(elements: Sequence[Any], eos: str | None, where: str) -> Slot:
    """Slots as LLaMA-Factory writes them: texts, ``{"bos_token"}``, ``{"token": "…"}``. eos: None: the tokenizer's."""
    pieces: list[str | Blank] = []
    for element in elements:
        if isinstance(element, str):
            before, blank, after = element.partition(_PLACEHOLDER)
            if "{{" in before + after:
                raise SourceUnreadable(f"{where}: {element!r}: has a blank that is not {_PLACEHOLDER}")
            pieces += [before, Blank.CONTENT, after] if blank else [before]
        elif isinstance(element, set):
            # any other set writes nothing (`_convert_elements_to_ids`)
            if "bos_token" in element:
                pieces.append(Blank.BOS)
            elif "eos_token" in element:
                pieces.append(Blank.EOS if eos is None else eos)
        elif isinstance(element, dict) and isinstance(element.get("token"), str):
            pieces.append(element["token"])
        else:
            raise SourceUnreadable(f"{where}: {element!r}: is no slot that is known here")
    return tuple(piece for piece in pieces if piece != "")
