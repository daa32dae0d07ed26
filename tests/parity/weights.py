"""The model that every engine of the table serves: SmolLM2-135M-Instruct, cut down to the first of its 30 layers.

A prompt is made by the template and the tokenizer, which are whole; the layers only cost time. With one of them an
engine reads a thousand tokens in the time it otherwise reads thirty, so that it can be watched in every cell.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import gguf
import safetensors.numpy

from gateway.starter_model import default_cache_dir
from tests.engines.environment import gguf_model, hf_model

LAYERS = "num_hidden_layers"


def cut_gguf() -> Path:
    """The model as a GGUF file; made now where it is missing, because that takes seconds."""
    source = gguf_model()
    target = _folder() / f"{source.stem}-1-layer.gguf"
    if not target.exists():
        _write_gguf(source, target)
    return target


def cut_folder() -> Path:
    """The model as a Hugging Face folder; made now where it is missing."""
    source = hf_model()
    target = _folder() / f"{source.name}-1-layer"
    if not target.exists():
        _write_folder(source, target)
    return target


def _folder() -> Path:
    folder = default_cache_dir(os.environ).parent / "parity"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write_gguf(source: Path, target: Path) -> None:
    reader = gguf.GGUFReader(source)
    partial = target.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, str(reader.fields["general.architecture"].contents()))
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value: Any = 1 if field.name.endswith(".block_count") else field.contents()
        kind, *items = field.types
        writer.add_key_value(field.name, value, kind, items[0] if items else None)
    for tensor in reader.tensors:
        block, _, rest = tensor.name.partition(".")
        if block != "blk" or rest.startswith("0."):
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(target)


def _write_folder(source: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / "model"
        shutil.copytree(source, made, ignore=shutil.ignore_patterns("*.safetensors"))
        tensors = safetensors.numpy.load_file(source / "model.safetensors")
        kept = {name: one for name, one in tensors.items() if ".layers." not in name or ".layers.0." in name}
        safetensors.numpy.save_file(kept, made / "model.safetensors", {"format": "pt"})
        config = json.loads((source / "config.json").read_text("utf-8"))
        (made / "config.json").write_text(json.dumps(config | {LAYERS: 1}, indent=2))
        made.rename(target)
