"""Go's text/template, run on plain values, and Ollama's side of it: the second meaning of what `go_jinja` translates.

`python -m tests.oracle.go_templates --go GO` compares both with Go itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from chat_templates.sources.go_parsing import (
    Branch,
    Constant,
    Expression,
    Field,
    GoTemplateRefused,
    Jump,
    Node,
    Output,
    Set,
    Text,
)

MESSAGE = {"Thinking": "", "ToolCalls": [], "ToolName": "", "ToolCallID": "", "Images": []}
"""A message's other fields where no tool and no thought is in it (api/types.go of Ollama 0.32.15)."""

RESPONSE: Node = Output(Field(".", ("Response",), 0), 0)

STEP_LIMIT = 1_000_000
"""Most nodes that are run for one text."""


def chat_text(nodes: Sequence[Node], messages: Sequence[Mapping[str, Any]], system: str = "") -> str:
    """The prompt Ollama makes of *messages* (role and content only) with the template *nodes* and a Modelfile's SYSTEM.

    Raises GoTemplateRefused.
    """
    whole = with_response(nodes)
    return "".join(
        run(_cut(whole)[0] if is_last_turn else whole, root) for root, is_last_turn in roots(nodes, messages, system)
    )


def with_response(nodes: Sequence[Node]) -> Sequence[Node]:
    """*nodes*, with ``.Response`` at the end of a template that has neither it nor ``.Messages``."""
    named = repr(nodes)
    return nodes if "'Messages'" in named or "'Response'" in named else (*nodes, RESPONSE)


def roots(
    nodes: Sequence[Node], messages: Sequence[Mapping[str, Any]], system: str = ""
) -> Iterator[tuple[dict[str, Any], bool]]:
    """What *nodes* are run with, one after the other, and whether they are cut after ``.Response`` there."""
    if system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    fixed = {"Think": False, "IsThinkSet": False}
    merged = collated(messages)
    if "'Messages'" in repr(nodes):
        joined = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
        empty = {"Tools": [], "Response": "", "Query": "", "Document": "", "Instruction": ""}
        yield {**fixed, **empty, "System": joined, "Messages": merged}, False
        return
    turn = {"System": "", "Prompt": "", "Response": ""}
    for message in merged:
        key = {"system": "System", "user": "Prompt", "assistant": "Response"}[message["Role"]]
        if (key == "System" and (turn["Prompt"] or turn["Response"])) or (key == "Prompt" and turn["Response"]):
            yield {**fixed, **turn}, False
            turn = dict.fromkeys(turn, "")
        turn[key] = message["Content"]
    yield {**fixed, **turn}, True


def collated(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as a template gets them: those of one role in a row are one."""
    merged: list[dict[str, Any]] = []
    for message in messages:
        if merged and merged[-1]["Role"] == message["role"]:
            merged[-1]["Content"] += "\n\n" + message["content"]
        else:
            merged.append({**MESSAGE, "Role": message["role"], "Content": message["content"]})
    return merged


def _cut(nodes: Sequence[Node]) -> tuple[list[Node], bool]:
    """*nodes* up to the first output of ``.Response``, and whether there is one."""
    kept: list[Node] = []
    for node in nodes:
        kept.append(node)
        if isinstance(node, Branch):
            body, is_cut = _cut(node.body)
            otherwise, is_cut_there = ([], False) if is_cut else _cut(node.otherwise)
            kept[-1] = Branch(node.kind, node.names, node.value, tuple(body), tuple(otherwise), node.line)
            is_cut = is_cut or is_cut_there
        else:
            is_cut = isinstance(node, Output) and "'Response'" in repr(node.value)
        if is_cut:
            return kept, True
    return kept, False


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


def run(nodes: Sequence[Node], root: Mapping[str, Any]) -> str:
    """What *nodes* write of *root*: mappings, lists, texts, numbers and truth values.

    Raises GoTemplateRefused where Go would fail, or write a value that is no text.
    """
    runner = _Runner(root)
    runner.run(nodes, root, {})
    return "".join(runner.written)


class _Runner:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self.root = root
        self.written: list[str] = []
        self.steps = 0

    def run(self, nodes: Sequence[Node], dot: Any, scope: dict[str, list[Any]]) -> None:
        """Run *nodes*. *scope*: each variable's value in a list of its own, so that an inner block sets the outer's."""
        for node in nodes:
            self.steps += 1
            if self.steps > STEP_LIMIT:
                raise GoTemplateRefused("it does not end", 0)
            match node:
                case Text(text):
                    self.written.append(text)
                case Output(value, line):
                    self.written.append(printed(self.value(value, dot, scope), line))
                case Set(name, value, is_new, _):
                    computed = self.value(value, dot, scope)
                    if is_new:
                        scope[name] = [computed]
                    else:
                        scope[name][0] = computed
                case Jump(kind, _):
                    raise _Break if kind == "break" else _Continue
                case Branch():
                    self._branch(node, dot, scope)

    def _branch(self, node: Branch, dot: Any, scope: Mapping[str, list[Any]]) -> None:
        inner = dict(scope)
        value = self.value(node.value, dot, inner)
        if node.kind == "range":
            self._range(node, value, dot, inner)
            return
        for name in node.names:
            inner[name] = [value]
        if value:
            self.run(node.body, value if node.kind == "with" else dot, inner)
        else:
            self.run(node.otherwise, dot, inner)

    def _range(self, node: Branch, value: Any, dot: Any, scope: Mapping[str, list[Any]]) -> None:
        items = _items(value, node.line)
        if not items:
            self.run(node.otherwise, dot, dict(scope))
        for key, item in items:
            inner = dict(scope)
            bound = (item,) if len(node.names) == 1 else (key, item)
            inner.update({name: [given] for name, given in zip(node.names, bound, strict=False)})
            try:
                self.run(node.body, item, inner)
            except _Continue:
                continue
            except _Break:
                break

    def value(self, expression: Expression, dot: Any, scope: Mapping[str, list[Any]]) -> Any:
        """The value of *expression*."""
        if isinstance(expression, Constant):
            return expression.value
        if isinstance(expression, Field):
            return self._field(expression, dot, scope)
        if expression.function in ("and", "or"):
            value = None
            for operand in expression.operands:
                value = self.value(operand, dot, scope)
                if bool(value) == (expression.function == "or"):
                    break
            return value
        operands = [self.value(operand, dot, scope) for operand in expression.operands]
        try:
            return _CALLS[expression.function](*operands)
        except (TypeError, IndexError, KeyError, ValueError) as problem:
            raise GoTemplateRefused(f"{expression.function} fails on these values", expression.line) from problem

    def _field(self, field: Field, dot: Any, scope: Mapping[str, list[Any]]) -> Any:
        if field.base == ".":
            value = dot
        elif field.base == "$":
            value = self.root
        elif isinstance(field.base, str):
            value = scope[field.base][0]
        else:
            value = self.value(field.base, dot, scope)
        for name in field.names:
            if value is self.root:
                value = value.get(name)
                continue
            if not isinstance(value, Mapping) or name not in value:
                raise GoTemplateRefused(f".{name} is not known here", field.line)
            value = value[name]
        return value


def _items(value: Any, line: int) -> list[tuple[Any, Any]]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        return sorted(value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(enumerate(value))
    raise GoTemplateRefused("range over something that is no list", line)


def printed(value: Any, line: int) -> str:
    """*value* as Go writes it. Raises GoTemplateRefused for what is neither a text, a number nor a truth value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int):
        return str(value)
    raise GoTemplateRefused("a value that is no text would be written", line)


def _equal(value: Any, *others: Any) -> bool:
    if not others or any(type(value) is not type(other) for other in others):
        raise TypeError("incomparable")
    return value in others


def _sliced(value: Any, start: int = 0, end: int | None = None) -> Any:
    stop = len(value) if end is None else end
    if not 0 <= start <= stop <= len(value):
        raise IndexError(start)
    return value[start:stop]


def _item(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(key, int) and key < 0:
            raise IndexError(key)
        value = value[key]
    return value


def format_pieces(form: str) -> list[str]:
    """The texts around the blanks of a printf format that has only ``%s``, ``%d`` and ``%v``. Raises ValueError."""
    pieces = [""]
    for match in re.finditer(r"%(.?)|[^%]+", form, re.DOTALL):
        if match[1] is None:
            pieces[-1] += match[0]
        elif match[1] == "%":
            pieces[-1] += "%"
        elif match[1] in ("s", "d", "v"):
            pieces.append("")
        else:
            raise ValueError(match[0])
    return pieces


def _printf(form: str, *values: Any) -> str:
    pieces = format_pieces(form)
    if len(pieces) != len(values) + 1:
        raise ValueError(form)
    written = [piece + printed(value, 0) for piece, value in zip(pieces, values, strict=False)]
    return "".join(written) + pieces[-1]


_CALLS: Mapping[str, Callable[..., Any]] = {
    "eq": _equal,
    "ne": lambda left, right: not _equal(left, right),
    "lt": lambda left, right: left < right,
    "le": lambda left, right: left <= right,
    "gt": lambda left, right: left > right,
    "ge": lambda left, right: left >= right,
    "not": lambda value: not value,
    "len": len,
    "slice": _sliced,
    "index": _item,
    "printf": _printf,
    "print": str,
}
