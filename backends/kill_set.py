"""Which processes belong to one backend's run, and making an end of them. Standard library only: the shim loads it.

Linux only, read from /proc. A process belongs when any of three holds, because each is escaped by some engine:
its *session* is the run's (LMDeploy with dp>1 calls setpgrp, which leaves the group but not the session); its
environment carries the run's *marker* (setsid leaves the session but not the environment); or it descends from the
shim, to which orphans return because the shim is a subreaper.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MARKER = "UNIGATE_BACKEND_ID"
"""The environment variable every engine process carries. Its value is ``<backend>:<random hex>``, one per run."""

POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class ProcessEntry:
    """One line of /proc: *started_ticks* is the start time in clock ticks since boot, which tells reused pids apart."""

    pid: int
    parent: int
    session: int
    started_ticks: int
    is_zombie: bool


def read_entry(pid: int) -> ProcessEntry | None:
    """The process *pid* as /proc shows it now, None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The command in parentheses may itself hold blanks and parentheses: fields are counted from the last one (proc(5)).
    fields = text[text.rindex(b")") + 2 :].split()
    return ProcessEntry(pid, int(fields[1]), int(fields[3]), int(fields[19]), fields[0] in (b"Z", b"X"))


def carries_marker(pid: int, marker: str) -> bool:
    """Whether the environment *pid* was started with names *marker*. False for a process that may not be read."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return f"{MARKER}={marker}".encode() in environment.split(b"\0")


def all_entries() -> list[ProcessEntry]:
    """Every process of this machine that /proc shows."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - twice as fast as iterdir
    return [entry for entry in map(read_entry, pids) if entry is not None]


def members(marker: str, *, session: int | None = None, root: int | None = None) -> list[ProcessEntry]:
    """The living processes of a run, without *root* (the shim) itself and without the caller.

    *session* None leaves session membership out, as after a restart where the number may have been given away.
    """
    entries = all_entries()
    family = _descendants(entries, root) if root is not None else set()
    spared = {os.getpid(), root}
    return [
        entry
        for entry in entries
        if entry.pid not in spared
        and not entry.is_zombie
        and (
            (session is not None and entry.session == session)
            or entry.pid in family
            or carries_marker(entry.pid, marker)
        )
    ]


def _descendants(entries: list[ProcessEntry], root: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for entry in entries:
        children.setdefault(entry.parent, []).append(entry.pid)
    found: set[int] = set()
    waiting = [root]
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            if pid not in found:
                found.add(pid)
                waiting.append(pid)
    return found


def send(entry: ProcessEntry, number: signal.Signals) -> None:
    """Signal exactly this process, never one that took its pid since. A process already gone is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        descriptor = os.pidfd_open(entry.pid)
        try:
            now = read_entry(entry.pid)
            if now is not None and now.started_ticks == entry.started_ticks:
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def sweep(find: Callable[[], list[ProcessEntry]], *, term_s: float, kill_s: float = 10.0) -> list[int]:
    """TERM everything *find* returns, wait up to *term_s*, then KILL until nothing is left or *kill_s* have passed.

    Returns the pids that would not die: a process in uninterruptible sleep cannot be killed by anyone. Blocks.
    """
    if term_s > 0:
        _signal_until_gone(find, signal.SIGTERM, term_s)
    return _signal_until_gone(find, signal.SIGKILL, kill_s)


def _signal_until_gone(find: Callable[[], list[ProcessEntry]], number: signal.Signals, limit_s: float) -> list[int]:
    deadline = time.monotonic() + limit_s
    told: set[tuple[int, int]] = set()
    while True:
        left = find()
        if not left or time.monotonic() >= deadline:
            return [entry.pid for entry in left]
        for entry in left:
            # Again for a newcomer (it may have been forked meanwhile); KILL needs saying only once.
            if (entry.pid, entry.started_ticks) not in told:
                told.add((entry.pid, entry.started_ticks))
                send(entry, number)
        time.sleep(POLL_S)
