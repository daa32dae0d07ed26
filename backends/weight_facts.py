"""What the files of weights say of the memory they will take: sizes, and the shape of the cache. Reads headers only."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from backends.gguf import GgufUnreadable, read_shape
from backends.memory_estimate import (
    NOTHING_KNOWN,
    WeightFacts,
    cache_bytes_per_token,
    context_length_of,
    gguf_cache_bytes_per_token,
    gguf_context_length,
)
from backends.weights import WEIGHT_SUFFIXES


def weight_facts(weights: Path | None) -> WeightFacts:
    """What is known of *weights*, a folder or a GGUF file; nothing of what cannot be read. Blocks for milliseconds."""
    if weights is None:
        return NOTHING_KNOWN
    with contextlib.suppress(OSError, ValueError, GgufUnreadable):
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
    metadata = read_shape(file)
    return WeightFacts(size, gguf_cache_bytes_per_token(metadata), gguf_context_length(metadata))


def _parts(file: Path) -> list[Path]:
    """All files of a GGUF split in parts (``…-00001-of-00003.gguf``, tools/gguf-split of llama.cpp)."""
    split = re.fullmatch(r"(.*-)\d{5}(-of-\d{5}\.gguf)", file.name)
    if split is None:
        return [file]
    return sorted(file.parent.glob(f"{_literally(split[1])}?????{_literally(split[2])}"))


def _literally(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)
