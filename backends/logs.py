"""A backend's log: the last lines in memory, all of them in a rotating file, and followers who get new ones."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

from backends.rotating_file import RotatingFile

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
    """The log of one backend over all its runs. Used from the loop's thread only.

    Lines that cannot be written, because the disk is full, are written when they can be, as far as memory holds them;
    the file says how many are missing.
    """

    def __init__(self, path: Path, *, rotate_bytes: int = 50 * 1024 * 1024, keep: int = 5) -> None:
        self.path = path
        self._ring: deque[str] = deque()
        self._ring_bytes = 0
        self._followers: set[asyncio.Queue[str | None]] = set()
        self._file = RotatingFile(path, rotate_bytes=rotate_bytes, keep=keep)
        self._unwritten = 0
        """So many of the ring's last lines are not in the file yet."""
        self._missing = 0
        """So many lines left the ring before they could be written."""
        self._trouble = ""
        """Why the file cannot be written, while it cannot."""
        self._is_closed = False
        self.lines_written = 0

    def __repr__(self) -> str:
        return f"<BackendLog {self.path.name}: {len(self._ring)} lines in memory, {len(self._followers)} followers>"

    def write(self, line: str) -> None:
        """Take one line of the engine's, or of ours about it."""
        self.lines_written += 1
        self._keep_in_memory(line)
        self._write_file()
        for queue in self._followers:
            if queue.qsize() < FOLLOWER_LINES:  # a follower that does not read misses lines; the engine never waits
                queue.put_nowait(line)

    def note(self, text: str) -> None:
        """A line of our own between the engine's, with the time."""
        self.write(_noted(text))

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
        self._file.close()

    def _keep_in_memory(self, line: str) -> None:
        self._ring.append(line)
        self._ring_bytes += len(line)
        self._unwritten += 1
        while self._ring_bytes > RING_BYTES:
            self._ring_bytes -= len(self._ring.popleft())
            if self._unwritten > len(self._ring):
                self._unwritten -= 1
                self._missing += 1

    def _write_file(self) -> None:
        """Bring the file up to the ring's last line."""
        try:
            if self._missing:
                self._file.append(_noted(f"{self._missing} lines are missing here: {self._trouble}"))
                self._missing = 0
            while self._unwritten:
                self._file.append(self._ring[-self._unwritten])
                self._unwritten -= 1
        except OSError as problem:
            # A full disk must not stop an engine. Said once, until a write succeeds again.
            if not self._trouble:
                self._trouble = problem.strerror or str(problem)
                _log.warning("cannot write %s: %s; its lines are kept in memory", self.path, self._trouble)
        else:
            if self._trouble:
                _log.warning("%s is written again", self.path)
            self._trouble = ""


def _noted(text: str) -> str:
    """A line of our own, with the time."""
    return f"[unigate {time.strftime('%Y-%m-%d %H:%M:%S')}] {text}"
