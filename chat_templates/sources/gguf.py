"""A GGUF file: the templates in its header, which llama.cpp and Ollama render with."""

from __future__ import annotations

from pathlib import Path

from chat_templates.forms.gguf_file import NAMES_KEY, TEMPLATE_KEY, read_header, special_tokens
from chat_templates.model_folder import DEFAULT
from chat_templates.refusals import Unwritable
from chat_templates.sources.found import Found, SourceUnreadable

GGUF = "gguf"


def read_gguf(path: Path) -> Found | None:
    """What *path* says; None where it has no template. Raises SourceUnreadable."""
    try:
        values = read_header(path).values
        tokens = special_tokens(path)
    except Unwritable as problem:
        raise SourceUnreadable(str(problem)) from problem
    named = {
        key.removeprefix(f"{TEMPLATE_KEY}."): text
        for key, text in values.items()
        if key.startswith(f"{TEMPLATE_KEY}.") and key != NAMES_KEY and isinstance(text, str)
    }
    default = {DEFAULT: values[TEMPLATE_KEY]} if isinstance(values.get(TEMPLATE_KEY), str) else {}
    templates = {**default, **named}
    return Found(GGUF, templates, path, special_tokens=tokens) if templates else None
