"""A backend's life as one table: (state, event) -> next state and effects.

Theory of operation
-------------------
Everything that decides about a backend's state lives in this file, and nothing else does: no clock, no process, no
loop. The supervisor feeds events in, one at a time, and carries the effects out. An event that the table does not
hold for the current state raises `IllegalTransition` and changes nothing; the supervisor asks `is_legal` first where
an occurrence may rightly come too late.

Three ways for a process to be gone:
*Exited*, gone and we had asked; *Crashed*, gone unasked and worth a retry; *Rejected*, it would fail the same way
again (bad flag, missing weights, out of memory at load), so retrying only hides the reason from the operator.

YIELDING makes room for another backend: like DRAINING, but running requests are never cut, and those who wait are kept
for the start that follows. It ends in a stop, or asleep: the process stays, its GPU memory is given back.

``python -m backends.lifecycle`` prints the table as Markdown; `backends/DESIGN.md` holds that output and a test keeps
the two equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """What a backend is doing."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    YIELDING = "yielding"
    SLEEPING = "sleeping"
    DRAINING = "draining"
    STOPPING = "stopping"
    RECYCLING = "recycling"
    BACKOFF = "backoff"
    FAILED = "failed"


class Event(StrEnum):
    """What can happen to a backend."""

    START_REQUESTED = "StartRequested"
    STOP_REQUESTED = "StopRequested"
    BECAME_READY = "BecameReady"
    BECAME_UNHEALTHY = "BecameUnhealthy"
    YIELD_REQUESTED = "YieldRequested"
    FELL_ASLEEP = "FellAsleep"
    START_TIMED_OUT = "StartTimedOut"
    DRAINED = "Drained"
    DRAIN_TIMED_OUT = "DrainTimedOut"
    STOP_TIMED_OUT = "StopTimedOut"
    EXITED = "Exited"
    CRASHED = "Crashed"
    REJECTED = "Rejected"
    BACKOFF_ELAPSED = "BackoffElapsed"
    GAVE_UP = "GaveUp"


class Effect(StrEnum):
    """What the supervisor has to do about a transition, in the order given."""

    SPAWN = "spawn"
    SIGNAL = "signal"
    KILL = "kill"
    WATCH_HEALTH = "watch health"
    AWAIT_DRAIN = "refuse leases; await drain"
    AWAIT_LEASES = "refuse leases; await their return"
    WAKE_ENGINE = "wake engine"
    AWAIT_IDLE = "unload when idle"
    SCHEDULE_RETRY_OR_GIVE_UP = "schedule retry or give up"
    CANCEL_RETRY = "cancel retry"
    RESET_ATTEMPTS = "reset attempts"
    WAKE_WAITERS = "wake waiters"
    FAIL_WAITERS = "fail waiters"


S, E, F = State, Event, Effect

TRANSITIONS: dict[tuple[State, Event], tuple[State, tuple[Effect, ...]]] = {
    (S.STOPPED, E.START_REQUESTED): (S.STARTING, (F.RESET_ATTEMPTS, F.SPAWN)),
    (S.STARTING, E.BECAME_READY): (S.READY, (F.WATCH_HEALTH, F.WAKE_WAITERS)),
    (S.STARTING, E.START_TIMED_OUT): (S.RECYCLING, (F.SIGNAL,)),
    (S.STARTING, E.CRASHED): (S.BACKOFF, (F.SCHEDULE_RETRY_OR_GIVE_UP,)),
    (S.STARTING, E.REJECTED): (S.FAILED, (F.FAIL_WAITERS,)),
    (S.STARTING, E.STOP_REQUESTED): (S.STOPPING, (F.FAIL_WAITERS, F.SIGNAL)),
    (S.READY, E.CRASHED): (S.BACKOFF, (F.SCHEDULE_RETRY_OR_GIVE_UP,)),
    (S.READY, E.BECAME_UNHEALTHY): (S.RECYCLING, (F.SIGNAL,)),
    (S.READY, E.STOP_REQUESTED): (S.DRAINING, (F.AWAIT_DRAIN,)),
    (S.READY, E.YIELD_REQUESTED): (S.YIELDING, (F.AWAIT_LEASES,)),
    (S.YIELDING, E.DRAINED): (S.STOPPING, (F.SIGNAL,)),
    (S.YIELDING, E.FELL_ASLEEP): (S.SLEEPING, (F.AWAIT_IDLE,)),
    (S.YIELDING, E.STOP_REQUESTED): (S.DRAINING, (F.AWAIT_DRAIN,)),
    (S.YIELDING, E.CRASHED): (S.STOPPED, (F.FAIL_WAITERS,)),
    (S.SLEEPING, E.START_REQUESTED): (S.STARTING, (F.RESET_ATTEMPTS, F.WAKE_ENGINE)),
    (S.SLEEPING, E.YIELD_REQUESTED): (S.STOPPING, (F.SIGNAL,)),
    (S.SLEEPING, E.STOP_REQUESTED): (S.STOPPING, (F.SIGNAL,)),
    (S.SLEEPING, E.CRASHED): (S.STOPPED, (F.FAIL_WAITERS,)),
    (S.STARTING, E.YIELD_REQUESTED): (S.STOPPING, (F.SIGNAL,)),
    (S.DRAINING, E.DRAINED): (S.STOPPING, (F.SIGNAL,)),
    (S.DRAINING, E.DRAIN_TIMED_OUT): (S.STOPPING, (F.SIGNAL,)),
    (S.DRAINING, E.CRASHED): (S.STOPPED, (F.FAIL_WAITERS,)),
    (S.STOPPING, E.STOP_TIMED_OUT): (S.STOPPING, (F.KILL,)),
    (S.STOPPING, E.EXITED): (S.STOPPED, (F.FAIL_WAITERS,)),
    (S.RECYCLING, E.STOP_TIMED_OUT): (S.RECYCLING, (F.KILL,)),
    (S.RECYCLING, E.STOP_REQUESTED): (S.STOPPING, (F.FAIL_WAITERS, F.SIGNAL)),
    (S.RECYCLING, E.EXITED): (S.BACKOFF, (F.SCHEDULE_RETRY_OR_GIVE_UP,)),
    (S.BACKOFF, E.BACKOFF_ELAPSED): (S.STARTING, (F.SPAWN,)),
    (S.BACKOFF, E.GAVE_UP): (S.FAILED, (F.FAIL_WAITERS,)),
    (S.BACKOFF, E.STOP_REQUESTED): (S.STOPPED, (F.CANCEL_RETRY, F.FAIL_WAITERS)),
    (S.FAILED, E.START_REQUESTED): (S.STARTING, (F.RESET_ATTEMPTS, F.SPAWN)),
    (S.FAILED, E.STOP_REQUESTED): (S.STOPPED, ()),
}

HAS_PROCESS = frozenset({S.STARTING, S.READY, S.YIELDING, S.SLEEPING, S.DRAINING, S.STOPPING, S.RECYCLING})
"""States in which a process of this backend may be alive."""

LEAVING = frozenset({S.YIELDING, S.DRAINING, S.STOPPING})
"""States on the way to RESTING: a start asked for here is remembered and replayed there."""

RESTING = frozenset({S.STOPPED, S.SLEEPING})
"""States that a start leaves at once."""


class IllegalTransition(Exception):
    """The table has no row for this event in this state; nothing was changed."""

    def __init__(self, state: State, event: Event) -> None:
        super().__init__(f"{event.value} is not legal while {state.value}")
        self.state = state
        self.event = event


@dataclass(frozen=True, slots=True)
class Step:
    """One row applied: where the backend is now, and what must be done about it, in order."""

    state: State
    effects: tuple[Effect, ...]


def is_legal(state: State, event: Event) -> bool:
    """Whether the table has a row for *event* in *state*."""
    return (state, event) in TRANSITIONS


def next_step(state: State, event: Event) -> Step:
    """The row for *event* in *state*.

    Raises IllegalTransition when there is none.
    """
    try:
        row = TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(state, event) from None
    return Step(*row)


def as_markdown() -> str:
    """The table as `backends/DESIGN.md` shows it."""
    lines = ["| state + event | next | effects |", "|---|---|---|"]
    for (state, event), (following, effects) in TRANSITIONS.items():
        done = "; ".join(effect.value for effect in effects)
        lines.append(f"| {state.name} + {event.value} | {following.name} | {done} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")  # noqa: T201 - this is what running the module is for
