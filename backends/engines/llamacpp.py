"""llama.cpp: its own server from the `xllamacpp` wheel, or a `llama-server` binary when the configuration names one.

Verified with xllamacpp 2026.10.11549 (llama.cpp build 11549). Sources below name files of
https://github.com/ggml-org/llama.cpp at b11434.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.adapter import (
    Body,
    Call,
    Daemon,
    Distribution,
    Given,
    LaunchSpec,
    Objection,
    RunFile,
    Served,
    Sleep,
    TokenizeAnswer,
    TokenizePlan,
    TokenizeRequest,
)
from backends.address import Address
from backends.argv import flags, number_said, option_flags, owned_objections, says
from backends.diagnosis import Diagnosis, ExitStatus, diagnose, pattern
from backends.engines import llamacpp_given
from backends.engines.llamacpp_contract import ENV as CONTRACT_ENV
from backends.engines.llamacpp_contract import (
    contract_files,
    contract_flags,
    contract_objections,
    contract_problem,
    end_flags,
)
from backends.engines.llamacpp_dialect import DIALECT
from backends.engines.llamacpp_options import OPTIONS
from backends.engines.llamacpp_seen import see, see_template, see_version
from backends.environments import Environment
from backends.lora import gguf_adapter_problem
from backends.memory_estimate import MemoryNeed, WeightFacts, reckoned
from backends.openai_probe import openai_probe
from backends.prompting import USAGE, SeePlan, StopPlan, TemplatePlan, VersionPlan
from backends.seen import forced_stops
from backends.settings import BackendSettings, EngineSettings, SocketKind, Timing
from backends.sources import SourceKind
from backends.translation import Translated
from backends.weights import gguf_problem, gguf_source_objections
from chat_templates.conversation import Conversation
from chat_templates.prompts import Prompt

STOP_GRACE_S = 10.0

OVERHEAD_BYTES = 300 * 1024**2
"""Compute buffers and the server itself; 0.06 GiB was seen with a model of 135 M parameters, more is a guess."""

ENDPOINTS = frozenset({"chat/completions", "completions", "embeddings"})

EMBEDDED = "backends.engines.llamacpp_server"

# A wheel of 34 MB without dependencies, some times that with its CUDA libraries.
DISTRIBUTIONS = (Distribution("xllamacpp", "2026.10.11549", build_bytes=500_000_000),)

OWNED = {
    "model": "write models.<name>.weights",
    "m": "write models.<name>.weights",
    "alias": "remove it: the public name is the key under models",
    "host": "remove it: engines listen for the gateway only",
    "port": "remove it, or write engines.llamacpp.socket: tcp for a port that the gateway chooses",
    "api-key": "write gateway.keys: the gateway checks them",
    "ctx-size": "write models.<name>.context_length, in tokens per request",
    "c": "write models.<name>.context_length, in tokens per request",
    "chat-template": "write models.<name>.template: {from: FILE}",
    "chat-template-file": "write models.<name>.template: {from: FILE}",
}

SHORT = frozenset(
    {
        "b", "c", "cmoe", "cram", "ctk", "ctv", "ctxcp", "dev", "fa", "fit", "fitc", "fitp", "fitt", "kvo", "kvu", "lm",
        "lv", "lzm", "m", "mg", "mm", "n", "ncffn", "ncmoe", "ngl", "nkvo", "nocb", "np", "ot", "rea", "s", "sm", "sp",
        "sps", "t", "tb", "td", "to", "ts", "ub",
    }
)  # fmt: skip
"""llama-server's flags with one dash, as `llama-server --help` lists them (common/arg.cpp)."""

PATTERNS = (
    pattern(
        "port_in_use",
        r"couldn't bind HTTP server socket",
        "Another process took the engine's port while it was starting.",
        "It is tried again on another port.",
        source="seen with build 11549, which names no errno",
        permanent=False,
    ),
    pattern(
        "bad_option",
        r"error: (?P<message>(unrecognized arguments|argument|invalid argument|unknown argument).*)",
        "llama.cpp refused its command line: {message}.",
        "Correct the model's args.",
        source="argparse in llamacpp_server; common/arg.cpp 'error: invalid argument: '",
    ),
    pattern(
        "engine_missing",
        r"No module named 'xllamacpp'",
        "The embedded llama.cpp is not installed.",
        "Run: pip install 'unigate[llamacpp]', or name a llama-server binary in engines.llamacpp.command.",
        source="CPython 3.11",
    ),
    pattern(
        "out_of_memory",
        r"(failed to allocate|unable to allocate|cudaMalloc failed: out of memory|ErrorOutOfDeviceMemory)",
        "llama.cpp could not allocate memory for the model or its context.",
        "Lower context_length or options.parallel, or options.gpu_layers when the GPU is too small.",
        source="ggml/src/ggml-backend.cpp, ggml/src/ggml-cuda/ggml-cuda.cu",
    ),
    pattern(
        "bad_template",
        r"failed to initialize chat template|chat template parsing error",
        "llama.cpp could not parse the chat template.",
        "Correct models.<name>.template.",
        source="common/chat.cpp, tools/server/server-context.cpp, seen with build 11549",
    ),
    pattern(
        "weights_missing",
        r"failed to open GGUF file '(?P<path>[^']*)'",
        "llama.cpp could not open {path}.",
        "Correct the model's weights.",
        source="ggml/src/gguf.cpp, seen with build 11549",
    ),
    pattern(
        "adapter_unusable",
        r"failed to (load|apply) lora adapter|expect general\.type to be 'adapter'|model arch and LoRA arch mismatch"
        r"|LoRA tensor .* data is not within the file bounds",
        "llama.cpp could not use a LoRA adapter.",
        "See that its GGUF file is whole, is an adapter, and was made for this base; the model's log has more.",
        source="common/common.cpp, src/llama-adapter.cpp, seen with build 11549",
    ),
    pattern(
        "architecture_unknown",
        r"unknown model architecture: '(?P<name>[^']*)'",
        "This llama.cpp does not know the model architecture {name}.",
        "Use a newer one: pip install -U xllamacpp, or a newer llama-server.",
        source="src/llama-model.cpp, text of build 11549",
    ),
    pattern(
        "tokenizer_unknown",
        r"unknown pre-tokenizer type: '(?P<name>[^']*)'",
        "This llama.cpp does not know the model's tokenizer, {name}.",
        "Use a newer llama.cpp, or a GGUF file made for this one.",
        source="src/llama-vocab.cpp, text of build 11549",
    ),
    pattern(
        "cache_needs_flash_attention",
        r"quantized V cache (requires flash_attn to be enabled|was requested, but this requires Flash Attention)",
        "A quantised cache of values needs FlashAttention.",
        "Set options.flash_attention: true, or remove options.cache_type_v.",
        source="src/llama-context.cpp, texts of build 11549",
    ),
    pattern(
        "weights_incomplete",
        r"data is not within the file bounds, model is corrupted or incomplete",
        "The GGUF file is damaged or incomplete.",
        "Download it again, and compare its size.",
        source="src/llama-model-loader.cpp, text of build 11549",
    ),
    pattern(
        "weights_unreadable",
        r"(error loading model|failed to load model)",
        "llama.cpp could not read the weights.",
        "Check that the GGUF file is whole and that this llama.cpp knows its architecture.",
        source="src/llama.cpp, tools/server/server-context.cpp, seen with build 11549",
    ),
)

PHASES = (
    ("load_tensors", "loading weights"),
    ("llama_kv_cache", "allocating the cache"),
    ("warming up the model", "warming up"),
    ("listening on", "starting the server"),
)


class LlamaCpp:
    """The adapter of llama.cpp."""

    engine = "llamacpp"
    launches = True
    endpoints = ENDPOINTS
    dialect = DIALECT
    witness = USAGE
    sockets: frozenset[SocketKind] = frozenset({"unix", "tcp"})
    takes_adapters = True
    sources: frozenset[SourceKind] = frozenset({"path", "hf", "modelscope"})
    engine_keys: frozenset[str] = frozenset()
    obtaining = ""
    daemon_name = ""
    chooses_templates = False
    programs = ("llama-server",)
    distributions = DISTRIBUTIONS
    options = OPTIONS

    def default_command(self) -> tuple[str, ...]:
        """The embedded server, in the gateway's own Python."""
        # -P: a folder called backends where the operator stands must not be taken for ours.
        return (sys.executable, "-P", "-m", EMBEDDED)

    def command_in(self, environment: Environment) -> tuple[str, ...] | None:
        """A `llama-server` binary, else the embedded server on the environment's own xllamacpp."""
        if "llama-server" in environment.programs:
            return (str(environment.programs["llama-server"]),)
        if environment.held(distribution.name for distribution in DISTRIBUTIONS):
            # By its path, for unigate is not installed there.
            return (str(environment.python), "-P", str(Path(__file__).with_name("llamacpp_server.py")))
        return None

    def version_argv(self, engine: EngineSettings) -> tuple[str, ...] | None:
        """Both forms print their version and end."""
        return (*(engine.command or self.default_command()), "--version")

    def weights_problem(self, weights: Path) -> str | None:
        """One GGUF file."""
        return gguf_problem(weights)

    def adapter_problem(self, adapter: Path) -> str | None:
        """One GGUF file."""
        return gguf_adapter_problem(adapter)

    def contract_problem(self, backend: BackendSettings) -> str | None:
        """Weights of another fine-tune, and a template that nothing can be pinned in, where the engine is to render."""
        return contract_problem(backend.prompting, backend.weights) if backend.prompting is not None else None

    def objections(self, backend: BackendSettings) -> Sequence[Objection]:
        """Flags that are the gateway's to set, adapters that its command line cannot name, a source of many files."""
        return (
            *owned_objections(backend.args, OWNED),
            *_adapter_objections(backend),
            *gguf_source_objections(backend.source),
            *contract_objections(backend),
        )

    def timing(self, timing: Timing) -> Timing:
        """As configured."""
        return timing

    def served(self, backend: BackendSettings, model: str) -> Served:
        """By the scale of each adapter: the server knows one name, and its adapters by their numbers.

        Said in every request, for the base as well, where all of them are 0 (tools/server/README.md, field ``lora``).
        """
        scales = [float(adapter.name == model) for adapter in backend.adapters]
        fields = {"lora": [{"id": number, "scale": scale} for number, scale in enumerate(scales)]} if scales else {}
        return Served(backend.model_name, fields)

    def sleep(self, backend: BackendSettings) -> Sleep | None:
        """It ends and starts in seconds, and has no calls for it."""
        return None

    def launch_spec(self, backend: BackendSettings, engine: EngineSettings, place: Address, folder: Path) -> LaunchSpec:
        """One server process with as many slots as ``parallel`` says, else one."""
        argv = [*(engine.command or self.default_command())]
        argv += ["--model", str(backend.weights), "--alias", backend.model_name]
        argv += ["--host", place.uds] if place.uds else ["--host", place.host, "--port", str(place.port)]
        argv += ["--jinja", "--metrics", "--no-webui"]
        if backend.context_length is not None:
            # The flag's figure is shared by all slots (tools/server/README.md, "--ctx-size").
            argv += ["--ctx-size", str(backend.context_length * _slots(backend))]
        if backend.template_file is not None:
            argv += ["--chat-template-file", str(backend.template_file)]
        files: Mapping[str, RunFile] = {}
        if backend.prompting is not None:
            argv += contract_flags(backend.prompting, folder)
            if not _is_embedded(argv[: argv.index("--model")]):
                argv += end_flags(backend.prompting.contract.stop.token_ids, backend.weights)
            files = contract_files(backend.prompting)
        argv += option_flags(OPTIONS, backend.options)
        if backend.adapters:
            # One flag for all: of several only the last would count (common/arg.cpp, "specified multiple times").
            paths = ",".join(str(adapter.path) for adapter in backend.adapters)
            argv += ["--lora", paths, "--lora-init-without-apply"]
        argv += flags(backend.args, SHORT)
        return LaunchSpec(
            address=place,
            probe=openai_probe(backend),
            argv=tuple(argv),
            env={**engine.env, **backend.env},
            env_removed=CONTRACT_ENV if backend.prompting is not None else (),
            files=files,
            stop_grace_s=backend.timing.stop_grace_s or STOP_GRACE_S,
        )

    def gpu_count(self, backend: BackendSettings, engine: EngineSettings) -> int | None:
        """As many as the weights ask for; none without layers to put there, or of the embedded build unless it is told.

        llama.cpp spreads over every GPU it sees (tools/server/README.md, "--split-mode"). The wheel that is usual is
        for the CPU; a binary that somebody names is taken to have been built for the GPUs.
        """
        layers = number_said(OPTIONS, backend, "n-gpu-layers", "gpu-layers", "ngl")
        if layers is None and not engine.command and engine.environment is None:
            return 0
        return 0 if layers == 0 else None

    def memory(self, backend: BackendSettings, facts: WeightFacts, *, on_gpu: bool) -> MemoryNeed:
        """Weights, the cache of every slot, and buffers. Weights are mapped: some may stay on disk."""
        return reckoned(facts, backend.context_length, OVERHEAD_BYTES, sequences=_slots(backend), needs_all=False)

    def memory_flags(
        self, backend: BackendSettings, facts: WeightFacts, limit_bytes: int, total_bytes: int
    ) -> list[str]:
        """None: its memory follows from the context length, the slots and the layers."""
        return []

    def daemon(self, first: BackendSettings, engine: EngineSettings) -> Daemon | None:
        """None: each backend is a process of its own."""
        return None

    def translate(self, backend: BackendSettings, endpoint: str, body: Body) -> Translated | None:
        """None: its API is OpenAI's."""
        return None

    def diagnose(self, status: ExitStatus, tail: Sequence[str]) -> Diagnosis:
        """llama.cpp names its reason within the last lines."""
        return diagnose(PATTERNS, status, tail)

    def phase(self, line: str) -> str | None:
        """What a starting llama.cpp says it is doing."""
        return next((phase for text, phase in PHASES if text in line), None)

    def tokenize(self, request: TokenizeRequest) -> TokenizePlan:
        """Messages are rendered by /apply-template first; special tokens in the text are parsed as the chat path does.

        Source: tools/server/README.md, "POST /tokenize" and "POST /apply-template".
        """
        prompt = request.prompt
        if request.messages is not None:
            body: dict[str, Any] = {"messages": request.messages}
            if not request.add_generation_prompt:
                body["add_generation_prompt"] = False
            prompt = (yield Call("POST", "/apply-template", body))["prompt"]
        answer = yield Call(
            "POST",
            "/tokenize",
            {"content": prompt, "add_special": request.add_special_tokens, "parse_special": True},
        )
        return TokenizeAnswer(list(answer["tokens"]))

    def see(self, backend: BackendSettings, conversation: Conversation) -> SeePlan | None:
        """The ids of what /apply-template renders."""
        return see(backend, conversation)

    def see_stops(self, backend: BackendSettings) -> StopPlan | None:
        """Each stop id of the contract, forced."""
        return forced_stops(backend)

    def see_template(self) -> TemplatePlan | None:
        """By /props."""
        return see_template()

    def see_version(self) -> VersionPlan | None:
        """The build of the server."""
        return see_version()

    def given(self, backend: BackendSettings, endpoint: str, body: Body, prompt: Prompt) -> Given | None:
        """Ids for its completions endpoint."""
        return llamacpp_given.given(endpoint, body, prompt)


def _adapter_objections(backend: BackendSettings) -> Iterator[Objection]:
    for adapter in backend.adapters:
        if "," in str(adapter.path):
            message = "has a comma in its path, which separates adapters on llama.cpp's command line"
            yield Objection(("adapter",), message, "rename the file or its folder", adapter.name)
    for name in backend.args if backend.adapters else ():
        if says([name], "lora") or says([name], "lora-scaled"):
            message = "would change the numbers by which this model's adapters are asked for"
            yield Objection(
                ("args", name), message, "write it as a model of its own, with base: NAME and adapter: PATH"
            )


def _is_embedded(command: Sequence[str]) -> bool:
    """Whether *command* runs the embedded server, whose library has no place for overrides of a GGUF file's keys."""
    return command[-1] == EMBEDDED or Path(command[-1]).name == "llamacpp_server.py"


def _slots(backend: BackendSettings) -> int:
    for value in (backend.options.get("parallel"), backend.args.get("parallel"), backend.args.get("np")):
        if isinstance(value, int) and value > 0:
            return value
    return 1
