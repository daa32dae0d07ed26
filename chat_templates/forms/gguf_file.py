"""A GGUF file with another chat template: everything else, tensors above all, byte for byte as it was.

Format: docs/gguf.md of ggml, versions 2 and 3, little-endian. Offsets of tensors count from where their data begins, so
a header of another length moves them all and changes none. The header is copied in pieces, the data as a stream: memory
does not depend on the size of the file.
"""

from __future__ import annotations

import io
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from chat_templates.model_folder import DEFAULT
from chat_templates.refusals import Unwritable

MAGIC = b"GGUF"
VERSIONS = (2, 3)
TEMPLATE_KEY = "tokenizer.chat_template"
TOKENS_KEY = "tokenizer.ggml.tokens"
NAMES_KEY = "tokenizer.chat_templates"
"""The names of those that are not the default one (gguf-py/gguf/gguf_writer.py, `add_chat_template`)."""
DEFAULT_ALIGNMENT = 32
COPY_BYTES = 16 * 1024 * 1024
KEY_LIMIT_BYTES = 65535
_UINT32, _STRING, _ARRAY = 4, 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TOKEN_IDS = {"bos_token": "bos_token_id", "eos_token": "eos_token_id"}


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Where everything is. values: texts, numbers and truth values by key. entries: begin and end of each key with its
    value, in bytes. tensors: begin and end of the tensors' descriptions; data: where their bytes begin.
    """

    version: int
    tensor_count: int
    values: Mapping[str, Any]
    entries: Mapping[str, tuple[int, int]]
    tensors: tuple[int, int]
    data: int

    @property
    def alignment(self) -> int:
        """What the beginning of the data is a multiple of, in bytes."""
        return int(self.values.get("general.alignment", DEFAULT_ALIGNMENT))


def read_header(path: Path) -> GgufHeader:
    """The header of *path*. Raises Unwritable."""
    try:
        with path.open("rb") as file:
            return _header(file, path.stat().st_size)
    except OSError as problem:
        raise Unwritable(f"{path}: {problem.strerror}") from problem
    except (ValueError, struct.error) as problem:
        raise Unwritable(f"{path}: is no GGUF file that can be read: {problem}") from problem


def special_tokens(path: Path) -> dict[str, str]:
    """BOS and EOS of *path*'s vocabulary, as llama.cpp gives them to templates. Raises Unwritable."""
    header, wanted = read_header(path), {}
    for name, key in _TOKEN_IDS.items():
        index = header.values.get(f"tokenizer.ggml.{key}")
        if isinstance(index, int) and TOKENS_KEY in header.entries:
            wanted[name] = index
    if not wanted:
        return {}
    tokens = _tokens(path, header, max(wanted.values()) + 1)
    return {name: tokens[index] for name, index in wanted.items() if index < len(tokens)}


def vocabulary(path: Path) -> frozenset[str]:
    """The tokens of *path*'s vocabulary, as they are written in it; empty where it has none. Raises Unwritable."""
    return frozenset(_tokens(path, read_header(path)))


def _tokens(path: Path, header: GgufHeader, limit: int | None = None) -> list[str]:
    """The first *limit* of them."""
    if TOKENS_KEY not in header.entries:
        return []
    with path.open("rb") as file:
        file.seek(header.entries[TOKENS_KEY][0])
        _text(file)
        kind, item_kind, count = struct.unpack("<IIQ", _read(file, 16))
        if (kind, item_kind) != (_ARRAY, _STRING):
            raise Unwritable(f"{path}: its vocabulary is no list of texts")
        return [_text(file) for _ in range(count if limit is None else min(count, limit))]


def rewrite(source: Path, target: Path, templates: Mapping[str, str]) -> None:
    """Write *source* to *target* with *templates*, by name, instead of those it has.

    Blocks for as long as a copy takes. *target* appears when it is whole. Raises Unwritable, where *target* exists too.
    """
    header = _whole_header(source)
    if target.exists():
        raise Unwritable(f"{target}: is there already; name another file")
    partial = target.with_name(f".{target.name}.partial")
    try:
        needed, free = source.stat().st_size, shutil.disk_usage(target.parent).free
        if free < needed:
            raise Unwritable(f"{target.parent}: has {free / 1e9:.1f} GB free, and the file takes {needed / 1e9:.1f} GB")
        with source.open("rb") as old, partial.open("wb") as new:
            _write(header, old, new, templates)
        partial.replace(target)
    except OSError as problem:
        raise Unwritable(f"{problem.filename or target}: {problem.strerror}") from problem
    finally:
        partial.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class RewrittenGguf:
    """The file that `rewrite` would write, to be read without being written: it takes no room on any disk of ours.

    templates: by name. numbers: further keys, of whole numbers that are not negative, instead of those that are there.
    """

    source: Path
    templates: tuple[tuple[str, str], ...]
    numbers: tuple[tuple[str, int], ...] = ()

    def open(self) -> BinaryIO:
        """It, opened for reading. Its new header is held in memory: some megabytes. Raises OSError and Unwritable."""
        header = _whole_header(self.source)
        old = self.source.open("rb")
        head = io.BytesIO()
        _write_header(header, old, head, dict(self.templates), dict(self.numbers))
        return cast(BinaryIO, _Joined(head.getvalue(), old, header.data))


class _Joined(io.RawIOBase):
    """*head*, and after it what is in *file* from the byte *begin* on; closes *file*."""

    def __init__(self, head: bytes, file: BinaryIO, begin: int) -> None:
        self._head, self._file, self._begin, self._place = head, file, begin, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size()}[whence]
        self._place = max(0, base + offset)
        return self._place

    def _size(self) -> int:
        return len(self._head) + os.fstat(self._file.fileno()).st_size - self._begin

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            size = max(0, self._size() - self._place)
        piece = self._head[self._place : self._place + size]
        if not piece:
            self._file.seek(self._begin + self._place - len(self._head))
            piece = self._file.read(size)
        self._place += len(piece)
        return piece

    def close(self) -> None:
        self._file.close()
        super().close()


def _whole_header(source: Path) -> GgufHeader:
    """The header of *source*, which is all of a model. Raises Unwritable."""
    header = read_header(source)
    if int(header.values.get("split.count", 1)) > 1:
        raise Unwritable(
            f"{source}: is one part of several, which name each other; make one file of them with"
            " `llama-gguf-split --merge`"
        )
    return header


def _write(header: GgufHeader, old: BinaryIO, new: BinaryIO, templates: Mapping[str, str]) -> None:
    _write_header(header, old, new, templates, {})
    old.seek(header.data)
    shutil.copyfileobj(old, new, COPY_BYTES)
    new.flush()
    os.fsync(new.fileno())


def _write_header(
    header: GgufHeader, old: BinaryIO, new: BinaryIO, templates: Mapping[str, str], numbers: Mapping[str, int]
) -> None:
    kept = [place for key, place in header.entries.items() if not _is_template(key) and key not in numbers]
    added = [*_template_entries(templates), *_number_entries(numbers)]
    new.write(MAGIC + struct.pack("<IQQ", header.version, header.tensor_count, len(kept) + len(added)))
    for begin, end in kept:
        _copy(old, new, begin, end)
    for entry in added:
        new.write(entry)
    _copy(old, new, *header.tensors)
    new.write(b"\0" * (-new.tell() % header.alignment))


def _is_template(key: str) -> bool:
    return key in (TEMPLATE_KEY, NAMES_KEY) or key.startswith(f"{TEMPLATE_KEY}.")


def _template_entries(templates: Mapping[str, str]) -> Iterator[bytes]:
    named = sorted(name for name in templates if name != DEFAULT)
    if named:
        texts = b"".join(_packed(name) for name in named)
        yield _packed(NAMES_KEY) + struct.pack("<IIQ", _ARRAY, _STRING, len(named)) + texts
    for name, text in sorted(templates.items()):
        key = TEMPLATE_KEY if name == DEFAULT else f"{TEMPLATE_KEY}.{name}"
        yield _packed(key) + struct.pack("<I", _STRING) + _packed(text)


def _number_entries(numbers: Mapping[str, int]) -> Iterator[bytes]:
    for key, number in sorted(numbers.items()):
        yield _packed(key) + struct.pack("<II", _UINT32, number)


def _packed(text: str) -> bytes:
    encoded = text.encode("utf-8")
    return struct.pack("<Q", len(encoded)) + encoded


def _copy(old: BinaryIO, new: BinaryIO, begin: int, end: int) -> None:
    old.seek(begin)
    left = end - begin
    while left:
        left -= new.write(_read(old, min(left, COPY_BYTES)))


def _header(file: BinaryIO, size_bytes: int) -> GgufHeader:
    if file.read(4) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version, tensor_count, key_count = struct.unpack("<IQQ", _read(file, 20))
    if version not in VERSIONS:
        raise ValueError(f"version {version}; this reads {VERSIONS[0]} and {VERSIONS[-1]}, little-endian")
    values, entries = {}, {}
    for _ in range(key_count):
        begin, key = file.tell(), _text(file, KEY_LIMIT_BYTES)
        value = _value(file, size_bytes)
        if value is not None:
            values[key] = value
        entries[key] = (begin, file.tell())
    begin = file.tell()
    for _ in range(tensor_count):
        _text(file, KEY_LIMIT_BYTES)
        dimensions = struct.unpack("<I", _read(file, 4))[0]
        _skip(file, 8 * dimensions + 4 + 8, size_bytes)
    header = GgufHeader(version, tensor_count, values, entries, (begin, file.tell()), 0)
    if header.alignment <= 0:
        raise ValueError(f"its alignment is {header.alignment}")
    return GgufHeader(
        version, tensor_count, values, entries, header.tensors, file.tell() + -file.tell() % header.alignment
    )


def _value(file: BinaryIO, size_bytes: int) -> Any:
    """The value at *file*'s place, None for an array, which is passed over."""
    kind = struct.unpack("<I", _read(file, 4))[0]
    if kind == _STRING:
        return _text(file, size_bytes)
    if kind != _ARRAY:
        return struct.unpack(_form(kind), _read(file, struct.calcsize(_form(kind))))[0]
    item_kind, count = struct.unpack("<IQ", _read(file, 12))
    if item_kind == _STRING:
        for _ in range(count):
            _skip(file, struct.unpack("<Q", _read(file, 8))[0], size_bytes)
    else:
        _skip(file, struct.calcsize(_form(item_kind)) * count, size_bytes)
    return None


def _form(kind: int) -> str:
    try:
        return _SCALARS[kind]
    except KeyError:
        raise ValueError(f"it has a value of the unknown type {kind}") from None


def _text(file: BinaryIO, limit_bytes: int = COPY_BYTES) -> str:
    length = struct.unpack("<Q", _read(file, 8))[0]
    if length > limit_bytes:
        raise ValueError("it has a text that is longer than the file")
    # vocabularies may hold pieces of characters
    return _read(file, length).decode("utf-8", "replace")


def _skip(file: BinaryIO, length: int, size_bytes: int) -> None:
    if file.tell() + length > size_bytes:
        raise ValueError("it ends in the middle of its header")
    file.seek(length, os.SEEK_CUR)


def _read(file: BinaryIO, length: int) -> bytes:
    content = file.read(length)
    if len(content) != length:
        raise ValueError("it ends in the middle of its header")
    return content
