"""The options of an Ollama model that have a type here: parameters that are set when it is made.

Sources name files of https://github.com/ollama/ollama at v0.33.0-rc2. A flag is the parameter's name, with dashes.
"""

from __future__ import annotations

from backends.options import Option, Options

_RUNNER = "api/types.go Runner"
_SAMPLING = "api/types.go Options; a request that names its own wins"

OPTIONS: Options = (
    Option(
        "gpu_layers", "whole", "num_gpu",
        "How many layers are kept on the GPU, 0 for none; by default as many as fit.", _RUNNER, least=0,
    ),
    Option("threads", "whole", "num_thread", "How many threads compute; by default one a core.", _RUNNER, least=1),
    Option("batch", "whole", "num_batch", "Most tokens of a prompt computed in one step.", _RUNNER, least=1),
    Option("mmap", "switch", "use_mmap", "Whether the weights are mapped into memory instead of read.", _RUNNER),
    Option(
        "temperature", "number", "temperature",
        "The temperature of requests that name none; 1 unless a Modelfile says otherwise.", _SAMPLING, least=0,
    ),
    Option("top_p", "number", "top_p", "The nucleus of requests that name none; 1.", _SAMPLING, above=0, most=1),
    Option("top_k", "whole", "top_k", "How many tokens are drawn from, by default.", _SAMPLING, least=0),
    Option(
        "repeat_penalty", "number", "repeat_penalty",
        "How much repetition is held against a token, where a request does not say; 1 for not at all.",
        _SAMPLING, above=0,
    ),
    Option("seed", "whole", "seed", "The seed of requests that name none.", _SAMPLING),
)  # fmt: skip
