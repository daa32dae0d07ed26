"""The contract as files: a YAML file for people, and each template beside it, byte for byte.

A template in YAML would lose what decides a prompt (white space at its ends, CR), so it is a file of its own, and the
YAML holds its SHA-256. What does not fit is told with its line, all of it at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from chat_templates import contract as forms
from chat_templates.contract import (
    FORMAT,
    LIVE,
    SAMPLING,
    Contract,
    MessageRules,
    Stop,
    TokenizerFacts,
    sha256_of,
    variant_file,
)
from chat_templates.conversation import Json
from chat_templates.model_folder import TOKENIZER_FILE
from chat_templates.parsing import TEMPLATE_LIMIT_BYTES
from chat_templates.rules import GIVEN, RULES
from chat_templates.text_files import TextUnreadable, read_utf8
from chat_templates.trimming import Trim, TrimRules

SUFFIX = ".contract.yaml"
TOKENIZER_SUFFIX = ".tokenizer"
DEPTH_LIMIT = 32
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

_HEAD = """\
# The chat template contract of {name}: what every engine has to be given, made by `unigate template import`.
# The hash covers all of it but `name`, `source`, file names and comments. See it with `unigate template show`.
"""


class ContractInvalid(Exception):
    """The contract cannot be used; each line of the message is one problem, with its file, line and remedy."""


# --- writing


def write_contract(contract: Contract, folder: Path) -> Path:
    """Write *contract* below *folder*, which is made where it is missing; the YAML file's path.

    Files of a contract with the same name are replaced, the YAML last. Raises OSError and ContractInvalid.
    """
    if NAME.fullmatch(contract.name) is None:
        raise ContractInvalid(f"{contract.name!r} is no name for a file; use letters, digits, '.', '_' and '-'")
    folder.mkdir(parents=True, exist_ok=True)
    for variant, text in contract.templates.items():
        _replace(folder / variant_file(contract.name, variant), text.encode("utf-8"))
    path = folder / f"{contract.name}{SUFFIX}"
    _replace(path, contract_text(contract).encode("utf-8"))
    return path


def _replace(path: Path, content: bytes) -> None:
    # a reader sees the old file or the new one, never half of it
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(content)
    temporary.replace(path)


def contract_text(contract: Contract) -> str:
    """The YAML file's text."""
    digests = contract.template_sha256
    document: dict[str, Json] = {
        "unigate_contract": FORMAT,
        "name": contract.name,
        "source": contract.source,
        "template": {
            variant: {"file": variant_file(contract.name, variant), "sha256": digests[variant]}
            for variant in contract.templates
        },
        "renderer": {"rules": contract.rules, "jinja2": contract.jinja2},
        "variables": {"pinned": dict(contract.pinned), "free": list(contract.free)},
        "tokenizer": asdict(contract.tokenizer),
        "messages": asdict(contract.messages),
        "stop": {"token_ids": list(contract.stop.token_ids), "strings": list(contract.stop.strings)},
        "sampling": dict(contract.sampling),
    }
    if contract.clock is not None:
        document["clock"] = contract.clock.isoformat() if isinstance(contract.clock, datetime) else contract.clock
    written = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return _HEAD.format(name=contract.name) + written


class _Dumper(yaml.SafeDumper):
    """PyYAML's, which writes these as they are, reads them as line ends, and so gives a text back with another."""


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if set(text) & set("\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text_node)


# --- reading


def read_contract(path: Path) -> Contract:
    """The contract in *path* and the templates beside it. Raises ContractInvalid."""
    text = _read(path, path)
    document = _Document(path)
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        said = getattr(problem, "problem", None) or getattr(problem, "reason", None) or "it cannot be read"
        raise ContractInvalid(f"{path}{f':{mark.line + 1}' if mark else ''}: is no YAML: {said}") from problem
    except ValueError as problem:
        raise ContractInvalid(f"{path}: is no YAML: {problem}") from problem
    if root is None:
        raise ContractInvalid(f"{path}: is empty; `unigate template import` makes contracts")
    contract = document.contract(root)
    if document.problems or contract is None:
        raise ContractInvalid("\n".join(document.problems))
    return contract


def tokenizer_folder(path: Path) -> Path | None:
    """The folder beside the contract in *path* that holds its tokenizer, ``NAME.tokenizer``; None without one."""
    folder = path.with_name(path.name.removesuffix(SUFFIX) + TOKENIZER_SUFFIX)
    return folder if (folder / TOKENIZER_FILE).is_file() else None


def _read(path: Path, named_in: Path) -> str:
    where = f"{path}" if path == named_in else f"{named_in}: template: {path.name}"
    try:
        return read_utf8(path, TEMPLATE_LIMIT_BYTES)
    except TextUnreadable as problem:
        raise ContractInvalid(f"{where}: {problem}") from problem


class _Loader(yaml.SafeLoader):
    """PyYAML's composer without aliases, which a contract never needs, and with a limit on nesting."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="an alias (*name) has no place in a contract", problem_mark=mark)
        if self._depth >= DEPTH_LIMIT:
            raise yaml.MarkedYAMLError(problem=f"it is nested more than {DEPTH_LIMIT} levels deep", problem_mark=mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Wrong(Exception):
    """A value that does not fit; it is noted already."""


@dataclass(slots=True)
class _Section:
    """A mapping's nodes by key, to be taken one by one. where: the mapping's own place, empty for the whole file."""

    where: str
    node: yaml.Node
    values: dict[str, yaml.Node]


class _Document:
    """Turns nodes into a contract, and notes every problem on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []

    def contract(self, root: yaml.Node) -> Contract | None:
        try:
            top = self._section(
                root,
                "",
                required=("unigate_contract", "name", "source", "template", "renderer", "variables"),
                optional=("tokenizer", "messages", "stop", "sampling", "clock"),
            )
        except _Wrong:
            return None
        parts: dict[str, Any] = {}
        readers: Mapping[str, Callable[[yaml.Node, str], Any]] = {
            "unigate_contract": self._format,
            "name": self._text,
            "source": self._text,
            "template": self._templates,
            "renderer": self._renderer,
            "variables": self._variables,
            "tokenizer": self._tokenizer,
            "messages": self._messages,
            "stop": self._stop,
            "sampling": self._sampling,
            "clock": self._clock,
        }
        for key, node in top.values.items():
            self._into(parts, key, readers[key], node, key)
        if self.problems:
            return None
        rules, jinja2 = parts["renderer"]
        pinned, free = parts["variables"]
        return Contract(
            name=parts["name"],
            templates=parts["template"],
            source=parts["source"],
            rules=rules,
            jinja2=jinja2,
            pinned=pinned,
            free=free,
            tokenizer=parts.get("tokenizer", TokenizerFacts()),
            messages=parts.get("messages", MessageRules()),
            stop=parts.get("stop", Stop()),
            sampling=parts.get("sampling", {}),
            clock=parts.get("clock"),
        )

    # the parts

    def _format(self, node: yaml.Node, where: str) -> int:
        found = self._number(node, where, int)
        if found != FORMAT:
            raise self._wrong(node, where, f"is the form {found}, and this Unigate reads the form {FORMAT}")
        return FORMAT

    def _templates(self, node: yaml.Node, where: str) -> dict[str, str]:
        templates: dict[str, str] = {}
        for variant, entry in self._section(node, where).values.items():
            self._into(templates, variant, self._template, entry, f"{where}.{variant}")
        if not templates and not self.problems:
            raise self._wrong(node, where, "names no template")
        return templates

    def _template(self, node: yaml.Node, where: str) -> str:
        section = self._section(node, where, required=("file", "sha256"))
        file = self._text(section.values["file"], f"{where}.file")
        if Path(file).name != file:
            raise self._wrong(section.values["file"], f"{where}.file", "is no file beside the contract")
        text = _read(self.path.with_name(file), self.path)
        if sha256_of(text) != self._text(section.values["sha256"], f"{where}.sha256"):
            message = f"is not that of {file}: the template was changed; import it again to make it the contract's"
            raise self._wrong(section.values["sha256"], f"{where}.sha256", message)
        return text

    def _renderer(self, node: yaml.Node, where: str) -> tuple[str, str]:
        section = self._section(node, where, required=("rules", "jinja2"))
        rules = self._choice(section.values["rules"], f"{where}.rules", tuple(RULES))
        return rules, self._text(section.values["jinja2"], f"{where}.jinja2")

    def _variables(self, node: yaml.Node, where: str) -> tuple[dict[str, Json], tuple[str, ...]]:
        section = self._section(node, where, required=("pinned", "free"))
        pinned: dict[str, Json] = {}
        for name, value in self._section(section.values["pinned"], f"{where}.pinned").values.items():
            self._into(pinned, name, self._json, value, f"{where}.pinned.{name}")
        free = self._list(section.values["free"], f"{where}.free", self._text)
        for name in (*pinned, *free):
            if name in GIVEN:
                raise self._wrong(node, where, f"names {name!r}, which the conversation itself defines")
        if both := sorted(set(pinned) & set(free)):
            raise self._wrong(node, where, f"has {both[0]!r} both pinned and free")
        return pinned, free

    def _tokenizer(self, node: yaml.Node, where: str) -> TokenizerFacts:
        section = self._section(node, where, required=("sha256", "bos", "special_tokens"))
        tokens: dict[str, str] = {}
        entries = self._section(section.values["special_tokens"], f"{where}.special_tokens").values
        for name, entry in entries.items():
            self._into(tokens, name, self._text, entry, f"{where}.special_tokens.{name}")
        return TokenizerFacts(
            self._text(section.values["sha256"], f"{where}.sha256"),
            self._choice(section.values["bos"], f"{where}.bos", get_args(forms.Bos)),
            tokens,
        )

    def _messages(self, node: yaml.Node, where: str) -> MessageRules:
        section = self._section(node, where, optional=[field.name for field in fields(MessageRules)])
        choices = {
            "parts": forms.Parts,
            "content_null": forms.NullContent,
            "developer": forms.Developer,
            "trailing_assistant": forms.TrailingAssistant,
            "reasoning_field": forms.ReasoningField,
            "control_tokens_in_text": forms.ControlTokens,
        }
        found: dict[str, Any] = {}
        for key, value in section.values.items():
            place = f"{where}.{key}"
            if key == "trim":
                found[key] = self._trim(value, place)
            elif key == "system_default":
                found[key] = None if self._is_null(value) else self._text(value, place)
            else:
                found[key] = self._choice(value, place, get_args(choices[key]))
        return MessageRules(**found)

    def _trim(self, node: yaml.Node, where: str) -> TrimRules:
        section = self._section(node, where, optional=[field.name for field in fields(TrimRules)])
        chosen = {
            role: self._choice(value, f"{where}.{role}", get_args(Trim)) for role, value in section.values.items()
        }
        return TrimRules(**chosen)

    def _stop(self, node: yaml.Node, where: str) -> Stop:
        section = self._section(node, where, required=("token_ids", "strings"))
        ids = self._list(section.values["token_ids"], f"{where}.token_ids", self._token_id)
        return Stop(ids, self._list(section.values["strings"], f"{where}.strings", self._text))

    def _token_id(self, node: yaml.Node, where: str) -> int:
        id_ = self._number(node, where, int)
        if id_ < 0:
            raise self._wrong(node, where, "is no token id")
        return int(id_)

    def _sampling(self, node: yaml.Node, where: str) -> dict[str, float | int]:
        section = self._section(node, where, optional=tuple(SAMPLING))
        return {key: self._number(value, f"{where}.{key}", SAMPLING[key]) for key, value in section.values.items()}

    def _clock(self, node: yaml.Node, where: str) -> datetime | Literal["live"]:
        text = node.value if isinstance(node, yaml.ScalarNode) else ""
        if text == LIVE:
            return LIVE
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            raise self._wrong(node, where, 'is neither a date such as "2024-07-26" nor live') from None

    # values

    def _into(
        self, target: dict[str, Any], key: str, reader: Callable[[yaml.Node, str], Any], node: yaml.Node, where: str
    ) -> None:
        """Put what *reader* makes of *node* into *target*; a problem is noted, and the rest is read all the same."""
        try:
            target[key] = reader(node, where)
        except _Wrong:
            pass
        except ContractInvalid as problem:
            self.problems.append(str(problem))

    def _wrong(self, node: yaml.Node, where: str, message: str) -> _Wrong:
        place = f"{where}: " if where else ""
        self.problems.append(f"{self.path}:{node.start_mark.line + 1}: {place}{message}")
        return _Wrong()

    def _section(
        self, node: yaml.Node, where: str, *, required: Sequence[str] = (), optional: Sequence[str] = ()
    ) -> _Section:
        """*node* as a mapping with these keys; with any keys where none is named."""
        if not isinstance(node, yaml.MappingNode):
            raise self._wrong(node, where, "is no mapping of names to values")
        known = (*required, *optional)
        values: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                raise self._wrong(key_node, where, "has a key that is no text")
            if known and key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
                self._wrong(key_node, f"{where}.{key}".lstrip("."), f"is unknown; {hint}")
            elif key in values:
                self._wrong(key_node, f"{where}.{key}".lstrip("."), "is set twice; remove one of them")
            else:
                values[key] = value
        missing = [key for key in required if key not in values]
        if missing:
            raise self._wrong(node, where, f"lacks {', '.join(missing)}")
        return _Section(where, node, values)

    def _list(self, node: yaml.Node, where: str, reader: Callable[[yaml.Node, str], Any]) -> tuple[Any, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise self._wrong(node, where, "is no list")
        return tuple(reader(item, f"{where}[{index}]") for index, item in enumerate(node.value))

    def _text(self, node: yaml.Node, where: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or not node.tag.endswith(":str"):
            raise self._wrong(node, where, "is no text; put it in quotes")
        return str(node.value)

    def _choice(self, node: yaml.Node, where: str, known: Sequence[str]) -> Any:
        found = node.value if isinstance(node, yaml.ScalarNode) else None
        if found not in known:
            raise self._wrong(node, where, f"is none of {', '.join(known)}")
        return found

    def _number(self, node: yaml.Node, where: str, kind: type[int] | type[float]) -> Any:
        value = self._scalar(node, where)
        if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
            raise self._wrong(node, where, "is no whole number" if kind is int else "is no number")
        if value != value or value in (float("inf"), float("-inf")):
            raise self._wrong(node, where, "is no finite number")
        return value

    def _is_null(self, node: yaml.Node) -> bool:
        return isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")

    def _json(self, node: yaml.Node, where: str) -> Json:
        if isinstance(node, yaml.MappingNode):
            section = self._section(node, where)
            return {key: self._json(value, f"{where}.{key}") for key, value in section.values.items()}
        if isinstance(node, yaml.SequenceNode):
            return list(self._list(node, where, self._json))
        value = self._scalar(node, where)
        if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
            raise self._wrong(node, where, "is no finite number")
        return value

    def _scalar(self, node: yaml.Node, where: str) -> Json:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if not isinstance(node, yaml.ScalarNode) or kind not in ("str", "int", "float", "bool", "null"):
            raise self._wrong(node, where, "is neither a text, a number, true, false nor null; put it in quotes")
        constructor = yaml.constructor.SafeConstructor()
        try:
            return getattr(constructor, f"construct_yaml_{kind}")(node)
        except (ValueError, KeyError):
            raise self._wrong(node, where, "is not the value that its notation promises; put it in quotes") from None
