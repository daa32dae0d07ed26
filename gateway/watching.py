"""Noticing that a file has changed: looked at from time to time, because an editor replaces it rather than writes it.

Polling by path sees what file notification misses: a rename over it, a symbolic link that points elsewhere (as
Kubernetes does it), a network file system.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

LOOK_EVERY_S = 2.0

Stamp = tuple[int, int, int, int]
"""Device, inode, size in bytes, time of the last change in nanoseconds."""


def stamp_of(path: Path) -> Stamp | None:
    """The file as it is now, None while there is none. One system call."""
    with contextlib.suppress(OSError):
        found = os.stat(path)  # noqa: PTH116 - links are to be followed, and nothing else of Path is wanted
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
    return None


class Watch:
    """What was seen of a file. A change counts once it has been seen twice: who writes may not have finished."""

    def __init__(self, stamp: Stamp | None) -> None:
        self._known = stamp
        self._last = stamp

    def look(self, stamp: Stamp | None) -> bool:
        """Whether the file has changed since the last time this was true. A file that is not there has not."""
        has_settled = stamp is not None and stamp == self._last
        self._last = stamp
        if not has_settled or stamp == self._known:
            return False
        self._known = stamp
        return True


async def watch(
    path: Path,
    is_wanted: Callable[[], bool],
    changed: Callable[[], Awaitable[None]],
    every_s: float = LOOK_EVERY_S,
) -> None:
    """Await *changed* whenever the file at *path* has changed while that *is_wanted*. Runs until cancelled."""
    seen = Watch(await asyncio.to_thread(stamp_of, path))
    while True:
        await asyncio.sleep(every_s)
        if seen.look(await asyncio.to_thread(stamp_of, path)) and is_wanted():
            await changed()
