"""What survives the gateway: which processes it had started, and the reaping of those a crash left behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from backends.kill_set import ProcessEntry, members, read_entry, sweep
from backends.logs import file_name

REAP_TERM_S = 2.0

_log = logging.getLogger("unigate.backends")


class StateFolderInUse(Exception):
    """Another gateway holds this state folder; the message says which."""


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """One run. Written before the spawn with *session* 0, so that no crash falls between the two, then completed.

    *session* is the shim's pid; *started_ticks* its start in clock ticks since boot, which tells it from a later
    owner of that pid.
    """

    backend: str
    marker: str
    session: int = 0
    started_ticks: int = 0


class ProcessRecords:
    """The records of one state folder, one file per backend. Small files on a local disk: written where asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, record: ProcessRecord) -> None:
        """Replace the backend's record, whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        target = self._folder / file_name(record.backend, ".json")
        partial = target.with_suffix(".tmp")
        partial.write_text(json.dumps(asdict(record)), encoding="utf-8")
        partial.replace(target)

    def remove(self, backend: str) -> None:
        """Forget a run that has ended."""
        (self._folder / file_name(backend, ".json")).unlink(missing_ok=True)

    def read_all(self) -> list[ProcessRecord]:
        """Every record there is. One that cannot be read is skipped with a warning: it names no process to end."""
        records = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                records.append(_record(json.loads(path.read_text(encoding="utf-8"))))
            except (OSError, ValueError, TypeError) as problem:
                _log.warning("unreadable process record %s: %s", path, problem)
                path.unlink(missing_ok=True)
        return records


def _record(fields: Any) -> ProcessRecord:
    record = ProcessRecord(**fields)
    if not isinstance(record.session, int) or not isinstance(record.started_ticks, int):
        raise TypeError("session and started_ticks must be whole numbers")
    return record


@dataclass(frozen=True, slots=True)
class Reaped:
    """What was found of one old run: *ended* pids are gone, *wedged* ones would not die."""

    backend: str
    ended: tuple[int, ...]
    wedged: tuple[int, ...]


def reap(records: ProcessRecords) -> list[Reaped]:
    """End what earlier runs of this state folder left alive, and forget them. Blocks for up to some seconds.

    Processes are known by their marker, or by their session while its leader is the one we started. Never by name.
    """
    found = []
    for record in records.read_all():
        alive = _alive(record)
        if alive:
            wedged = sweep(lambda record=record: _alive(record), term_s=REAP_TERM_S)  # type: ignore[misc]
            ended = tuple(entry.pid for entry in alive if entry.pid not in wedged)
            found.append(Reaped(record.backend, ended, tuple(wedged)))
        records.remove(record.backend)
    return found


def _alive(record: ProcessRecord) -> list[ProcessEntry]:
    leader = read_entry(record.session) if record.session else None
    # A dead leader's number is not given away while its session lives; a living one must be the one we started.
    is_ours = record.session > 0 and (leader is None or leader.started_ticks == record.started_ticks)
    return members(record.marker, session=record.session if is_ours else None)


@contextlib.contextmanager
def state_folder_lock(folder: Path) -> Iterator[None]:
    """Hold *folder* for this process. Raises StateFolderInUse; a crash releases the lock, the kernel sees to it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "lock").open("a+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise StateFolderInUse(
                f"{folder}: in use by another gateway (process {holder}); stop it, or set another gateway.state_dir"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
