"""How much memory an engine will take for a model, reckoned from its weights and its cache. Pure.

A reckoning, not a promise: activations, CUDA graphs and fragmentation are in a flat overhead. What a run really took is
learnt (`learnt.py`), and what an operator writes as ``memory_gib`` wins over both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GIB = 1024**3

CACHE_ELEMENT_BYTES = 2
"""The KV cache is kept in 16 bits unless an engine is told otherwise."""


@dataclass(frozen=True, slots=True)
class WeightFacts:
    """What the files say of a model. *weights_bytes* 0: nothing is known, and nothing will be claimed.

    *cache_bytes_per_token* is the KV cache's growth, 0 when the files do not tell; *context_length* is the longest the
    model was made for, in tokens.
    """

    weights_bytes: int = 0
    cache_bytes_per_token: int = 0
    context_length: int | None = None

    @property
    def is_known(self) -> bool:
        """Whether there is anything to reckon with."""
        return self.weights_bytes > 0


NOTHING_KNOWN = WeightFacts()


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What one run will take. *weights_bytes* and *cache_bytes* are shared out evenly among its devices, and
    *overhead_bytes* come on top on each.

    *fraction*: the engine takes this share of each device's memory, whatever the model (vLLM's
    ``gpu_memory_utilization``); *free_share*: this share of what the weights leave (LMDeploy's
    ``cache_max_entry_count``). *is_firm*: the figure is what will be taken, so it must be free; else it is a guess,
    and a device that has less than it in all may still do. *needs_all_weights*: nothing can be left elsewhere.
    """

    weights_bytes: int = 0
    cache_bytes: int = 0
    overhead_bytes: int = 0
    fraction: float | None = None
    free_share: float | None = None
    is_firm: bool = False
    needs_all_weights: bool = True

    def on_each(self, count: int, total_bytes: int) -> int:
        """Bytes on each of *count* devices of *total_bytes*."""
        if self.fraction is not None:
            return int(total_bytes * self.fraction)
        fixed = -(-self.weights_bytes // count) + self.overhead_bytes
        if self.free_share is not None:
            return fixed + int(max(0, total_bytes - fixed) * self.free_share)
        return fixed + -(-self.cache_bytes // count)

    def least_on_each(self, count: int) -> int:
        """Bytes without which it cannot load at all."""
        return -(-self.weights_bytes // count) if self.needs_all_weights else 0


NO_NEED = MemoryNeed()


def exactly(bytes_on_each: int) -> MemoryNeed:
    """A need that somebody has stated: so much on each device."""
    return MemoryNeed(overhead_bytes=bytes_on_each, is_firm=True)


def as_learnt(bytes_in_all: int, margin: float = 0.05) -> MemoryNeed:
    """A need that an earlier run has shown, shared out evenly, with a margin: its peak may have been missed."""
    return MemoryNeed(cache_bytes=int(bytes_in_all * (1 + margin)))


def reckoned(
    facts: WeightFacts, context_length: int | None, overhead_bytes: int, *, sequences: int = 1, needs_all: bool = True
) -> MemoryNeed:
    """Weights, the cache of *sequences* requests of the full context, and *overhead_bytes*. Nothing known: no need."""
    if not facts.is_known:
        return NO_NEED
    tokens = context_length or facts.context_length or 0
    cache = facts.cache_bytes_per_token * tokens * sequences
    return MemoryNeed(facts.weights_bytes, cache, overhead_bytes, needs_all_weights=needs_all)


def cache_bytes_per_token(config: Mapping[str, Any]) -> int:
    """The KV cache's growth of a Hugging Face ``config.json``, 0 when it has not the usual fields.

    Keys and values of every layer: 2 x layers x KV heads x head size x 2 bytes. Of a model with more parts than text,
    the text's (``text_config``). Multi-head latent attention (DeepSeek) caches one compressed vector per layer instead.
    """
    text = config.get("text_config")
    fields = text if isinstance(text, Mapping) else config
    layers, heads = _count(fields, "num_hidden_layers"), _count(fields, "num_attention_heads")
    latent = _count(fields, "kv_lora_rank")
    if latent:
        return layers * (latent + _count(fields, "qk_rope_head_dim")) * CACHE_ELEMENT_BYTES
    kv_heads = _count(fields, "num_key_value_heads") or heads
    head_size = _count(fields, "head_dim") or (_count(fields, "hidden_size") // heads if heads else 0)
    return 2 * layers * kv_heads * head_size * CACHE_ELEMENT_BYTES


def context_length_of(config: Mapping[str, Any]) -> int | None:
    """``max_position_embeddings`` of a ``config.json``, in tokens."""
    text = config.get("text_config")
    return _count(text if isinstance(text, Mapping) else config, "max_position_embeddings") or None


def gguf_cache_bytes_per_token(metadata: Mapping[str, Any]) -> int:
    """As `cache_bytes_per_token`, of a GGUF file's metadata (gguf-py/gguf/constants.py of llama.cpp names the keys)."""
    architecture = metadata.get("general.architecture")
    fields = {key.removeprefix(f"{architecture}."): value for key, value in metadata.items()}
    layers, heads = _count(fields, "block_count"), _count(fields, "attention.head_count")
    kv_heads = _count(fields, "attention.head_count_kv") or heads
    head_size = _count(fields, "embedding_length") // heads if heads else 0
    key, value = _count(fields, "attention.key_length"), _count(fields, "attention.value_length")
    return layers * kv_heads * ((key or head_size) + (value or head_size)) * CACHE_ELEMENT_BYTES


def gguf_context_length(metadata: Mapping[str, Any]) -> int | None:
    """The context a GGUF model was made for, in tokens."""
    return _count(metadata, f"{metadata.get('general.architecture')}.context_length") or None


def _count(fields: Mapping[str, Any], name: str) -> int:
    """A positive whole number of *fields*; 0 for what is missing or something else (per-layer lists: their largest)."""
    value = fields.get(name)
    if isinstance(value, list | tuple) and value:
        value = max((item for item in value if isinstance(item, int)), default=0)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
