"""As much of Go's text/template as the templates we write use: variables, range, if, eq, index, fields and literals.

It knows nothing of how they are written, and refuses what it does not know. `python -m tests.oracle.derivation --go`
compares it with Go itself.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_WORD = re.compile(r'\s*("(?:\\.|[^"\\])*"|:=|=|\$\w*|\.\w+|\w+)')
_WHITESPACE = " \t\r\n"  # text/template/parse/lex.go, spaceChars


class GoError(Exception):
    """Parsing or rendering failed, as it does in Go."""


@dataclass(slots=True)
class _Block:
    words: list[str]
    body: list[Any] = field(default_factory=list)
    otherwise: list[Any] = field(default_factory=list)


def render(template: str, data: Mapping[str, Any]) -> str:
    """What *template* makes of *data*. Raises GoError."""
    nodes, left = _parsed(list(_lexed(template)))
    if left:
        raise GoError(f"unexpected {left[0]}")
    return "".join(_rendered(nodes, data, [{"$": data}]))


def _lexed(template: str) -> Iterator[str | list[str]]:
    """Texts, and the words of each action. An action ends at the first ``}}`` that is in no literal."""
    rest, trim = template, False
    while rest:
        text, opening, rest = rest.partition("{{")
        if trim:
            text = text.lstrip(_WHITESPACE)
        if not opening:
            yield text
            return
        if rest.startswith("-") and rest[1:2] in _WHITESPACE:
            text, rest = text.rstrip(_WHITESPACE), rest[1:]
        yield text
        words: list[str] = []
        while not re.match(r"\s*(-)?}}", rest):
            word = _WORD.match(rest)
            if word is None:
                raise GoError(f"not known: {rest[:20]!r}")
            words.append(word[1])
            rest = rest[word.end() :]
        end = re.match(r"(\s*)(-)?}}", rest)
        assert end is not None
        trim = end[2] is not None
        if trim and not end[1]:
            raise GoError("a trim marker needs a space before it")
        rest = rest[end.end() :]
        yield words


def _parsed(tokens: Sequence[str | list[str]]) -> tuple[list[Any], list[Any]]:
    """Nodes up to the ``else`` or ``end`` that belongs to somebody else, and what is left, that one first."""
    nodes: list[Any] = []
    rest = list(tokens)
    while rest:
        token = rest[0]
        if isinstance(token, list) and token[0] in ("else", "end"):
            return nodes, rest
        rest.pop(0)
        if isinstance(token, list) and token[0] in ("if", "range"):
            block, rest = _block(token, rest)
            nodes.append(block)
        else:
            nodes.append(token)
    return nodes, []


def _block(words: list[str], rest: list[Any]) -> tuple[_Block, list[Any]]:
    block = _Block(words)
    block.body, rest = _parsed(rest)
    if rest and rest[0][:2] == ["else", "if"]:
        nested, rest = _block(rest[0][1:], rest[1:])
        block.otherwise = [nested]
        return block, rest
    if rest and rest[0] == ["else"]:
        block.otherwise, rest = _parsed(rest[1:])
    if not rest or rest[0] != ["end"]:
        raise GoError("a block without its end")
    return block, rest[1:]


def _rendered(nodes: Sequence[Any], dot: Any, scopes: list[dict[str, Any]]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, str):
            yield node
        elif isinstance(node, _Block):
            yield from _block_rendered(node, dot, scopes)
        elif len(node) > 2 and node[1] == ":=":
            scopes[-1][node[0]] = _value(node[2:], dot, scopes)
        elif len(node) > 2 and node[1] == "=":
            scope = next(scope for scope in reversed(scopes) if node[0] in scope)
            scope[node[0]] = _value(node[2:], dot, scopes)
        else:
            yield _value(node, dot, scopes)


def _block_rendered(block: _Block, dot: Any, scopes: list[dict[str, Any]]) -> Iterator[str]:
    value = _value(block.words[1:], dot, scopes)
    if block.words[0] == "range":
        for item in value:
            yield from _rendered(block.body, item, [*scopes, {}])
    else:
        yield from _rendered(block.body if value else block.otherwise, dot, [*scopes, {}])


def _value(words: Sequence[str], dot: Any, scopes: Sequence[Mapping[str, Any]]) -> Any:
    first, *rest = words
    if first == "eq":
        left, *others = [_operand(word, dot, scopes) for word in rest]
        return left in others
    if first == "index":
        text, at = [_operand(word, dot, scopes) for word in rest]
        if at >= len(text):
            raise GoError(f"index out of range: {at}")
        return text[at]
    if rest:
        raise GoError(f"not known: {words}")
    return _operand(first, dot, scopes)


def _operand(word: str, dot: Any, scopes: Sequence[Mapping[str, Any]]) -> Any:
    if word.startswith('"'):
        # Go's escapes that we write are Python's too
        return ast.literal_eval(word)
    if word.startswith("."):
        return dot[word[1:]]
    if word.startswith("$"):
        return next(scope[word] for scope in reversed(scopes) if word in scope)
    if word.isdigit():
        return int(word)
    raise GoError(f"not known: {word}")
