"""The metadata at the front of a GGUF file, read without its weights.

Source of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

MAGIC = b"GGUF"
CHAT_TEMPLATE = "tokenizer.chat_template"
EOS = "tokenizer.ggml.eos_token_id"
FURTHER_ENDS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
"""The keys that name ends of generation beside EOS, for llama.cpp (src/llama-vocab.cpp, special_eog_ids, b11434)."""
POOLING = "pooling_type"
"""Ends the key, after the architecture, that only embedding models have: ``bert.pooling_type``."""

_STRING, _ARRAY = 8, 9
_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_LONGEST_KEY = 65_535
_LONGEST_STRING = 64 * 1024 * 1024
_MOST_FIELDS = 1_000_000

_MOST_NUMBERS = 4096
"""Arrays of more numbers than this are passed over: they are the vocabulary's, not the model's shape."""

Scalar = bool | int | float | str
Value = Scalar | tuple[Scalar, ...]


class GgufUnreadable(Exception):
    """The file is no GGUF file we can read; the message says why."""


def read_metadata(path: Path, wanted: Collection[str]) -> dict[str, Value]:
    """The fields of *path* whose keys are *wanted*, or end in one of them after a dot.

    Blocks: a vocabulary of 150,000 tokens, which is passed over, takes a tenth of a second. Raises GgufUnreadable,
    OSError.
    """
    with _opened(path) as file:
        return {key: value for key, value in _fields(file) if key in wanted or key.rpartition(".")[2] in wanted}


def read_shape(path: Path) -> dict[str, Value]:
    """The fields of *path* that stand before its tokenizer's, which are the bulk of it. Raises as `read_metadata`."""
    with _opened(path) as file:
        return dict(_fields(file, until="tokenizer."))


def further_ends(path: Path | None, stop_ids: Iterable[int]) -> dict[str, int]:
    """Keys with those of *stop_ids* that are not the EOS of *path*, as many as there are keys for.

    Blocks as `read_metadata` does. A file that cannot be read has no EOS: whoever loads it says more.
    """
    eos: Value | None = None
    if path is not None:
        with contextlib.suppress(GgufUnreadable, OSError):
            eos = read_metadata(path, {EOS}).get(EOS)
    return dict(zip(FURTHER_ENDS, (one for one in stop_ids if one != eos), strict=False))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with path.open("rb") as file:
        try:
            yield file
        except (struct.error, UnicodeDecodeError) as problem:
            raise GgufUnreadable(f"{path}: its GGUF header is cut off or damaged") from problem
        except GgufUnreadable as problem:
            raise GgufUnreadable(f"{path}: {problem}") from problem


def _fields(file: BinaryIO, until: str | None = None) -> Iterator[tuple[str, Value]]:
    """Every number, text and short array of numbers, in order, before the first key that begins with *until*."""
    if file.read(4) != MAGIC:
        raise GgufUnreadable(f"is not a GGUF file (it does not begin with {MAGIC.decode()})")
    version, _, count = struct.unpack("<IQQ", file.read(20))
    if version not in (2, 3) or count > _MOST_FIELDS:
        raise GgufUnreadable(f"is a GGUF file of a form that is not known here (version {version})")
    for _ in range(count):
        key = _string(file, _LONGEST_KEY)
        if until is not None and key.startswith(until):
            return
        value = _value(file, _number(file, "<I"))
        if value is not None:
            yield key, value


def _value(file: BinaryIO, kind: int) -> Value | None:
    """The value that follows, None for an array that is passed over."""
    if kind == _STRING:
        return _string(file, _LONGEST_STRING)
    if kind == _ARRAY:
        return _array(file)
    if kind not in _FORMATS:
        raise GgufUnreadable(f"holds a value of an unknown kind ({kind})")
    value: Scalar = struct.unpack(_FORMATS[kind], file.read(struct.calcsize(_FORMATS[kind])))[0]
    return value


def _array(file: BinaryIO) -> tuple[Scalar, ...] | None:
    kind, count = struct.unpack("<IQ", file.read(12))
    if kind in _FORMATS:
        size = struct.calcsize(_FORMATS[kind])
        if count <= _MOST_NUMBERS:
            raw = file.read(size * count)
            return tuple(number for (number,) in struct.iter_unpack(_FORMATS[kind], raw))
        _skip(file, size * count)
        return None
    for _ in range(count):
        if kind == _STRING:
            _skip(file, _number(file, "<Q"))
        else:
            _value(file, kind)
    return None


def _skip(file: BinaryIO, count: int) -> None:
    if count > os.fstat(file.fileno()).st_size:
        raise GgufUnreadable("holds an array or a text of an impossible length")
    file.seek(count, 1)


def _string(file: BinaryIO, longest: int) -> str:
    length = _number(file, "<Q")
    if length > longest:
        raise GgufUnreadable("holds a text of an impossible length")
    raw = file.read(length)
    if len(raw) < length:
        raise struct.error("the file ends within a text")
    return raw.decode("utf-8")


def _number(file: BinaryIO, form: str) -> int:
    number: int = struct.unpack(form, file.read(struct.calcsize(form)))[0]
    return number
