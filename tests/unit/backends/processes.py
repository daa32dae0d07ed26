"""Short-lived processes for tests, and who lives, read from /proc without the code under test."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

MARKER = "UNIGATE_BACKEND_ID"
LIMIT_S = 10.0
POLL_S = 0.01


def is_alive(pid: int) -> bool:
    """Whether *pid* is a process that has not ended; a zombie has."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def bearing(text: str) -> list[int]:
    """The living processes whose environment has *text* within the value of the marker."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or folder.name == str(os.getpid()):
            continue
        with contextlib.suppress(OSError):
            variables = dict(item.partition(b"=")[::2] for item in (folder / "environ").read_bytes().split(b"\0"))
            if text.encode() in variables.get(MARKER.encode(), b""):
                found.append(int(folder.name))
    return [pid for pid in found if is_alive(pid)]


def until(question: Callable[[], bool], within_s: float = LIMIT_S) -> None:
    """Wait for something outside this process. Fails after *within_s*."""
    deadline = time.monotonic() + within_s
    while not question():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(POLL_S)


def new_marker() -> str:
    """A marker nobody else has."""
    return f"test:{secrets.token_hex(8)}"


@contextlib.contextmanager
def running(*argv: str, marker: str = "", session: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """A process with *marker* in its environment, past its exec; killed and waited for afterwards."""
    env = {"PATH": os.environ["PATH"], **({MARKER: marker} if marker else {})}
    process = subprocess.Popen(argv, env=env, start_new_session=session, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
