"""What an operator says of one backend and of its engine, as the backends package reads it: frozen and validated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from backends.prompting import ContractChoice, Prompting
from backends.sources import RemoteSource

ArgValue = bool | int | float | str | tuple[int | float | str, ...]
"""One engine flag: true is the bare flag, false leaves the flag out, a tuple is several values after one flag."""

OptionValue = bool | int | float | str
"""The value of one of the options that have a type; see `backends.options`."""

SocketKind = Literal["unix", "tcp"]


@dataclass(frozen=True, slots=True)
class EnvironmentChoice:
    """The Python environment an engine shall run in, as the configuration names it: nothing was looked up yet.

    *name* is, by *kind*: ``conda`` the environment's name or absolute folder, ``python`` the absolute path of a Python
    or of an environment's folder, ``managed`` the version that `unigate engine install` has built.
    """

    kind: Literal["conda", "python", "managed"]
    name: str


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How one engine is started on this machine. An empty *command* means the adapter's default.

    With *environment* the command is yet to be found: `backends.resolving` does so before each start.
    """

    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    socket: SocketKind = "unix"
    """What it shall listen on; an engine that cannot, listens on TCP."""
    environment: EnvironmentChoice | None = None
    url: str = ""
    """Where a daemon listens that somebody else runs; then nothing is started."""
    models_dir: Path | None = None
    """Where a daemon keeps its models; None leaves that to it."""
    num_parallel: int | None = None
    """Most requests that a daemon works on at once for each model; None leaves that to it."""
    go_templates: bool = False
    """Whether an Ollama daemon renders with the Go templates of Modelfiles, instead of those in the weights."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Every clock of a backend's life, in seconds."""

    start_stall_timeout_s: float = 300.0
    """A start that prints nothing and reads nothing for this long has stalled."""
    start_timeout_s: float = 1800.0
    """The hard cap of one start."""
    download_stall_timeout_s: float = 300.0
    """A download that neither reads nor writes for this long is ended."""
    stop_grace_s: float | None = None
    """From TERM to KILL; None means the adapter's own figure for its engine."""
    drain_timeout_s: float = 30.0
    """How long a stop waits for running requests."""
    backoff_base_s: float = 10.0
    backoff_max_s: float = 300.0
    backoff_reset_s: float = 600.0
    """READY for this long clears the record of earlier crashes."""
    max_failed_starts: int = 5
    """So many starts in a row that never got READY: FAILED until somebody asks again."""
    health_interval_s: float = 10.0
    health_timeout_s: float = 10.0
    health_failures: int = 3
    """So many failed health checks in a row: the backend is recycled."""
    probe_timeout_s: float = 120.0
    """How long the one real token of the readiness probe may take."""


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """A LoRA adapter that a backend serves beside its own model, under the public *name*.

    *path* is what training left behind: a folder in PEFT's format, or a GGUF file where the engine takes those.
    """

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """One configured engine process, or one address we do not own.

    *name* is the backend's own, and the public name of its model unless it is one of several replicas, *replica_of*
    that model. *served_name* is what its engine calls the model, empty for *model*; *adapters* are the other models it
    serves. *weights* is a file or folder, None for an external backend and for a model that its engine fetches itself;
    with a *source* on a hub, it is where that source lies once it is downloaded. *context_length* is in tokens per
    request, None leaves the engine's default.
    """

    name: str
    engine: str
    weights: Path | None = None
    source: RemoteSource | None = None
    url: str = ""
    api_key: str = field(default="", repr=False)
    served_name: str = ""
    adapters: tuple[LoraAdapter, ...] = ()
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    """Validated against the adapter's table; an option that is not in it is the engine's to choose."""
    args: Mapping[str, ArgValue] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    context_length: int | None = None
    template_file: Path | None = None
    contract: ContractChoice | None = None
    """The contract of the model's prompts, by name; None where none was made."""
    prompting: Prompting | None = None
    """The same, read; None where nobody has read it, or it cannot be. See `backends.contracts`."""
    template_is_engines: bool = False
    """Whatever template the engine takes is right: nobody checks that it is the weights' own."""
    on_demand: bool = False
    idle_unload_s: float | None = None
    readiness: Literal["generate", "embed", "models"] = "generate"
    """What proves READY: one generated token, one embedding, or (external only) the model list."""
    timing: Timing = field(default_factory=Timing)
    gpus: tuple[int, ...] | None = None
    """The GPUs it may run on, by index; none: the CPU; None: whichever has room."""
    memory_bytes: int | None = None
    """What it takes of each of its GPUs, or of the host's memory; None: as reckoned, or as an earlier run showed."""
    is_pinned: bool = False
    """Never asked to make room for another."""
    min_residency_s: float = 30.0
    """READY for so long before it can be asked to make room."""
    replica_of: str = ""
    """The model of which it is one replica of several; empty for a model's only backend."""
    template_digest: str = ""
    """Of what is in *template_file*: with another content these are other settings. Empty where nobody has looked."""

    @property
    def model(self) -> str:
        """The public name of the model it serves."""
        return self.replica_of or self.name

    @property
    def model_name(self) -> str:
        """What its engine calls the backend's own model."""
        return self.served_name or self.model


ADJUSTABLE = ("on_demand", "idle_unload_s", "readiness", "timing", "is_pinned", "min_residency_s")
"""What only a backend's supervisor reads, and the room it has."""


def is_adjustable(before: BackendSettings, after: BackendSettings) -> bool:
    """Whether a running engine need not be ended for *after*: it differs in what only its supervisor reads."""
    kept = {name: getattr(before, name) for name in ADJUSTABLE}
    return replace(after, **kept) == before
