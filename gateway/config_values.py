"""The kinds of values a configuration holds, each with its check, and how a wrong one is refused.

A kind is a type annotation that pydantic validates with: it reads what the file says, refuses what cannot be meant, and
tells the published schema what it takes. What pydantic cannot say in plain words is refused with a ``Refusal``.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    SecretStr,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError, PydanticKnownError

from backends.settings import ArgValue
from backends.sources import RemoteSource, SourceRefused, parse_source

_MOST_GPUS = 63
RESERVED_ENV = ("UNIGATE_BACKEND_ID", "SPT_NOENV")
"""Variables the gateway sets on every engine process: they are how orphans are found after a crash."""

Loc = tuple[str | int, ...]
"""A place in the document: mapping keys and list indices from the root (or from the section that speaks)."""

REFUSED = "refused"
"""The pydantic error type of every ``Refusal``; its context holds ``message``, ``remedy`` and ``other``."""

_MONTH_S = 31 * 86_400
_T = TypeVar("_T")


# -- refusing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refusal:
    """One thing that is wrong: where, why, what to do about it, and the absolute place it collides with, if any.

    *loc* is relative to the section that found it. None of the texts ever holds a secret.
    """

    loc: Loc
    message: str
    remedy: str = ""
    other: Loc = ()

    def as_error(self) -> PydanticCustomError:
        """The refusal as pydantic carries it; *loc* is not part of it."""
        context = {"message": self.message, "remedy": self.remedy, "other": self.other}
        return PydanticCustomError(REFUSED, "{message}", context)

    def as_details(self) -> InitErrorDetails:
        """The refusal with its place and without its input, so that no value can leak through the error."""
        return InitErrorDetails(type=self.as_error(), loc=self.loc, input=None)


def place(loc: Loc) -> str:
    """*loc* as people read it: ``models.qwen.aliases[0]``; a key that is no plain word is quoted."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            word = part if re.fullmatch(r"[\w/-]+", part) else quoted(part)
            text += f".{word}" if text else word
    return text


def quoted(text: str) -> str:
    """*text* in double quotes; one that a terminal could not show as it is, is escaped whole."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def suggest(word: str, known: Iterable[str]) -> str:
    """The remedy for a wrong *word*: the nearest known one, else all of them in the order given."""
    choices = list(known)
    near = nearest(word, choices)
    return f"did you mean {quoted(near)}?" if near else f"known here: {', '.join(choices)}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like *word*, or None when none is like it."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)), None)


def _refuse(message: str, remedy: str = "") -> PydanticCustomError:
    return Refusal((), message, remedy).as_error()


def refuse_all(title: str, details: Iterable[InitErrorDetails]) -> ValidationError:
    """All of *details* as one error, to be raised; *title* names the section. No value is shown."""
    return ValidationError.from_exception_data(title, list(details), hide_input=True)


def again(error: ErrorDetails, under: Loc = ()) -> InitErrorDetails:
    """An error of a finished validation in the form that a new ValidationError takes, its place below *under*."""
    context = error.get("ctx", {})
    kind = PydanticCustomError(REFUSED, "{message}", context) if error["type"] == REFUSED else error["type"]
    return InitErrorDetails(type=kind, loc=(*under, *error["loc"]), input=error["input"], ctx=context)


# -- kinds of values --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a configuration comes from: pydantic's validation context.

    Relative paths are relative to *folder*; *environ* gives HOME and XDG_STATE_HOME. Without an Origin they are the
    process's own working folder and environment.
    """

    folder: Path
    environ: Mapping[str, str]

    def absolute(self, path: str) -> Path:
        """*path* with ``~`` expanded, made absolute. Raises PydanticCustomError when the home is not known."""
        home = self.environ.get("HOME")
        if home and (path == "~" or path.startswith("~/")):
            return Path(home, path[2:])
        try:
            return self.folder / Path(path).expanduser()
        except RuntimeError as exc:
            raise _refuse("begins with ~, but that home folder is not known", "write the whole path") from exc


def origin_of(info: ValidationInfo) -> Origin:
    """The Origin that validation was started with, else the process's own."""
    return info.context if isinstance(info.context, Origin) else Origin(Path.cwd(), os.environ)


def freeze(mapping: Mapping[str, _T]) -> Mapping[str, _T]:
    """A copy of *mapping* that nobody can change."""
    return MappingProxyType(dict(mapping))


def _no_bool_as_whole(value: object) -> object:
    # YAML's yes/on/true would otherwise quietly become 1
    if isinstance(value, bool):
        raise PydanticKnownError("int_type")
    return value


def _no_bool_as_number(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticKnownError("float_type")
    return value


def _no_number_as_flag(value: object) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise PydanticKnownError("bool_type")
    return value


def _check_name(name: str) -> str:
    if fault := name_fault(name):
        raise _refuse(fault, "write a short printable name, such as Qwen/Qwen2.5-7B")
    return name


def name_fault(name: str) -> str:
    """What keeps *name* from being the name of a model or a key; empty when nothing does."""
    if not name:
        return "must not be empty"
    if len(name) > 200:
        return f"must have at most 200 characters, not {len(name)}"
    if not name.isprintable():
        return "must not hold control characters or line breaks"
    return "must not begin or end with a space" if name != name.strip() else ""


def _check_header_secret(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if not text:
        raise _refuse("must not be empty", "write a key, or take it from the environment: ${UNIGATE_KEY}")
    # it travels as "Authorization: Bearer ...", where anything else would never match, or would end the header
    if not re.fullmatch(r"[!-~]+", text):
        raise _refuse(
            "must consist of printable ASCII characters without spaces: no client could send it otherwise",
            "check for a space or line break at its end",
        )
    return secret


def read_path(value: object, info: ValidationInfo) -> Path:
    """*value* as an absolute path, a relative one from the Origin's folder. Raises what pydantic reports."""
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        raise PydanticKnownError("string_type")
    if not value or not value.isprintable():
        raise _refuse("must be a path" if value else "must not be empty", "write the path of a file or folder")
    if re.match(r"[A-Za-z][\w+.-]*:", value):
        raise _refuse("must be a path on this machine, not an address", "download it first and write where it lies")
    return origin_of(info).absolute(value)


def _read_weights(value: object, info: ValidationInfo) -> Path | RemoteSource:
    if isinstance(value, str):
        try:
            source = parse_source(value)
        except SourceRefused as exc:
            raise _refuse(str(exc), exc.remedy) from exc
        if source is not None:
            return source
    return read_path(value, info)


def _read_command(value: object, info: ValidationInfo) -> object:
    words = value
    if isinstance(value, str):
        try:
            words = shlex.split(value)
        except ValueError as exc:
            raise _refuse("has a quote that is never closed", "close it, or write the command as a list") from exc
    if not isinstance(words, list | tuple):
        raise PydanticKnownError("tuple_type")
    if not words or words[0] == "":
        raise _refuse("must not be empty", "write the program to run, or remove the key for the engine's default")
    program = words[0]
    # a bare word is looked up on PATH by whoever starts it
    if isinstance(program, str) and ("/" in program or program.startswith("~")):
        return (str(origin_of(info).absolute(program)), *words[1:])
    return tuple(words)


def _read_conda(value: object, info: ValidationInfo) -> str:
    if not isinstance(value, str):
        raise PydanticKnownError("string_type")
    if "/" in value or value.startswith("~"):
        return str(read_path(value, info))
    if not re.fullmatch(r"[^\s:#]+", value):
        raise _refuse("must be the name or the path of a conda environment", "`unigate engine list` shows them")
    return value


def _check_version(version: str) -> str:
    if not re.fullmatch(r"\d[\w.+]*", version):
        raise _refuse("must be one exact version", 'write it like "0.32.0", as `unigate engine install` was given it')
    return version


def _check_env(env: Mapping[str, str]) -> Mapping[str, str]:
    refusals = [Refusal((name,), *fault) for name, value in env.items() if (fault := _env_fault(name, value))]
    if refusals:
        raise refuse_all("env", (refusal.as_details() for refusal in refusals))
    return freeze(env)


def _env_fault(name: str, value: str) -> tuple[str, str] | None:
    if name in RESERVED_ENV:
        return "is set by unigate itself on every engine process", "remove it"
    if not name or "=" in name or "\0" in name:
        return "is not a name the environment can hold", "remove = and control characters from the name"
    return ("must not hold a NUL character", "remove it") if "\0" in value else None


def _read_arg(value: object) -> ArgValue:
    if isinstance(value, list | tuple):
        return tuple(_read_arg_item(item) for item in value)
    if isinstance(value, bool):
        return value
    return _read_arg_item(value)


def _read_arg_item(value: object) -> int | float | str:
    if isinstance(value, float) and not math.isfinite(value):
        raise _refuse("must be a finite number", "write a number, or quote it if the engine takes the word")
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        return value
    raise _refuse(
        "must be true or false, a number, text, or a list of numbers and texts",
        "true is the bare flag; write a nested option as JSON in single quotes: '{\"key\": 1}'",
    )


def _check_word(text: str) -> str:
    if not text:
        raise _refuse("must not be empty", "remove the key for the engine's default")
    # it follows a flag on a command line, where a dash would make it one
    if text.startswith("-") or not text.isprintable():
        raise _refuse("must not begin with a dash or hold control characters", "write the value alone")
    return text


def _strip_dashes(args: Mapping[str, ArgValue]) -> Mapping[str, ArgValue]:
    refusals: list[Refusal] = []
    options: dict[str, ArgValue] = {}
    for name, value in args.items():
        option = name.lstrip("-")
        if not re.fullmatch(r"[^\s=]+", option):
            message = "is not the name of an option"
            refusals.append(Refusal((name,), message, "write the option as the key and its value after the colon"))
        elif option in options:
            refusals.append(Refusal((name,), f"sets the option {quoted(option)} twice", "keep one of them"))
        options[option] = value
    if refusals:
        raise refuse_all("args", (refusal.as_details() for refusal in refusals))
    return freeze(options)


def _read_gpus(value: object) -> tuple[int, ...] | None:
    if value == "auto":
        return None
    listed = value if isinstance(value, list | tuple) else [value]
    numbers: list[int] = []
    for item in listed:
        word = int(item) if isinstance(item, str) and item.isdecimal() else item
        if not isinstance(word, int) or isinstance(word, bool) or not 0 <= word <= _MOST_GPUS:
            raise _refuse("must be auto, or a list of GPUs by their numbers", "`unigate doctor` lists them: [0, 1]")
        numbers.append(word)
    if len(set(numbers)) < len(numbers):
        raise _refuse("names a GPU twice", "name each once")
    return tuple(numbers)


def _check_url(url: str) -> str:
    example = "write it like http://127.0.0.1:9000/v1"
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or re.search(r"[\s\x00-\x20\x7f]", url):
        raise _refuse("must be an http or https address", example)
    if parts.username is not None or parts.password is not None:
        raise _refuse("must not hold a user or password", "put the key into api_key")
    if parts.query or parts.fragment:
        raise _refuse("must not have a ?query or a #fragment", example)
    return url.rstrip("/")


def _check_host(host: str) -> str:
    bare = host.removeprefix("[").removesuffix("]")
    if not bare or not bare.isprintable() or re.search(r"[\s/]", bare):
        raise _refuse("must be a host name or an IP address", "127.0.0.1 is this machine only, 0.0.0.0 every network")
    if bare.count(":") == 1:
        raise _refuse("must be a host name or an IP address without a port", "put the port into gateway.port")
    return bare


def is_loopback(host: str) -> bool:
    """Whether listening on *host* can be reached from this machine only. A name other than localhost never is."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def whole(**bounds: Any) -> Any:
    """The kind of whole numbers within *bounds*, which pydantic names: ``ge``, ``gt``, ``le``."""
    return Annotated[int, Field(**bounds), BeforeValidator(_no_bool_as_whole)]


def number(**bounds: Any) -> Any:
    """The kind of finite numbers within *bounds*."""
    return Annotated[float, Field(allow_inf_nan=False, **bounds), BeforeValidator(_no_bool_as_number)]


Whole = Annotated[int, BeforeValidator(_no_bool_as_whole)]
Seconds = Annotated[float, Field(gt=0, le=_MONTH_S), BeforeValidator(_no_bool_as_number)]
SecondsOrZero = Annotated[float, Field(ge=0, le=_MONTH_S), BeforeValidator(_no_bool_as_number)]
SecondsFromOne = Annotated[float, Field(ge=1, le=_MONTH_S), BeforeValidator(_no_bool_as_number)]
TokenCount = Annotated[int, Field(ge=1, le=100_000_000), BeforeValidator(_no_bool_as_whole)]
Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(_no_bool_as_number)]
Gib = Annotated[float, Field(gt=0, le=100_000), BeforeValidator(_no_bool_as_number)]
_GPU = {"type": "integer", "minimum": 0, "maximum": _MOST_GPUS}
Gpus = Annotated[
    tuple[int, ...] | None,
    PlainValidator(_read_gpus),
    WithJsonSchema({"anyOf": [{"const": "auto"}, _GPU, {"type": "array", "items": _GPU}]}),
]
Flag = Annotated[bool, BeforeValidator(_no_number_as_flag)]
Word = Annotated[str, AfterValidator(_check_word), Field(json_schema_extra={"minLength": 1})]
Name = Annotated[str, AfterValidator(_check_name), Field(json_schema_extra={"minLength": 1, "maxLength": 200})]
HeaderSecret = Annotated[SecretStr, AfterValidator(_check_header_secret), Field(json_schema_extra={"minLength": 1})]
AnyPath = Annotated[Path, PlainValidator(read_path), WithJsonSchema({"type": "string", "minLength": 1})]
Weights = Annotated[
    Path | RemoteSource, PlainValidator(_read_weights), WithJsonSchema({"type": "string", "minLength": 1})
]
Host = Annotated[str, AfterValidator(_check_host)]
Url = Annotated[str, AfterValidator(_check_url), Field(json_schema_extra={"pattern": "^(https?://|.*\\$\\{)"})]

# the YAML reader hands these over as they are typed, so numbers and booleans need no quotes
_TYPED = {"type": ["string", "number", "boolean"]}
Env = Annotated[
    Mapping[str, Annotated[str, WithJsonSchema(_TYPED)]],
    AfterValidator(_check_env),
    Field(json_schema_extra={"propertyNames": {"not": {"enum": list(RESERVED_ENV)}}}),
]
Command = Annotated[
    tuple[str, ...],
    BeforeValidator(_read_command),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": _TYPED, "minItems": 1}]},
    ),
]
CondaEnv = Annotated[str, PlainValidator(_read_conda), WithJsonSchema({"type": "string", "minLength": 1})]
Version = Annotated[str, AfterValidator(_check_version), Field(json_schema_extra={"pattern": "^[0-9]|\\$\\{"})]
_ARG_ITEM = {"type": ["string", "number"]}
Arg = Annotated[
    ArgValue,
    PlainValidator(_read_arg),
    WithJsonSchema({"anyOf": [{"type": ["string", "number", "boolean"]}, {"type": "array", "items": _ARG_ITEM}]}),
]
Args = Annotated[Mapping[str, Arg], AfterValidator(_strip_dashes)]
