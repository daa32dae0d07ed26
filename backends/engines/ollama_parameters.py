"""The parameters of an Ollama model: their names and kinds, from a Modelfile's text or from the configuration.

Source: https://github.com/ollama/ollama api/types.go Options, Runner and FormatParams, at v0.33.0-rc2.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

KINDS: Mapping[str, type] = {
    "num_ctx": int, "num_batch": int, "num_gpu": int, "main_gpu": int, "use_mmap": bool, "num_thread": int,
    "draft_num_predict": int,
    "num_keep": int, "seed": int, "num_predict": int, "top_k": int, "top_p": float, "min_p": float, "typical_p": float,
    "repeat_last_n": int, "temperature": float, "repeat_penalty": float, "presence_penalty": float,
    "frequency_penalty": float, "stop": list,
}  # fmt: skip

RUNNER = frozenset({"num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict"})
"""Those a runner is started with: another value starts it anew (server/sched.go needsReload; recording 210)."""

DEPRECATED = frozenset(
    {
        "penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "mirostat", "mirostat_tau",
        "mirostat_eta",
    }
)  # fmt: skip
"""What `ollama create` passes over with a warning (parser/parser.go)."""


class BadParameter(ValueError):
    """A parameter that Ollama does not know, or whose value is of another kind; the message says which."""


def read_parameter(name: str, value: object) -> Any:
    """*value*, a text or a value of the configuration, as the kind that *name* has. Raises BadParameter.

    Ollama passes over unknown names without a word when a model is created from the configuration's.
    """
    kind = KINDS.get(name)
    if kind is None:
        near = difflib.get_close_matches(name, KINDS, n=1)
        raise BadParameter(f'Ollama has no parameter "{name}"' + (f'; did you mean "{near[0]}"?' if near else ""))
    if kind is list:
        items = value if isinstance(value, tuple | list) else (value,)
        return [str(item) for item in items]
    if kind is bool:
        found = {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower())
        if found is None:
            raise BadParameter(f'the parameter {name} must be true or false, not "{value}"')
        return found
    if isinstance(value, bool | tuple):
        raise BadParameter(f"the parameter {name} must be one number, not {value!r}")
    try:
        return kind(str(value))
    except ValueError:
        word = "a whole number" if kind is int else "a number"
        raise BadParameter(f'the parameter {name} must be {word}, not "{value}"') from None
