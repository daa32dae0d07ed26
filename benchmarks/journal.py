"""What is kept of a run beside its requests: when it began and ended, and how client and server were meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.engine_metrics import Sample
from benchmarks.errors import BenchmarkError
from benchmarks.records import JOURNAL, RECOUNTS, read_lines

DONE = "done"
INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class ClientSample:
    """How this client was at *at* seconds after the start of its *session*.

    ``cpu_s``, ``wait_s``: CPU time used, and waited for in the run queue, since the process began; the second is None
    where the system does not say. ``lag_us``: how late the loop's own ticks came since the sample before.
    ``servers``: what each dialect's metrics said, ``{}`` without any.
    """

    session: int
    at: float
    in_flight: int
    most_in_flight: int
    ended: int
    failed: int
    cpu_s: float
    wait_s: float | None
    lag_us: tuple[int, ...]
    servers: Mapping[str, Sample]


@dataclass(frozen=True, slots=True)
class Session:
    """One go of a run; a resumed run has several. ``before`` and ``after`` are what the server said of itself then.

    ``requests``: how many this session sent that ended, the warm-up's included. ``ended``: None if it was killed.
    """

    number: int
    environment: Mapping[str, Any]
    before: Mapping[str, Any]
    after: Mapping[str, Any] | None
    ended: str | None
    requests: int


@dataclass(frozen=True, slots=True)
class Journal:
    """All of it."""

    sessions: tuple[Session, ...]
    samples: tuple[ClientSample, ...]

    @property
    def is_done(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.sessions) and self.sessions[-1].ended == DONE


def began(number: int, environment: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """The entry with which a session begins."""
    return {"kind": "began", "session": number, "environment": environment, "before": before}


def ended(number: int, how: str, after: Mapping[str, Any], requests: int) -> dict[str, Any]:
    """The entry with which a session ends."""
    return {"kind": "ended", "session": number, "how": how, "after": after, "requests": requests}


def sampled(sample: ClientSample) -> dict[str, Any]:
    """The entry of a sample."""
    fields = {name: getattr(sample, name) for name in ClientSample.__dataclass_fields__}
    return {"kind": "sample", **fields}


def read_journal(folder: Path) -> Journal:
    """The journal of the run in *folder*. Raises BenchmarkError."""
    path = folder / JOURNAL
    starts: dict[int, dict[str, Any]] = {}
    ends: dict[int, dict[str, Any]] = {}
    samples = []
    try:
        for entry in read_lines(path):
            kind = entry["kind"]
            if kind == "began":
                starts[entry["session"]] = entry
            elif kind == "ended":
                ends[entry["session"]] = entry
            elif kind == "sample":
                fields = {name: entry[name] for name in ClientSample.__dataclass_fields__}
                samples.append(ClientSample(**{**fields, "lag_us": tuple(fields["lag_us"])}))
    except (KeyError, TypeError) as problem:
        raise BenchmarkError(f"{path}: not a journal of this program: {problem!r}") from problem
    sessions = [
        Session(
            number=number,
            environment=start["environment"],
            before=start["before"],
            after=ends[number]["after"] if number in ends else None,
            ended=ends[number]["how"] if number in ends else None,
            requests=ends[number]["requests"] if number in ends else 0,
        )
        for number, start in sorted(starts.items())
    ]
    return Journal(tuple(sessions), tuple(samples))


def read_recounts(folder: Path) -> dict[tuple[int, int], int]:
    """Tokens of the answers' texts as our tokenizer counted them, by (index, turn). Raises BenchmarkError."""
    path = folder / RECOUNTS
    try:
        return {(entry["index"], entry["turn"]): entry["tokens"] for entry in read_lines(path)}
    except KeyError as problem:
        raise BenchmarkError(f"{path}: an entry has no {problem}") from problem


def cpu_shares(samples: Sequence[ClientSample], window_s: float) -> list[float]:
    """The part of one core this client used in each stretch of about *window_s* within one session."""
    shares = []
    for first, sample in enumerate(samples):
        for later in samples[first + 1 :]:
            if later.session != sample.session:
                break
            if later.at - sample.at >= window_s:
                shares.append((later.cpu_s - sample.cpu_s) / (later.at - sample.at))
                break
    return shares


def mean_share(samples: Sequence[ClientSample], quantity: str) -> float | None:
    """``cpu_s`` or ``wait_s`` per second over all of the run; None if it is not known."""
    used = lasted = 0.0
    for sample, later in pairwise(samples):
        before, after = getattr(sample, quantity), getattr(later, quantity)
        if sample.session == later.session and before is not None and after is not None:
            used += after - before
            lasted += later.at - sample.at
    return used / lasted if lasted else None
