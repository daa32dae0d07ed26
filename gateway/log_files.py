"""Where the gateway's own log lines go: the terminal, and a rotating file that `unigate doctor` can name."""

from __future__ import annotations

import logging
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path

LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
GATEWAY_LOG = "gateway.log"


def open_logs(log_dir: Path, *, rotate_bytes: int, keep: int, is_quiet: bool = False) -> None:
    """Send every logger's lines to ``log_dir/gateway.log`` and, unless *is_quiet*, to the terminal.

    Raises OSError when the file cannot be opened.
    """
    log_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = RotatingFileHandler(log_dir / GATEWAY_LOG, maxBytes=rotate_bytes, backupCount=keep, encoding="utf-8")
    destinations: list[logging.Handler] = [file]
    if not is_quiet:
        destinations.append(logging.StreamHandler(sys.stderr))
    for destination in destinations:
        destination.setFormatter(logging.Formatter(LINE))
    logging.basicConfig(level=logging.INFO, handlers=destinations, force=True)
    # httpx logs every probe, uvicorn its own beginning and end: ours say it in the product's words.
    for name in ("httpx", "httpcore", "uvicorn.error", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
