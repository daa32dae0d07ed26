"""What a look at the files can tell about a LoRA adapter, without loading it.

The format is PEFT's: a folder with ``adapter_config.json`` and ``adapter_model.safetensors`` (or ``.bin``), as
``peft.PeftModel.save_pretrained`` and LLaMA-Factory leave it (https://huggingface.co/docs/peft/developer_guides/checkpoint).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backends.weights import gguf_problem, missing_problem

CONFIG = "adapter_config.json"
TENSORS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")


def peft_problem(adapter: Path) -> str | None:
    """What is wrong with *adapter* as a folder in PEFT's format."""
    missing = missing_problem(adapter)
    if missing is not None:
        return missing
    if adapter.is_file():
        return f"{adapter}: is a file; this engine takes an adapter's folder (a GGUF file is for llamacpp)"
    if not (adapter / CONFIG).is_file():
        merged = " but a config.json: it is a whole model" if (adapter / "config.json").is_file() else ""
        return f"{adapter}: has no {CONFIG}{merged}, so it is not a LoRA adapter"
    try:
        config = _read(adapter)
    except ValueError as problem:
        return f"{adapter / CONFIG}: {problem}"
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        return f"{adapter}: is an adapter of type {kind}, not LORA"
    if _rank(config) is None:
        return f"{adapter / CONFIG}: has no rank (r: a whole number above 0)"
    if not any((adapter / name).is_file() for name in TENSORS):
        return f"{adapter}: holds no {TENSORS[0]}, as an unfinished download"
    return None


def gguf_adapter_problem(adapter: Path) -> str | None:
    """What is wrong with *adapter* as a GGUF file."""
    if (adapter / CONFIG).is_file():
        convert = f"convert_lora_to_gguf.py --base WEIGHTS_FOLDER --outfile {adapter}.gguf {adapter}"
        return f"{adapter}: is a folder in PEFT's format; llama.cpp takes a GGUF file, made by its own {convert}"
    return gguf_problem(adapter)


def highest_rank(adapter: Path) -> int | None:
    """The highest rank in the folder *adapter*; None where it cannot be read. Reads one small file."""
    try:
        return _rank(_read(adapter))
    except (OSError, ValueError):
        return None


def base_doubt(adapter: Path, weights: Path) -> str | None:
    """A sentence when *adapter* says that it was trained on a model of another name than *weights* has."""
    try:
        trained_on = _read(adapter).get("base_model_name_or_path")
    except (OSError, ValueError):
        return None
    name = Path(trained_on).name.casefold() if isinstance(trained_on, str) else ""
    # Also where a cache names only a folder above, models--Qwen--Qwen2.5-1.5B/snapshots/8faed761, or with a revision.
    if not name or any(_model_name(part) == name for part in weights.parts):
        return None
    return f"{adapter}: was trained on {trained_on}; see that {weights} is that model"


def _model_name(part: str) -> str:
    """The name of a model that a folder may be called after: without organisation and revision, without case."""
    return part.casefold().rpartition("--")[2].partition("@")[0]


def _read(adapter: Path) -> Mapping[str, Any]:
    """The adapter's configuration. Raises OSError, and ValueError with what is wrong with it."""
    try:
        config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    except ValueError as problem:
        raise ValueError(f"is not JSON ({problem})") from None
    if not isinstance(config, dict):
        raise ValueError("is not a JSON object")
    return config


def _rank(config: Mapping[str, Any]) -> int | None:
    pattern = config.get("rank_pattern")
    named = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    ranks = [rank for rank in named if isinstance(rank, int) and not isinstance(rank, bool) and rank > 0]
    return max(ranks) if len(ranks) == len(named) else None
