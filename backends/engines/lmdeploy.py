"""LMDeploy: ``lmdeploy serve api_server``, with its TurboMind or its PyTorch engine. Verified with 0.18.0.

Its real server was driven, with the CUDA engines in it replaced (tests/engines/lmdeploy_cpu.py). Sources below name
files of https://github.com/InternLM/lmdeploy at v0.18.0; "seen" is what that server printed.
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
    Link,
    LinkedFolder,
    Objection,
    RunFile,
    Served,
    Sleep,
    TokenizeAnswer,
    TokenizePlan,
    TokenizeRequest,
    Unsupported,
    served_by_name,
)
from backends.address import Address
from backends.argv import canonical, flags, number_said, option_flags, owned_objections, says
from backends.contract_texts import contract_objections
from backends.diagnosis import Diagnosis, ExitStatus, diagnose, pattern
from backends.engines import lmdeploy_given
from backends.engines.lmdeploy_contract import (
    CONTRACT_OWNED,
    MODEL_FOLDER,
    contract_files,
    contract_problem,
)
from backends.engines.lmdeploy_dialect import DIALECT
from backends.engines.lmdeploy_options import OPTIONS
from backends.environments import Environment
from backends.lora import peft_problem
from backends.memory_estimate import GIB, MemoryNeed, WeightFacts, reckoned
from backends.openai_probe import openai_probe
from backends.prompting import USAGE, SeePlan, StopPlan, TemplatePlan, VersionPlan
from backends.seen import forced_stops
from backends.settings import BackendSettings, EngineSettings, SocketKind, Timing
from backends.shared_patterns import PYTORCH
from backends.sources import SourceKind
from backends.translation import Translated
from backends.weights import folder_source_objections, hf_folder_problem
from chat_templates.conversation import Conversation
from chat_templates.prompts import Prompt

STOP_GRACE_S = 15.0
"""Idle, TERM ends it in 0.4 s (TurboMind) or 1.8 s (PyTorch), without a GPU to clean up. It waits without limit for
running streams, but by then the gateway has broken those off (measured, 0.18.0)."""

# The resolution of lmdeploy 0.18.0 for Python 3.11 on x86-64 Linux has 120 wheels, with CUDA 13, and the CUDA 12
# libraries that TurboMind is linked with.
DISTRIBUTIONS = (Distribution("lmdeploy", "0.18.0", build_bytes=18_000_000_000),)

# Not embeddings: "Unsupported by turbomind.", 400, whatever the engine (serve/openai/endpoints, seen).
CACHE_SHARE = 0.8
"""Of the memory that the weights leave free (messages.py, cache_max_entry_count of both engines)."""
OVERHEAD_BYTES = 2 * GIB
"""Context and activations beside weights and cache; a guess."""

ENDPOINTS = frozenset({"chat/completions", "completions"})

HEALTH_ENV = {
    # /health tells what the last poll found. With these a dead engine process shows after 0.9 s, else after up to 22 s
    # (serve/core/health.py: 12 s and 10 s; measured). The timeout has to be the shorter one.
    "LMDEPLOY_HEALTH_POLL_INTERVAL": "2",
    "LMDEPLOY_HEALTH_PROBE_TIMEOUT": "1",
}

TEMPLATE_FOLDER = "template"
TEMPLATE_CONFIG = "chat_template.json"
TEMPLATE_FILE = "chat_template.jinja"
# Where transformers 5.23 looks for chat templates beside tokenizer_config.json, which chat_template.jinja overrules
# (utils/hub.py list_repo_templates, tokenization_utils_base.py).
TEMPLATE_SOURCES = frozenset({TEMPLATE_FILE, "chat_template.json", "additional_chat_templates"})

OWNED = {
    "model-name": "remove it: the public name is the key under models",
    "server-name": "remove it: engines listen for the gateway only",
    "server-port": "remove it: the gateway chooses the port",
    "ssl": "remove it: the gateway speaks plain HTTP with its engines, on this machine",
    "api-keys": "write gateway.keys: the gateway checks them",
    "session-len": "write models.<name>.context_length",
    "chat-template": "write models.<name>.template: {from: FILE}",
    "proxy-url": "remove it: the gateway is the proxy",
    "adapters": "write a model of its own, with base: NAME and adapter: PATH",
    "allow-terminate-by-client": "remove it: no client may end an engine; unigate unload does",
    # A request without a stream holds the limit until it is answered, and /health waits behind it (measured: 5.8 s).
    "max-concurrent-requests": "remove it: requests wait in the gateway's queue, or in the engine's by max-batch-size",
    # The PyTorch engine then serves on the machine's public address, whatever --server-name says
    # (serve/openai/launch_server.py: server_name = get_host_ip()).
    "dp": "remove it: use tp for several GPUs",
}

# The templates LMDeploy has built in (model.py MODELS). An adapter so called gets that template for its requests
# (serve/processors/multimodal.py _get_text_prompt_input; seen with "vicuna").
BUILT_IN_TEMPLATES = frozenset(
    {
        "base", "cogvlm", "vicuna", "llava-v1", "llama2", "codellama", "chatglm", "mistral", "mixtral", "internvl-zh",
        "deepseek-vl", "deepseek-vl2", "deepseek-v4", "deepseek-v32", "deepseek-v3.2", "llava-chatml", "hf",
    }
)  # fmt: skip

PATTERNS = (
    pattern(
        "no_cache_memory",
        r"No enough gpu memory for (?P<what>(kv|state) cache|runtime)",
        "The weights leave too little GPU memory for the {what}.",
        "Raise options.cache_max_entry_count or options.tensor_parallel, lower context_length or"
        " options.max_batch_size, or free the GPU.",
        source="pytorch/engine/executor/base.py _get_num_gpu_blocks, _adjust_block_size",
    ),
    pattern(
        "gpu_out_of_memory",
        r"torch\.(cuda\.)?OutOfMemoryError|CUDA out of memory|CUDA error: out of memory|out of memory at \d+/\d+",
        "The GPU ran out of memory.",
        "Lower options.cache_max_entry_count or context_length, use a smaller or quantised model, or free the GPU.",
        source="torch 2.13 torch.OutOfMemoryError; _turbomind.so 'out of memory at {}/{}'",
    ),
    pattern(
        "weights_missing",
        r"Failed to find valid checkpoint under|failed to locate weight files under",
        "LMDeploy found no weights at the given path.",
        "Correct the model's weights.",
        source="turbomind/checkpoint.py",
    ),
    pattern(
        "template_missing",
        r"Try apply_chat_template failed: Cannot use chat template functions because",
        "The weights hold no chat template.",
        "Write models.<name>.template: {from: FILE}, with the one the model was trained with.",
        source="model.py HFChatTemplate, transformers 5.23, seen",
    ),
    pattern(
        "bad_template",
        r"ValueError: Try apply_chat_template failed: (?!Couldn't instantiate the backend tokenizer)(?P<what>.*)",
        "LMDeploy could not use the chat template: {what}.",
        "Correct models.<name>.template; it must render a user turn, and an assistant turn after it.",
        source="model.py HFChatTemplate, seen",
    ),
    pattern(
        "unknown_parser",
        r"The (?P<kind>tool|reasoning) parser (?P<name>\S+) is not in the parser list",
        "LMDeploy has no {kind} parser named {name}.",
        "Correct options.tool_call_parser or options.reasoning_parser; the model's log lists the names.",
        source="serve/parsers/__init__.py validate_parser_names, seen",
    ),
    pattern(
        "reasoning_tokens_missing",
        r"reasoning parser could not get reasoning tokens from the tokenizer: (?P<tokens>.*)",
        "The tokenizer lacks the tokens that options.reasoning_parser looks for: {tokens}.",
        "Remove options.reasoning_parser, or use a model that was trained to think.",
        source="serve/parsers/reasoning_parser, seen, after the load",
    ),
    pattern(
        "architecture_unknown",
        r"(Could not find model architecture from config|Can not found rewrite for (architectures|auto_map))",
        "This LMDeploy does not know the model's architecture.",
        "Use a newer LMDeploy, or another engine.",
        source="archs.py (seen), pytorch/models/patch.py",
    ),
    pattern(
        "quantisation_unsupported",
        r"(?P<what>model_format=fp8 requires sm>=9\.0|unsupported quant.?config: [^\n]*|invalid quant_policy[^\n]*"
        r"|Compressed-tensors activation quantization is not supported)",
        "LMDeploy cannot compute with this quantisation: {what}.",
        "Use weights quantised otherwise, correct options.quant_policy, or use another GPU or engine.",
        source="pytorch/check_env/cuda.py, turbomind/converter.py, messages.py, pytorch/config.py",
    ),
    pattern(
        "adapter_unusable",
        r"<Adapter> check failed",
        "LMDeploy could not read a LoRA adapter.",
        "It needs peft in its environment, and an adapter_config.json whose every key that peft knows; the model's log"
        " says which of the two it is.",
        source="pytorch/check_env/adapter.py",
    ),
    pattern(
        "engine_process_died",
        r"RPCServerDeadError|PyTorch ZMQ engine process (is not alive|exited)",
        "LMDeploy's PyTorch engine process died.",
        "It is tried again; its log holds the reason. Without one it was its race at start, or the kernel (see dmesg).",
        source="pytorch/engine/mp_engine/zmq_engine.py _start_mp_proc: 2 of 12 starts failed by that race, seen",
        permanent=False,
        is_symptom=True,
    ),
    *PYTORCH,
)

PHASES = (
    ("Loading weights", "loading weights"),
    ("Loading:", "loading weights"),
    ("Application startup complete", "starting the server"),
)


class LmDeploy:
    """The adapter of LMDeploy."""

    engine = "lmdeploy"
    launches = True
    endpoints = ENDPOINTS
    dialect = DIALECT
    witness = USAGE
    # uvicorn.run(host=, port=) and nothing else (serve/openai/api_server.py)
    sockets: frozenset[SocketKind] = frozenset({"tcp"})
    takes_adapters = True
    sources: frozenset[SourceKind] = frozenset({"path", "hf", "modelscope"})
    engine_keys: frozenset[str] = frozenset()
    obtaining = ""
    daemon_name = ""
    chooses_templates = False
    programs = ("lmdeploy",)
    distributions = DISTRIBUTIONS
    options = OPTIONS

    def default_command(self) -> tuple[str, ...]:
        """The `lmdeploy` of the PATH."""
        return ("lmdeploy", "serve", "api_server")

    def command_in(self, environment: Environment) -> tuple[str, ...] | None:
        """``lmdeploy serve api_server``, or the package as a module where that program is missing."""
        if "lmdeploy" in environment.programs:
            return (str(environment.programs["lmdeploy"]), "serve", "api_server")
        if environment.held(distribution.name for distribution in DISTRIBUTIONS):
            return (str(environment.python), "-m", "lmdeploy", "serve", "api_server")
        return None

    def version_argv(self, engine: EngineSettings) -> tuple[str, ...] | None:
        """``lmdeploy --version``, whatever stands before ``serve`` in the command."""
        command = engine.command or self.default_command()
        program = command[: command.index("serve")] if "serve" in command else command[:1]
        return (*program, "--version")

    def weights_problem(self, weights: Path) -> str | None:
        """A Hugging Face folder."""
        if weights.is_file():
            return f"{weights}: is a file; LMDeploy takes a model folder (a GGUF file is for llamacpp)"
        return hf_folder_problem(weights)

    def adapter_problem(self, adapter: Path) -> str | None:
        """A folder in PEFT's format."""
        return peft_problem(adapter)

    def contract_problem(self, backend: BackendSettings) -> str | None:
        """A model whose prompts LMDeploy changes after the template, and stop texts that it drops."""
        return contract_problem(backend.prompting, backend.weights) if backend.prompting is not None else None

    def objections(self, backend: BackendSettings) -> Sequence[Objection]:
        """Flags that are the gateway's to set, adapters that cannot be served as is, embeddings, a single file."""
        return [
            *owned_objections(backend.args, OWNED),
            *_adapter_objections(backend),
            *contract_objections(backend, CONTRACT_OWNED),
            *_no_embeddings(backend),
            *folder_source_objections(backend.source, takes_gguf=False),
        ]

    def timing(self, timing: Timing) -> Timing:
        """As configured."""
        return timing

    def served(self, backend: BackendSettings, model: str) -> Served:
        """By its name."""
        return served_by_name(backend, model)

    def sleep(self, backend: BackendSettings) -> Sleep | None:
        """Weights to the host's memory, the KV cache dropped: level 1. The calls are always there.

        They ask for a JSON content type (serve/openai/endpoints/management.py).
        """
        if not backend.options.get("sleep"):
            return None
        return Sleep(
            sleep=Call("POST", "/sleep?level=1", {}),
            wake=(Call("POST", "/wakeup", {}),),
            is_sleeping=Call("GET", "/is_sleeping"),
        )

    def launch_spec(self, backend: BackendSettings, engine: EngineSettings, place: Address, folder: Path) -> LaunchSpec:
        """One API server; the PyTorch engine has a process of its own beside it.

        The chat template is always named. Left to itself, LMDeploy takes one of its own by what the *path* of the
        weights contains: ``…/mistral-instruct-exp/`` gets the one named mistral (model.py get_chat_template).
        """
        weights, files = backend.weights, _template_files(backend, folder)
        if backend.prompting is not None and weights is not None:
            weights, files = folder / MODEL_FOLDER, contract_files(backend.prompting, weights)
        argv = [*(engine.command or self.default_command()), str(weights), "--model-name", backend.model_name]
        argv += ["--server-name", place.host, "--server-port", str(place.port)]
        if backend.context_length is not None:
            argv += ["--session-len", str(backend.context_length)]
        argv += ["--chat-template", str(folder / TEMPLATE_CONFIG) if TEMPLATE_CONFIG in files else "hf"]
        argv += option_flags(OPTIONS, backend.options)
        argv += _lora_flags(backend)
        argv += flags(backend.args)
        return LaunchSpec(
            address=place,
            probe=openai_probe(backend),
            argv=tuple(argv),
            env={**HEALTH_ENV, **engine.env, **backend.env},
            files=files,
            stop_grace_s=backend.timing.stop_grace_s or STOP_GRACE_S,
        )

    def gpu_count(self, backend: BackendSettings, engine: EngineSettings) -> int | None:
        """Tensor parallel ranks."""
        return max(1, int(number_said(OPTIONS, backend, "tp") or 1))

    def memory(self, backend: BackendSettings, facts: WeightFacts, *, on_gpu: bool) -> MemoryNeed:
        """On a GPU the weights, and a share of what they leave free. It has no CPU engine.

        The share is of what is free *then* (messages.py, cache_max_entry_count), so less than all of it is no obstacle.
        """
        need = reckoned(facts, backend.context_length, OVERHEAD_BYTES)
        if not on_gpu or not facts.is_known:
            return need
        share = number_said(OPTIONS, backend, "cache-max-entry-count") or CACHE_SHARE
        if share >= 1:  # so many blocks of the cache, not a share: TurboMind only
            return need
        return replace(need, free_share=share)

    def memory_flags(
        self, backend: BackendSettings, facts: WeightFacts, limit_bytes: int, total_bytes: int
    ) -> list[str]:
        """``--cache-max-entry-count`` for what the weights leave of the limit, unless the operator has set it."""
        if number_said(OPTIONS, backend, "cache-max-entry-count") is not None:
            return []
        ranks = self.gpu_count(backend, EngineSettings()) or 1
        taken = facts.weights_bytes // ranks + OVERHEAD_BYTES
        share = (limit_bytes - taken) / max(1, total_bytes - taken)
        return ["--cache-max-entry-count", f"{min(0.95, max(0.01, int(1000 * share) / 1000)):g}"]

    def daemon(self, first: BackendSettings, engine: EngineSettings) -> Daemon | None:
        """None: each backend is a process of its own."""
        return None

    def translate(self, backend: BackendSettings, endpoint: str, body: Body) -> Translated | None:
        """None: its API is OpenAI's."""
        return None

    def diagnose(self, status: ExitStatus, tail: Sequence[str]) -> Diagnosis:
        """LMDeploy ends with a traceback; of a dead engine process the reason stands above the server's own."""
        return diagnose(PATTERNS, status, tail)

    def phase(self, line: str) -> str | None:
        """What a starting LMDeploy says it is doing; at its own log level that is little."""
        return next((phase for text, phase in PHASES if text in line), None)

    def tokenize(self, request: TokenizeRequest) -> TokenizePlan:
        """Text, or one user message: /v1/encode renders no other conversation, and nothing else here renders one.

        A rendered prompt is always encoded with the tokenizer's BOS, as the chat path does (tokenizer.py encode,
        serve/openai/endpoints/auxiliary.py). Raises Unsupported.
        """
        if request.messages is None:
            return _encode({"input": request.prompt, "add_bos": request.add_special_tokens})
        text = _only_user_text(request.messages)
        if text is None or not request.add_generation_prompt:
            raise Unsupported(
                "LMDeploy has no tokenisation of a conversation, only of a prompt or of a single user message"
            )
        return _encode({"input": text, "do_preprocess": True, "add_bos": True})

    def see(self, backend: BackendSettings, conversation: Conversation) -> SeePlan | None:
        """None: no endpoint shows the ids of a conversation, and how many there are proves nothing."""
        return None

    def see_stops(self, backend: BackendSettings) -> StopPlan | None:
        """Each stop id of the contract, forced; TurboMind alone honours that, and only in chats."""
        return forced_stops(backend, in_chats=True)

    def see_template(self) -> TemplatePlan | None:
        """None: no route shows it (serve/openai/endpoints)."""
        return None

    def see_version(self) -> VersionPlan | None:
        """None: the server does not say it."""
        return None

    def given(self, backend: BackendSettings, endpoint: str, body: Body, prompt: Prompt) -> Given | None:
        """Ids for its chat endpoint."""
        return lmdeploy_given.given(backend, endpoint, body, prompt)


def _template_files(backend: BackendSettings, folder: Path) -> Mapping[str, RunFile]:
    """A folder like the weights' but with the operator's template, and the JSON that names it; LMDeploy reads no Jinja.

    ``hf`` renders with the template of the tokenizer in ``model_path`` (cli/utils.py get_chat_template, model.py
    ChatTemplateConfig.from_json, HFChatTemplate).
    """
    if backend.template_file is None or backend.weights is None:
        return {}
    named = {"model_name": "hf", "model_path": str(folder / TEMPLATE_FOLDER)}
    return {
        TEMPLATE_FOLDER: LinkedFolder(backend.weights, without=TEMPLATE_SOURCES),
        f"{TEMPLATE_FOLDER}/{TEMPLATE_FILE}": Link(backend.template_file),
        TEMPLATE_CONFIG: json.dumps(named),
    }


def _lora_flags(backend: BackendSettings) -> list[str]:
    """Each adapter under its public name. Only the PyTorch engine takes them (cli/serve.py); it is not the default."""
    if not backend.adapters:
        return []
    engine = [] if "backend" in backend.options or says(backend.args, "backend") else ["--backend", "pytorch"]
    return [*engine, "--adapters", *(f"{adapter.name}={adapter.path}" for adapter in backend.adapters)]


def _adapter_objections(backend: BackendSettings) -> Iterator[Objection]:
    for adapter in backend.adapters:
        if adapter.name in BUILT_IN_TEMPLATES:
            message = f'has the name "{adapter.name}", for which LMDeploy would use its template of that name'
            yield Objection((), message, "give it another name", adapter.name)
        if "=" in adapter.name:
            message = 'has a "=" in its name, where LMDeploy would cut it'
            yield Objection((), message, "give it another name", adapter.name)
    chosen: dict[tuple[str, ...], object] = {("options", "backend"): backend.options.get("backend")}
    chosen |= {("args", name): value for name, value in backend.args.items() if canonical(name) == "backend"}
    for path, value in chosen.items():
        if backend.adapters and value == "turbomind":
            names = ", ".join(adapter.name for adapter in backend.adapters)
            message = f"cannot be turbomind: that engine takes no LoRA adapters, and this model has {names}"
            yield Objection(path, message, "write pytorch, or merge the adapter into its base")


def _no_embeddings(backend: BackendSettings) -> Iterator[Objection]:
    if backend.readiness == "embed":
        yield Objection(("readiness",), "cannot be embed: LMDeploy serves no embeddings", "use vllm or llamacpp")


def _only_user_text(messages: list[Any]) -> str | None:
    """The text of the one message there is, when it is a user's and nothing but text; else None."""
    first = messages[0] if len(messages) == 1 else None
    if not isinstance(first, dict) or first.keys() != {"role", "content"} or first["role"] != "user":
        return None
    return first["content"] if isinstance(first["content"], str) else None


def _encode(body: dict[str, Any]) -> TokenizePlan:
    answer = yield Call("POST", "/v1/encode", body)
    return TokenizeAnswer(list(answer["input_ids"]))
