"""The command lines of every adapter, as text to be reviewed: `python -m tests.goldens.argv` writes the files.

One file for each engine, named with the version the adapter was verified with: ``argv-vllm-0.32.0.txt``. The suites of
the real engines give the same command lines to the engines' own parsers.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backends.address import Address
from backends.engines import ADAPTERS
from backends.prompting import Prompting
from backends.settings import BackendSettings, EngineSettings, LoraAdapter
from chat_templates.contract import Contract, Stop

FOLDER = Path(__file__).parent
UDS = Address(uds="/run/m.sock")
TCP = Address(host="127.0.0.1", port=18000)
TEMPLATE = Path("/t/chat.jinja")
RUN_FOLDER = Path("/state/runs/m")
LORAS = (LoraAdapter("m-sql", FOLDER / "lora-rank-24"), LoraAdapter("law, 2nd=best", Path("/lora/law")))
"""One whose rank can be read, and one with a name that command lines stumble over."""
GGUF_LORAS = (LoraAdapter("m-sql", Path("/lora/sql.gguf")), LoraAdapter("law, 2nd=best", Path("/lora/law.gguf")))
CONTRACT = Prompting(
    Contract(
        "tuned",
        {"default": "{{ mood }}{{ messages[0].content }}", "tool_use": "{{ tools }}"},
        "here",
        pinned={"mood": "calm"},
        stop=Stop((151645, 151643)),
    ),
    Path("/t/tuned.contract.yaml"),
)
"""With two templates, a variable that is pinned, and two ends of an answer."""


@dataclass(frozen=True, slots=True)
class Example:
    """One model as an operator might write it, and where it is to listen. *settings* are fields of BackendSettings."""

    engine: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    place: Address = UDS

    @property
    def backend(self) -> BackendSettings:
        """The model as the configuration would give it to the adapter."""
        return BackendSettings(name="m", engine=self.engine, weights=Path("/models/m"), **self.settings)

    def argv(self) -> tuple[str, ...]:
        """The adapter's command line for it."""
        engine = EngineSettings(command=self.command)
        return ADAPTERS[self.engine].launch_spec(self.backend, engine, self.place, RUN_FOLDER).argv


VLLM_EVERYTHING = {
    "tensor_parallel": 2, "pipeline_parallel": 2, "expert_parallel": True, "gpu_memory_utilization": 0.45,
    "kv_cache_memory_bytes": 4_000_000_000, "kv_cache_dtype": "fp8", "cpu_offload_gib": 4, "dtype": "bfloat16",
    "quantization": "awq", "max_num_seqs": 64, "max_num_batched_tokens": 8192, "chunked_prefill": True,
    "prefix_caching": True, "enforce_eager": True, "runner": "generate", "tool_call_parser": "hermes",
    "reasoning_parser": "qwen3", "max_loras": 2, "max_lora_rank": 32, "sleep": True, "generation_config": "vllm",
    "max_logprobs": 5, "seed": 0, "trust_remote_code": True,
}  # fmt: skip
LMDEPLOY_EVERYTHING = {
    "backend": "pytorch", "tensor_parallel": 2, "dtype": "float16", "model_format": "awq", "quant_policy": 8,
    "cache_max_entry_count": 0.5, "max_batch_size": 64, "max_prefill_token_num": 4096, "prefix_caching": True,
    "eager_mode": True, "communicator": "native", "tool_call_parser": "qwen", "reasoning_parser": "default",
    "logprobs_mode": "raw_logprobs", "generation_config": "lmdeploy", "sleep": True, "trust_remote_code": True,
}  # fmt: skip
LLAMACPP_EVERYTHING = {
    "parallel": 4, "gpu_layers": 99, "split_mode": "layer", "tensor_split": "3,1", "main_gpu": 0, "batch_size": 1024,
    "ubatch_size": 256, "flash_attention": True, "cache_type_k": "q8_0", "cache_type_v": "q8_0", "cache_reuse": 256,
    "cache_ram_mib": 1024, "threads": 2, "threads_batch": 4, "load_mode": "mmap+mlock", "numa": "distribute",
    "context_shift": True, "embeddings": True, "pooling": "mean", "reasoning_format": "deepseek", "seed": 1,
}  # fmt: skip


def _switches_off(engine: str) -> dict[str, Any]:
    return {option.name: False for option in ADAPTERS[engine].options if option.kind == "switch"}


EXAMPLES: dict[str, dict[str, Example]] = {
    "vllm": {
        "plain": Example("vllm"),
        "in a Python of its own, on a port": Example(
            "vllm", command=("/env/bin/python", "-m", "vllm.entrypoints.openai.api_server"), place=TCP
        ),
        "every option": Example(
            "vllm",
            {"context_length": 4096, "template_file": TEMPLATE, "options": VLLM_EVERYTHING},
            ("/env/bin/vllm", "serve"),
        ),
        "every switch off": Example("vllm", {"options": _switches_off("vllm")}),
        "two LoRA adapters": Example("vllm", {"adapters": LORAS}),
        "a contract": Example("vllm", {"context_length": 4096, "prompting": CONTRACT}),
        "other flags": Example(
            "vllm",
            {"args": {"disable-log-stats": True, "enable-log-requests": False, "allowed-origins": ('["http://a"]',)}},
        ),
    },
    "lmdeploy": {
        "plain": Example("lmdeploy", place=TCP),
        "in a Python of its own, its template overlaid": Example(
            "lmdeploy",
            {"context_length": 4096, "template_file": TEMPLATE},
            ("/env/bin/python", "-m", "lmdeploy", "serve", "api_server"),
            TCP,
        ),
        "every option": Example("lmdeploy", {"options": LMDEPLOY_EVERYTHING}, place=TCP),
        "every switch off": Example("lmdeploy", {"options": _switches_off("lmdeploy")}, place=TCP),
        "two LoRA adapters": Example(
            "lmdeploy", {"adapters": (LORAS[0], LoraAdapter("law", Path("/lora/law")))}, place=TCP
        ),
        "a contract, which makes a folder of its own": Example("lmdeploy", {"prompting": CONTRACT}, place=TCP),
        "other flags": Example(
            "lmdeploy",
            {"args": {"log-level": "INFO", "disable-metrics": True, "allow-methods": ("GET", "POST")}},
            place=TCP,
        ),
    },
    "llamacpp": {
        "plain": Example("llamacpp"),
        "a llama-server, on a port": Example("llamacpp", command=("/opt/llama-server",), place=TCP),
        "its context shared between the slots": Example(
            "llamacpp", {"context_length": 2048, "template_file": TEMPLATE, "options": {"parallel": 4}}
        ),
        "every option": Example(
            "llamacpp", {"context_length": 1024, "options": LLAMACPP_EVERYTHING}, ("/opt/llama-server",)
        ),
        "every switch off": Example("llamacpp", {"options": _switches_off("llamacpp")}, ("/opt/llama-server",)),
        "two LoRA adapters": Example("llamacpp", {"adapters": GGUF_LORAS}),
        "a contract": Example("llamacpp", {"prompting": CONTRACT}),
        "other flags": Example("llamacpp", {"args": {"parallel": 2, "ngl": 99, "slots": True}, "context_length": 512}),
    },
}


def path_of(engine: str) -> Path:
    """The golden file of *engine*."""
    return FOLDER / f"argv-{engine}-{ADAPTERS[engine].distributions[0].version}.txt"


def text_of(engine: str) -> str:
    """What the golden file of *engine* is to hold: each example's command line, one flag a line."""
    parts = [f"# {engine} {ADAPTERS[engine].distributions[0].version}; written by python -m tests.goldens.argv\n"]
    for name, example in EXAMPLES[engine].items():
        lines = [""]
        for word in example.argv():
            if word.startswith("-"):
                lines.append(f"  {word}")
            else:
                lines[-1] += (
                    f" {'PYTHON' if word == sys.executable else shlex.quote(word).replace(str(FOLDER), '/lora')}"
                )
        parts.append("\n".join([f"\n## {name}", *(line.rstrip() for line in lines)]) + "\n")
    return "".join(parts)


def main() -> None:
    """Writes every golden file anew; the version control shows what has changed."""
    for engine in EXAMPLES:
        path_of(engine).write_text(text_of(engine))


if __name__ == "__main__":
    main()
