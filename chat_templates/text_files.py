"""Small files of text that people and tools write: read whole, as UTF-8 to the byte, or told why not."""

from __future__ import annotations

from pathlib import Path


class TextUnreadable(Exception):
    """The file cannot be used; the message says why, without its name."""


def read_utf8(path: Path, limit_bytes: int, so: str = "") -> str:
    """The text in *path*, no line end translated. *so*: what follows from content that is none.

    Raises TextUnreadable.
    """
    try:
        with path.open("rb") as opened:
            content = opened.read(limit_bytes + 1)
    except OSError as problem:
        raise TextUnreadable(problem.strerror or str(problem)) from problem
    if len(content) > limit_bytes:
        raise TextUnreadable(f"is longer than {limit_bytes} bytes{so}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise TextUnreadable(f"is not UTF-8 text (byte {problem.start}){so}") from problem
