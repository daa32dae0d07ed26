"""The options of llama.cpp that have a type here, all of them flags of both its own server and the embedded one.

Verified with xllamacpp 2026.10.11549, whose library holds the texts of ``llama-server --help``: sources name those
texts, which are written in common/arg.cpp of https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from backends.options import Option, Options

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
"""What a KV cache may hold (common/arg.cpp kv_cache_types)."""

OPTIONS: Options = (
    Option(
        "parallel", "whole", "parallel",
        "How many requests are computed at once; each has context_length tokens to itself.",
        "number of server slots", also=("np",), least=1,
    ),
    Option(
        "gpu_layers", "whole", "n-gpu-layers",
        "How many layers the GPU holds, 0 for none; by default as many as fit.",
        "max. number of layers to store in VRAM", also=("gpu-layers", "ngl"), least=0,
    ),
    Option(
        "split_mode", "choice", "split-mode",
        "How the model is split over several GPUs.",
        "how to split the model across multiple GPUs", also=("sm",), choices=("none", "layer", "row", "tensor"),
    ),
    Option(
        "tensor_split", "text", "tensor-split",
        "The shares of the GPUs, such as 3,1.",
        "fraction of the model to offload to each GPU", also=("ts",),
    ),
    Option(
        "main_gpu", "whole", "main-gpu",
        "The GPU for the model without a split, or for what is not split, from 0.",
        "the GPU to use for the model", also=("mg",), least=0,
    ),
    Option(
        "batch_size", "whole", "batch-size",
        "Most tokens of a prompt handed over at once.",
        "logical maximum batch size", also=("b",), least=1,
    ),
    Option(
        "ubatch_size", "whole", "ubatch-size",
        "Most tokens computed in one step.",
        "physical maximum batch size", also=("ub",), least=1,
    ),
    Option(
        "flash_attention", "switch", "flash-attn",
        "Whether attention is computed by FlashAttention; by default where the device can.",
        "set Flash Attention use ('on', 'off', or 'auto'", also=("fa",), words=("on", "off"),
    ),
    Option(
        "cache_type_k", "choice", "cache-type-k",
        "How the KV cache holds its keys.",
        "KV cache data type for K", also=("ctk",), choices=CACHE_TYPES,
    ),
    Option(
        "cache_type_v", "choice", "cache-type-v",
        "How the KV cache holds its values; a quantised one needs flash_attention.",
        "KV cache data type for V", also=("ctv",), choices=CACHE_TYPES,
    ),
    Option(
        "cache_reuse", "whole", "cache-reuse",
        "Least length of a piece of an earlier prompt that is used again by shifting it, in tokens; 0 for never.",
        "min chunk size to attempt reusing from the cache via KV shifting", least=0,
    ),
    Option(
        "cache_ram_mib", "whole", "cache-ram",
        "Most memory for the caches of earlier prompts, in MiB; -1 for no limit, 0 for none.",
        "set the maximum cache size in MiB", also=("cram",), least=-1,
    ),
    Option(
        "threads", "whole", "threads",
        "CPU threads that compute tokens.",
        "number of CPU threads to use during generation", also=("t",), least=1,
    ),
    Option(
        "threads_batch", "whole", "threads-batch",
        "CPU threads that compute prompts; by default as many as threads.",
        "number of threads to use during batch and prompt processing", also=("tb",), least=1,
    ),
    Option(
        "load_mode", "choice", "load-mode",
        "How the weights are read: mapped, locked in memory, both, past the page cache (dio), or plainly (none).",
        "model loading mode; it has replaced --mlock and --no-mmap", also=("lm",),
        choices=("auto", "none", "mmap", "mlock", "mmap+mlock", "dio"),
    ),
    Option(
        "numa", "choice", "numa",
        "How threads are spread on a machine with several memory nodes.",
        "attempt optimizations that help on some NUMA systems", choices=("distribute", "isolate", "numactl"),
    ),
    Option(
        "context_shift", "switch", "context-shift",
        "Whether the oldest tokens are dropped from a full context, instead of ending the answer.",
        "whether to use context shift on infinite text generation", off="no-context-shift",
    ),
    Option(
        "embeddings", "switch", "embeddings",
        "Whether it serves embeddings, and nothing else.",
        "restrict to only support embedding use case", also=("embedding",),
    ),
    Option(
        "pooling", "choice", "pooling",
        "How the embedding of a text is made of those of its tokens.",
        "pooling type for embeddings", choices=("none", "mean", "cls", "last", "rank"),
    ),
    Option(
        "reasoning_format", "choice", "reasoning-format",
        "Whether a model's thinking is told from its answer.",
        "controls whether thought tags are allowed and/or extracted from the response",
        choices=("none", "auto", "deepseek", "deepseek-legacy"),
    ),
    Option("seed", "whole", "seed", "The seed of random numbers.", "RNG seed", also=("s",), least=0),
)  # fmt: skip
