"""A small LoRA adapter for the starter model, random and the same every time, as PEFT and as llama.cpp keep one."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

RANK = 4
ALPHA = 8.0
LAYERS = 30
HIDDEN = 576
# Not q_proj and k_proj: llama.cpp keeps those two in another order of rows.
MODULES = {"v_proj": ("attn_v", HIDDEN, 192), "o_proj": ("attn_output", HIDDEN, HIDDEN)}
"""PEFT's name -> llama.cpp's name, inputs, outputs."""

Tensor = NDArray[np.float32]


def matrices(seed: int) -> dict[tuple[int, str], tuple[Tensor, Tensor]]:
    """(layer, module) -> A of RANK x inputs and B of outputs x RANK."""
    random = np.random.default_rng(seed)
    return {
        (layer, module): (
            random.normal(0, inputs**-0.5, (RANK, inputs)).astype(np.float32),
            random.normal(0, 0.3, (outputs, RANK)).astype(np.float32),
        )
        for layer in range(LAYERS)
        for module, (_, inputs, outputs) in MODULES.items()
    }


def peft_adapter(folder: Path, seed: int = 1, *, rank: int = RANK, value_module: str = "v_proj") -> Path:
    """The adapter as a folder in PEFT's format. *rank* and *value_module* are what it says, wrongly if need be."""
    folder.mkdir()
    names = {module: value_module if module == "v_proj" else module for module in MODULES}
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": ALPHA, "bias": "none",
        "target_modules": [*names.values()], "base_model_name_or_path": "SmolLM2-135M-Instruct",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors: dict[str, Tensor] = {}
    for (layer, module), (a, b) in matrices(seed).items():
        name = f"base_model.model.model.layers.{layer}.self_attn.{names[module]}"
        tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    return folder


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """The format is a length, a JSON header and the bytes (https://github.com/huggingface/safetensors)."""
    header: dict[str, object] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.tobytes())


def gguf_adapter(path: Path, seed: int = 1, *, architecture: str = "llama") -> Path:
    """The same adapter as a GGUF file, as llama.cpp's convert_lora_to_gguf.py would write it."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, ALPHA)
    for (layer, module), (a, b) in matrices(seed).items():
        name = f"blk.{layer}.{MODULES[module][0]}.weight"
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
