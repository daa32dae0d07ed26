"""A Modelfile: what `ollama create -f` makes a model from. Syntax: parser/parser.go of Ollama 0.32.15."""

from __future__ import annotations

from collections.abc import Sequence

from chat_templates.forms.go_template import GoTemplate
from chat_templates.refusals import Unwritable


def modelfile(weights: str, template: GoTemplate, stop: Sequence[str]) -> str:
    """A Modelfile for *weights*, a path as Ollama takes it after FROM. Raises Unwritable."""
    lines = [f"FROM {_bare(weights)}", f'TEMPLATE """{template.text}"""']
    return "\n".join([*lines, *(f"PARAMETER stop {_quoted(text)}" for text in stop)]) + "\n"


def _bare(path: str) -> str:
    if not path.isprintable() or path != path.strip() or path.startswith('"'):
        raise Unwritable(f"{path!r}: Ollama drops what does not print from a path; give the weights another name")
    return path


def _quoted(text: str) -> str:
    """*text* as a value. There are no escapes; a value ends at the first line end after its closing quotes."""
    if not all(one.isprintable() or one == "\n" for one in text) or '"""' in text or text.endswith('"'):
        raise Unwritable(f"the stop text {text!r} cannot be written in a Modelfile")
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'
