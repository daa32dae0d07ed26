"""The configuration of one gateway as frozen, validated objects: what an operator may say, its bounds and its defaults.

Every section is validated whole: unknown keys, missing keys, wrong values and keys that contradict each other are
reported together. What pydantic cannot say in plain words is refused with a ``Refusal``, whose message and remedy
``gateway.config_file`` prints beside the line. Validation never touches the disk: whether weights exist is the business
of ``unigate check``.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainValidator,
    SecretStr,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError, PydanticKnownError

from backends.engines import ADAPTERS
from backends.settings import ArgValue, BackendSettings, EngineSettings, Timing

Engine = Literal["vllm", "llamacpp", "external"]
ENGINES: tuple[str, ...] = get_args(Engine)
"""The engines a configuration may name; an engine added to the word above is known everywhere in this package."""

RESERVED_ENV = ("UNIGATE_BACKEND_ID", "SPT_NOENV")
"""Variables the gateway sets on every engine process: they are how orphans are found after a crash."""

Loc = tuple[str | int, ...]
"""A place in the document: mapping keys and list indices from the root (or from the section that speaks)."""

REFUSED = "refused"
"""The pydantic error type of every ``Refusal``; its context holds ``message``, ``remedy`` and ``other``."""

_MONTH_S = 31 * 86_400
_MIB = 1024 * 1024
_TIMING = Timing()
_UNSET: Any = None
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


def _refuse_all(title: str, details: Iterable[InitErrorDetails]) -> ValidationError:
    return ValidationError.from_exception_data(title, list(details), hide_input=True)


def _again(error: ErrorDetails) -> InitErrorDetails:
    """An error of a finished validation in the form that a new ValidationError takes."""
    context = error.get("ctx", {})
    kind = PydanticCustomError(REFUSED, "{message}", context) if error["type"] == REFUSED else error["type"]
    return InitErrorDetails(type=kind, loc=error["loc"], input=error["input"], ctx=context)


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


def _origin(info: ValidationInfo) -> Origin:
    return info.context if isinstance(info.context, Origin) else Origin(Path.cwd(), os.environ)


def _freeze(mapping: Mapping[str, _T]) -> Mapping[str, _T]:
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
    if fault := _name_fault(name):
        raise _refuse(fault, "write a short printable name, such as Qwen/Qwen2.5-7B")
    return name


def _name_fault(name: str) -> str:
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


def _read_path(value: object, info: ValidationInfo) -> Path:
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        raise PydanticKnownError("string_type")
    if not value or not value.isprintable():
        raise _refuse("must be a path" if value else "must not be empty", "write the path of a file or folder")
    if re.match(r"[A-Za-z][\w+.-]*:", value):
        raise _refuse("must be a path on this machine, not an address", "download it first and write where it lies")
    return _origin(info).absolute(value)


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
        return (str(_origin(info).absolute(program)), *words[1:])
    return tuple(words)


def _check_env(env: Mapping[str, str]) -> Mapping[str, str]:
    refusals = [Refusal((name,), *fault) for name, value in env.items() if (fault := _env_fault(name, value))]
    if refusals:
        raise _refuse_all("env", (refusal.as_details() for refusal in refusals))
    return _freeze(env)


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
        raise _refuse_all("args", (refusal.as_details() for refusal in refusals))
    return _freeze(options)


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


Whole = Annotated[int, BeforeValidator(_no_bool_as_whole)]
Seconds = Annotated[float, Field(gt=0, le=_MONTH_S), BeforeValidator(_no_bool_as_number)]
SecondsOrZero = Annotated[float, Field(ge=0, le=_MONTH_S), BeforeValidator(_no_bool_as_number)]
SecondsFromOne = Annotated[float, Field(ge=1, le=_MONTH_S), BeforeValidator(_no_bool_as_number)]
TokenCount = Annotated[int, Field(ge=1, le=100_000_000), BeforeValidator(_no_bool_as_whole)]
Flag = Annotated[bool, BeforeValidator(_no_number_as_flag)]
Name = Annotated[str, AfterValidator(_check_name), Field(json_schema_extra={"minLength": 1, "maxLength": 200})]
HeaderSecret = Annotated[SecretStr, AfterValidator(_check_header_secret), Field(json_schema_extra={"minLength": 1})]
AnyPath = Annotated[Path, PlainValidator(_read_path), WithJsonSchema({"type": "string", "minLength": 1})]
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
_ARG_ITEM = {"type": ["string", "number"]}
Arg = Annotated[
    ArgValue,
    PlainValidator(_read_arg),
    WithJsonSchema({"anyOf": [{"type": ["string", "number", "boolean"]}, {"type": "array", "items": _ARG_ITEM}]}),
]


def _no_mapping() -> Mapping[str, Any]:
    return MappingProxyType({})


# -- sections ---------------------------------------------------------------------------------------------------------


class Section(BaseModel):
    """A part of the configuration with fixed keys. A key without a value counts as not given."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)

    @classmethod
    def known_keys(cls) -> tuple[str, ...]:
        """The keys of this section as they are written in the file, in their order."""
        return tuple(field.alias or name for name, field in cls.model_fields.items())

    @classmethod
    def contradictions(cls, given: Mapping[str, object]) -> Iterator[Refusal]:
        """What is wrong between keys, seen before their values are validated: *given* may hold anything."""
        yield from ()

    def objections(self) -> Iterator[Refusal]:
        """What is wrong between valid values of this section."""
        yield from ()

    @model_validator(mode="wrap")
    @classmethod
    def _validate_whole(cls, value: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Validates keys, values and what lies between them, and reports all of it in one error."""
        if value is not None and not isinstance(value, Mapping):
            return validate(value)
        known = cls.known_keys()
        given = {key: item for key, item in (value or {}).items() if item is not None or key not in known}
        refusals = list(cls._key_refusals(given))
        # a key that does not belong here at all: what its value should look like does not matter any more
        refused = {refusal.loc for refusal in refusals}
        section, details = cls._validate_values(given, validate)
        details = [detail for detail in details if detail.get("loc", ())[:1] not in refused]
        if section is not None:
            refusals.extend(section.objections())
            if not refusals:
                return section
        raise _refuse_all(cls.__name__, [*details, *(refusal.as_details() for refusal in refusals)])

    @classmethod
    def _validate_values(
        cls, given: Mapping[str, Any], validate: ModelWrapValidatorHandler[Self]
    ) -> tuple[Self | None, list[InitErrorDetails]]:
        try:
            return validate({key: item for key, item in given.items() if key in cls.known_keys()}), []
        except ValidationError as error:
            # a missing key is _key_refusals' to tell: it knows when a misspelt one was meant
            found = error.errors(include_url=False)
            return None, [_again(one) for one in found if one["type"] != "missing"]

    @classmethod
    def _key_refusals(cls, given: Mapping[str, object]) -> Iterator[Refusal]:
        known = cls.known_keys()
        meant = dict(given)
        for key in given:
            if key not in known:
                yield Refusal((key,), "unknown key", suggest(str(key), known))
                meant.setdefault(nearest(str(key), known) or key, None)
        for name, field in cls.model_fields.items():
            key = field.alias or name
            if field.is_required() and key not in meant:
                what = (field.description or "").rstrip(".")
                yield Refusal((key,), "is missing", f"add it ({what[:1].lower()}{what[1:]})")
        yield from cls.contradictions(meant)


class KeyConfig(Section):
    """One key that clients may send, and what it opens."""

    name: Name = Field(description="Who the key belongs to; logs and metrics show this name, never the key.")
    key: HeaderSecret = Field(description="The secret clients send as a bearer token, best taken from ${UNIGATE_KEY}.")
    models: tuple[Name, ...] = Field(("*",), description="Model names, aliases or globs that the key may use.")
    admin: Flag = Field(False, description="Whether the key also opens /admin.")


class QueueConfig(Section):
    """How requests wait for a model that is loading or full."""

    max_waiting: Whole = Field(256, ge=0, le=100_000, description="Most requests waiting for one model; more get 429.")
    max_wait_s: SecondsOrZero = Field(300.0, description="Longest wait of one request, in seconds; then it gets 503.")


class TimeoutsConfig(Section):
    """The clocks of one request."""

    connect_s: Seconds = Field(5.0, description="Connecting to an engine, in seconds.")
    first_byte_s: Seconds = Field(600.0, description="From the request sent to the first byte back, in seconds.")
    idle_s: Seconds = Field(300.0, description="Longest silence of an engine within an answer, in seconds.")
    send_s: Seconds = Field(60.0, description="How long a client may read nothing of its answer, in seconds.")


def _read_state_dir(value: object, info: ValidationInfo) -> Path:
    if value is not None:
        return _read_path(value, info)
    origin = _origin(info)
    xdg = origin.environ.get("XDG_STATE_HOME", "")
    # the XDG specification has a relative path ignored
    base = Path(xdg) if xdg.startswith("/") else origin.absolute("~/.local/state")
    return base / "unigate" / str(info.data.get("port", ""))


def _read_log_dir(value: object, info: ValidationInfo) -> Path:
    return _read_path(value, info) if value is not None else Path(info.data.get("state_dir", ""), "logs")


_PATH_SCHEMA = WithJsonSchema({"type": "string", "minLength": 1, "default": None})


class GatewaySettings(Section):
    """The gateway itself: where it listens, who may use it, and its limits."""

    host: Annotated[str, AfterValidator(_check_host)] = Field(
        "127.0.0.1", description="Address to listen on; 0.0.0.0 for every network, which needs a key."
    )
    port: Whole = Field(8080, ge=1, le=65_535, description="TCP port to listen on.")
    keys: tuple[KeyConfig, ...] = Field((), description="Keys clients may use; with none configured any key is taken.")
    allow_unauthenticated: Flag = Field(
        False, description="Whether to listen beyond this machine with no key at all. Anybody may then use the models."
    )
    body_limit_bytes: Whole = Field(
        32 * _MIB, ge=1024, le=4096 * _MIB, description="Largest request body, in bytes; more gets 413."
    )
    queue: QueueConfig = Field(_UNSET, validate_default=True, description="How requests wait for a model.")
    timeouts: TimeoutsConfig = Field(_UNSET, validate_default=True, description="How long a request may take.")
    drain_timeout_s: SecondsOrZero = Field(
        30.0, description="How long a stop of the gateway waits for running requests, in seconds."
    )
    state_dir: Annotated[Path, PlainValidator(_read_state_dir), _PATH_SCHEMA] = Field(
        _UNSET,
        validate_default=True,
        description="Folder for records of running engines; default unigate/<port> in $XDG_STATE_HOME.",
    )
    log_dir: Annotated[Path, PlainValidator(_read_log_dir), _PATH_SCHEMA] = Field(
        _UNSET, validate_default=True, description="Folder for the logs of gateway and engines; default state_dir/logs."
    )
    log_rotate_bytes: Whole = Field(
        50 * _MIB, ge=64 * 1024, le=65_536 * _MIB, description="Size at which a log file is rotated, in bytes."
    )
    log_keep: Whole = Field(5, ge=0, le=1000, description="Rotated log files kept of each log.")
    access_log: Flag = Field(True, description="Whether to log one line for each request.")

    def objections(self) -> Iterator[Refusal]:
        """Refuses an open door and keys that cannot be told apart."""
        if not (is_loopback(self.host) or self.keys or self.allow_unauthenticated):
            message = f"{self.host} can be reached from other machines, and no key is configured"
            remedy = "add gateway.keys, listen on 127.0.0.1, or set gateway.allow_unauthenticated: true"
            yield Refusal(("host",), message, remedy)
        names: dict[str, int] = {}
        secrets: dict[str, int] = {}
        for index, key in enumerate(self.keys):
            if (first := names.setdefault(key.name, index)) != index:
                other: Loc = ("gateway", "keys", first, "name")
                message = f"{quoted(key.name)} is already taken by {place(other)}"
                yield Refusal(("keys", index, "name"), message, "give each key its own name", other)
            if (first := secrets.setdefault(key.key.get_secret_value(), index)) != index:
                other = ("gateway", "keys", first, "key")
                message = f"is the same secret as {place(other)}"
                yield Refusal(("keys", index, "key"), message, "give each key its own secret", other)


class EngineConfig(Section):
    """How one engine is started on this machine."""

    command: Command = Field(
        (), description="The program and its first words, a list or one line; default: what the engine's adapter finds."
    )
    env: Env = Field(default_factory=_no_mapping, repr=False, description="Environment variables of its processes.")
    socket: Literal["unix", "tcp"] = Field("unix", description="Whether the engine listens on a Unix socket or a port.")

    def settings(self) -> EngineSettings:
        """This engine as the backends package reads it."""
        return EngineSettings(self.command, self.env, self.socket)


class TemplateConfig(Section):
    """The chat template of one model."""

    source: AnyPath = Field(alias="from", description="Path of the chat template file to use (Jinja).")


class BackoffConfig(Section):
    """How a backend that crashes is started again."""

    base_s: Seconds = Field(_TIMING.backoff_base_s, description="First pause, in seconds; each next one doubles.")
    max_s: Seconds = Field(_TIMING.backoff_max_s, description="Longest pause, in seconds.")
    reset_s: Seconds = Field(
        _TIMING.backoff_reset_s, description="Time in READY that clears the record of crashes, in seconds."
    )
    max_failed_starts: Whole = Field(
        _TIMING.max_failed_starts, ge=1, le=1000, description="Failed starts in a row after which the model is FAILED."
    )

    def objections(self) -> Iterator[Refusal]:
        """Refuses a longest pause that is shorter than the first."""
        if self.max_s < self.base_s:
            yield Refusal(("max_s",), f"must not be less than base_s ({self.base_s:g})", "raise max_s or lower base_s")


class HealthConfig(Section):
    """How a READY backend is watched."""

    interval_s: Seconds = Field(_TIMING.health_interval_s, description="Pause between two checks, in seconds.")
    timeout_s: Seconds = Field(_TIMING.health_timeout_s, description="Longest time for one check, in seconds.")
    failures: Whole = Field(
        _TIMING.health_failures, ge=1, le=1000, description="Failed checks in a row after which it is started anew."
    )


_EXTERNAL_ONLY = ("url", "api_key", "served_name")
_LAUNCHED_ONLY = ("weights", "template", "args", "env", "idle_unload_s", "stop_grace_s")


class ModelConfig(Section):
    """One model under its public name, and the engine that serves it."""

    engine: Engine = Field(description=f"The engine that serves the model: {', '.join(ENGINES)}.")
    weights: AnyPath | None = Field(
        None, description="Path of the weights, a folder or a GGUF file; relative to this file. Not for external."
    )
    url: Url | None = Field(
        None, description="Only external: address of the server's OpenAI API, such as http://127.0.0.1:9000/v1."
    )
    api_key: HeaderSecret | None = Field(None, description="Only external: the key its server asks for.")
    served_name: Name | None = Field(
        None, description="Only external: the model's name on its server; default the public name."
    )
    aliases: tuple[Name, ...] = Field((), description="Other public names of the model.")
    load: Literal["startup", "on_demand"] = Field(
        "startup", description="Whether the model is loaded at start or by the first request for it."
    )
    idle_unload_s: SecondsFromOne | None = Field(
        None, description="Unload after this long without a request, in seconds; default never."
    )
    context_length: TokenCount | None = Field(
        None, description="Most tokens of one request, prompt and answer; default the engine's own."
    )
    template: TemplateConfig | None = Field(None, description="The chat template; default the one in the weights.")
    args: Annotated[Mapping[str, Arg], AfterValidator(_strip_dashes)] = Field(
        default_factory=_no_mapping,
        repr=False,
        description="The engine's own options, without dashes: true is the bare flag, false leaves it out.",
    )
    env: Env = Field(
        default_factory=_no_mapping, repr=False, description="Environment variables; they win over the engine's env."
    )
    readiness: Literal["generate", "embed", "models"] = Field(
        "generate", description="What proves READY: one token, one embedding, or (external only) the list of models."
    )
    probe_timeout_s: Seconds = Field(
        _TIMING.probe_timeout_s, description="Longest time for the readiness proof, in seconds."
    )
    start_timeout_s: Seconds = Field(_TIMING.start_timeout_s, description="Longest time for one start, in seconds.")
    start_stall_timeout_s: Seconds = Field(
        _TIMING.start_stall_timeout_s,
        description="A start this long without a sign of life is ended, in seconds.",
    )
    stop_grace_s: Seconds | None = Field(
        _TIMING.stop_grace_s, description="From TERM to KILL, in seconds; default the engine's own figure."
    )
    drain_timeout_s: SecondsOrZero = Field(
        _TIMING.drain_timeout_s, description="How long a stop of the model waits for running requests, in seconds."
    )
    backoff: BackoffConfig = Field(_UNSET, validate_default=True, description="How it is started again after a crash.")
    health: HealthConfig = Field(_UNSET, validate_default=True, description="How it is watched while READY.")

    @classmethod
    def contradictions(cls, given: Mapping[str, object]) -> Iterator[Refusal]:
        """Refuses keys that the model's engine cannot use, and asks for those it needs."""
        engine = given.get("engine")
        adapter = ADAPTERS.get(engine) if isinstance(engine, str) else None
        if adapter is None:
            return
        if not adapter.launches:
            if "url" not in given:
                yield Refusal(("url",), "is missing: an external model needs its server's address", _URL_REMEDY)
            yield from _misplaced(
                _LAUNCHED_ONLY, given, "has no effect on an external server: unigate does not start it"
            )
        else:
            if "weights" not in given:
                yield Refusal(("weights",), "is missing", "add the path of the model's folder or GGUF file")
            if given.get("readiness") == "models":
                yield Refusal(("readiness",), '"models" is for external servers only', 'use "generate" or "embed"')
            yield from _misplaced(_EXTERNAL_ONLY, given, "is for engine: external only")

    def settings(self, name: str) -> BackendSettings:
        """This model, publicly named *name*, as the backends package reads it."""
        return BackendSettings(
            name=name,
            engine=self.engine,
            weights=self.weights,
            url=self.url or "",
            api_key=self.api_key.get_secret_value() if self.api_key else "",
            served_name=self.served_name or name,
            args=self.args,
            env=self.env,
            context_length=self.context_length,
            template_file=self.template.source if self.template else None,
            on_demand=self.load == "on_demand",
            idle_unload_s=self.idle_unload_s,
            readiness=self.readiness,
            timing=self._timing(),
        )

    def _timing(self) -> Timing:
        return Timing(
            start_stall_timeout_s=self.start_stall_timeout_s,
            start_timeout_s=self.start_timeout_s,
            stop_grace_s=self.stop_grace_s,
            drain_timeout_s=self.drain_timeout_s,
            backoff_base_s=self.backoff.base_s,
            backoff_max_s=self.backoff.max_s,
            backoff_reset_s=self.backoff.reset_s,
            max_failed_starts=self.backoff.max_failed_starts,
            health_interval_s=self.health.interval_s,
            health_timeout_s=self.health.timeout_s,
            health_failures=self.health.failures,
            probe_timeout_s=self.probe_timeout_s,
        )


_URL_REMEDY = "add url: http://127.0.0.1:9000/v1 (with its own host and port)"


def _misplaced(keys: Iterable[str], given: Mapping[str, object], message: str) -> Iterator[Refusal]:
    return (Refusal((key,), message, "remove it") for key in keys if key in given)


class Config(Section):
    """Everything one gateway is told: frozen, complete, free of contradictions."""

    gateway: GatewaySettings = Field(_UNSET, validate_default=True, description="The gateway itself.")
    engines: Annotated[
        Mapping[str, EngineConfig],
        AfterValidator(_freeze),
        Field(json_schema_extra={"propertyNames": {"enum": list(ENGINES)}}),
    ] = Field(default_factory=_no_mapping, description="How each engine is started on this machine.")
    models: Annotated[
        Mapping[str, ModelConfig],
        AfterValidator(_freeze),
        Field(json_schema_extra={"minProperties": 1, "propertyNames": {"minLength": 1, "maxLength": 200}}),
    ] = Field(description="The models by the names that clients ask for.")

    @classmethod
    def contradictions(cls, given: Mapping[str, object]) -> Iterator[Refusal]:
        """Refuses unknown engines, names nobody can use, and names that two models claim."""
        engines, models = given.get("engines"), given.get("models")
        if isinstance(engines, Mapping):
            yield from _engine_refusals(engines)
        if isinstance(models, Mapping):
            if not models:
                yield Refusal(("models",), "is empty", "add at least one model")
            yield from _name_refusals(models)

    def backend_settings(self) -> tuple[BackendSettings, ...]:
        """Every model as the backends package reads it, in the order of the file."""
        return tuple(model.settings(name) for name, model in self.models.items())

    def engine_settings(self, engine: str) -> EngineSettings:
        """How *engine* is started here; the defaults for an engine that the file does not mention."""
        return self.engines[engine].settings() if engine in self.engines else EngineSettings()


def _engine_refusals(engines: Mapping[Any, object]) -> Iterator[Refusal]:
    for name, engine in engines.items():
        if name not in ENGINES:
            yield Refusal(("engines", name), "unknown engine", suggest(str(name), ENGINES))
        elif engine and not ADAPTERS[name].launches:
            message = "has no effect: unigate does not start external servers"
            yield Refusal(("engines", name), message, "remove it; url and api_key belong to the model")


def _name_refusals(models: Mapping[Any, object]) -> Iterator[Refusal]:
    taken: dict[str, Loc] = {}
    for name in models:
        taken[name] = ("models", name)
        if fault := _name_fault(str(name)):
            yield Refusal(("models", name), f"as a model's name {fault}", "write a short printable name")
    for name, model in models.items():
        for index, alias in enumerate(_aliases(model)):
            loc: Loc = ("models", name, "aliases", index)
            other = taken.setdefault(alias, loc)
            if other != loc:
                message = f"{quoted(alias)} is already taken by {place(other)}"
                yield Refusal(loc, message, "give each model and alias its own name", other)


def _aliases(model: object) -> list[str]:
    aliases = model.aliases if isinstance(model, ModelConfig) else isinstance(model, Mapping) and model.get("aliases")
    return [alias if isinstance(alias, str) else "" for alias in aliases] if isinstance(aliases, list | tuple) else []
