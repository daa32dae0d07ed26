"""A backend as others see it: how it stands, and one change of how it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backends.address import Address
from backends.diagnosis import Diagnosis
from backends.lifecycle import Event, State
from chat_templates.parity import Parity


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of state, as subscribers get it. *started_in_s* is set when it is the end of a start, in seconds."""

    backend: str
    engine: str
    before: State
    event: Event
    after: State
    diagnosis: Diagnosis | None
    address: Address | None = None
    """Where the run concerned listens, or listened."""
    started_in_s: float | None = None
    model: str = ""


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """A backend as people are shown it. *since_s*: seconds in this state; *retry_in_s*: until the next start.

    *memory_bytes* is what it was granted, in all, on *gpus*, or of the host's memory without any; *idle_s* the seconds
    since its last request, None while there is one. *has_given_room*: it made room for another, and its next request
    brings it back.
    """

    name: str
    engine: str
    state: State
    phase: str
    pid: int | None
    address: str
    since_s: float
    leases: int
    waiting: int
    restarts: int
    retry_in_s: float | None
    on_demand: bool
    log: str
    diagnosis: Diagnosis | None
    memory_bytes: int = 0
    gpus: tuple[int, ...] = ()
    idle_s: float | None = None
    is_pinned: bool = False
    has_given_room: bool = False
    model: str = ""
    """The public name of the model it serves, of which it may be one replica of several."""
    is_retired: bool = False
    """A reload has taken it out: it finishes what it has begun, and is gone."""
    parity: Parity | None = None
    """What was proven of its prompts; None where nothing was to be."""


_FOREMOST = (
    State.READY, State.STARTING, State.RECYCLING, State.BACKOFF, State.SLEEPING, State.YIELDING, State.DRAINING,
    State.STOPPING, State.STOPPED, State.FAILED,
)  # fmt: skip


def foremost(replicas: Sequence[BackendStatus]) -> BackendStatus:
    """How a model stands: as the one of its *replicas*, at least one, that is nearest to serving."""
    return min(replicas, key=lambda status: _FOREMOST.index(status.state))
