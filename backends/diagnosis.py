"""Why a backend failed, in words a practitioner can act on: exit status and log tail -> one Diagnosis."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from backends.pattern import Pattern, pattern
from backends.shared_patterns import COMMON

__all__ = [
    "COMMON",
    "EVIDENCE_LINES",
    "Diagnosis",
    "ExitStatus",
    "Pattern",
    "diagnose",
    "evidence",
    "first_match",
    "pattern",
]

EVIDENCE_LINES = 8

SHELL = 128
"""A shell, or what wraps an engine in one, ends with this and the number of the signal that killed its child."""


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How an engine's main process ended: *code* when it exited, *signal* when it was killed, neither when unknown.

    *oom_killed*: whether the kernel killed something for want of memory while it ran; None where that cannot be seen.
    """

    code: int | None = None
    signal: int | None = None
    oom_killed: bool | None = None

    @property
    def killed_by(self) -> int | None:
        """The signal that ended it, also where a shell around it tells; None when it exited by itself."""
        if self.signal is None and self.code is not None and self.code > SHELL:
            return self.code - SHELL
        return self.signal

    def __str__(self) -> str:
        if self.signal is not None:
            return f"killed by signal {self.signal}"
        return f"exit code {self.code}" if self.code is not None else "ended for an unknown reason"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """*reason* and *advice* are one sentence each; *permanent* means a retry would fail the same way.

    *code* is a short stable word for metrics and scripts; *evidence* the log lines that led here, oldest first.
    """

    code: str
    reason: str
    advice: str
    permanent: bool = False
    evidence: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.reason} {self.advice}".strip()


def first_match(patterns: Iterable[Pattern], tail: Sequence[str]) -> Diagnosis | None:
    """The Diagnosis of the first pattern, in table order, that some line of *tail* satisfies; None without one.

    Its evidence is that line.
    """
    for row in patterns:
        for line in reversed(tail):
            found = row.regex.search(line)
            if found:
                groups = {name: (value or "").strip() for name, value in found.groupdict().items()}
                return Diagnosis(row.code, row.reason.format(**groups), row.advice, row.permanent, (line,))
    return None


def evidence(tail: Sequence[str]) -> tuple[str, ...]:
    """The last lines that say something."""
    return tuple([line for line in tail if line.strip()][-EVIDENCE_LINES:])


def diagnose(patterns: Iterable[Pattern], status: ExitStatus, tail: Sequence[str]) -> Diagnosis:
    """The most telling of what is known: a kill for memory, a cause in the log, a symptom in it, the exit status.

    In the log the engine's own *patterns* come first, then those all engines share. A log holds warnings that ended
    nothing: what the kernel says of a killed process is believed before it.
    """
    rows = (*patterns, *COMMON)
    is_killed = status.killed_by == signal.SIGKILL
    found = None
    if not (is_killed and status.oom_killed):
        found = first_match((row for row in rows if not row.is_symptom), tail)
    if found is None and status.oom_killed:
        found = _OUT_OF_MEMORY
    if found is None:
        found = first_match((row for row in rows if row.is_symptom), tail) or _of_status(status)
    last = evidence(tail)
    told_above = tuple(line for line in found.evidence if line not in last)
    return replace(found, evidence=(*told_above, *last[len(told_above) :]))


_OUT_OF_MEMORY = Diagnosis(
    "host_out_of_memory",
    "The kernel ended the engine because the machine, or its container, was out of memory.",
    "Use a smaller model, context or cache, end what else uses memory, or give the machine or container more.",
)


def _of_status(status: ExitStatus) -> Diagnosis:
    """What the exit status alone can tell."""
    known = _BY_SIGNAL.get(status.killed_by) if status.killed_by is not None else _BY_CODE.get(status.code)
    return known or Diagnosis("crashed", f"The engine ended: {status}.", "Its log holds the reason.")


_BY_SIGNAL: Mapping[int | None, Diagnosis] = {
    signal.SIGKILL: Diagnosis(
        "killed",
        "The engine was killed by signal 9, probably by the kernel because the machine was out of memory.",
        "Look at `dmesg` for an out-of-memory kill; use a smaller model, context or cache.",
    ),
    signal.SIGILL: Diagnosis(
        "illegal_instruction",
        "The engine was built for another CPU: this one lacks an instruction that it used.",
        "Install a build for this CPU; `lscpu` shows what it has, such as avx2 and avx512f.",
        permanent=True,
    ),
    signal.SIGBUS: Diagnosis(
        "bus_error",
        "The engine could not reach memory that it had mapped (signal 7), as when /dev/shm or a disk is full.",
        "Give a container more shared memory (--ipc=host or --shm-size=8g), and see that no disk is full.",
    ),
    signal.SIGSEGV: Diagnosis(
        "segmentation_fault",
        "The engine crashed with a memory fault (signal 11).",
        "If it comes again, try another version of the engine or of the GPU driver; its log holds the last it did.",
    ),
}

_BY_CODE: Mapping[int | None, Diagnosis] = {
    126: Diagnosis(
        "command_not_executable",
        "The engine's command is there, but may not be run.",
        "Make it executable, or correct engines.<name>.command in the configuration.",
        permanent=True,
    ),
    127: Diagnosis(
        "command_not_found",
        "The engine's command could not be run.",
        "Correct engines.<name>.command in the configuration.",
        permanent=True,
    ),
}
