"""What weights, caches and engines are reckoned to take."""

from __future__ import annotations

from typing import Any

import pytest

from backends.memory_estimate import (
    GIB,
    NO_NEED,
    NOTHING_KNOWN,
    MemoryNeed,
    WeightFacts,
    as_learnt,
    cache_bytes_per_token,
    context_length_of,
    exactly,
    gguf_cache_bytes_per_token,
    gguf_context_length,
    reckoned,
)

QWEN = {
    "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "hidden_size": 1536,
    "max_position_embeddings": 32768,
}  # fmt: skip
"""Qwen2.5-1.5B-Instruct's config.json."""


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (QWEN, 2 * 28 * 2 * 128 * 2),
        ({"text_config": QWEN}, 2 * 28 * 2 * 128 * 2),
        ({**QWEN, "head_dim": 64}, 2 * 28 * 2 * 64 * 2),
        ({"num_hidden_layers": 10, "num_attention_heads": 4, "hidden_size": 64}, 2 * 10 * 4 * 16 * 2),
        ({"num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, 61 * 576 * 2),
        ({}, 0),
        ({"num_hidden_layers": "many", "num_attention_heads": True}, 0),
    ],
)
def test_cache_per_token(config: dict[str, Any], expected: int) -> None:
    """A token takes keys and values of every layer, or one latent vector; 0 where the fields are not the usual ones."""
    assert cache_bytes_per_token(config) == expected


def test_context_length() -> None:
    """The longest context is the text's own; none where it is not told."""
    assert context_length_of({"text_config": QWEN}) == context_length_of(QWEN) == 32768
    assert context_length_of({}) is None


def test_gguf_metadata() -> None:
    """A GGUF file's keys carry its architecture's name; heads may differ by layer, and the largest counts."""
    metadata = {
        "general.architecture": "llama", "llama.block_count": 30, "llama.attention.head_count": 9,
        "llama.attention.head_count_kv": [3, 3, 1], "llama.embedding_length": 576, "llama.context_length": 8192,
    }  # fmt: skip
    assert gguf_cache_bytes_per_token(metadata) == 30 * 3 * (64 + 64) * 2
    assert gguf_context_length(metadata) == 8192
    wide = {**metadata, "llama.attention.key_length": 192, "llama.attention.value_length": 128}
    assert gguf_cache_bytes_per_token(wide) == 30 * 3 * (192 + 128) * 2
    assert gguf_cache_bytes_per_token({}) == 0
    assert gguf_context_length({}) is None


def test_weights_and_cache_are_shared_out() -> None:
    """On two devices each holds half of weights and cache, and an overhead of its own."""
    need = reckoned(WeightFacts(10 * GIB, 1024, 4096), 2048, GIB, sequences=4)
    assert (need.weights_bytes, need.cache_bytes) == (10 * GIB, 1024 * 2048 * 4)
    assert need.on_each(1, 24 * GIB) == 11 * GIB + 8 * 1024**2
    assert need.on_each(2, 24 * GIB) == 6 * GIB + 4 * 1024**2
    assert (need.least_on_each(1), need.least_on_each(2)) == (10 * GIB, 5 * GIB)


def test_the_model_s_own_context() -> None:
    """Without a configured context length, the cache is reckoned for the model's own; without either, for none."""
    assert reckoned(WeightFacts(GIB, 1024, 4096), None, 0).cache_bytes == 1024 * 4096
    assert reckoned(WeightFacts(GIB, 1024), None, 0).cache_bytes == 0


def test_nothing_known_claims_nothing() -> None:
    """Weights that cannot be read claim no memory: the engine will say what is wrong with them."""
    assert reckoned(NOTHING_KNOWN, 4096, GIB) == NO_NEED
    assert NO_NEED.on_each(1, GIB) == 0


def test_shares() -> None:
    """An engine may take a share of the whole device, or of what its weights leave of it."""
    assert MemoryNeed(GIB, fraction=0.5).on_each(1, 24 * GIB) == 12 * GIB
    assert MemoryNeed(4 * GIB, free_share=0.5).on_each(1, 24 * GIB) == 14 * GIB
    assert MemoryNeed(40 * GIB, free_share=0.5).on_each(1, 24 * GIB) == 40 * GIB


def test_what_is_stated_and_what_is_learnt() -> None:
    """A stated figure is firm and exact on each device; a learnt one is a guess with a margin, shared out."""
    assert (exactly(GIB).on_each(2, 24 * GIB), exactly(GIB).is_firm) == (GIB, True)
    assert (as_learnt(100).on_each(1, 24 * GIB), as_learnt(100).is_firm) == (105, False)
    assert as_learnt(100).on_each(2, 24 * GIB) == 53


def test_weights_that_may_stay_elsewhere() -> None:
    """An engine that maps its weights needs none of them on the device."""
    assert reckoned(WeightFacts(GIB), None, 0, needs_all=False).least_on_each(1) == 0
