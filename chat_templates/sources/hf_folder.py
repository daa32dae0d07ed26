"""A model's folder as training leaves it: its template files, and what its tokenizer's configuration says.

Each is a source of its own, for they may differ, and who reads which differs too: transformers, vLLM and LMDeploy take
the files where there are any; llama.cpp's and Ollama's converters take ``tokenizer_config.json`` (templates by both:
gguf-py/gguf/vocab.py of llama.cpp b11434, convert/tokenizer.go of Ollama v0.33.0-rc2).
"""

from __future__ import annotations

from pathlib import Path

from chat_templates.model_folder import (
    CONFIG_FILE,
    DEFAULT,
    TEMPLATE_FILE,
    ModelFolderUnreadable,
    configured_templates,
    read_template_files,
)
from chat_templates.parsing import TemplateUnreadable, read_template
from chat_templates.sources.found import Found, SourceUnreadable

JINJA, CONFIGURED = "jinja", "tokenizer_config"

_LOST = (
    "Ollama's own import of this folder would lose the template, which it looks for in tokenizer_config.json alone"
    " (`unigate template export --to gguf` puts it into a GGUF file)"
)


def read_folder(folder: Path) -> list[Found]:
    """What the files of *folder* say, the ones that transformers takes first. Raises SourceUnreadable."""
    found = []
    try:
        files, configured = read_template_files(folder), configured_templates(folder / CONFIG_FILE)
    except ModelFolderUnreadable as problem:
        raise SourceUnreadable(str(problem)) from problem
    if files:
        found.append(Found(JINJA, files, folder / TEMPLATE_FILE, notes=() if configured else (_LOST,)))
    if configured:
        found.append(Found(CONFIGURED, configured, folder / CONFIG_FILE))
    return found


def read_file(path: Path) -> Found:
    """A Jinja file by itself. Raises SourceUnreadable."""
    try:
        return Found(JINJA, {DEFAULT: read_template(path)}, path)
    except TemplateUnreadable as problem:
        raise SourceUnreadable(str(problem)) from problem
