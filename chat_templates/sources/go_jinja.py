"""Ollama's Go templates as Jinja: what Ollama does with messages before and around the template, and the template.

Ollama's side: ``Template.Execute`` and ``collate`` in template/template.go (v0.32.15). Messages of one role in a row
become one, and all system messages together are ``.System`` as well; a template without ``.Messages`` is run once a
turn with ``.System``, ``.Prompt`` and ``.Response``, and for the last turn ends after its ``.Response``.

The Jinja refuses tools and what comes of them. So what a Go template writes of tools only is left out: it is seen by
its conditions (``if .Tools``, ``range .ToolCalls``), and everything that is not is translated, or refused by its name
and line. ``.Think`` is the variable ``enable_thinking``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from chat_templates.forms.pinned_jinja import literal
from chat_templates.sources.go_parsing import (
    Branch,
    Call,
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

Kind = Literal["text", "number", "truth", "messages", "message", "nothing", "unknown"]
"""What a value is, as far as it is known: printing, comparing and counting mean something else for each."""

THINKING = "enable_thinking"

_ROOT: Mapping[str, tuple[str, Kind]] = {
    "System": ("ns.system", "text"),
    "Messages": ("ns.messages", "messages"),
    "Response": ('""', "text"),
    "Think": (f"({THINKING} is defined and {THINKING})", "truth"),
    "IsThinkSet": (f"({THINKING} is defined and {THINKING} is not none)", "truth"),
}
_TURN: Mapping[str, tuple[str, Kind]] = {
    "System": ("system", "text"),
    "Prompt": ("prompt", "text"),
    "Response": ("response", "text"),
    "Think": _ROOT["Think"],
    "IsThinkSet": _ROOT["IsThinkSet"],
}
_NEVER = frozenset({"Tools", "ToolCalls", "ToolName", "ToolCallID", "Images", "Suffix", "Query", "Document"})
"""Fields that are empty wherever there are texts alone; those a template of the other kind lacks are too."""

_MESSAGE: Mapping[str, tuple[str, Kind]] = {
    "Role": ("Role", "text"),
    "Content": ("Content", "text"),
    "Thinking": ("Thinking", "text"),
}

_DOT_IS_ROOT = ""
"""The dot where it is the root, which has no name in Jinja."""

Scope = Mapping[str, tuple[str, Kind]]
"""Jinja's name for each of Go's variables, and what kind of value it has."""


def jinja_of(nodes: Sequence[Node], default_system: str = "") -> str:
    """The Jinja template that writes what Ollama writes with *nodes*.

    default_system: the system message of a conversation that does not begin with one; empty for none. Raises
    GoTemplateRefused for what has no equal in Jinja, or no meaning in a chat without tools.
    """
    given = "messages"
    if default_system:
        first = f'[{{"role": "system", "content": {literal(default_system)}}}]'
        given = f'([] if messages[0].role == "system" else {first}) + messages'
    lines = [_PREAMBLE, _COLLATE.replace("MESSAGES", given)]
    names = {name for node in nodes for name in _names_in(node)}
    if "Messages" in names:
        lines += _Translation(_ROOT).nodes(nodes, _DOT_IS_ROOT, {})
    else:
        whole = nodes if "Response" in names else (*nodes, RESPONSE)
        for name, body in (("turn", whole), ("last", cut_after_response(whole))):
            lines.append(f"{{%- macro {name}(system, prompt, response) -%}}\n{{%- set ns = namespace() -%}}")
            lines += _Translation(_TURN).nodes(body, _DOT_IS_ROOT, {})
            lines.append("{%- endmacro -%}")
        lines.append(_TURNS)
    return "\n".join(lines) + "\n"


def reads_thinking(nodes: Sequence[Node]) -> bool:
    """True for a template that asks whether the model is to think."""
    return any(name in ("Think", "IsThinkSet") for node in nodes for name in _names_in(node))


RESPONSE: Node = Output(Field(".", ("Response",), 0), 0)
"""What Ollama adds at the end of a template that says nowhere where messages or answers go."""


def cut_after_response(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """*nodes* up to and with the first output of ``.Response`` (``deleteNode`` in template/template.go)."""
    return _cut(nodes)[0]


def _cut(nodes: Sequence[Node]) -> tuple[tuple[Node, ...], bool]:
    kept: list[Node] = []
    for node in nodes:
        is_cut = False
        if isinstance(node, Branch):
            body, is_cut = _cut(node.body)
            if is_cut and node.otherwise:
                raise GoTemplateRefused("Ollama stops at an `else` after .Response in a template of turns", node.line)
            otherwise, is_cut = ((), True) if is_cut else _cut(node.otherwise)
            kept.append(Branch(node.kind, node.names, node.value, body, otherwise, node.line))
        else:
            if isinstance(node, Output | Set) and "Response" in set(_names(node.value)):
                if not (isinstance(node.value, Field) and node.value.base == "."):
                    raise GoTemplateRefused("in a template of turns .Response is taken by itself alone", node.line)
                is_cut = True
            kept.append(node)
        if is_cut:
            return tuple(kept), True
    return tuple(kept), False


def _names_in(node: Node) -> Iterator[str]:
    if isinstance(node, Output | Set):
        yield from _names(node.value)
    elif isinstance(node, Branch):
        yield from _names(node.value)
        for inner in (*node.body, *node.otherwise):
            yield from _names_in(inner)


def _names(expression: Expression) -> Iterator[str]:
    if isinstance(expression, Field):
        yield from expression.names
        if not isinstance(expression.base, str):
            yield from _names(expression.base)
    elif isinstance(expression, Call):
        for operand in expression.operands:
            yield from _names(operand)


_PREAMBLE = """\
{#- made by Unigate from a Go template of Ollama's -#}
{%- if tools -%}{{- raise_exception("this template is taken without its tools") -}}{%- endif -%}"""

_COLLATE = """\
{%- set ns = namespace(system="", systems=0, messages=[]) -%}
{%- for message in MESSAGES -%}
{%- if message.content is not string -%}
{{- raise_exception("this template knows only content that is text") -}}
{%- endif -%}
{%- if message.role not in ["system", "user", "assistant"] or message.tool_calls -%}
{{- raise_exception("this template is taken without its tools, and knows no other roles") -}}
{%- endif -%}
{%- if message.role == "system" -%}
{%- set ns.system = ns.system ~ ("\\n\\n" if ns.systems else "") ~ message.content -%}
{%- set ns.systems = ns.systems + 1 -%}
{%- endif -%}
{%- set content = message.content -%}
{%- set thinking = message.reasoning_content or "" -%}
{%- set before = ns.messages -%}
{%- if before and before[-1].Role == message.role -%}
{%- set content = before[-1].Content ~ "\\n\\n" ~ message.content -%}
{%- set thinking = before[-1].Thinking -%}
{%- set before = before[:-1] -%}
{%- endif -%}
{%- set ns.messages = before + [{"Role": message.role, "Content": content, "Thinking": thinking}] -%}
{%- endfor -%}"""

_TURNS = """\
{%- set now = namespace(system="", prompt="", response="") -%}
{%- for message in ns.messages -%}
{%- if (message.Role == "system" and (now.prompt or now.response)) or (message.Role == "user" and now.response) -%}
{{- turn(now.system, now.prompt, now.response) -}}
{%- set now.system = "" -%}{%- set now.prompt = "" -%}{%- set now.response = "" -%}
{%- endif -%}
{%- if message.Role == "system" -%}{%- set now.system = message.Content -%}
{%- elif message.Role == "user" -%}{%- set now.prompt = message.Content -%}
{%- else -%}{%- set now.response = message.Content -%}{%- endif -%}
{%- endfor -%}
{{- last(now.system, now.prompt, now.response) -}}"""


def _is_never(expression: Expression) -> bool:
    """True for a condition that needs tools, or whatever else no conversation of texts has."""
    if isinstance(expression, Field):
        return bool(expression.names) and expression.names[-1] in _NEVER
    if isinstance(expression, Call):
        match expression.function:
            case "and":
                return any(_is_never(operand) for operand in expression.operands)
            case "or":
                return all(_is_never(operand) for operand in expression.operands)
            case "len" | "slice":
                return _is_never(expression.operands[0])
            case "gt" | "ne":
                return _is_never(expression.operands[0]) and expression.operands[1:] == (Constant(0),)
            case "eq":
                role, *others = expression.operands
                return isinstance(role, Field) and role.names[-1:] == ("Role",) and others == [Constant("tool")]
    return False


class _Translation:
    """One template. Go's variables become attributes of ``ns``, each with a number, because Jinja's end with a loop."""

    def __init__(self, root: Mapping[str, tuple[str, Kind]]) -> None:
        self.root = root
        self.count = 0

    def nodes(self, nodes: Sequence[Node], dot: str, scope: Scope, dot_kind: Kind = "unknown") -> list[str]:
        """The lines of *nodes*."""
        known = dict(scope)
        lines: list[str] = []
        for node in nodes:
            match node:
                case Text(text):
                    lines.append(f"{{{{- {literal(text)} -}}}}")
                case Output(value, line):
                    lines.append(self._output(value, line, _Place(dot, dot_kind, known)))
                case Set(name, value, is_new, line):
                    computed, kind = self.value(value, _Place(dot, dot_kind, known))
                    if is_new:
                        known[name] = self._variable(), kind
                    elif known[name][1] != kind:
                        raise GoTemplateRefused(f"{name} is set to a value of another kind than before", line)
                    lines.append(f"{{%- set {known[name][0]} = {computed} -%}}")
                case Jump(kind_, _):
                    lines.append(f"{{%- {kind_} -%}}")
                case Branch():
                    lines += self._branch(node, _Place(dot, dot_kind, known))
        return lines

    def _variable(self) -> str:
        self.count += 1
        return f"ns.v{self.count}"

    def _output(self, value: Expression, line: int, place: _Place) -> str:
        if (failure := _failure(value)) is not None:
            return f"{{{{- raise_exception({literal(failure)}) -}}}}"
        written, kind = self.value(value, place)
        match kind:
            case "text" | "number":
                return f"{{{{- {written} -}}}}"
            case "truth":
                return f'{{{{- "true" if {written} else "false" -}}}}'
        raise GoTemplateRefused(f"a value that is no text is written ({_shown(value)})", line)

    def _branch(self, node: Branch, place: _Place) -> list[str]:
        if _is_never(node.value):
            return self.nodes(node.otherwise, place.dot, place.scope, place.kind)
        return self._range(node, place) if node.kind == "range" else self._if(node, place)

    def _if(self, node: Branch, place: _Place) -> list[str]:
        value, kind = self.value(node.value, place)
        inner, lines = dict(place.scope), []
        if node.names or node.kind == "with":
            name = self._variable()
            lines.append(f"{{%- set {name} = {value} -%}}")
            inner.update(dict.fromkeys(node.names, (name, kind)))
            value = name
        dot, dot_kind = (value, kind) if node.kind == "with" else (place.dot, place.kind)
        return [
            *lines,
            f"{{%- if {value} -%}}",
            *self.nodes(node.body, dot, inner, dot_kind),
            *self._otherwise(node, place, inner),
            "{%- endif -%}",
        ]

    def _range(self, node: Branch, place: _Place) -> list[str]:
        value, kind = self.value(node.value, place)
        if kind != "messages":
            raise GoTemplateRefused(f"range goes over what are no messages ({_shown(node.value)})", node.line)
        self.count += 1
        item = f"item{self.count}"
        inner, lines = dict(place.scope), [f"{{%- for {item} in {value} -%}}"]
        element: tuple[str, Kind] = (item, "message")
        index: tuple[str, Kind] = ("loop.index0", "number")
        bound = (element,) if len(node.names) == 1 else (index, element)
        for name, (given, given_kind) in zip(node.names, bound, strict=False):
            inner[name] = (self._variable(), given_kind)
            lines.append(f"{{%- set {inner[name][0]} = {given} -%}}")
        lines += self.nodes(node.body, item, inner, "message")
        return [*lines, *self._otherwise(node, place, place.scope), "{%- endfor -%}"]

    def _otherwise(self, node: Branch, place: _Place, scope: Scope) -> list[str]:
        if not node.otherwise:
            return []
        return ["{%- else -%}", *self.nodes(node.otherwise, place.dot, scope, place.kind)]

    def value(self, expression: Expression, place: _Place) -> tuple[str, Kind]:
        """*expression* in Jinja, to be put anywhere, and its kind."""
        if isinstance(expression, Constant):
            return literal(expression.value), _kind_of(expression.value)
        if isinstance(expression, Field):
            return self._field(expression, place)
        if expression.function in ("json", "currentDate", "yesterday", "toTypeScriptType"):
            raise GoTemplateRefused(f"the function {expression.function} is taken beside tools alone", expression.line)
        return _call(expression, [self.value(operand, place) for operand in expression.operands])

    def _field(self, field: Field, place: _Place) -> tuple[str, Kind]:
        base, names = field.base, list(field.names)
        value: str
        kind: Kind
        if base == "$" or (base == "." and place.dot == _DOT_IS_ROOT):
            if not names:
                raise GoTemplateRefused("the root itself is used as a value", field.line)
            name = names.pop(0)
            if name in self.root:
                value, kind = self.root[name]
            elif name in _NEVER or name in ("Prompt", "Messages"):
                value, kind = "none", "nothing"
            else:
                raise GoTemplateRefused(f".{name} is not taken here", field.line)
        elif base == ".":
            value, kind = place.dot, place.kind
        elif isinstance(base, str):
            value, kind = place.scope[base]
        else:
            value, kind = self.value(base, place)
        for name in names:
            if kind == "message" and name in _MESSAGE:
                key, kind = _MESSAGE[name]
                value = f"{value}.{key}"
            elif kind == "message" and name in _NEVER:
                value, kind = "none", "nothing"
            else:
                raise GoTemplateRefused(f".{name} is not taken here", field.line)
        return value, kind


class _Place:
    """Where an expression stands: the dot in Jinja, its kind, and the variables."""

    __slots__ = ("dot", "kind", "scope")

    def __init__(self, dot: str, kind: Kind, scope: Scope) -> None:
        self.dot, self.kind, self.scope = dot, kind, scope


def _kind_of(value: str | int | bool | None) -> Kind:
    match value:
        case None:
            return "nothing"
        case bool():
            return "truth"
        case int():
            return "number"
    return "text"


def _failure(value: Expression) -> str | None:
    """What is said where the template ends the rendering: an index beyond the end of a text, as `forms` writes it."""
    if not isinstance(value, Call) or value.function != "index" or len(value.operands) != 2:
        return None
    text, at = value.operands
    if isinstance(text, Constant) and isinstance(text.value, str) and isinstance(at, Constant):
        beyond = isinstance(at.value, int) and at.value >= len(text.value.encode("utf-8"))
        return text.value if beyond else None
    return None


def _shown(value: Expression) -> str:
    if isinstance(value, Call):
        return value.function
    if isinstance(value, Constant):
        return repr(value.value)
    base = value.base.rstrip(".") if isinstance(value.base, str) else "(…)"
    return (base + "".join(f".{name}" for name in value.names)) or "the dot"


_SIGNS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_ARITY = {"not": (1, 1), "len": (1, 1), "slice": (1, 3), "index": (2, 2), "eq": (2, 9), "and": (1, 99), "or": (1, 99)}


def _call(call: Call, operands: Sequence[tuple[str, Kind]]) -> tuple[str, Kind]:
    if call.function in ("printf", "print"):
        return _printf(call, operands), "text"
    fewest, most = _ARITY.get(call.function, (2, 2))
    if not fewest <= len(operands) <= most:
        raise GoTemplateRefused(f"{call.function} has {len(operands)} values", call.line)
    values, kinds = [value for value, _ in operands], [kind for _, kind in operands]
    match call.function:
        case "and" | "or":
            return f"({f' {call.function} '.join(values)})", kinds[0] if len(set(kinds)) == 1 else "unknown"
        case "not":
            return f"(not {values[0]})", "truth"
        case "len" | "slice" | "index":
            return _listed(call, values, kinds)
    return _compared(call, values, kinds), "truth"


def _listed(call: Call, values: Sequence[str], kinds: Sequence[Kind]) -> tuple[str, Kind]:
    if kinds[0] != "messages":
        # Go counts a text's bytes, Jinja its characters
        raise GoTemplateRefused(f"{call.function} is taken of messages alone", call.line)
    if any(kind != "number" for kind in kinds[1:]):
        raise GoTemplateRefused(f"{call.function} has a place that is no number", call.line)
    base = values[0]
    failure = f"raise_exception({literal(f'line {call.line}: {call.function} out of range')})"
    length = f"({base}|length)"
    # one comparison at a time: llama.cpp's Jinja knows no chains of them
    match call.function:
        case "len":
            return length, "number"
        case "index":
            at = values[1]
            return f"({base}[{at}] if {at} >= 0 and {at} < {length} else {failure})", "message"
    start, end = values[1] if len(values) > 1 else "0", values[2] if len(values) > 2 else length
    is_within = f"{start} >= 0 and {start} <= {end} and {end} <= {length}"
    return f"({base}[{start}:{end}] if {is_within} else {failure})", "messages"


def _compared(call: Call, values: Sequence[str], kinds: Sequence[Kind]) -> str:
    if len(set(kinds)) != 1 or kinds[0] not in ("text", "number", "truth"):
        # an error in Go where the kinds are unlike, and where they are not known nothing can be said
        raise GoTemplateRefused(f"{call.function} compares values of which the kinds are not alike", call.line)
    first, *others = values
    return "(" + " or ".join(f"{first} {_SIGNS[call.function]} {other}" for other in others) + ")"


def _printf(call: Call, operands: Sequence[tuple[str, Kind]]) -> str:
    if call.function == "print":
        if len(operands) == 1 and operands[0][1] == "text":
            return operands[0][0]
        raise GoTemplateRefused("print is taken of one text alone", call.line)
    form = call.operands[0] if call.operands else None
    pieces = format_pieces(form.value) if isinstance(form, Constant) and isinstance(form.value, str) else None
    if pieces is None:
        raise GoTemplateRefused("this format of printf is not taken here", call.line)
    if len(pieces) != len(operands):
        raise GoTemplateRefused("printf has not as many values as its format", call.line)
    parts = [literal(pieces[0][1])]
    for (operand, kind), (verb, text) in zip(operands[1:], pieces[1:], strict=True):
        if kind not in {"s": ("text",), "d": ("number",), "v": ("text", "number")}[verb]:
            raise GoTemplateRefused(f"printf writes with %{verb} what is no such value", call.line)
        parts += [operand, literal(text)]
    return f"({' ~ '.join(parts)})"


def format_pieces(form: str) -> list[tuple[str, str]] | None:
    """The blanks of a printf format and the texts after them, an unnamed first; None but for %s, %d, %v and %%."""
    pieces: list[tuple[str, str]] = []
    verb, text, rest = "", "", form
    while rest:
        before, sign, rest = rest.partition("%")
        text += before
        if not sign:
            break
        one, rest = rest[:1], rest[1:]
        if one == "%":
            text += "%"
        elif one in ("s", "d", "v"):
            pieces.append((verb, text))
            verb, text = one, ""
        else:
            return None
    return [*pieces, (verb, text)]
