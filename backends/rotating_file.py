"""A file of lines that begins anew when it is full: each line is whole in it, or not in it at all."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from pathlib import Path


class RotatingFile:
    """Lines appended to *path*; at *rotate_bytes* it becomes ``path.1``, that one ``path.2``, up to *keep* of them.

    Unbuffered: a line that was appended survives whatever happens to this process. The standard library's handler
    buffers, and on a full disk it loses some lines and tears others (CPython 3.11, io.TextIOWrapper).
    """

    def __init__(self, path: Path, *, rotate_bytes: int, keep: int) -> None:
        self.path = path
        self._rotate_bytes = rotate_bytes
        self._keep = keep
        self._file: io.FileIO | None = None
        self._size_bytes = 0
        self._rotates = True

    def append(self, line: str) -> None:
        """Append *line* and a line end, opening or rotating the file where that is due. Blocks for microseconds.

        Raises OSError when it could not be written whole; then nothing of it is in the file.
        """
        content = line.encode("utf-8", "replace") + b"\n"
        file = self._opened()
        if self._rotates and 0 < self._size_bytes > self._rotate_bytes - len(content):
            self._rotate()
            file = self._opened()
        if file.write(content) != len(content):
            # What fitted on the disk goes again, so that the line can be tried once more as a whole.
            os.ftruncate(file.fileno(), self._size_bytes)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self._size_bytes += len(content)

    def open(self) -> None:
        """Open the file now, to know that it can be. Raises OSError."""
        self._opened()

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # nothing is buffered: what was appended is in the file
                file.close()

    def _opened(self) -> io.FileIO:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = io.FileIO(self.path, "a")
            found = os.fstat(self._file.fileno())
            self._size_bytes = found.st_size
            self._rotates = stat.S_ISREG(found.st_mode)  # a device has no end to be renamed at
        return self._file

    def _rotate(self) -> None:
        self.close()
        for number in range(self._keep, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            newer = self.path.with_name(f"{self.path.name}.{number - 1}") if number > 1 else self.path
            with contextlib.suppress(FileNotFoundError):
                newer.replace(older)
        if self._keep == 0:
            self.path.unlink(missing_ok=True)
