"""Modelfiles: Ollama's description of a model, as LLaMA-Factory's export leaves one beside the weights.

Source: https://github.com/ollama/ollama docs/modelfile.mdx and parser/parser.go ParseFile, at v0.33.0-rc2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_TEXTS = ("template", "system", "adapter", "renderer", "parser", "license")
_WORDS = frozenset({"from", "parameter", "message", "requires", *_TEXTS})
_ROLES = frozenset({"system", "user", "assistant"})
_QUOTES = '"""'


class ModelfileUnreadable(ValueError):
    """The text is no Modelfile; the message names the line and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Modelfile:
    """What a Modelfile says. *base* is its FROM: a path, or the name of a model; *template* is in Go's language."""

    base: str
    template: str = ""
    system: str = ""
    adapter: str = ""
    renderer: str = ""
    parser: str = ""
    license: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Mapping[str, str], ...] = ()


ReadParameter = Callable[[str, str], Any]
"""A parameter's value, by its name and text: a list is added to what the name has already, None says nothing. Raises
ValueError with what is wrong."""


def as_texts(name: str, text: str) -> list[str]:
    """Every parameter as a list of its texts, whatever its name."""
    return [text]


def parse_modelfile(text: str, read_parameter: ReadParameter = as_texts) -> Modelfile:
    """The Modelfile in *text*. Raises ModelfileUnreadable."""
    said: dict[str, str] = {}
    parameters: dict[str, Any] = {}
    messages: list[Mapping[str, str]] = []
    for line, word, value in _commands(text.removeprefix("\ufeff")):
        if word == "parameter":
            _add_parameter(line, value, parameters, read_parameter)
        elif word == "message":
            role, _, content = value.partition(" ")
            if role not in _ROLES:
                raise ModelfileUnreadable(
                    f'line {line}: MESSAGE needs a role (system, user or assistant), not "{role}"'
                )
            messages.append({"role": role, "content": _unquoted(content.strip())})
        else:
            said[word] = value
    if not said.get("from"):
        raise ModelfileUnreadable("it has no FROM line")
    return Modelfile(
        base=said["from"],
        parameters=parameters,
        messages=tuple(messages),
        **{word: said.get(word, "") for word in _TEXTS},
    )


def _commands(text: str) -> Iterator[tuple[int, str, str]]:
    """Each command's line, its word in lower case, and its value without quotes."""
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        # what stands after a quote that is opened here is the value's own
        number, line = at + 1, lines[at].lstrip()
        at += 1
        if not line or line.startswith("#"):
            continue
        word, value = (*line.split(None, 1), "")[:2]
        word = word.lower().strip()
        if word not in _WORDS:
            raise ModelfileUnreadable(f"line {number}: {word.upper()} is no word of a Modelfile")
        head, value = _head(word, value)
        opening = next((quotes for quotes in (_QUOTES, '"') if value.startswith(quotes)), "")
        while opening and not _is_closed(value, opening):
            if at == len(lines):
                raise ModelfileUnreadable(f"line {number}: the text that begins here has no closing {opening}")
            value += "\n" + lines[at]
            at += 1
        yield number, word, head + _printable(_unquoted(value.strip()))


def _head(word: str, value: str) -> tuple[str, str]:
    """What stands before a command's value: a parameter's name, a message's role."""
    if word not in ("parameter", "message"):
        return "", value
    first, _, rest = value.partition(" ")
    return f"{first.rstrip()} ", rest.lstrip()


def _is_closed(value: str, quotes: str) -> bool:
    stripped = value.rstrip()
    return len(stripped) >= 2 * len(quotes) and stripped.endswith(quotes)


def _printable(value: str) -> str:
    """*value* as Ollama keeps it: what Go's ``strconv.IsPrint`` is not true of is dropped."""
    return "".join(one for one in value if one.isprintable() or one in "\t\n\r")


def _unquoted(value: str) -> str:
    for quotes in (_QUOTES, '"'):
        if value.startswith(quotes) and _is_closed(value, quotes):
            return value[len(quotes) : -len(quotes)]
    return value


def _add_parameter(line: int, value: str, parameters: dict[str, Any], read_parameter: ReadParameter) -> None:
    name, _, text = value.partition(" ")
    try:
        found = read_parameter(name, text)
    except ValueError as problem:
        raise ModelfileUnreadable(f"line {line}: {problem}") from None
    if found is not None:
        parameters[name] = [*parameters.get(name, []), *found] if isinstance(found, list) else found


_GO_FIELD = re.compile(r"\{\{-?[^}]*?(?:^|[\s({])\.[A-Z]\w*")


def is_go_template(text: str) -> bool:
    """Whether *text* is a template in Go's language, not in Jinja: a field there has nothing before its dot."""
    return _GO_FIELD.search(text) is not None
