"""Why a backend failed, in words a practitioner can act on: exit status and log tail -> one Diagnosis."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

EVIDENCE_LINES = 8


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How an engine's main process ended: *code* when it exited, *signal* when it was killed, neither when unknown."""

    code: int | None = None
    signal: int | None = None

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


@dataclass(frozen=True, slots=True)
class Pattern:
    """One row of an adapter's table. *regex* is searched in each line, newest first.

    *reason* may name groups of the match (``{flag}``). *source* says where the text was seen: URL or path, and version.
    """

    code: str
    regex: re.Pattern[str]
    reason: str
    advice: str
    source: str
    permanent: bool = True


def pattern(code: str, regex: str, reason: str, advice: str, *, source: str, permanent: bool = True) -> Pattern:
    """A Pattern from a regular expression written as text, matched without regard to case."""
    return Pattern(code, re.compile(regex, re.IGNORECASE), reason, advice, source, permanent)


COMMON = (
    pattern(
        "port_in_use",
        r"address already in use|\[errno 98\]",
        "Another process took the engine's port while it was starting.",
        "It is tried again on another port.",
        source="errno 98, Linux; vLLM 0.32 and uvicorn 0.54 print it as it is",
        permanent=False,
    ),
    pattern(
        "disk_full",
        r"no space left on device|\[errno 28\]",
        "The disk is full.",
        "Free space on the disk that holds the cache and the temporary folder, then load the model again.",
        source="errno 28, Linux",
    ),
    pattern(
        "module_missing",
        r"ModuleNotFoundError: No module named '(?P<module>[^']+)'",
        "The engine's Python environment has no module {module}.",
        "Point engines.<name>.command at the environment the engine is installed in, or install the module there.",
        source="CPython 3.11",
    ),
    pattern(
        "library_missing",
        r"(?P<library>lib\S+\.so\S*): cannot open shared object file",
        "The engine needs the shared library {library}, which is not on this machine.",
        "Install it, or put its folder into LD_LIBRARY_PATH under the model's env.",
        source="glibc 2.36 ld.so",
    ),
)


def first_match(patterns: Iterable[Pattern], tail: Sequence[str]) -> Diagnosis | None:
    """The Diagnosis of the first pattern, in table order, that some line of *tail* satisfies; None without one."""
    for row in patterns:
        for line in reversed(tail):
            found = row.regex.search(line)
            if found:
                groups = {name: (value or "").strip() for name, value in found.groupdict().items()}
                return Diagnosis(row.code, row.reason.format(**groups), row.advice, row.permanent, evidence(tail))
    return None


def evidence(tail: Sequence[str]) -> tuple[str, ...]:
    """The last lines that say something."""
    return tuple([line for line in tail if line.strip()][-EVIDENCE_LINES:])


def diagnose(patterns: Iterable[Pattern], status: ExitStatus, tail: Sequence[str]) -> Diagnosis:
    """The engine's own patterns first, then those all engines share, then what the exit status alone can tell."""
    known = first_match((*patterns, *COMMON), tail)
    if known is not None:
        return known
    if status.signal == 9:
        return Diagnosis(
            "killed",
            "The engine was killed by signal 9, as the kernel does when the machine is out of memory.",
            "Look at `dmesg` for an out-of-memory kill; use a smaller model, context or cache.",
            evidence=evidence(tail),
        )
    if status.code == 127:
        return Diagnosis(
            "command_not_found",
            "The engine's command could not be run.",
            "Correct engines.<name>.command in the configuration.",
            permanent=True,
            evidence=evidence(tail),
        )
    return Diagnosis("crashed", f"The engine ended: {status}.", "Its log holds the reason.", evidence=evidence(tail))
