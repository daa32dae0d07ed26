"""What a download leaves beside the weights: the mark that they are whole, and what was verified on the way there.

All of it is in the folder ``.unigate`` of the repository's own folder:

    complete-….json   one for each source that is whole: read before anything is asked of the network
    verified.jsonl    one line for each file whose content was compared with what the hub tells
    parts/            files on their way, named by their content
    lock              held by the one process that downloads into this folder; its content is that one's progress
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from io import BufferedRandom, BufferedReader
from pathlib import Path
from urllib.parse import quote

from backends.repository import RECORDS, RemoteFile
from backends.sources import HubSource

_BLOCK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Completion:
    """A source that is whole: what its revision was resolved to, and its size in bytes."""

    commit: str
    size: int


def read_completion(source: HubSource, models_dir: Path) -> Completion | None:
    """The mark of *source*, when it is there and every file it names still has its size; None otherwise.

    Reads one small file and asks for the size of each weight file; never the network.
    """
    folder = source.folder(models_dir)
    try:
        mark = json.loads(_mark(source, folder).read_text(encoding="utf-8"))
        sizes = {str(path): int(size) for path, size in mark["files"].items()}
        is_whole = mark["source"] == str(source) and all(
            (folder / path).stat().st_size == size for path, size in sizes.items()
        )
        return Completion(str(mark["commit"]), sum(sizes.values())) if is_whole and sizes else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_completion(source: HubSource, models_dir: Path, commit: str, files: Iterable[RemoteFile]) -> None:
    """Say that *source* is whole. Replaces the mark at once or not at all."""
    mark = _mark(source, source.folder(models_dir))
    content = {"source": str(source), "commit": commit, "files": {file.path: file.size for file in files}}
    partial = mark.with_suffix(".tmp")
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    partial.replace(mark)


def _mark(source: HubSource, folder: Path) -> Path:
    return folder / RECORDS / f"complete-{quote(source.file, safe='') or 'all'}.json"


def content_digest(content: BufferedReader | BufferedRandom, file: RemoteFile) -> str:
    """The digest of all *content*, of the kind that ``file.digest`` is: equal to that when it is what the hub lists."""
    size = content.seek(0, os.SEEK_END)
    content.seek(0)
    if file.sha256:
        return hashlib.file_digest(content, "sha256").hexdigest()
    if file.git_oid:
        blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        while block := content.read(_BLOCK_BYTES):
            blob.update(block)
        return blob.hexdigest()
    return f"size-{size}"


class Verified:
    """The files below *folder* whose content was compared with the hub's digest, and have not changed since."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / RECORDS / "verified.jsonl"

    def holds(self, file: RemoteFile) -> bool:
        """Whether *file* lies there as it was verified."""
        return self._line(file) in self._lines()

    def add(self, file: RemoteFile) -> None:
        """Remember that *file*, as it lies there now, is what the hub tells of it."""
        with self._path.open("a", encoding="utf-8") as record:
            record.write(f"{self._line(file)}\n")

    def _line(self, file: RemoteFile) -> str:
        try:
            changed = (self._folder / file.path).stat().st_mtime_ns
        except OSError:
            changed = 0
        return json.dumps([file.path, file.size, file.digest, changed])

    def _lines(self) -> set[str]:
        try:
            return set(self._path.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError):
            return set()
