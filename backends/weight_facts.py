"""What the files of weights say of the memory they will take: sizes, and the shape of the cache. Reads headers only."""

from __future__ import annotations

import contextlib
import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from backends.memory_estimate import (
    NOTHING_KNOWN,
    WeightFacts,
    cache_bytes_per_token,
    context_length_of,
    gguf_cache_bytes_per_token,
    gguf_context_length,
)
from backends.weights import GGUF_MAGIC, WEIGHT_SUFFIXES

MAX_METADATA_BYTES = 64 * 1024 * 1024
"""Metadata beyond this is not read: a file that claims more is broken."""

# GGUF value types: the format struct needs, by number (docs/gguf.md of ggml).
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def weight_facts(weights: Path | None) -> WeightFacts:
    """What is known of *weights*, a folder or a GGUF file; nothing of what cannot be read. Blocks for milliseconds."""
    if weights is None:
        return NOTHING_KNOWN
    with contextlib.suppress(OSError, ValueError, struct.error, UnicodeDecodeError):
        return _of_folder(weights) if weights.is_dir() else _of_gguf(weights)
    return NOTHING_KNOWN


def _of_folder(folder: Path) -> WeightFacts:
    files = [path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES]
    # The same weights often lie there twice, and engines prefer safetensors.
    best = [path for path in files if path.suffix == ".safetensors"] or files
    size = sum(path.stat().st_size for path in best)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, Mapping):
        return WeightFacts(size)
    return WeightFacts(size, cache_bytes_per_token(config), context_length_of(config))


def _of_gguf(file: Path) -> WeightFacts:
    size = sum(path.stat().st_size for path in _parts(file))
    metadata = read_gguf_metadata(file)
    return WeightFacts(size, gguf_cache_bytes_per_token(metadata), gguf_context_length(metadata))


def _parts(file: Path) -> list[Path]:
    """All files of a GGUF split in parts (``…-00001-of-00003.gguf``, tools/gguf-split of llama.cpp)."""
    split = re.fullmatch(r"(.*-)\d{5}(-of-\d{5}\.gguf)", file.name)
    if split is None:
        return [file]
    return sorted(file.parent.glob(f"{_literally(split[1])}?????{_literally(split[2])}"))


def _literally(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)


def read_gguf_metadata(file: Path) -> dict[str, Any]:
    """The metadata of a GGUF file up to its tokenizer's. Raises ValueError, struct.error and OSError."""
    with file.open("rb") as opened:
        if opened.read(4) != GGUF_MAGIC:
            raise ValueError("not a GGUF file")
        _, _, count = struct.unpack("<IQQ", opened.read(20))
        metadata: dict[str, Any] = {}
        for _ in range(count):
            name = _read_string(opened)
            # The tokenizer's vocabulary is the bulk of it, and comes after the model's own keys.
            if name.startswith("tokenizer.") or opened.tell() > MAX_METADATA_BYTES:
                break
            metadata[name] = _read_value(opened, *struct.unpack("<I", opened.read(4)))
        return metadata


def _read_value(opened: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _read_string(opened)
    if kind == _ARRAY:
        item, count = struct.unpack("<IQ", opened.read(12))
        if count > MAX_METADATA_BYTES:
            raise ValueError("an array without end")
        return [_read_value(opened, item) for _ in range(count)]
    if kind not in _NUMBERS:
        raise ValueError(f"unknown GGUF type {kind}")
    form = f"<{_NUMBERS[kind]}"
    return struct.unpack(form, opened.read(struct.calcsize(form)))[0]


def _read_string(opened: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", opened.read(8))
    if length > MAX_METADATA_BYTES:
        raise ValueError("a string without end")
    return opened.read(length).decode()
