"""Sizes and shapes read from the heads of weight files."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from backends.memory_estimate import NOTHING_KNOWN, WeightFacts
from backends.weight_facts import weight_facts

CONFIG = {
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64,
    "max_position_embeddings": 512,
}  # fmt: skip


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def pair(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def gguf(*pairs: bytes, tail: bytes = b"") -> bytes:
    """A GGUF file of version 3 with these metadata, and *tail* for tensors."""
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + b"".join(pairs) + tail


LLAMA = (
    pair("general.architecture", 8, text("llama")),
    pair("general.tags", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b")),
    pair("llama.block_count", 4, struct.pack("<I", 2)),
    pair("llama.attention.head_count", 4, struct.pack("<I", 4)),
    pair("llama.attention.head_count_kv", 9, struct.pack("<IQII", 5, 2, 2, 2)),
    pair("llama.embedding_length", 10, struct.pack("<Q", 64)),
    pair("llama.context_length", 4, struct.pack("<I", 512)),
    pair("llama.rope.freq_base", 6, struct.pack("<f", 1e4)),
)


def test_a_folder(tmp_path: Path) -> None:
    """A folder's safetensors are counted, not the same weights beside them in another format."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "a.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "b.safetensors").write_bytes(b"x" * 11)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 1000)
    assert weight_facts(tmp_path) == WeightFacts(111, 2 * 2 * 2 * 16 * 2, 512)


def test_a_gguf_file(tmp_path: Path) -> None:
    """A GGUF file tells its cache and context in its metadata; the tokenizer's are not read."""
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf(*LLAMA, pair("tokenizer.ggml.tokens", 99, b""), tail=b"x" * 50))
    assert weight_facts(file) == WeightFacts(file.stat().st_size, 2 * 2 * 32 * 2, 512)


def test_a_split_gguf_file(tmp_path: Path) -> None:
    """All parts of a split file count, and no other file does."""
    names = ["m[1]-00001-of-00002.gguf", "m[1]-00002-of-00002.gguf", "n-00002-of-00002.gguf"]
    for name in names:
        (tmp_path / name).write_bytes(gguf(*LLAMA))
    assert weight_facts(tmp_path / names[0]).weights_bytes == 2 * len(gguf(*LLAMA))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"GGUF", b"GGML" + b"\0" * 40, gguf(*LLAMA)[:60], gguf(pair("x", 99, b"")),
        gguf(pair("x", 9, struct.pack("<IQ", 0, 2**60))), gguf(struct.pack("<Q", 2**60)),
    ],
)  # fmt: skip
def test_broken_files_tell_nothing(tmp_path: Path, content: bytes) -> None:
    """A file cut off or garbled is no error here: nothing is known of it."""
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    assert weight_facts(file) == NOTHING_KNOWN


@pytest.mark.parametrize("config", ["{", "[]", ""])
def test_broken_folders(tmp_path: Path, config: str) -> None:
    """A folder whose config.json is no object tells at most its size."""
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "a.safetensors").write_bytes(b"x")
    assert weight_facts(tmp_path).cache_bytes_per_token == 0


def test_no_weights(tmp_path: Path) -> None:
    """No weights, and weights that are not there, tell nothing."""
    assert weight_facts(None) == weight_facts(tmp_path / "none") == weight_facts(tmp_path) == NOTHING_KNOWN
