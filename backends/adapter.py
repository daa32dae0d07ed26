"""The engine contract: what the supervisor needs to know of an engine, and nothing it does to one.

An adapter is pure: settings in, descriptions out. It starts nothing, restarts nothing and keeps no state. What it
describes runs once; whether it runs again is the supervisor's to decide. By the time the process it describes is
gone, everything that process started is gone too: the shim sees to that, so an adapter never has to.

A new engine is one module in `backends/engines`, one row in `backends.engines.ADAPTERS`, one row in the contract
suite.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from backends.address import Address
from backends.diagnosis import Diagnosis, ExitStatus
from backends.dialect import Dialect
from backends.environments import Environment
from backends.memory_estimate import MemoryNeed, WeightFacts
from backends.options import Options
from backends.prompting import SeePlan, StopPlan, TemplatePlan, VersionPlan, Witness
from backends.settings import BackendSettings, EngineSettings, SocketKind, Timing
from backends.sources import SourceKind
from chat_templates.conversation import Conversation
from chat_templates.parity import Mode
from chat_templates.prompts import Prompt

if TYPE_CHECKING:
    from backends.residence import Residence
    from backends.translation import Translated

Body = dict[str, Any]
"""A JSON object we pass on and do not interpret."""


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request to an engine. *target* is the whole path, *body* None for a GET."""

    method: str
    target: str
    body: Body | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """How to see that an engine can answer: *health* says it listens, *proof* must bring back one real token.

    *proof_pointer* is the path into the answer that must hold a value: ``("choices", 0)``.
    """

    health: Call
    proof: Call
    proof_pointer: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link to *target*, a file that is there when the run starts."""

    target: Path


@dataclass(frozen=True, slots=True)
class LinkedFolder:
    """A folder that holds a symbolic link to each entry of the folder *origin*, save those named in *without*."""

    origin: Path
    without: frozenset[str] = frozenset()


RunFile = str | Link | LinkedFolder
"""One file of a run's own folder: its text, a link, or a folder of links."""


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """One run of an engine. *argv* is empty for an address we do not own: nothing is started, only probed; and for a
    *residence*, whose daemon listens at *address*. *served_name* is what the engine calls the backend's model, where
    only the run can tell; else None.

    *env* is added to the inherited environment and *env_removed* taken from it. *files* are what the engine reads at
    its start and nobody else has: path below the run's own folder -> content, written in this order before the spawn
    and gone after the run. *stop_grace_s* is the time from TERM to KILL in seconds.
    """

    address: Address
    probe: Probe
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    env_removed: tuple[str, ...] = ()
    files: Mapping[str, RunFile] = field(default_factory=dict)
    stop_grace_s: float = 10.0
    authorization: str = field(default="", repr=False)
    residence: Residence | None = None
    served_name: str | None = None


@dataclass(frozen=True, slots=True)
class Distribution:
    """A distribution on a Python package index that holds an engine.

    *version* is the one the adapter was verified with. *build_bytes* is the room an environment with it takes while it
    is built: what is downloaded twice (pip's cache, and its working copy) and once unpacked. *unwanted* are
    distributions it asks for and does not run with.
    """

    name: str
    version: str
    build_bytes: int
    unwanted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Served:
    """How an engine is asked for one of its models: by *name*, with *fields* in every request beside it."""

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)


def served_by_name(backend: BackendSettings, model: str) -> Served:
    """*model* of a *backend* whose engine tells its models apart by their names alone."""
    is_adapter = any(adapter.name == model for adapter in backend.adapters)
    return Served(model if is_adapter else backend.model_name)


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    """What `/tokenize` was asked: a *prompt*, or *messages* to be rendered first."""

    prompt: str | None
    messages: list[Any] | None
    add_special_tokens: bool
    add_generation_prompt: bool = True


@dataclass(frozen=True, slots=True)
class TokenizeAnswer:
    """Token ids as the engine counts them; *context_length* in tokens, None where the engine does not say."""

    tokens: list[int]
    context_length: int | None = None


TokenizePlan = Generator[Call, Body, TokenizeAnswer]
"""Calls out, answers in, without any I/O: whoever drives it does the sending."""


@dataclass(frozen=True, slots=True)
class Given:
    """A request that brings a finished prompt. mode: as ids or as text. *translated* where it is not for the chat
    endpoint, with its answer's way back; then *body* is nothing."""

    mode: Mode
    body: Body | None = None
    translated: Translated | None = None


@dataclass(frozen=True, slots=True)
class Objection:
    """One setting of a model that cannot be as it is. *path* is its place below the model: ``("args", "port")``.

    *model* is the adapter it is said of, empty for the backend's own model.
    """

    path: tuple[str, ...]
    message: str
    remedy: str
    model: str = ""


@dataclass(frozen=True, slots=True)
class Sleep:
    """How an engine gives its GPU memory back without ending, and takes it again.

    *wake* are calls to be made in this order. *is_sleeping* is answered ``{"is_sleeping": true}``. The calls exist only
    on a backend that listens on one of *sockets*.
    """

    sleep: Call
    wake: tuple[Call, ...]
    is_sleeping: Call
    sockets: frozenset[SocketKind] = frozenset({"unix", "tcp"})


class Unsupported(Exception):
    """The engine has no such thing; the message says what, for the client."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """A process that serves several backends: a backend itself, with an adapter of its own."""

    backend: BackendSettings
    adapter: Adapter


class Adapter(Protocol):
    """One engine, described."""

    @property
    def engine(self) -> str:
        """The word used in the configuration."""

    @property
    def launches(self) -> bool:
        """Whether we start it, so that it needs weights and a command; else it is an address somebody else runs."""

    @property
    def endpoints(self) -> frozenset[str]:
        """Paths below the base path this engine serves, without a leading slash: ``chat/completions``."""

    @property
    def sockets(self) -> frozenset[SocketKind]:
        """What this engine can listen on; TCP at the least."""

    @property
    def sources(self) -> frozenset[SourceKind]:
        """Where its weights may come from; nowhere for an address somebody else runs."""

    @property
    def takes_adapters(self) -> bool:
        """Whether one process of it serves LoRA adapters beside their base, each under its own name."""

    @property
    def engine_keys(self) -> frozenset[str]:
        """The fields of EngineSettings that only some engines have, and this one has."""

    @property
    def programs(self) -> tuple[str, ...]:
        """What its command is called in a PATH or an environment, the usual one first."""

    @property
    def distributions(self) -> tuple[Distribution, ...]:
        """The distributions that hold it, the usual one first; none for an engine that no package index has."""

    @property
    def obtaining(self) -> str:
        """How to get it, in the words of a remedy, where no package index has it; else empty."""

    @property
    def daemon_name(self) -> str:
        """The name of the backend that `daemon` describes, which no model may have; empty without one."""

    @property
    def chooses_templates(self) -> bool:
        """Whether it may take another template than the weights' own, which is then a failure of the start."""

    @property
    def dialect(self) -> Dialect:
        """How its API differs from OpenAI's."""

    @property
    def options(self) -> Options:
        """What may be written below a model's ``options``; the rest of its flags go below ``args``."""

    def default_command(self) -> tuple[str, ...]:
        """The command when the configuration names none."""

    def command_in(self, environment: Environment) -> tuple[str, ...] | None:
        """The command that starts it from *environment*; None when it is not installed there."""

    def version_argv(self, engine: EngineSettings) -> tuple[str, ...] | None:
        """A command that prints the engine's version and ends, None when there is nothing to run."""

    def weights_problem(self, weights: Path) -> str | None:
        """What is wrong with *weights* for this engine, in a sentence, as far as a look at the files can tell."""

    def adapter_problem(self, adapter: Path) -> str | None:
        """What is wrong with the LoRA adapter at *adapter* for this engine, as far as a look at the files can tell."""

    def contract_problem(self, backend: BackendSettings) -> str | None:
        """Why this engine cannot keep the contract of *backend*, which was read, in a sentence.

        As far as a look at its files can tell; the rest is for the proof. None without a contract.
        """

    def objections(self, backend: BackendSettings) -> Sequence[Objection]:
        """What is wrong with the settings themselves; empty when all is well."""

    def timing(self, timing: Timing) -> Timing:
        """The clocks of a backend's life, where this engine needs other ones than the configured."""

    def served(self, backend: BackendSettings, model: str) -> Served:
        """How *backend* is asked for *model*, which is its own or that of one of its adapters."""

    def sleep(self, backend: BackendSettings) -> Sleep | None:
        """How *backend* is put to sleep and woken; None when it was not asked for, or the engine cannot."""

    def launch_spec(self, backend: BackendSettings, engine: EngineSettings, place: Address, folder: Path) -> LaunchSpec:
        """The run that would serve *backend* at *place*. Its files will be in *folder*, which it has to itself.

        Reads small files of the model's, and so blocks for a moment.
        """

    def gpu_count(self, backend: BackendSettings, engine: EngineSettings) -> int | None:
        """How many GPUs a run wants where there are any; 0 for none, None for as many as its weights ask for."""

    def memory(self, backend: BackendSettings, facts: WeightFacts, *, on_gpu: bool) -> MemoryNeed:
        """What a run of *backend*, whose weights are as *facts* say, will take of the GPUs or of the host's memory."""

    def memory_flags(
        self, backend: BackendSettings, facts: WeightFacts, limit_bytes: int, total_bytes: int
    ) -> list[str]:
        """Flags that keep a run within *limit_bytes* of each of its GPUs, of *total_bytes*; [] where it knows none."""

    def daemon(self, first: BackendSettings, engine: EngineSettings) -> Daemon | None:
        """The one process in which all backends of this engine live, *first* being one of them; None where each has
        its own."""

    def translate(self, backend: BackendSettings, endpoint: str, body: Body) -> Translated | None:
        """A request to *endpoint*, as the dialect left it, in the engine's own API; None where that is OpenAI's.

        Raises Untranslatable.
        """

    def diagnose(self, status: ExitStatus, tail: Sequence[str]) -> Diagnosis:
        """Why a run ended, from its exit status and the last lines of its log."""

    def phase(self, line: str) -> str | None:
        """What a starting engine is doing, when *line* of its log says so: ``loading weights``."""

    def tokenize(self, request: TokenizeRequest) -> TokenizePlan:
        """The calls that tokenise. Raises Unsupported."""

    def see(self, backend: BackendSettings, conversation: Conversation) -> SeePlan | None:
        """The calls that show the prompt which the engine itself makes of *conversation*; None where it shows none.

        The conversation is as a request has it once the contract's message rules are applied.
        """

    def see_stops(self, backend: BackendSettings) -> StopPlan | None:
        """The calls that show at which ids the engine ends an answer by itself; None where nothing shows them."""

    def see_template(self) -> TemplatePlan | None:
        """The calls that show the template which the engine that runs has; None where nothing shows it."""

    def see_version(self) -> VersionPlan | None:
        """The calls that show the version of the engine that runs; None where nothing shows it."""

    @property
    def witness(self) -> Witness:
        """What an answer of the chat endpoint tells of its prompt."""

    def given(self, backend: BackendSettings, endpoint: str, body: Body, prompt: Prompt) -> Given | None:
        """The chat request *body*, as the dialect left it, with *prompt* in the place of its messages.

        None where the engine takes no finished prompt, or not for what else *body* asks.
        """
