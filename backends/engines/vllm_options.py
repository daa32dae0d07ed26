"""The options of vLLM that have a type here: verified with 0.32.0, against its own parser (tests/engines).

Sources name files of https://github.com/vllm-project/vllm at v0.32.0; a bound is the one its configuration checks.
"""

from __future__ import annotations

from backends.options import Option, Options

OPTIONS: Options = (
    Option(
        "tensor_parallel", "whole", "tensor-parallel-size",
        "How many GPUs each layer is split over; it must divide the model's attention heads.",
        "vllm/config/parallel.py", also=("tp",), least=1,
    ),
    Option(
        "pipeline_parallel", "whole", "pipeline-parallel-size",
        "How many groups of GPUs the layers are shared out to.",
        "vllm/config/parallel.py", also=("pp",), least=1,
    ),
    Option(
        "expert_parallel", "switch", "enable-expert-parallel",
        "Whether the experts of a mixture-of-experts model are shared out to the GPUs.",
        "vllm/config/parallel.py", also=("ep",), off="no-enable-expert-parallel",
    ),
    Option(
        "gpu_memory_utilization", "number", "gpu-memory-utilization",
        "The share of each GPU's whole memory that vLLM may take, from 0 to 1; its own default is 0.92.",
        "vllm/config/cache.py", also=("device-memory-utilization",), above=0, most=1,
    ),
    Option(
        "kv_cache_memory_bytes", "whole", "kv-cache-memory-bytes",
        "The size of the KV cache on each GPU, in bytes, instead of what the share of the memory leaves.",
        "vllm/config/cache.py", least=1,
    ),
    Option(
        "kv_cache_dtype", "choice", "kv-cache-dtype",
        "How the KV cache holds its numbers.",
        "vllm/config/cache.py CacheDType",
        choices=(
            "auto", "bfloat16", "float16", "fp8", "fp8_ds_mla", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "fp8_per_token_head",
            "int4_per_token_head", "int8_per_token_head", "nvfp4", "nvfp4_4over6", "nvfp4_ds_mla", "turboquant_3bit_nc",
            "turboquant_4bit_nc", "turboquant_k3v4_nc", "turboquant_k8v4", "ultraquant_4bit",
        ),
    ),
    Option(
        "cpu_offload_gib", "number", "cpu-offload-gb",
        "How much of the weights stays in the host's memory, in GiB for each GPU.",
        "vllm/config/offload.py: GiB, whatever the flag's name says", least=0,
    ),
    Option(
        "dtype", "choice", "dtype",
        "How weights and activations hold their numbers; GPUs older than Ampere have no bfloat16.",
        "vllm/config/model.py ModelDType",
        choices=("auto", "bfloat16", "float", "float16", "float32", "half"),
    ),
    Option(
        "quantization", "text", "quantization",
        "How the weights are quantised, such as awq, gptq, fp8 or bitsandbytes; as a rule their config.json says so.",
        "vllm/config/model.py; plugins may add names", also=("q",),
    ),
    Option(
        "max_num_seqs", "whole", "max-num-seqs",
        "Most requests computed at once; the others wait in the engine.",
        "vllm/config/scheduler.py", least=1,
    ),
    Option(
        "max_num_batched_tokens", "whole", "max-num-batched-tokens",
        "Most tokens computed in one step, of all requests together.",
        "vllm/config/scheduler.py", least=1,
    ),
    Option(
        "chunked_prefill", "switch", "enable-chunked-prefill",
        "Whether a long prompt is computed in pieces between the tokens of others.",
        "vllm/config/scheduler.py", off="no-enable-chunked-prefill",
    ),
    Option(
        "prefix_caching", "switch", "enable-prefix-caching",
        "Whether what prompts begin with alike is computed once.",
        "vllm/config/cache.py", off="no-enable-prefix-caching",
    ),
    Option(
        "enforce_eager", "switch", "enforce-eager",
        "Whether to leave out CUDA graphs: a quicker start and less memory, for slower answers.",
        "vllm/config/model.py", off="no-enforce-eager",
    ),
    Option(
        "runner", "choice", "runner",
        "What the model is used for; pooling for embeddings.",
        "vllm/config/model.py RunnerOption", choices=("auto", "draft", "generate", "pooling"),
    ),
    Option(
        "tool_call_parser", "text", "tool-call-parser",
        "How calls of tools are read from the model's text, such as hermes for Qwen2.5; without it tools are refused.",
        "vllm/entrypoints/launchers/cli_args.py; plugins may add names", brings=("enable-auto-tool-choice",),
    ),
    Option(
        "reasoning_parser", "text", "reasoning-parser",
        "How a model's thinking is told from its answer, such as qwen3 or deepseek_r1.",
        "vllm/config/structured_outputs.py; plugins may add names",
    ),
    Option(
        "max_loras", "whole", "max-loras",
        "Most LoRA adapters computed in one step; by default as many as the model has.",
        "vllm/config/lora.py", least=1,
    ),
    Option(
        "max_lora_rank", "choice", "max-lora-rank",
        "Highest rank of a LoRA adapter; by default what the model's adapters need.",
        "vllm/config/lora.py MaxLoRARanks", choices=(1, 8, 16, 32, 64, 128, 256, 320, 512),
    ),
    Option(
        "sleep", "switch", "enable-sleep-mode",
        "Whether the engine may give back its GPU memory without ending; on a Unix socket only.",
        "vllm/config/model.py enable_sleep_mode: CUDA and ROCm only", off="no-enable-sleep-mode",
    ),
    Option(
        "generation_config", "text", "generation-config",
        "Where sampling defaults come from: auto for the weights' own, vllm for none, or a folder.",
        "vllm/config/model.py",
    ),
    Option(
        "max_logprobs", "whole", "max-logprobs",
        "Most log probabilities a request may ask for; -1 for no limit.",
        "vllm/config/model.py", least=-1,
    ),
    Option("seed", "whole", "seed", "The seed of random numbers.", "vllm/config/model.py", least=0),
    Option(
        "trust_remote_code", "switch", "trust-remote-code",
        "Whether Python code that comes with the weights is run. It can do anything the engine can.",
        "vllm/config/model.py", off="no-trust-remote-code",
    ),
)  # fmt: skip
