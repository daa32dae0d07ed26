"""llama.cpp's own HTTP server as a child process, from the `xllamacpp` wheel; takes llama-server's flags.

    python -m backends.engines.llamacpp_server --model FILE.gguf --host /run/x.sock --alias NAME

The flags are a subset of those of ``llama-server --help`` (llama.cpp common/arg.cpp, build 11549), so that one
argv serves both this module and a `llama-server` binary. A host that ends in ``.sock`` is a Unix socket, as there.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
EXIT_NOT_STARTED = 1

# The words of llama-server's flags -> the members of xllamacpp's enumerations (llama.h, ggml.h, common.h).
POOLING = {
    word: f"llama_pooling_type.LLAMA_POOLING_TYPE_{word.upper()}" for word in ("none", "mean", "cls", "last", "rank")
}
_FLASH = "llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_"
FLASH_ATTENTION = {"on": f"{_FLASH}ENABLED", "off": f"{_FLASH}DISABLED", "auto": f"{_FLASH}AUTO"}
CACHE_TYPES = {
    word: f"ggml_type.GGML_TYPE_{word.upper()}"
    for word in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
}
_LOAD = "llama_load_mode.LLAMA_LOAD_MODE_"
LOAD_MODES = {
    **{word: f"{_LOAD}{word.upper()}" for word in ("auto", "none", "mmap", "mlock")},
    "mmap+mlock": f"{_LOAD}MMAP_MLOCK",
    "dio": f"{_LOAD}DIRECT_IO",
}
SPLIT_MODES = {word: f"llama_split_mode.LLAMA_SPLIT_MODE_{word.upper()}" for word in ("none", "layer", "row", "tensor")}
NUMA = {word: f"ggml_numa_strategy.GGML_NUMA_STRATEGY_{word.upper()}" for word in ("distribute", "isolate", "numactl")}
REASONING_FORMATS = {
    word: f"common_reasoning_format.COMMON_REASONING_FORMAT_{word.upper().replace('-', '_')}"
    for word in ("none", "auto", "deepseek", "deepseek-legacy")
}
CHOICES = {
    "pooling_type": POOLING,
    "flash_attn_type": FLASH_ATTENTION,
    "cache_type_k": CACHE_TYPES,
    "cache_type_v": CACHE_TYPES,
    "load_mode": LOAD_MODES,
    "split_mode": SPLIT_MODES,
    "numa": NUMA,
    "reasoning_format": REASONING_FORMATS,
}
"""Attribute of CommonParams -> its words."""


def _shares(text: str) -> list[float]:
    return [float(share) for share in text.split(",")]


def parser() -> argparse.ArgumentParser:
    """The command line. Its destinations are paths into xllamacpp's CommonParams."""
    p = argparse.ArgumentParser(prog="llamacpp_server", description=__doc__, allow_abbrev=False)

    def option(
        *names: str, to: str, kind: Callable[[str], Any] = str, choices: Mapping[str, object] | None = None
    ) -> None:
        p.add_argument(*names, dest=to, type=kind, choices=choices, default=None)

    def switch(name: str, *, to: str, value: bool = True) -> None:
        p.add_argument(name, dest=to, action="store_const", const=value, default=None)

    p.add_argument("--version", action="store_true")
    option("--model", "-m", to="model.path")
    option("--alias", "-a", to="alias")
    option("--host", to="host")
    option("--port", to="port", kind=int)
    option("--ctx-size", "-c", to="n_ctx", kind=int)
    option("--parallel", "-np", to="n_parallel", kind=int)
    option("--batch-size", "-b", to="n_batch", kind=int)
    option("--ubatch-size", "-ub", to="n_ubatch", kind=int)
    option("--predict", "--n-predict", "-n", to="n_predict", kind=int)
    option("--threads", "-t", to="cpuparams.n_threads", kind=int)
    option("--threads-batch", "-tb", to="cpuparams_batch.n_threads", kind=int)
    option("--threads-http", to="n_threads_http", kind=int)
    option("--n-gpu-layers", "--gpu-layers", "-ngl", to="n_gpu_layers", kind=int)
    option("--main-gpu", "-mg", to="main_gpu", kind=int)
    option("--cache-ram", "-cram", to="cache_ram_mib", kind=int)
    option("--rope-freq-base", to="rope_freq_base", kind=float)
    option("--rope-freq-scale", to="rope_freq_scale", kind=float)
    option("--seed", "-s", to="sampling.seed", kind=int)
    option("--mmproj", to="mmproj.path")
    option("--chat-template", to="chat_template")
    option("--chat-template-file", to="chat_template_file", kind=Path)
    option("--chat-template-kwargs", to="chat_template_kwargs", kind=json.loads)
    option("--pooling", to="pooling_type", choices=POOLING)
    option("--flash-attn", "-fa", to="flash_attn_type", choices=FLASH_ATTENTION)
    option("--cache-type-k", "-ctk", to="cache_type_k", choices=CACHE_TYPES)
    option("--cache-type-v", "-ctv", to="cache_type_v", choices=CACHE_TYPES)
    option("--cache-reuse", to="n_cache_reuse", kind=int)
    option("--load-mode", "-lm", to="load_mode", choices=LOAD_MODES)
    option("--split-mode", "-sm", to="split_mode", choices=SPLIT_MODES)
    option("--tensor-split", "-ts", to="tensor_split", kind=_shares)
    option("--numa", to="numa", choices=NUMA)
    option("--reasoning-format", to="reasoning_format", choices=REASONING_FORMATS)
    option("--lora", to="lora", kind=lambda paths: paths.split(","))
    switch("--lora-init-without-apply", to="lora_init_without_apply")
    option("--verbosity", "-lv", to="verbosity", kind=int)
    switch("--embeddings", to="embedding")
    switch("--embedding", to="embedding")
    switch("--metrics", to="endpoint_metrics")
    switch("--slots", to="endpoint_slots")
    switch("--no-slots", to="endpoint_slots", value=False)
    switch("--jinja", to="use_jinja")
    switch("--no-jinja", to="use_jinja", value=False)
    switch("--no-prefill-assistant", to="prefill_assistant", value=False)
    switch("--reasoning-preserve", to="preserve_reasoning")
    switch("--no-reasoning-preserve", to="preserve_reasoning", value=False)
    switch("--no-webui", to="ui", value=False)
    switch("--no-warmup", to="warmup", value=False)
    switch("--context-shift", to="ctx_shift")
    switch("--no-context-shift", to="ctx_shift", value=False)
    switch("--no-cont-batching", to="cont_batching", value=False)
    return p


def server_params(options: dict[str, Any]) -> Any:
    """xllamacpp's CommonParams for parsed *options*."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    given = {name: value for name, value in options.items() if value is not None and name != "version"}
    if host := given.pop("host", None):
        params.hostnames = [host]
    if alias := given.pop("alias", None):
        params.model_alias = {alias}
    if template := given.pop("chat_template_file", None):
        params.chat_template = template.read_text(encoding="utf-8")
    if kwargs := given.pop("chat_template_kwargs", None):
        params.default_template_kwargs = {name: json.dumps(value) for name, value in kwargs.items()}
    if (is_kept := given.pop("preserve_reasoning", None)) is not None:
        # as common/arg.cpp has it; left out, it is true
        params.default_template_kwargs = {**params.default_template_kwargs, "preserve_reasoning": json.dumps(is_kept)}
        params.preserve_reasoning_specified = True
    if paths := given.pop("lora", None):
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path=path, scale=1.0) for path in paths]
    for name, choices in CHOICES.items():
        if word := given.pop(name, None):
            kind, member = choices[word].split(".")
            setattr(params, name, getattr(getattr(xllamacpp, kind), member))
    if shares := given.pop("tensor_split", None):
        params.tensor_split = shares + [0.0] * (len(params.tensor_split) - len(shares))
    for path, value in given.items():
        *owners, name = path.split(".")
        target = params
        for owner in owners:
            target = getattr(target, owner)
        setattr(target, name, value)
    return params


def main(arguments: list[str]) -> int:
    """Serve until TERM or INT. Returns 0 then, 1 when the server did not start, 2 for a bad flag."""
    options = vars(parser().parse_args(arguments))
    import xllamacpp

    if options["version"]:
        print(f"xllamacpp {xllamacpp.__version__}")  # noqa: T201 - the answer to --version
        return 0
    # Blocked, and so in llama.cpp's threads, which are started below: one that took the signal could not run a handler,
    # and this thread would not wake. That happens to a process that was stopped, where no thread is preferred.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        server = xllamacpp.Server(server_params(options))
    except (RuntimeError, ValueError, OSError, AttributeError) as problem:
        print(f"error: the server did not start: {problem}", file=sys.stderr)  # noqa: T201 - this is the log
        return EXIT_NOT_STARTED
    print(f"listening on {server.listening_address}", file=sys.stderr)  # noqa: T201 - this is the log
    signal.sigwait(STOP_SIGNALS)
    del server  # ends its threads and closes its connections
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
