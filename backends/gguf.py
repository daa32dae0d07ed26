"""The metadata at the front of a GGUF file, read without its weights.

Source of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

MAGIC = b"GGUF"
CHAT_TEMPLATE = "tokenizer.chat_template"
POOLING = "pooling_type"
"""Ends the key, after the architecture, that only embedding models have: ``bert.pooling_type``."""

_STRING, _ARRAY = 8, 9
_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_LONGEST_KEY = 65_535
_LONGEST_STRING = 64 * 1024 * 1024
_MOST_FIELDS = 1_000_000

Value = bool | int | float | str


class GgufUnreadable(Exception):
    """The file is no GGUF file we can read; the message says why."""


def read_metadata(path: Path, wanted: Collection[str]) -> dict[str, Value]:
    """The fields of *path* whose keys are *wanted*, or end in one of them after a dot; arrays are left out.

    Blocks: a vocabulary of 150,000 tokens, which is passed over, takes a tenth of a second. Raises GgufUnreadable,
    OSError.
    """
    with path.open("rb") as file:
        try:
            return _read(file, wanted)
        except (struct.error, UnicodeDecodeError) as problem:
            raise GgufUnreadable(f"{path}: its GGUF header is cut off or damaged") from problem
        except GgufUnreadable as problem:
            raise GgufUnreadable(f"{path}: {problem}") from problem


def _read(file: BinaryIO, wanted: Collection[str]) -> dict[str, Value]:
    if file.read(4) != MAGIC:
        raise GgufUnreadable(f"is not a GGUF file (it does not begin with {MAGIC.decode()})")
    version, _, count = struct.unpack("<IQQ", file.read(20))
    if version not in (2, 3) or count > _MOST_FIELDS:
        raise GgufUnreadable(f"is a GGUF file of a form that is not known here (version {version})")
    found: dict[str, Value] = {}
    for _ in range(count):
        key = _string(file, _LONGEST_KEY)
        value = _value(file, _number(file, "<I"))
        if value is not None and (key in wanted or key.rpartition(".")[2] in wanted):
            found[key] = value
    return found


def _value(file: BinaryIO, kind: int) -> Value | None:
    """The value that follows, None for an array, which is passed over."""
    if kind == _STRING:
        return _string(file, _LONGEST_STRING)
    if kind == _ARRAY:
        _skip_array(file)
        return None
    if kind not in _FORMATS:
        raise GgufUnreadable(f"holds a value of an unknown kind ({kind})")
    value: Value = struct.unpack(_FORMATS[kind], file.read(struct.calcsize(_FORMATS[kind])))[0]
    return value


def _skip_array(file: BinaryIO) -> None:
    kind, count = struct.unpack("<IQ", file.read(12))
    if kind in _FORMATS:
        file.seek(struct.calcsize(_FORMATS[kind]) * count, 1)
        return
    for _ in range(count):
        if kind == _STRING:
            file.seek(_number(file, "<Q"), 1)
        else:
            _value(file, kind)


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
