"""What a look at the files can tell about weights, without loading them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from backends.adapter import Objection
from backends.gguf import MAGIC
from backends.sources import HubSource, RemoteSource

LFS_START = b"version "
"""What a Git LFS pointer begins with, as far as it is looked at (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md)."""
HEADER_LIMIT_BYTES = 100_000_000
"""The most that safetensors itself takes for a header."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt")


def missing_problem(weights: Path) -> str | None:
    """A sentence when there is nothing at *weights*, naming the deepest folder that does exist."""
    if weights.exists():
        return None
    parent = next((folder for folder in weights.parents if folder.exists()), None)
    return f"{weights}: there is no such file or folder" + (f" ({parent} exists)" if parent is not None else "")


def gguf_problem(weights: Path) -> str | None:
    """What is wrong with *weights* as one GGUF file."""
    missing = missing_problem(weights)
    if missing is not None:
        return missing
    if weights.is_dir():
        inside = sorted(path.name for path in weights.glob("*.gguf"))
        hint = f"; did you mean {weights / inside[0]}?" if inside else "; this engine takes one .gguf file"
        return f"{weights}: is a folder{hint}"
    with weights.open("rb") as file:
        if file.read(4) != MAGIC:
            return f"{weights}: is not a GGUF file (it does not begin with {MAGIC.decode()})"
    return None


def gguf_source_objections(source: RemoteSource | None) -> Iterable[Objection]:
    """An Objection to a *source* on a hub that is not one GGUF file."""
    if isinstance(source, HubSource) and not source.file.endswith(".gguf"):
        remedy = "name the file, such as hf:ORG/NAME:model-q4_k_m.gguf"
        yield Objection(("weights",), "names no GGUF file, and this engine takes one", remedy)


def folder_source_objections(source: RemoteSource | None, *, takes_gguf: bool) -> Iterable[Objection]:
    """An Objection to a *source* on a hub that is one file, unless that is GGUF and the engine takes it."""
    if isinstance(source, HubSource) and source.file and not (takes_gguf and source.file.endswith(".gguf")):
        whole = HubSource(source.hub, source.repo, source.revision)
        kind = "a model folder or a GGUF file" if takes_gguf else "a model folder"
        yield Objection(("weights",), f"names one file, and this engine takes {kind}", f"write {whole}")


def hf_folder_problem(weights: Path) -> str | None:
    """What is wrong with *weights* as a Hugging Face model folder. A GGUF file passes."""
    missing = missing_problem(weights)
    if missing is not None:
        return missing
    if weights.is_file():
        return gguf_problem(weights)
    config = weights / "config.json"
    if not config.is_file():
        if (weights / "adapter_config.json").is_file():
            return f"{weights}: holds a LoRA adapter, not a whole model; merge it into its base first"
        return f"{weights}: has no config.json, so it is not a model folder"
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except ValueError as problem:
        return f"{config}: is not JSON ({problem})"
    if not any(path.suffix in WEIGHT_SUFFIXES for path in weights.iterdir()):
        return f"{weights}: holds no weights (*.safetensors or *.bin), as an unfinished download"
    return _missing_shard(weights) or next(filter(None, map(_damage, sorted(weights.glob("*.safetensors")))), None)


def _damage(file: Path) -> str | None:
    """What is seen at once of a broken safetensors file: a pointer in its place, or an end that is missing.

    The format: 8 bytes of length, so many of JSON, then the tensors (https://github.com/huggingface/safetensors). What
    is no such file at all is left to the engine to tell.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        length = int.from_bytes(start, "little")
        if start == LFS_START:
            return f"{file}: is a Git LFS pointer, not weights; download the file itself (git lfs pull)"
        if length > HEADER_LIMIT_BYTES:
            return None
        try:
            header = json.loads(opened.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, LookupError, TypeError, AttributeError):
            return None
    whole = 8 + length + max(ends, default=0)
    return f"{file}: has {size:,} of {whole:,} bytes; finish the download" if size < whole else None


def _missing_shard(weights: Path) -> str | None:
    index = weights / "model.safetensors.index.json"
    if not index.is_file():
        return None
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        return f"{index}: is not a weight index"
    lost = sorted(shard for shard in shards if not (weights / str(shard)).is_file())
    if not lost:
        return None
    return f"{weights}: {len(lost)} of {len(shards)} weight files are missing, {lost[0]} first; finish the download"
