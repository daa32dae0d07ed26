"""Modelfiles with their parameters in the kinds that Ollama gives them."""

from __future__ import annotations

from typing import Any

from backends.engines.ollama_parameters import DEPRECATED, read_parameter
from chat_templates.sources.modelfile_parsing import Modelfile
from chat_templates.sources.modelfile_parsing import parse_modelfile as parse_with_texts


def parse_modelfile(text: str) -> Modelfile:
    """The Modelfile in *text*. Raises ModelfileUnreadable, also for a parameter that Ollama does not know."""
    return parse_with_texts(text, _parameter)


def _parameter(name: str, text: str) -> Any:
    return None if name in DEPRECATED else read_parameter(name, text)
