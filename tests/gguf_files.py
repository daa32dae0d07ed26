"""GGUF files that hold metadata and a few bytes of weights: enough for whoever reads a header, or hashes a file."""

from __future__ import annotations

import struct
from pathlib import Path

CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are SmolLM.<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""A template like SmolLM2's: ChatML with a default system message, which Ollama's own ChatML does not have."""

TOKENS = ("a", "b", "<|im_start|>", "<|im_end|>")

_UINT32, _STRING, _ARRAY = 4, 8, 9


def gguf_bytes(
    template: str | None = CHATML,
    *,
    name: str = "tiny",
    weights: bytes = b"\0" * 64,
    eos: int | None = None,
    architecture: str = "llama",
) -> bytes:
    """A GGUF file of version 3 with one tensor; *name* and *weights* make it differ from others."""
    fields = [
        ("general.architecture", _STRING, _text(architecture)),
        ("general.name", _STRING, _text(name)),
        ("llama.context_length", _UINT32, struct.pack("<I", 8192)),
        ("tokenizer.ggml.tokens", _ARRAY, struct.pack("<IQ", _STRING, len(TOKENS)) + b"".join(map(_text, TOKENS))),
        ("tokenizer.ggml.token_type", _ARRAY, struct.pack("<IQIIII", _UINT32, len(TOKENS), 1, 1, 3, 3)),
    ]
    if eos is not None:
        fields.append(("tokenizer.ggml.eos_token_id", _UINT32, struct.pack("<I", eos)))
    if template is not None:
        fields.append(("tokenizer.chat_template", _STRING, _text(template)))
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, len(fields))
    header += b"".join(_text(key) + struct.pack("<I", kind) + value for key, kind, value in fields)
    header += _text("w") + struct.pack("<IQIQ", 1, len(weights) // 4, 0, 0)
    return header + b"\0" * (-len(header) % 32) + weights


def write_gguf(path: Path, template: str | None = CHATML, *, name: str = "tiny", eos: int | None = None) -> Path:
    """Such a file at *path*, which is returned."""
    path.write_bytes(gguf_bytes(template, name=name, eos=eos))
    return path


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw
