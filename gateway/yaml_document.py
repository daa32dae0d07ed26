"""A YAML document as plain values: what each stands for, and where it stands in the file and how it is typed there.

Two steps: *compose* text to YAML nodes, *plain* nodes to values. Variables are expanded in the second, so that no value
can inject YAML. The first stops at the first problem, the second goes on and collects them. A problem may show keys and
never what a variable expands to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import yaml

from gateway.config_values import Loc, place

NODE_LIMIT = 100_000
"""Most values after aliases and merges are followed: a few lines of aliases can stand for billions."""
DEPTH_LIMIT = 32


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the file. *line* and *column* count from 1; line 0 means the file as a whole."""

    line: int
    column: int
    where: str
    message: str
    remedy: str = ""


class Unusable(Exception):
    """A problem after which nothing more of the file can be read."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(problem)


# -- text to nodes ----------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """PyYAML's composer, with a limit on nesting in place of Python's recursion limit."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        if self._depth > DEPTH_LIMIT:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise Unusable(_too_deep(mark.line + 1, mark.column + 1))
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _too_deep(line: int, column: int) -> Problem:
    message = f"is nested more than {DEPTH_LIMIT} levels deep, or an alias refers to itself"
    return Problem(line, column, "", message, "flatten it")


def compose(text: str) -> yaml.Node | None:
    """The one document in *text*, None when there is nothing in it. Raises Unusable where it is no YAML."""
    try:
        loader = _Loader(text)
        return loader.get_single_node()
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        message = f"holds the control character U+{ord(text[exc.position]):04X}"
        raise Unusable(Problem(line, 1, "", message, "remove it")) from None
    except yaml.MarkedYAMLError as exc:
        raise Unusable(_syntax_problem(exc, text)) from None
    except (ValueError, OverflowError) as exc:
        # PyYAML 6.0.3 lets chr() fail on an escape such as "\UFFFFFFFF" (yaml/scanner.py, scan_flow_scalar_non_spaces)
        message = f"is not valid YAML ({type(exc).__name__})"
        raise Unusable(Problem(0, 0, "", message, "check escapes in double quotes")) from None


_QUOTE = "put the value in quotes"
_INDENT = "check the indentation of this line and those above"
# what PyYAML 6.0.3 says (yaml/scanner.py, parser.py, composer.py) -> message, remedy, whether its context is the place
_SYNTAX: tuple[tuple[str, str, str, bool], ...] = (
    (r"found character '\\t'", "a tab stands where YAML wants spaces", "indent with spaces", False),
    (r"found character", "a value may not begin with this character", _QUOTE, False),
    (r"mapping values are not allowed", 'a ":" is not expected here', f"{_INDENT}, or {_QUOTE}", False),
    (r"could not find expected ':'", 'this line is no "key: value"', 'add the ":" or fix its indentation', True),
    (r"found undefined alias", "*name refers to an anchor that does not exist", _QUOTE, False),
    (r"expected alphabetic or numeric", "* and & begin a YAML alias or anchor", 'put it in quotes, as in "*"', False),
    (r"but found another document", "a second document begins here", 'keep one document: remove the "---"', False),
    (r"found unexpected (end of stream|document sep)", "a quote is opened here and never closed", "close it", True),
    (r"found unknown escape", "a backslash in double quotes begins an unknown escape", "use single quotes", False),
    (r"expected <block end>", "the indentation does not fit the lines above", _INDENT, False),
    (r"(block sequence|sequence) entries are not allowed", 'a "-" is not expected here', _INDENT, False),
    (
        r"expected ',' or '[]}]'",
        "a [ or { is opened here and not closed properly",
        "close it and check its commas",
        True,
    ),
)


def _syntax_problem(exc: yaml.MarkedYAMLError, text: str) -> Problem:
    message, remedy, is_at_context = _explain_syntax(exc.problem or "")
    mark = exc.context_mark if is_at_context else exc.problem_mark
    mark = mark or exc.problem_mark or exc.context_mark
    if mark is None:
        return Problem(0, 0, "", message, remedy)
    if re.search(r"[{,[][^#\"']*\$\{", _line_of(text, mark)):
        remedy = 'inside { } and [ ] put variables in quotes: "${NAME}"'
    return Problem(mark.line + 1, mark.column + 1, "", message, remedy)


def _explain_syntax(said: str) -> tuple[str, str, bool]:
    for pattern, message, remedy, is_at_context in _SYNTAX:
        if re.match(pattern, said):
            return message, remedy, is_at_context
    # what PyYAML says is not passed on: it may quote a value
    return "is not valid YAML here", f"{_INDENT}, or {_QUOTE}", False


def _line_of(text: str, mark: yaml.Mark) -> str:
    lines = text.splitlines()
    return lines[mark.line] if mark.line < len(lines) else ""


# -- nodes to values --------------------------------------------------------------------------------------------------

_YAML = "tag:yaml.org,2002:"
_KINDS = {"int": "a number", "float": "a number", "bool": "true or false", "null": "nothing", "timestamp": "a date"}


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a value stands in the file and how it is typed there; *text* is None for mappings and lists."""

    line: int
    column: int
    label: str | int
    text: str | None = None
    variables: tuple[str, ...] = ()


@dataclass(slots=True)
class Document:
    """Turns composed nodes into plain values and remembers, for each place, where it stands in the file."""

    environ: Mapping[str, str]
    spots: dict[Loc, Spot] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: set[Loc] = field(default_factory=set)
    """Places already told: what validation finds there is not told again."""
    _visits: int = 0

    def plain(self, node: yaml.Node, loc: Loc) -> object:
        """The value of *node* at *loc*. Problems are collected; only those of size and depth raise Unusable."""
        self._spend(node, len(loc))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, loc)
        if isinstance(node, yaml.SequenceNode):
            return [self._item(item, (*loc, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, loc)

    def label(self, loc: Loc) -> str:
        """*loc* for people, with the keys as they are typed: a variable in a key stays a variable."""
        return place(tuple(self._part(loc, end) for end in range(1, len(loc) + 1)))

    def _part(self, loc: Loc, end: int) -> str | int:
        spot = self.spots.get(loc[:end])
        return spot.label if spot else loc[end - 1]

    def nearest_spot(self, loc: Loc) -> Spot:
        """The spot of *loc*, or of the closest thing around it; the beginning of the file at worst."""
        for end in range(len(loc), 0, -1):
            if spot := self.spots.get(loc[:end]):
                return spot
        return Spot(1, 1, "")

    def _spend(self, node: yaml.Node, depth: int) -> None:
        self._visits += 1
        if self._visits > NODE_LIMIT:
            message = f"stands for more than {NODE_LIMIT} values once its aliases are followed"
            raise Unusable(Problem(_line(node), _column(node), "", message, "use fewer aliases"))
        if depth > DEPTH_LIMIT:
            raise Unusable(_too_deep(_line(node), _column(node)))

    def _item(self, node: yaml.Node, loc: Loc) -> object:
        self._note(node, node, loc, loc[-1])
        return self.plain(node, loc)

    def _note(self, at: yaml.Node, value: yaml.Node, loc: Loc, label: str | int) -> None:
        text = value.value if isinstance(value, yaml.ScalarNode) else None
        self.spots[loc] = Spot(_line(at), _column(at), label, text)

    def _report(self, node: yaml.Node, loc: Loc, message: str, remedy: str) -> None:
        self.broken.add(loc)
        self.problems.append(Problem(_line(node), _column(node), self.label(loc), message, remedy))

    # mappings

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, object]:
        values: dict[str, object] = {}
        for key_node, value_node, is_own in self._entries(node, loc, len(loc)):
            key = self._key(key_node, loc)
            if key is None:
                continue
            if key not in values:
                self._note(key_node, value_node, (*loc, key), _key_label(key_node, loc))
                self._explain_key(key_node, (*loc, key))
                values[key] = self.plain(value_node, (*loc, key))
            elif is_own:
                first = self.spots[(*loc, key)].line
                message = f"is set twice, first on line {first}"
                self.problems.append(
                    Problem(
                        _line(key_node),
                        _column(key_node),
                        self.label((*loc, key)),
                        message,
                        "remove or rename one of them",
                    )
                )
        return values

    def _entries(self, node: yaml.MappingNode, loc: Loc, depth: int) -> Iterator[tuple[yaml.Node, yaml.Node, bool]]:
        """A mapping's own entries, then those it merges with ``<<``: the earlier win, as YAML has it."""
        self._spend(node, depth)
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag == f"{_YAML}merge":
                merged.extend(value.value if isinstance(value, yaml.SequenceNode) else [value])
            else:
                yield key, value, True
        for source in merged:
            if isinstance(source, yaml.MappingNode):
                yield from ((key, value, False) for key, value, _ in self._entries(source, loc, depth + 1))
            else:
                self._report(source, loc, '"<<" must refer to a mapping', "point it to an anchor of a mapping")

    def _key(self, node: yaml.Node, loc: Loc) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self._report(node, loc, "has a key that is a list or a mapping", "write plain keys")
            return None
        try:
            return _expand(node.value, self.environ)[0]
        except _BadReference as exc:
            self._report(node, (*loc, str(node.value)), f"as a key {exc.message}", exc.remedy)
            return str(node.value)

    def _explain_key(self, node: yaml.Node, loc: Loc) -> None:
        kind = _KINDS.get(node.tag.removeprefix(_YAML))
        if kind:
            self._report(node, loc, f"YAML reads this key as {kind}", f'quote it: "{node.value}"')
            # what the key means is clear all the same, so the rest of it is still checked
            self.broken.discard(loc)

    # scalars

    def _scalar(self, node: yaml.Node, loc: Loc) -> object:
        kind = node.tag.removeprefix(_YAML)
        text: str = node.value
        if kind in ("str", "merge", "value", "timestamp") or _is_text_to_people(kind, text):
            return self._text(node, loc)
        if kind == "null":
            return None
        if kind not in ("int", "float", "bool"):
            self._report(node, loc, "has a YAML tag (!name), which is not supported", f"remove it, or {_QUOTE}")
            return ""
        if _is_taken_as_typed(loc):
            return text
        if kind == "bool" and "args" in loc[2:3] and text.lower() not in ("true", "false"):
            remedy = f'write true or false for a flag without a value, "{text}" in quotes for that word'
            self._report(node, loc, f"YAML reads {text} as true or false, and some engines take the word", remedy)
            return ""
        return self._number_or_bool(node, kind, loc)

    def _number_or_bool(self, node: yaml.Node, kind: str, loc: Loc) -> object:
        constructor = yaml.constructor.SafeConstructor()
        construct: Callable[[yaml.Node], object] = getattr(constructor, f"construct_yaml_{kind}")
        try:
            return construct(node)
        except (ValueError, KeyError):
            self._report(node, loc, "is not the number that its notation promises", _QUOTE)
            return ""

    def _text(self, node: yaml.Node, loc: Loc) -> str:
        try:
            text, variables = _expand(node.value, self.environ)
        except _BadReference as exc:
            self._report(node, loc, exc.message, exc.remedy)
            return str(node.value)
        if variables and (spot := self.spots.get(loc)):
            self.spots[loc] = replace(spot, variables=variables)
        return text


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _column(node: yaml.Node) -> int:
    return int(node.start_mark.column) + 1


def _key_label(node: yaml.Node, loc: Loc) -> str:
    """A key as problems may show it: ``--api-key=...`` written as one key does not show what follows."""
    text = str(node.value)
    return re.split(r"[\s=]", text)[0] if loc[2:3] in (("args",), ("env",)) else text


def _is_text_to_people(kind: str, text: str) -> bool:
    """YAML 1.1 makes 12:30 the number 750 and 010 the number 8; YAML 1.2 and people do not."""
    return kind in ("int", "float") and (":" in text or re.fullmatch(r"[-+]?0[0-9_]+", text) is not None)


def _is_taken_as_typed(loc: Loc) -> bool:
    """Environment variables and command words are text whatever they look like: OMP_NUM_THREADS: 4 needs no quotes."""
    return len(loc) == 4 and loc[0] in ("engines", "models") and loc[2] in ("env", "command")


# -- variables --------------------------------------------------------------------------------------------------------


class _BadReference(Exception):
    def __init__(self, message: str, remedy: str) -> None:
        self.message, self.remedy = message, remedy
        super().__init__(message)


_REFERENCE = re.compile(r"\$\$|\$\{(?P<body>[^}]*)(?P<close>\}?)")
_BODY = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?", re.DOTALL)


def _expand(text: str, environ: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """*text* with ``${NAME}`` and ``${NAME:-default}`` replaced and ``$$`` made ``$``; and the names it used.

    As in a shell, the default also stands in for an empty variable. Raises _BadReference, whose texts hold no value.
    """
    names: list[str] = []

    def value_of(match: re.Match[str]) -> str:
        if match["body"] is None:
            return "$"
        body = _BODY.fullmatch(match["body"])
        if not match["close"] or body is None or "${" in match["body"]:
            message = "has a ${...} that is not a variable"
            raise _BadReference(message, "write ${NAME} or ${NAME:-default}, and $${ for a literal ${")
        name, default = body["name"], body["default"]
        names.append(name)
        if default is not None:
            return environ.get(name) or default
        if name not in environ:
            remedy = f"export {name}, or write ${{{name}:-a default}}"
            raise _BadReference(f"needs the environment variable {name}, which is not set", remedy)
        return environ[name]

    return _REFERENCE.sub(value_of, text), tuple(names)
