"""Reading the front of GGUF files."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from backends.gguf import CHAT_TEMPLATE, GgufUnreadable, read_metadata, read_shape
from tests.gguf_files import CHATML, gguf_bytes


def test_wanted_fields_are_read_and_arrays_passed_over(tmp_path: Path) -> None:
    """By their whole key, or by what stands after its last dot."""
    file = tmp_path / "a.gguf"
    file.write_bytes(gguf_bytes(name="n"))
    assert read_metadata(file, {CHAT_TEMPLATE, "context_length"}) == {
        CHAT_TEMPLATE: CHATML,
        "llama.context_length": 8192,
    }
    assert read_metadata(file, {"general.name"}) == {"general.name": "n"}


def test_the_shape_of_a_model_stands_before_its_tokenizer(tmp_path: Path) -> None:
    """What comes before the vocabulary is read, short arrays too; the vocabulary itself is not looked at."""
    name, sizes = b"llama.attention.head_count_kv", struct.pack("<IQ3I", 4, 3, 4, 8, 4)
    field = struct.pack("<Q", len(name)) + name + struct.pack("<I", 9) + sizes
    vocabulary = struct.pack("<Q", 21) + b"tokenizer.ggml.tokens" + b"\xff" * 40
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + field + vocabulary)
    assert read_shape(file) == {"llama.attention.head_count_kv": (4, 8, 4)}


def test_an_array_longer_than_its_file_is_told(tmp_path: Path) -> None:
    """A count that no file can hold is damage, not an overflow."""
    field = struct.pack("<Q", 1) + b"x" + struct.pack("<IIQ", 9, 0, 2**62)
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + field)
    with pytest.raises(GgufUnreadable, match="impossible length"):
        read_shape(file)


def test_every_cut_of_a_header_is_told(tmp_path: Path) -> None:
    """A file that ends within its metadata is unreadable, wherever it ends; never anything else."""
    whole = gguf_bytes(weights=b"")
    end = whole.index(b"tokenizer.chat_template") + len(b"tokenizer.chat_template") + 4 + 8 + len(CHATML.encode())
    file = tmp_path / "a.gguf"
    for length in range(0, end, 7):
        file.write_bytes(whole[:length])
        with pytest.raises(GgufUnreadable, match=r"a\.gguf"):
            read_metadata(file, {CHAT_TEMPLATE})


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda raw: b"GGML" + raw[4:], "is not a GGUF file"),
        (lambda raw: raw[:4] + b"\1\0\0\0" + raw[8:], "version 1"),
        (lambda raw: raw[:24] + b"\xff" * 8 + raw[32:], "impossible length"),
    ],
)
def test_what_is_no_gguf_file(tmp_path: Path, damage: object, expected: str) -> None:
    """Another magic, an unknown version and absurd lengths are told apart."""
    file = tmp_path / "a.gguf"
    file.write_bytes(damage(gguf_bytes()))  # type: ignore[operator]
    with pytest.raises(GgufUnreadable, match=expected):
        read_metadata(file, ())
