"""Go's text/template, the part of it that chat templates use, as a tree.

The language: https://pkg.go.dev/text/template. Taken: texts, comments, trimming, ``if``, ``with`` and ``range`` with
``else``, ``break``, ``continue``, variables, fields, pipelines, and the functions of FUNCTIONS. Anything else is
refused by its name and line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

FUNCTIONS = frozenset(
    {"eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "len", "slice", "index", "printf", "print", "json",
     "currentDate", "yesterday", "toTypeScriptType"}
)  # fmt: skip
"""Go's own that templates use, and Ollama's four (template/template.go, ``funcs``)."""

DEPTH_LIMIT = 64


class GoTemplateRefused(Exception):
    """The template has something that is not taken here, or does not parse; the message says what, and its line."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(f"line {line}: {message}")
        self.message, self.line = message, line


@dataclass(frozen=True, slots=True)
class Constant:
    """A text, a number, true, false or nil."""

    value: str | int | bool | None


@dataclass(frozen=True, slots=True)
class Field:
    """``.A.B`` of the dot, ``$.A`` of the root (base ``$``), ``$x.A`` of a variable, or of an expression."""

    base: str | Expression
    names: tuple[str, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Call:
    """A function and its operands."""

    function: str
    operands: tuple[Expression, ...]
    line: int


Expression = Constant | Field | Call


@dataclass(frozen=True, slots=True)
class Text:
    """Written as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class Output:
    """The value of an expression is written."""

    value: Expression
    line: int


@dataclass(frozen=True, slots=True)
class Set:
    """``$x := value``, or ``$x = value`` where it is not new."""

    name: str
    value: Expression
    is_new: bool
    line: int


@dataclass(frozen=True, slots=True)
class Jump:
    """``break`` or ``continue``."""

    kind: Literal["break", "continue"]
    line: int


@dataclass(frozen=True, slots=True)
class Branch:
    """``if``, ``with`` or ``range``. names: the variables set from the value: none, one, or index and element."""

    kind: Literal["if", "with", "range"]
    names: tuple[str, ...]
    value: Expression
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...]
    line: int


Node = Text | Output | Set | Jump | Branch

_ACTION = re.compile(
    r"\{\{(?P<left>-[ \t\r\n])?(?P<body>(?:\"(?:\\.|[^\"\\\n])*\"|`[^`]*`|/\*.*?\*/|[^\"`])*?)"
    r"(?P<right>[ \t\r\n]-)?\}\}",
    re.DOTALL,
)
_TOKEN = re.compile(
    r"\s*(?:(?P<text>\"(?:\\.|[^\"\\\n])*\"|`[^`]*`)|(?P<number>-?\d+)|(?P<variable>\$\w*)|(?P<field>\.\w+)"
    r"|(?P<dot>\.)|(?P<word>\w+)|(?P<sign>:=|=|\||\(|\)|,))"
)
_SPACES = " \t\r\n"
_UNSUPPORTED = frozenset({"define", "template", "block"})


def parse(text: str) -> tuple[Node, ...]:
    """The tree of *text*. Raises GoTemplateRefused."""
    pieces = list(_pieces(text))
    nodes, end = _Parser(pieces).nodes(0, frozenset(), 0, is_in_range=False)
    if end is not None:
        raise GoTemplateRefused(f"{{{{ {end} }}}} has nothing to end", pieces[-1].line)
    return nodes


@dataclass(frozen=True, slots=True)
class _Piece:
    is_action: bool
    text: str
    line: int


def _pieces(text: str) -> Iterator[_Piece]:
    position, is_trimmed = 0, False
    while position < len(text):
        start = text.find("{{", position)
        written = text[position:] if start < 0 else text[position:start]
        if is_trimmed:
            written = written.lstrip(_SPACES)
        if start < 0:
            yield _Piece(False, written, text.count("\n", 0, position) + 1)
            return
        line = text.count("\n", 0, start) + 1
        match = _ACTION.match(text, start)
        if match is None:
            raise GoTemplateRefused("an action is opened here and not closed", line)
        if match["left"]:
            written = written.rstrip(_SPACES)
        if written:
            yield _Piece(False, written, line)
        body = match["body"].strip(_SPACES)
        if not (body.startswith("/*") and body.endswith("*/")):
            yield _Piece(True, body, line)
        position, is_trimmed = match.end(), bool(match["right"])


class _Parser:
    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self.pieces = pieces
        self.position = 0

    def nodes(
        self, depth: int, known: frozenset[str], line: int, *, is_in_range: bool
    ) -> tuple[tuple[Node, ...], str | None]:
        """The nodes up to an ``end`` or ``else …``, and that one; None at the end of the text."""
        if depth > DEPTH_LIMIT:
            raise GoTemplateRefused(f"it is nested more than {DEPTH_LIMIT} levels deep", line)
        found: list[Node] = []
        while self.position < len(self.pieces):
            piece = self.pieces[self.position]
            self.position += 1
            if not piece.is_action:
                found.append(Text(piece.text))
                continue
            word, _, rest = piece.text.partition(" ")
            match word:
                case "end" | "else":
                    return tuple(found), f"{word} {rest.strip()}".strip()
                case "if" | "with" | "range":
                    found.append(self._branch(word, rest, piece.line, depth, known, is_in_range=is_in_range))
                case "break" | "continue":
                    if not is_in_range:
                        raise GoTemplateRefused(f"{{{{ {word} }}}} stands outside of a range", piece.line)
                    found.append(Jump(word, piece.line))
                case _ if word in _UNSUPPORTED:
                    raise GoTemplateRefused(f"{{{{ {word} }}}} is not taken here", piece.line)
                case _:
                    node = _action(piece.text, piece.line, known)
                    if isinstance(node, Set):
                        known |= {node.name}
                    found.append(node)
        return tuple(found), None

    def _branch(
        self,
        kind: Literal["if", "with", "range"],
        rest: str,
        line: int,
        depth: int,
        known: frozenset[str],
        *,
        is_in_range: bool,
    ) -> Branch:
        names, value = _condition(kind, rest, line, known)
        inner = known | set(names)
        body, end = self.nodes(depth + 1, inner, line, is_in_range=is_in_range or kind == "range")
        otherwise: tuple[Node, ...] = ()
        if end is not None and end.startswith("else"):
            word, _, more = end.removeprefix("else").strip().partition(" ")
            if word in ("if", "with"):
                # the chain has one end for all of it
                if depth > DEPTH_LIMIT:
                    raise GoTemplateRefused(f"it is nested more than {DEPTH_LIMIT} levels deep", line)
                following: Literal["if", "with"] = "if" if word == "if" else "with"
                nested = self._branch(following, more, line, depth + 1, inner, is_in_range=is_in_range)
                return Branch(kind, names, value, body, (nested,), line)
            if word:
                raise GoTemplateRefused(f"{{{{ {end} }}}} is not taken here", line)
            otherwise, end = self.nodes(depth + 1, inner, line, is_in_range=is_in_range)
        if end != "end":
            raise GoTemplateRefused(f"{{{{ {kind} }}}} is never ended", line)
        return Branch(kind, names, value, body, otherwise, line)


def _condition(kind: str, rest: str, line: int, known: frozenset[str]) -> tuple[tuple[str, ...], Expression]:
    tokens = _Tokens(rest, line, known)
    names = tokens.declared()
    if len(names) > (2 if kind == "range" else 1):
        raise GoTemplateRefused(f"{{{{ {kind} }}}} sets too many variables", line)
    return names, tokens.whole_pipeline()


def _action(text: str, line: int, known: frozenset[str]) -> Output | Set:
    tokens = _Tokens(text, line, known)
    names = tokens.declared()
    if len(names) > 1:
        raise GoTemplateRefused("it sets several variables at once", line)
    if names:
        return Set(names[0], tokens.whole_pipeline(), True, line)
    name = tokens.assigned()
    value = tokens.whole_pipeline()
    return Output(value, line) if name is None else Set(name, value, False, line)


@dataclass(frozen=True, slots=True)
class _Token:
    """A word of an action. is_glued: no space is before it, so that it may belong to the one before."""

    kind: str
    word: str
    is_glued: bool


_NOTHING = _Token("", "", False)


class _Tokens:
    """The words of one action, read from the first to the last."""

    def __init__(self, text: str, line: int, known: frozenset[str]) -> None:
        self.line, self.known = line, known
        self.tokens: list[_Token] = []
        position = 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None or match.lastgroup is None:
                raise GoTemplateRefused(f"{text[position:].strip()[:30]!r} is not taken here", line)
            is_glued = position > 0 and not match[0][:1].isspace()
            self.tokens.append(_Token(match.lastgroup, match[match.lastgroup], is_glued))
            position = match.end()
        self.position = 0

    def declared(self) -> tuple[str, ...]:
        """The variables before a ``:=``, which is passed over; none where there is none."""
        words = [token.word for token in self.tokens]
        if ":=" not in words:
            return ()
        at = words.index(":=")
        names, commas = self.tokens[:at:2], self.tokens[1:at:2]
        if any(token.kind != "variable" for token in names) or any(token.word != "," for token in commas):
            raise GoTemplateRefused("something other than variables stands before :=", self.line)
        self.position = at + 1
        return tuple(token.word for token in names)

    def assigned(self) -> str | None:
        """The variable before a ``=``, both passed over; None where there is none."""
        if len(self.tokens) > 2 and self.tokens[0].kind == "variable" and self.tokens[1].word == "=":
            self.position = 2
            return self._variable(self.tokens[0].word)
        return None

    def whole_pipeline(self) -> Expression:
        """All that is left, as one value."""
        value = self._pipeline(0)
        if self.position < len(self.tokens):
            raise GoTemplateRefused(f"{self._next().word!r} is not taken here", self.line)
        return value

    def _pipeline(self, depth: int) -> Expression:
        value = self._command(None, depth)
        while self._take("|"):
            value = self._command(value, depth)
        return value

    def _command(self, piped: Expression | None, depth: int) -> Expression:
        if depth > DEPTH_LIMIT:
            raise GoTemplateRefused("its parentheses are nested too deeply", self.line)
        first = self._next()
        if first.kind == "word" and first.word not in ("true", "false", "nil"):
            if first.word not in FUNCTIONS:
                raise GoTemplateRefused(f"the function {first.word} is not taken here", self.line)
            self.position += 1
            operands: list[Expression] = []
            while self._next() is not _NOTHING and self._next().word not in ("|", ")"):
                operands.append(self._operand(depth))
            return Call(first.word, (*operands, *([piped] if piped is not None else [])), self.line)
        if piped is not None:
            raise GoTemplateRefused(f"{first.word!r} takes no value", self.line)
        return self._operand(depth)

    def _operand(self, depth: int) -> Expression:
        token = self._next()
        self.position += 1
        match token.kind:
            case "text":
                return Constant(_unquoted(token.word, self.line))
            case "number":
                return Constant(int(token.word))
            case "word" if token.word in ("true", "false", "nil"):
                return Constant({"true": True, "false": False, "nil": None}[token.word])
            case "variable":
                return self._fields("$" if token.word == "$" else self._variable(token.word))
            case "field":
                self.position -= 1
                return self._fields(".")
            case "dot":
                return Field(".", (), self.line)
        if token.word == "(":
            value = self._pipeline(depth + 1)
            if not self._take(")"):
                raise GoTemplateRefused("a ( is never closed", self.line)
            return self._fields(value)
        raise GoTemplateRefused(f"{token.word!r} is not taken here" if token.word else "a value is missing", self.line)

    def _fields(self, base: str | Expression) -> Expression:
        """*base* with the fields that are glued to it; the dot's first one begins the chain."""
        names: list[str] = []
        while self._next().kind == "field" and (self._next().is_glued or (base == "." and not names)):
            names.append(self._next().word[1:])
            self.position += 1
        if not isinstance(base, str) and not names:
            return base
        return Field(base, tuple(names), self.line)

    def _variable(self, name: str) -> str:
        if name not in self.known:
            raise GoTemplateRefused(f"the variable {name} is not set", self.line)
        return name

    def _next(self) -> _Token:
        return self.tokens[self.position] if self.position < len(self.tokens) else _NOTHING

    def _take(self, sign: str) -> bool:
        if self._next().kind == "sign" and self._next().word == sign:
            self.position += 1
            return True
        return False


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)")


def _unquoted(word: str, line: int) -> str:
    if word.startswith("`"):
        return word[1:-1].replace("\r", "")

    def meant(match: re.Match[str]) -> str:
        code = match[1]
        if len(code) > 1 and (number := int(code[1:], 16)) <= 0x10FFFF and not 0xD800 <= number <= 0xDFFF:
            return chr(number)
        if code not in _ESCAPES:
            # \xNN and \NNN are bytes, which may be no characters
            raise GoTemplateRefused(f"the escape \\{code} is not taken here", line)
        return _ESCAPES[code]

    return _ESCAPE.sub(meant, word[1:-1])
