"""The configuration of one gateway as frozen, validated objects: what an operator may say, its bounds and its defaults.
Every section is validated whole: unknown keys, missing keys, wrong values and keys that contradict each other are
reported together, in the words of ``gateway.config_values``, which ``gateway.config_file`` prints beside the line.
Validation never touches the disk: whether weights exist is the business of ``unigate check``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import InitErrorDetails

from backends.argv import clashes
from backends.engines import ADAPTERS
from backends.prompting import ContractChoice, ModeChoice
from backends.settings import BackendSettings, EngineSettings, EnvironmentChoice, LoraAdapter, OptionValue, Timing
from backends.sources import HubSource, RemoteSource, SourceKind, kind_of
from chat_templates.parity import Policy
from gateway.config_values import (
    AnyPath,
    Args,
    Command,
    CondaEnv,
    Env,
    Flag,
    Gib,
    Gpus,
    HeaderSecret,
    Host,
    Loc,
    Name,
    Origin,
    Refusal,
    Seconds,
    SecondsFromOne,
    SecondsOrZero,
    Share,
    TokenCount,
    Url,
    Version,
    Weights,
    Whole,
    again,
    freeze,
    is_loopback,
    name_fault,
    nearest,
    origin_of,
    place,
    quoted,
    read_path,
    refuse_all,
    suggest,
)
from gateway.engine_options import read_options

Engine = Literal["vllm", "lmdeploy", "ollama", "llamacpp", "external"]
ENGINES: tuple[str, ...] = get_args(Engine)
"""The engines a configuration may name; an engine added to the word above is known everywhere in this package."""

_MIB = 1024 * 1024
_GIB = 1024 * _MIB
_TIMING = Timing()
_UNSET: Any = None


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
        raise refuse_all(cls.__name__, [*details, *(refusal.as_details() for refusal in refusals)])

    @classmethod
    def _validate_values(
        cls, given: Mapping[str, Any], validate: ModelWrapValidatorHandler[Self]
    ) -> tuple[Self | None, list[InitErrorDetails]]:
        try:
            return validate({key: item for key, item in given.items() if key in cls.known_keys()}), []
        except ValidationError as error:
            # a missing key is _key_refusals' to tell: it knows when a misspelt one was meant
            found = error.errors(include_url=False)
            return None, [again(one) for one in found if one["type"] != "missing"]

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
    send_s: Seconds = Field(
        60.0, description="How long a client may send nothing of its body, or read nothing of its answer, in seconds."
    )


def _read_state_dir(value: object, info: ValidationInfo) -> Path:
    if value is not None:
        return read_path(value, info)
    origin = origin_of(info)
    xdg = origin.environ.get("XDG_STATE_HOME", "")
    # the XDG specification has a relative path ignored
    base = Path(xdg) if xdg.startswith("/") else origin.absolute("~/.local/state")
    return base / "unigate" / str(info.data.get("port", ""))


def _read_log_dir(value: object, info: ValidationInfo) -> Path:
    return read_path(value, info) if value is not None else Path(info.data.get("state_dir", ""), "logs")


def default_engine_dir(origin: Origin) -> Path:
    """Where `unigate engine install` builds when nobody says otherwise: unigate/engines in $XDG_DATA_HOME."""
    return _data_dir(origin) / "engines"


def default_models_dir(origin: Origin) -> Path:
    """Where models are downloaded to when nobody says otherwise: unigate/models in $XDG_DATA_HOME."""
    return _data_dir(origin) / "models"


def _data_dir(origin: Origin) -> Path:
    xdg = origin.environ.get("XDG_DATA_HOME", "")
    base = Path(xdg) if xdg.startswith("/") else origin.absolute("~/.local/share")
    return base / "unigate"


def _read_engine_dir(value: object, info: ValidationInfo) -> Path:
    return read_path(value, info) if value is not None else default_engine_dir(origin_of(info))


def _read_models_dir(value: object, info: ValidationInfo) -> Path:
    return read_path(value, info) if value is not None else default_models_dir(origin_of(info))


_PATH_SCHEMA = WithJsonSchema({"type": "string", "minLength": 1, "default": None})


class GatewaySettings(Section):
    """The gateway itself: where it listens, who may use it, and its limits."""

    host: Host = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every network, which needs a key.")
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
    memory_gib: Gib | None = Field(
        None, description="RAM that engines may take in all, in GiB; default all but a tenth, and of that at most 4."
    )
    min_residency_s: SecondsOrZero = Field(
        30.0, description="Time a model stays READY before it makes room for another, in seconds."
    )
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
    engine_dir: Annotated[Path, PlainValidator(_read_engine_dir), _PATH_SCHEMA] = Field(
        _UNSET,
        validate_default=True,
        description="Folder for what `unigate engine install` builds; default unigate/engines in $XDG_DATA_HOME.",
    )
    models_dir: Annotated[Path, PlainValidator(_read_models_dir), _PATH_SCHEMA] = Field(
        _UNSET,
        validate_default=True,
        description="Folder for the weights that are downloaded; default unigate/models in $XDG_DATA_HOME.",
    )
    log_rotate_bytes: Whole = Field(
        50 * _MIB, ge=64 * 1024, le=65_536 * _MIB, description="Size at which a log file is rotated, in bytes."
    )
    log_keep: Whole = Field(5, ge=0, le=1000, description="Rotated log files kept of each log.")
    access_log: Flag = Field(True, description="Whether to log one line for each request.")
    watch: Flag = Field(False, description="Whether to reload this file when it changes, without being asked to.")

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


def _no_mapping() -> Mapping[str, Any]:
    return MappingProxyType({})


_WAYS = ("command", "conda", "python", "venv", "url")
"""The keys that say how an engine is started, or that it runs already; one of them at most."""
_SOME_ENGINES = ("url", "models_dir", "num_parallel", "go_templates")
"""The keys that only some engines have: those their adapter names."""
_OF_OUR_DAEMON = ("models_dir", "num_parallel", "go_templates", "env")
"""The keys that have no effect on a daemon which somebody else runs."""


class EngineConfig(Section):
    """How one engine is started on this machine."""

    command: Command = Field(
        (), description="The program and its first words, a list or one line; default: what the engine's adapter finds."
    )
    conda: CondaEnv | None = Field(
        None, description="Instead of a command: the conda environment it is installed in, by name or path."
    )
    python: AnyPath | None = Field(
        None, description="Instead of a command: a Python, or the folder of a Python environment, that has it."
    )
    venv: Literal["managed"] | None = Field(
        None, description="Instead of a command: the environment that `unigate engine install` built."
    )
    version: Version | None = Field(None, description="Only with venv: the engine's exact version, in quotes.")
    env: Env = Field(default_factory=_no_mapping, repr=False, description="Environment variables of its processes.")
    socket: Literal["unix", "tcp"] = Field("unix", description="Whether the engine listens on a Unix socket or a port.")
    url: Url | None = Field(
        None, description="Only ollama: address of one that runs already, such as http://127.0.0.1:11434."
    )
    models_dir: AnyPath | None = Field(None, description="Only ollama: where it keeps its models; default its own.")
    num_parallel: Whole | None = Field(
        None, ge=1, le=1024, description="Only ollama: requests worked on at once for each model; default its own, one."
    )
    go_templates: Flag = Field(
        False, description="Only ollama: whether Modelfiles' Go templates are used instead of those in the weights."
    )

    @classmethod
    def contradictions(cls, given: Mapping[str, object]) -> Iterator[Refusal]:
        """Refuses two ways to start one engine, and a managed environment without its version."""
        first, *others = [key for key in _WAYS if key in given] or [""]
        for key in others:
            yield Refusal((key,), f"says how the engine is started, and so does {first}", "keep one of them")
        if "venv" in given and "version" not in given:
            yield Refusal(("venv",), "needs a version", 'add version: "X", as in `unigate engine install NAME==X`')
        if "version" in given and "venv" not in given:
            yield Refusal(("version",), "has no effect without venv: managed", "add that, or remove it")
        if "url" in given:
            message = "has no effect on a daemon that somebody else runs"
            yield from _misplaced(_OF_OUR_DAEMON, given, message)

    def way(self) -> str | None:
        """The key that says how the engine is started; None leaves that to its adapter."""
        return next((key for key in _WAYS if getattr(self, key)), None)

    def settings(self) -> EngineSettings:
        """This engine as the backends package reads it; what it names is not looked up."""
        return EngineSettings(
            self.command,
            self.env,
            self.socket,
            self._choice(),
            url=self.url or "",
            models_dir=self.models_dir,
            num_parallel=self.num_parallel,
            go_templates=self.go_templates,
        )

    def _choice(self) -> EnvironmentChoice | None:
        if self.conda is not None:
            return EnvironmentChoice("conda", self.conda)
        if self.python is not None:
            return EnvironmentChoice("python", str(self.python))
        return EnvironmentChoice("managed", self.version) if self.version is not None else None


_OF_A_CONTRACT = ("tokenizer", "parity", "mode", "sample")
"""The keys that say how a contract is kept."""


class TemplateConfig(Section):
    """The chat template of one model."""

    source: AnyPath | None = Field(None, alias="from", description="Path of the chat template file to use (Jinja).")
    engine: Flag = Field(
        False, description="Only ollama, instead of from: take what the engine has, though it is not the weights' own."
    )
    contract: AnyPath | None = Field(
        None, description="Instead of from: path of the contract that `unigate template import` has made."
    )
    tokenizer: AnyPath | None = Field(
        None,
        description="Only with contract: folder with its tokenizer.json; default the one beside the contract, else that"
        " of the weights.",
    )
    parity: Policy = Field(
        "enforce",
        description="Only with contract: enforce serves what is proven to get the contract's prompts, warn serves all"
        " and says so, off proves nothing.",
    )
    mode: ModeChoice = Field(
        "auto",
        description="Only with contract: native has the engine render, strict gives it finished prompts, auto takes"
        " whichever is proven.",
    )
    sample: Share = Field(
        0.01,
        description="Only with contract: the share of served chats whose prompts are compared with the contract's"
        " afterwards; only vllm shows them.",
    )

    @classmethod
    def contradictions(cls, given: Mapping[str, object]) -> Iterator[Refusal]:
        """Refuses a section that names no template, or two."""
        first, *others = [key for key in ("from", "contract", "engine") if key in given] or [""]
        for key in others:
            yield Refusal((key,), f"names a template, and so does {first}", "keep one of them")
        if not first:
            remedy = "add contract: FILE (made by `unigate template import`), or from: FILE (a template in Jinja)"
            yield Refusal(("contract",), "is missing", remedy)
        elif "contract" not in given:
            yield from _misplaced(_OF_A_CONTRACT, given, "has no effect without contract")

    def choice(self) -> ContractChoice | None:
        """The contract that is named, and how it is to be kept; None without one."""
        if self.contract is None:
            return None
        return ContractChoice(self.contract, self.tokenizer, self.parity, self.mode, self.sample)


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


def _read_options(value: object, info: ValidationInfo) -> Mapping[str, OptionValue]:
    return read_options(value, info.data.get("engine"))


_ADAPTER_KEYS = ("base", "adapter", "aliases", "unsupported_parameters")
"""What may be said of a model that is another's LoRA adapter; all else is its base's."""
_EXTERNAL_ONLY = ("url", "api_key", "served_name")
_LAUNCHED_ONLY = (
    "weights", "template", "options", "args", "env", "replicas", "idle_unload_s", "stop_grace_s",
    "download_stall_timeout_s", "gpus", "memory_gib", "pinned", "min_residency_s",
)  # fmt: skip


class ModelConfig(Section):
    """One model under its public name, and the engine that serves it."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["engine"]}, {"required": ["base"]}]})

    engine: Engine | None = Field(None, description=f"The engine that serves the model: {', '.join(ENGINES)}.")
    weights: Weights | None = Field(
        None,
        description="Path of the weights, a folder or a GGUF file, relative to this file; or hf: or modelscope: and"
        " ORG/NAME[@REVISION][:FILE], downloaded before the first start. Not for external.",
    )
    url: Url | None = Field(
        None, description="Only external: address of the server's OpenAI API, such as http://127.0.0.1:9000/v1."
    )
    api_key: HeaderSecret | None = Field(None, description="Only external: the key its server asks for.")
    served_name: Name | None = Field(
        None, description="Only external: the model's name on its server; default the public name."
    )
    base: Name | None = Field(
        None, description="Instead of an engine: the model whose engine serves this one too, as a LoRA adapter."
    )
    adapter: AnyPath | None = Field(
        None, description="Only with base: path of the LoRA adapter, a folder in PEFT's format or a GGUF file."
    )
    aliases: tuple[Name, ...] = Field((), description="Other public names of the model.")
    load: Literal["startup", "on_demand"] = Field(
        "startup", description="Whether the model is loaded at start or by the first request for it."
    )
    replicas: Whole = Field(
        1, ge=1, le=64, description="How many engines of its own serve the model, each with all its memory."
    )
    idle_unload_s: SecondsFromOne | None = Field(
        None, description="Unload after this long without a request, in seconds; default never."
    )
    gpus: Gpus = Field(
        None,
        description="The GPUs it may run on, by number: [0, 1], [] for the CPU; default auto, where there is room.",
    )
    memory_gib: Gib | None = Field(
        None,
        description="What it takes of each of its GPUs, or of RAM, in GiB; default as reckoned, then as last seen.",
    )
    pinned: Flag = Field(False, description="Whether it stays loaded when another model needs its room.")
    min_residency_s: SecondsOrZero | None = Field(
        None, description="Time it stays READY before it makes room, in seconds; default the gateway's."
    )
    context_length: TokenCount | None = Field(
        None, description="Most tokens of one request, prompt and answer; default the engine's own."
    )
    template: TemplateConfig | None = Field(None, description="The chat template; default the one in the weights.")
    unsupported_parameters: Literal["refuse", "ignore"] = Field(
        "refuse", description="What becomes of request parameters that the engine does not honour."
    )
    options: Annotated[Mapping[str, OptionValue], PlainValidator(_read_options), WithJsonSchema({"type": "object"})] = (
        Field(
            default_factory=_no_mapping,
            description="The engine's options that unigate checks; see the engine's own list.",
        )
    )
    args: Args = Field(
        default_factory=_no_mapping,
        repr=False,
        description="Any other flag of the engine, without dashes: true is the bare flag, false leaves it out.",
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
    download_stall_timeout_s: Seconds = Field(
        _TIMING.download_stall_timeout_s,
        description="A download of its weights this long without a byte is ended, in seconds.",
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
        if "base" in given:
            yield from _adapter_refusals(given)
            return
        if "adapter" in given:
            yield Refusal(("adapter",), "has no effect without base", "add base: NAME, the model it was trained on")
        if "engine" not in given:
            yield Refusal(("engine",), "is missing", f"add it (the engine that serves the model: {', '.join(ENGINES)})")
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
            options, args = given.get("options"), given.get("args")
            if isinstance(options, Mapping) and isinstance(args, Mapping):
                for objection in clashes(adapter.options, options, args):
                    yield Refusal(objection.path, objection.message, objection.remedy)

    def objections(self) -> Iterator[Refusal]:
        """Refuses weights from where the engine cannot have them, and a template it would not choose."""
        takes_engines_own = self.template is not None and self.template.engine
        if self.engine is not None and takes_engines_own and not ADAPTERS[self.engine].chooses_templates:
            message = f"has no effect: {self.engine} takes the template of the weights, or the one it is given"
            yield Refusal(("template", "engine"), message, "remove it")
        if self.template is not None and self.template.contract is not None and self.readiness == "embed":
            message = "has no effect on a model that gives embeddings: no prompt of it is a conversation"
            yield Refusal(("template", "contract"), message, "remove it")
        if self.engine is None or self.weights is None:
            return
        known = ADAPTERS[self.engine].sources
        if known and kind_of(self.weights) not in known:
            shown = [form for kind, form in _SOURCE_FORMS.items() if kind in known]
            message = f"{self.engine} cannot load what {kind_of(self.weights)}: names"
            yield Refusal(("weights",), message, f"it takes {' or '.join(shown)}")

    def backend_names(self, name: str) -> tuple[str, ...]:
        """What the backends of this model, publicly named *name*, are called: its own name, or ``NAME#1 … NAME#N``."""
        return (name,) if self.replicas == 1 else tuple(f"{name}#{number + 1}" for number in range(self.replicas))

    def settings(
        self, name: str, models_dir: Path, adapters: tuple[LoraAdapter, ...] = (), *, min_residency_s: float = 30.0
    ) -> BackendSettings:
        """This model, publicly named *name*, with its *adapters*, as the backends package reads it: one replica.

        What it has on a hub lies below *models_dir*, downloaded or not. *min_residency_s* is the gateway's, for a model
        that names none.
        """
        assert self.engine is not None, "an adapter has no backend of its own"
        source = None if isinstance(self.weights, Path) else self.weights
        return BackendSettings(
            name=name,
            engine=self.engine,
            adapters=adapters,
            weights=_place(self.weights, models_dir),
            source=source,
            url=self.url or "",
            api_key=self.api_key.get_secret_value() if self.api_key else "",
            served_name=self.served_name or name,
            options=self.options,
            args=self.args,
            env=self.env,
            context_length=self.context_length,
            template_file=self.template.source if self.template else None,
            template_is_engines=self.template is not None and self.template.engine,
            contract=self.template.choice() if self.template else None,
            on_demand=self.load == "on_demand",
            idle_unload_s=self.idle_unload_s,
            readiness=self.readiness,
            timing=self._timing(),
            gpus=self.gpus,
            memory_bytes=None if self.memory_gib is None else int(self.memory_gib * _GIB),
            is_pinned=self.pinned,
            min_residency_s=min_residency_s if self.min_residency_s is None else self.min_residency_s,
        )

    def _timing(self) -> Timing:
        return Timing(
            start_stall_timeout_s=self.start_stall_timeout_s,
            start_timeout_s=self.start_timeout_s,
            download_stall_timeout_s=self.download_stall_timeout_s,
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


def _place(weights: Path | RemoteSource | None, models_dir: Path) -> Path | None:
    if isinstance(weights, HubSource):
        return weights.weights(models_dir)
    return weights if isinstance(weights, Path) else None


_SOURCE_FORMS: Mapping[SourceKind, str] = {
    "path": "a path", "hf": "hf:ORG/NAME", "modelscope": "modelscope:ORG/NAME", "ollama": "ollama:NAME",
}  # fmt: skip
_URL_REMEDY = "add url: http://127.0.0.1:9000/v1 (with its own host and port)"


def _adapter_refusals(given: Mapping[str, object]) -> Iterator[Refusal]:
    if "adapter" not in given:
        yield Refusal(("adapter",), "is missing", "add the path of the LoRA adapter, or remove base")
    others = [key for key in given if key in ModelConfig.model_fields and key not in _ADAPTER_KEYS]
    yield from _misplaced(
        (key for key in others if key != "template"), given, "is said by the base of this model, which serves it"
    )
    if "template" in given:
        message = "is the base's: one engine renders for its base and its adapters with one template"
        yield Refusal(("template",), message, "remove it, or merge the adapter into its base and serve that")


def _misplaced(keys: Iterable[str], given: Mapping[str, object], message: str) -> Iterator[Refusal]:
    return (Refusal((key,), message, "remove it") for key in keys if key in given)


class Config(Section):
    """Everything one gateway is told: frozen, complete, free of contradictions."""

    gateway: GatewaySettings = Field(_UNSET, validate_default=True, description="The gateway itself.")
    engines: Annotated[
        Mapping[str, EngineConfig],
        AfterValidator(freeze),
        Field(json_schema_extra={"propertyNames": {"enum": list(ENGINES)}}),
    ] = Field(default_factory=_no_mapping, description="How each engine is started on this machine.")
    models: Annotated[
        Mapping[str, ModelConfig],
        AfterValidator(freeze),
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

    def objections(self) -> Iterator[Refusal]:
        """Refuses adapters of what is no model, or of one whose engine takes none."""
        for adapter in ADAPTERS.values():
            is_used = any(model.engine == adapter.engine for model in self.models.values())
            if is_used and adapter.daemon_name in self.models:
                message = f"is the name of {adapter.engine}'s own backend"
                yield Refusal(("models", adapter.daemon_name), message, "give the model another name")
        bases = {name: model for name, model in self.models.items() if model.base is None}
        for name, model in self.models.items():
            if model.base is None:
                continue
            loc: Loc = ("models", name, "base")
            base = bases.get(model.base)
            if base is None:
                is_adapter = model.base in self.models
                what = "is an adapter itself" if is_adapter else "is no model of this file"
                yield Refusal(loc, f"{quoted(model.base)} {what}", suggest(model.base, tuple(bases)))
            elif base.engine is not None and not ADAPTERS[base.engine].takes_adapters:
                message = f"{quoted(model.base)} runs on {base.engine}, which serves no adapters beside a base"
                yield Refusal(loc, message, "merge the adapter into its base, or use another engine")
        yield from self._sleep_refusals()
        yield from _replica_refusals(self.models)

    def _sleep_refusals(self) -> Iterator[Refusal]:
        for backend in {backend.model: backend for backend in self.backend_settings()}.values():
            sleep = ADAPTERS[backend.engine].sleep(backend)
            socket = self.engine_settings(backend.engine).socket
            listens_on = socket if socket in ADAPTERS[backend.engine].sockets else "tcp"
            if sleep is not None and listens_on not in sleep.sockets:
                message = f"needs a Unix socket: {backend.engine} opens endpoints for it that no key guards"
                remedy = f"write engines.{backend.engine}.socket: unix, or remove it"
                yield Refusal(("models", backend.model, "options", "sleep"), message, remedy)

    def backend_settings(self) -> tuple[BackendSettings, ...]:
        """Every backend as its package reads it, in the order of the file; the replicas of a model side by side."""
        return tuple(
            backend for name, model in self.models.items() if model.base is None for backend in self._backends_of(name)
        )

    def _backends_of(self, name: str) -> Iterator[BackendSettings]:
        model = self.models[name]
        backend = model.settings(
            name, self.gateway.models_dir, self._adapters_of(name), min_residency_s=self.gateway.min_residency_s
        )
        for replica in model.backend_names(name):
            yield replace(backend, name=replica, replica_of=name if replica != name else "")

    def _adapters_of(self, base: str) -> tuple[LoraAdapter, ...]:
        """The models that are served by the engine of *base*, as its adapters."""
        found = ((name, model.adapter) for name, model in self.models.items() if model.base == base)
        return tuple(LoraAdapter(name, path) for name, path in found if path is not None)

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
        elif isinstance(engine, Mapping):
            if engine.get("socket") == "unix" and "unix" not in ADAPTERS[name].sockets:
                message = f"{name} cannot listen on a Unix socket, only on a port"
                yield Refusal(("engines", name, "socket"), message, "remove it, or write tcp")
            for key in _SOME_ENGINES:
                if engine.get(key) is not None and key not in ADAPTERS[name].engine_keys:
                    yield Refusal(("engines", name, key), f"is no key of {name}", "remove it")


def _name_refusals(models: Mapping[Any, object]) -> Iterator[Refusal]:
    taken: dict[str, Loc] = {}
    for name in models:
        taken[name] = ("models", name)
        if fault := name_fault(str(name)):
            yield Refusal(("models", name), f"as a model's name {fault}", "write a short printable name")
    for name, model in models.items():
        for index, alias in enumerate(_aliases(model)):
            loc: Loc = ("models", name, "aliases", index)
            other = taken.setdefault(alias, loc)
            if other != loc:
                message = f"{quoted(alias)} is already taken by {place(other)}"
                yield Refusal(loc, message, "give each model and alias its own name", other)


def _replica_refusals(models: Mapping[str, ModelConfig]) -> Iterator[Refusal]:
    """Refuses a model that is called like a replica of another: nobody could say which of the two is meant."""
    for name, model in models.items():
        for replica in model.backend_names(name):
            if replica != name and replica in models:
                other: Loc = ("models", name, "replicas")
                message = f"is what a replica of {quoted(name)} is called"
                yield Refusal(("models", replica), message, "give the model another name", other)


def _aliases(model: object) -> list[str]:
    aliases = model.aliases if isinstance(model, ModelConfig) else isinstance(model, Mapping) and model.get("aliases")
    return [alias if isinstance(alias, str) else "" for alias in aliases] if isinstance(aliases, list | tuple) else []
