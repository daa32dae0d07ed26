"""Ollama: one ``ollama serve`` for all its models, started by us or running already. Verified with 0.33.0-rc2.

The daemon is a backend of its own; each model is a resident of it (`backends.residence`). Sources below name files of
https://github.com/ollama/ollama at that version, numbers in brackets recordings of its real server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from backends.adapter import (
    Body,
    Call,
    Daemon,
    Distribution,
    Given,
    LaunchSpec,
    Objection,
    Probe,
    Served,
    Sleep,
    TokenizePlan,
    TokenizeRequest,
    Unsupported,
    served_by_name,
)
from backends.address import Address
from backends.argv import number_said
from backends.diagnosis import Diagnosis, ExitStatus, diagnose, pattern
from backends.engines import ollama_given
from backends.engines.ollama_arrival import HEALTH, arrive, diagnose_load
from backends.engines.ollama_content import content_problem
from backends.engines.ollama_contract import contract_objections, contract_problem
from backends.engines.ollama_dialect import DIALECT
from backends.engines.ollama_native import translate
from backends.engines.ollama_options import OPTIONS
from backends.engines.ollama_parameters import BadParameter, read_parameter
from backends.engines.ollama_seen import see, see_version
from backends.environments import Environment
from backends.memory_estimate import NO_NEED, MemoryNeed, WeightFacts, reckoned
from backends.prompting import USAGE, SeePlan, StopPlan, TemplatePlan, VersionPlan
from backends.residence import PHASE_MARK, Residence
from backends.settings import BackendSettings, EngineSettings, SocketKind, Timing
from backends.sources import OllamaName, SourceKind
from backends.translation import Translated
from chat_templates.conversation import Conversation
from chat_templates.prompts import Prompt

DAEMON = "ollama"
"""The name of the daemon's backend."""

STOP_GRACE_S = 10.0
"""TERM ends it and its children in 4 to 64 ms, in a load too; 1.1 s were seen once [207]."""
LEAVE_GRACE_S = 15.0
"""An unload takes milliseconds, but waits for the requests of others that share the weights."""

MAX_LOADED_MODELS = 1000
"""More than anybody configures: who is loaded, and who makes room, is decided here."""
OVERHEAD_BYTES = 512 * 1024 * 1024
"""A guess for buffers, as for llama.cpp."""

ENDPOINTS = frozenset({"chat/completions", "completions", "embeddings"})

OWNED = {
    "num_ctx": "write models.<name>.context_length",
    "model": "remove it: the name in the daemon is the gateway's to choose",
    "template": "write models.<name>.template",
    "system": "write it in a Modelfile",
}

REMOVED = (
    # llama-server, its child, takes options from the environment too, and with these another prompt (common/arg.cpp).
    "LLAMA_ARG_CHAT_TEMPLATE",
    "LLAMA_ARG_CHAT_TEMPLATE_FILE",
    "LLAMA_ARG_CHAT_TEMPLATE_KWARGS",
    "LLAMA_ARG_PREFILL_ASSISTANT",
    "LLAMA_ARG_REASONING_PRESERVE",
    # Writes every prompt into a temporary folder (envconfig/config.go).
    "OLLAMA_DEBUG_LOG_REQUESTS",
    # Ours to say; what the operator's shell has of them is meant for another daemon.
    "OLLAMA_MODELS",
    "OLLAMA_NUM_PARALLEL",
)

OBTAINING = "install it as https://ollama.com/download says (no package index has it)"

DAEMON_PATTERNS = (
    pattern(
        "models_dir_unusable",
        r"(mkdir|open|stat) (?P<path>\S+): (permission denied|read-only file system|not a directory)",
        "Ollama cannot use {path}.",
        "Write another engines.ollama.models_dir, or give the gateway's user access to it.",
        source="server/routes.go Serve, Go's os.PathError",
    ),
    pattern(
        "home_missing",
        r"\$HOME is not defined",
        "Ollama does not know where to keep its models, for HOME is not set.",
        "Write engines.ollama.models_dir, or set HOME in engines.ollama.env.",
        source="envconfig/config.go Models, Go's os.UserHomeDir",
    ),
)


class Ollama:
    """The adapter of the models; that of their daemon is OllamaDaemon."""

    engine = "ollama"
    launches = True
    endpoints = ENDPOINTS
    dialect = DIALECT
    witness = USAGE
    # server/routes.go Serve: net.Listen("tcp", ...)
    sockets: frozenset[SocketKind] = frozenset({"tcp"})
    sources: frozenset[SourceKind] = frozenset({"path", "hf", "modelscope", "ollama"})
    takes_adapters = False
    engine_keys = frozenset({"url", "models_dir", "num_parallel", "go_templates"})
    programs = ("ollama",)
    options = OPTIONS
    distributions: tuple[Distribution, ...] = ()
    obtaining = OBTAINING
    daemon_name = DAEMON
    chooses_templates = True

    def default_command(self) -> tuple[str, ...]:
        """The `ollama` of the PATH."""
        return ("ollama", "serve")

    def command_in(self, environment: Environment) -> tuple[str, ...] | None:
        """``ollama serve``, where a conda package has brought the program."""
        program = environment.programs.get("ollama")
        return (str(program), "serve") if program is not None else None

    def version_argv(self, engine: EngineSettings) -> tuple[str, ...] | None:
        """``ollama --version``, whatever stands before ``serve``; nothing for a daemon that runs elsewhere."""
        if engine.url:
            return None
        command = engine.command or self.default_command()
        program = command[: command.index("serve")] if "serve" in command else command[:1]
        return (*program, "--version")

    def weights_problem(self, weights: Path) -> str | None:
        """A GGUF file, a folder with safetensors, or a Modelfile."""
        return content_problem(weights)

    def adapter_problem(self, adapter: Path) -> str | None:
        """It serves none beside a base; a Modelfile's ADAPTER makes a model of its own."""
        return "Ollama serves no adapters beside their base"

    def contract_problem(self, backend: BackendSettings) -> str | None:
        """Weights of another fine-tune; a model that Ollama renders by itself, where it is to render."""
        return contract_problem(backend.prompting, backend.weights) if backend.prompting is not None else None

    def objections(self, backend: BackendSettings) -> Sequence[Objection]:
        """Parameters that Ollama does not know, which it would pass over, and what belongs to the daemon."""
        found = [objection for name, value in backend.args.items() if (objection := _parameter(name, value))]
        found += contract_objections(backend)
        if backend.env:
            message = "has no effect: all models of Ollama live in one process"
            found.append(Objection(("env",), message, "write engines.ollama.env"))
        if backend.template_file is not None and isinstance(backend.source, OllamaName):
            message = "has no effect on a published model, which brings its own"
            found.append(Objection(("template",), message, "remove it, or give the weights as files"))
        if backend.replica_of:
            message = "has no effect: Ollama has the weights in memory once"
            found.append(Objection(("replicas",), message, "write engines.ollama.num_parallel"))
        if backend.gpus is not None:
            message = "has no effect: the daemon chooses among the GPUs that it sees"
            found.append(Objection(("gpus",), message, "write CUDA_VISIBLE_DEVICES in engines.ollama.env"))
        return found

    def timing(self, timing: Timing) -> Timing:
        """As configured."""
        return timing

    def served(self, backend: BackendSettings, model: str) -> Served:
        """By a name that only the run can tell: see LaunchSpec.served_name."""
        return served_by_name(backend, model)

    def sleep(self, backend: BackendSettings) -> Sleep | None:
        """An unload frees the memory, and a load is all that it knows."""
        return None

    def launch_spec(self, backend: BackendSettings, engine: EngineSettings, place: Address, folder: Path) -> LaunchSpec:
        """A residence in the daemon at *place*."""
        go_templates = None if engine.url else engine.go_templates
        return LaunchSpec(
            address=place,
            probe=Probe(HEALTH, HEALTH, ("version",)),  # until it is there, when the resident has its own
            stop_grace_s=backend.timing.stop_grace_s or LEAVE_GRACE_S,
            residence=Residence(partial(arrive, backend, go_templates=go_templates), diagnose_load),
        )

    def gpu_count(self, backend: BackendSettings, engine: EngineSettings) -> int | None:
        """As many as the weights ask for, unless no layer is to be there. Which ones, the daemon chooses."""
        return 0 if number_said(OPTIONS, backend, "num_gpu", "num-gpu") == 0 else None

    def memory(self, backend: BackendSettings, facts: WeightFacts, *, on_gpu: bool) -> MemoryNeed:
        """Weights, the cache of every request that is worked on at once, and buffers."""
        return reckoned(facts, backend.context_length, OVERHEAD_BYTES, needs_all=False)

    def memory_flags(
        self, backend: BackendSettings, facts: WeightFacts, limit_bytes: int, total_bytes: int
    ) -> list[str]:
        """None: a model has no command line."""
        return []

    def daemon(self, first: BackendSettings, engine: EngineSettings) -> Daemon | None:
        """The one daemon; it starts when its first model does, and stays. Its clocks are those of its *first* model."""
        timing = replace(first.timing, drain_timeout_s=first.timing.drain_timeout_s + LEAVE_GRACE_S)
        backend = BackendSettings(name=DAEMON, engine=self.engine, url=engine.url, on_demand=True, timing=timing)
        return Daemon(backend, OllamaDaemon())

    def translate(self, backend: BackendSettings, endpoint: str, body: Body) -> Translated | None:
        """Into the native API: see ollama_native for why."""
        return translate(backend, endpoint, body)

    def diagnose(self, status: ExitStatus, tail: Sequence[str]) -> Diagnosis:
        """A stay that ended by itself; why a load failed is told before."""
        return Diagnosis("left", "The model left the daemon.", "It is loaded again; see unigate logs ollama.")

    def phase(self, line: str) -> str | None:
        """What the daemon is doing for a model that arrives."""
        return line.removeprefix(PHASE_MARK) if line.startswith(PHASE_MARK) else None

    def tokenize(self, request: TokenizeRequest) -> TokenizePlan:
        """It has no route for that (server/routes.go GenerateRoutes)."""
        raise Unsupported("Ollama offers no tokenisation")

    def see(self, backend: BackendSettings, conversation: Conversation) -> SeePlan | None:
        """The text of ``_debug_render_only``."""
        return see(backend, conversation)

    def see_stops(self, backend: BackendSettings) -> StopPlan | None:
        """None: it takes no ids, and shows none."""
        return None

    def see_template(self) -> TemplatePlan | None:
        """None: what /api/show says of it is seen when the model arrives."""
        return None

    def see_version(self) -> VersionPlan | None:
        """As the daemon says it."""
        return see_version()

    def given(self, backend: BackendSettings, endpoint: str, body: Body, prompt: Prompt) -> Given | None:
        """Raw text for its generate endpoint."""
        return ollama_given.given(backend, endpoint, body, prompt)


class OllamaDaemon(Ollama):
    """The adapter of ``ollama serve``."""

    def gpu_count(self, backend: BackendSettings, engine: EngineSettings) -> int | None:
        """None by itself: what its models take is theirs to ask for."""
        return 0

    def memory(self, backend: BackendSettings, facts: WeightFacts, *, on_gpu: bool) -> MemoryNeed:
        """Next to nothing by itself."""
        return NO_NEED

    def launch_spec(self, backend: BackendSettings, engine: EngineSettings, place: Address, folder: Path) -> LaunchSpec:
        """One daemon at *place*, or the one that runs at the engine's url."""
        probe = Probe(HEALTH, Call("GET", "/api/tags"), ("models",))
        if engine.url:
            return LaunchSpec(address=address_of(engine.url), probe=probe, stop_grace_s=1.0)
        return LaunchSpec(
            address=place,
            probe=probe,
            argv=tuple(engine.command or self.default_command()),
            env={**daemon_env(engine, place), **engine.env},
            env_removed=REMOVED,
            stop_grace_s=backend.timing.stop_grace_s or STOP_GRACE_S,
        )

    def daemon(self, first: BackendSettings, engine: EngineSettings) -> Daemon | None:
        """It is one, and lives in none."""
        return None

    def diagnose(self, status: ExitStatus, tail: Sequence[str]) -> Diagnosis:
        """Ollama says ``Error: ...`` in its last line."""
        return diagnose(DAEMON_PATTERNS, status, tail)

    def phase(self, line: str) -> str | None:
        """It starts in a tenth of a second."""
        return None


def daemon_env(engine: EngineSettings, place: Address) -> dict[str, str]:
    """The daemon's settings, all of which Ollama reads from its environment (envconfig/config.go).

    Residency is ours: nothing expires, and nothing is evicted to make room, which Ollama does to a pinned model too
    [202]. The template is the one in the weights, rendered by llama.cpp, unless Go templates are asked for: left to
    itself Ollama guesses a Go template by likeness [16, 102, 209].
    """
    env = {
        "OLLAMA_HOST": place.authority,
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_MAX_LOADED_MODELS": str(MAX_LOADED_MODELS),
        "OLLAMA_GO_TEMPLATE": "1" if engine.go_templates else "0",
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_NOHISTORY": "1",
    }
    if engine.models_dir is not None:
        env["OLLAMA_MODELS"] = str(engine.models_dir)
    if engine.num_parallel is not None:
        env["OLLAMA_NUM_PARALLEL"] = str(engine.num_parallel)
    return env


def address_of(url: str) -> Address:
    """``http://127.0.0.1:11434`` as an Address."""
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    return Address(host=parts.hostname or "", port=parts.port or (443 if tls else 11434), tls=tls, base_path="")


def _parameter(name: str, value: object) -> Objection | None:
    if name in OWNED:
        return Objection(("args", name), "is set by the gateway itself", OWNED[name])
    try:
        read_parameter(name, value)
    except BadParameter as problem:
        return Objection(("args", name), f"cannot be used: {problem}", "correct or remove it")
    return None
