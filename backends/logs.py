"""A backend's log: the last lines in memory, all of them in a rotating file, and followers who get new ones."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from logging.handlers import RotatingFileHandler
from pathlib import Path
from urllib.parse import quote

RING_BYTES = 256 * 1024
LINE_LIMIT = 8 * 1024
"""Longer lines are cut: a progress bar or a dumped tensor must not push everything else out of the ring."""
FOLLOWER_LINES = 1000

_log = logging.getLogger("unigate.backends")


def file_name(backend: str, suffix: str) -> str:
    """A file name for *backend*, whose name may hold slashes: ``Qwen/Qwen3`` becomes ``Qwen%2FQwen3``."""
    return quote(backend, safe=" ") + suffix


class LineSplitter:
    """Log bytes in, lines out. ``\\r`` ends a line too, because progress bars rewrite theirs with it."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_cut = False

    def feed(self, chunk: bytes) -> list[str]:
        """The lines *chunk* completes, without their ends; empty ones are dropped."""
        pieces = (self._rest + chunk).replace(b"\r", b"\n").split(b"\n")
        self._rest = pieces.pop()
        if self._is_cut:  # what is left of a line whose beginning was given out already
            self._is_cut = not pieces
            self._rest = b"" if self._is_cut else self._rest
            pieces = pieces[1:]
        if len(self._rest) > LINE_LIMIT:
            pieces.append(self._rest)
            self._rest = b""
            self._is_cut = True
        return [_text(piece) for piece in pieces if piece.strip()]

    def close(self) -> list[str]:
        """What stood after the last line end."""
        rest, self._rest = self._rest, b""
        return [_text(rest)] if rest.strip() else []


def _text(line: bytes) -> str:
    return line[:LINE_LIMIT].decode("utf-8", "replace")


class BackendLog:
    """The log of one backend over all its runs. Used from the loop's thread only."""

    def __init__(self, path: Path, *, rotate_bytes: int = 50 * 1024 * 1024, keep: int = 5) -> None:
        self.path = path
        self._rotate_bytes = rotate_bytes
        self._keep = keep
        self._ring: deque[str] = deque()
        self._ring_bytes = 0
        self._followers: set[asyncio.Queue[str | None]] = set()
        self._file: RotatingFileHandler | None = None
        self._write_failed = False
        self._is_closed = False
        self.lines_written = 0

    def __repr__(self) -> str:
        return f"<BackendLog {self.path.name}: {len(self._ring)} lines in memory, {len(self._followers)} followers>"

    def write(self, line: str) -> None:
        """Take one line of the engine's, or of ours about it."""
        self.lines_written += 1
        self._ring.append(line)
        self._ring_bytes += len(line)
        while self._ring_bytes > RING_BYTES:
            self._ring_bytes -= len(self._ring.popleft())
        self._write_file(line)
        for queue in self._followers:
            if queue.qsize() < FOLLOWER_LINES:  # a follower that does not read misses lines; the engine never waits
                queue.put_nowait(line)

    def note(self, text: str) -> None:
        """A line of our own between the engine's, with the time."""
        self.write(f"[unigate {time.strftime('%Y-%m-%d %H:%M:%S')}] {text}")

    def tail(self, lines: int) -> list[str]:
        """The last *lines* lines, oldest first."""
        return list(self._ring)[-lines:] if lines > 0 else []

    async def follow(self, lines: int) -> AsyncIterator[str]:
        """The last *lines* lines, then new ones as they come, until the log is closed."""
        queue: asyncio.Queue[str | None] = asyncio.Queue()
        for line in self.tail(lines):
            queue.put_nowait(line)
        if self._is_closed:
            queue.put_nowait(None)
        self._followers.add(queue)
        try:
            while (line_or_end := await queue.get()) is not None:
                yield line_or_end
        finally:
            self._followers.discard(queue)

    def close(self) -> None:
        """End the file and every follower."""
        self._is_closed = True
        for queue in self._followers:
            queue.put_nowait(None)
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk, again: it was said when the line was written
                self._file.close()
            self._file = None

    def _write_file(self, line: str) -> None:
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = _LineFile(self.path, self._rotate_bytes, self._keep)
            self._file.emit(logging.makeLogRecord({"msg": line}))
            self._write_failed = False
        except OSError as problem:
            # A full disk must not stop an engine. Said once, until a write succeeds again.
            if not self._write_failed:
                _log.warning("cannot write %s: %s; its lines are kept in memory only", self.path, problem.strerror)
            self._write_failed = True


class _LineFile(RotatingFileHandler):
    """The standard library's rotation, one line per record, errors to the caller."""

    def __init__(self, path: Path, rotate_bytes: int, keep: int) -> None:
        super().__init__(path, maxBytes=rotate_bytes, backupCount=keep, encoding="utf-8", errors="replace")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        raise
