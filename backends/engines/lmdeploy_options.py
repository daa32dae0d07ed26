"""The options of LMDeploy that have a type here: verified with 0.18.0, against its own parser (tests/engines).

Sources name files of https://github.com/InternLM/lmdeploy at v0.18.0.
"""

from __future__ import annotations

from backends.options import Option, Options

OPTIONS: Options = (
    Option(
        "backend", "choice", "backend",
        "Which of its engines computes; by default turbomind where that knows the model.",
        "lmdeploy/cli/utils.py backend", choices=("pytorch", "turbomind"),
    ),
    Option(
        "tensor_parallel", "whole", "tp",
        "How many GPUs each layer is split over, a power of two.",
        "lmdeploy/cli/utils.py tp", least=1,
    ),
    Option(
        "dtype", "choice", "dtype",
        "How weights and activations hold their numbers; without effect on quantised weights.",
        "lmdeploy/messages.py", choices=("auto", "float16", "bfloat16"),
    ),
    Option(
        "model_format", "choice", "model-format",
        "How the weights are quantised; by default what their config.json says.",
        "lmdeploy/cli/utils.py model_format",
        choices=("hf", "awq", "gptq", "compressed-tensors", "fp8", "mxfp4"),
    ),
    Option(
        "quant_policy", "choice", "quant-policy",
        "The KV cache in 4 or 8 bits, 0 for neither; 16 and 17 are FP8 and for pytorch, 42 is TurboQuant.",
        "lmdeploy/messages.py QuantPolicy", choices=(0, 4, 8, 16, 17, 42),
    ),
    Option(
        "cache_max_entry_count", "number", "cache-max-entry-count",
        "The share of the GPU memory that the weights leave free for the KV cache, from 0 to 1; its default is 0.8.",
        "lmdeploy/messages.py: 0 < x < 1 for pytorch; turbomind takes more than 1 for a number of blocks",
        above=0, most=1,
    ),
    Option(
        "max_batch_size", "whole", "max-batch-size",
        "Most requests computed at once; the others wait in the engine.",
        "lmdeploy/cli/utils.py max_batch_size", least=1,
    ),
    Option(
        "max_prefill_token_num", "whole", "max-prefill-token-num",
        "Most tokens of prompts computed in one step.",
        "lmdeploy/messages.py", least=0,
    ),
    Option(
        "prefix_caching", "switch", "enable-prefix-caching",
        "Whether what prompts begin with alike is computed once.",
        "lmdeploy/cli/utils.py enable_prefix_caching",
    ),
    Option(
        "eager_mode", "switch", "eager-mode",
        "Whether pytorch leaves out CUDA graphs: a quicker start and less memory, for slower answers.",
        "lmdeploy/cli/utils.py eager_mode",
    ),
    Option(
        "communicator", "choice", "communicator",
        "How the GPUs of turbomind talk to one another.",
        "lmdeploy/cli/utils.py communicator", choices=("nccl", "native", "cuda-ipc"),
    ),
    Option(
        "tool_call_parser", "text", "tool-call-parser",
        "How calls of tools are read from the model's text, such as qwen or llama3; without it tools are refused.",
        "lmdeploy/serve/parsers/tool_parser",
    ),
    Option(
        "reasoning_parser", "text", "reasoning-parser",
        "How a model's thinking is told from its answer: default, or one of the deepseek ones.",
        "lmdeploy/serve/parsers/reasoning_parser",
    ),
    Option(
        "logprobs_mode", "choice", "logprobs-mode",
        "Whether pytorch gives log probabilities, and of what; without it they are refused.",
        "lmdeploy/cli/utils.py logprobs_mode", choices=("raw_logits", "raw_logprobs"),
    ),
    Option(
        "generation_config", "text", "generation-config",
        "Where sampling defaults come from: auto for the weights' own, lmdeploy for none, or a folder.",
        "lmdeploy/cli/utils.py generation_config",
    ),
    Option(
        "sleep", "switch", "",
        "Whether the engine may give back its GPU memory without ending.",
        "lmdeploy/serve/openai/endpoints/management.py: always there, no flag",
    ),
    Option(
        "trust_remote_code", "switch", "trust-remote-code",
        "Whether Python code that comes with the weights is run. It can do anything the engine can.",
        "lmdeploy/cli/utils.py trust_remote_code",
    ),
)  # fmt: skip
