"""Ollama's Modelfile: its Go TEMPLATE as Jinja, its SYSTEM and its stops.

What of it is part of a prompt and cannot be said in a template (MESSAGE, RENDERER, PARSER) is refused.
"""

from __future__ import annotations

from pathlib import Path

from chat_templates.derivation import CARRIED
from chat_templates.rendering import DEFAULT
from chat_templates.sources.found import Found, SourceUnreadable, read_text
from chat_templates.sources.go_jinja import THINKING, jinja_of, reads_thinking
from chat_templates.sources.go_parsing import GoTemplateRefused, parse
from chat_templates.sources.modelfile_parsing import Modelfile, ModelfileUnreadable, parse_modelfile

NAME = "modelfile"


def read_modelfile(path: Path) -> Found | None:
    """What the Modelfile *path* says of prompts; None where it has no TEMPLATE. Raises SourceUnreadable."""
    try:
        said = parse_modelfile(read_text(path, "a Modelfile"))
    except ModelfileUnreadable as problem:
        raise SourceUnreadable(f"{path}: {problem}") from problem
    return found_in(said, path) if said.template else None


def found_in(said: Modelfile, origin: Path | str) -> Found:
    """What a Modelfile with a TEMPLATE says. Raises SourceUnreadable."""
    if said.messages:
        raise SourceUnreadable(
            f"{origin}: MESSAGE puts messages before every conversation, which no template says; remove it, or let"
            " clients send them"
        )
    for word, value in (("RENDERER", said.renderer), ("PARSER", said.parser)):
        if value:
            sentence = f"{word} {value} has Ollama write prompts with code of its own, not with TEMPLATE (T13)"
            raise SourceUnreadable(f"{origin}: {sentence}; remove it, or import the model's Jinja")
    try:
        nodes = parse(said.template)
        jinja = jinja_of(nodes, said.system)
    except GoTemplateRefused as problem:
        raise SourceUnreadable(f"{origin}: TEMPLATE: {problem}; import the model's Jinja instead") from problem
    notes = ["Ollama joins messages of one role that follow one another, and so does this template"]
    if reads_thinking(nodes):
        notes.append(f"its .Think is the variable {THINKING}; Ollama sets it for thinking models unless told otherwise")
    return Found(
        NAME,
        {DEFAULT: jinja},
        origin,
        stop_strings=tuple(said.parameters.get("stop", ())),
        system_default=said.system or None,
        notes=tuple(notes),
        speaks_of=CARRIED,
        is_given_bos=True,
    )
