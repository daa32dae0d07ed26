"""Where the gateway's own log lines go: the terminal, and a rotating file that `unigate doctor` can name."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from backends.rotating_file import RotatingFile

LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
GATEWAY_LOG = "gateway.log"


def open_logs(log_dir: Path, *, rotate_bytes: int, keep: int, is_quiet: bool = False) -> None:
    """Send every logger's lines to ``log_dir/gateway.log`` and, unless *is_quiet*, to the terminal.

    Raises OSError when the file cannot be opened.
    """
    file = RotatingFile(log_dir / GATEWAY_LOG, rotate_bytes=rotate_bytes, keep=keep)
    file.open()
    destinations: list[logging.Handler] = [_FileLog(file)]
    if not is_quiet:
        destinations.append(logging.StreamHandler(sys.stderr))
    for destination in destinations:
        destination.setFormatter(logging.Formatter(LINE))
    logging.basicConfig(level=logging.INFO, handlers=destinations, force=True)
    # httpx logs every probe, uvicorn its own beginning and end: ours say it in the product's words.
    for name in ("httpx", "httpcore", "uvicorn.error", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)


class _FileLog(logging.Handler):
    """Lines to a file. While it cannot be written, which a full disk makes so, that is said once and not for each."""

    def __init__(self, file: RotatingFile) -> None:
        super().__init__()
        self._file = file
        self._missing = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, and before it how many could not be."""
        line = self.format(record)
        try:
            if self._missing:
                self._file.append(
                    self.format(_told(f"{self._missing} lines are missing here: the file was not writable"))
                )
                self._missing = 0
            self._file.append(line)
        except OSError as problem:
            if not self._missing:
                text = f"cannot write {self._file.path}: {problem.strerror}; its lines are lost until it can be"
                print(self.format(_told(text)), file=sys.stderr)  # noqa: T201 - the log is what has failed
            self._missing += 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def _told(text: str) -> logging.LogRecord:
    return logging.LogRecord("unigate.gateway", logging.WARNING, __file__, 0, text, None, None)
