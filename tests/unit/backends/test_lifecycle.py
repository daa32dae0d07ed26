"""The table of a backend's life."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

import backends
from backends.lifecycle import (
    HAS_PROCESS,
    LEAVING,
    RESTING,
    TRANSITIONS,
    Effect,
    Event,
    IllegalTransition,
    State,
    Step,
    as_markdown,
    is_legal,
    next_step,
)

DESIGN = Path(backends.__file__).with_name("DESIGN.md")

ROWS = """
STOPPED   StartRequested  STARTING   reset attempts; spawn
STARTING  BecameReady     READY      watch health; wake waiters
STARTING  StartTimedOut   RECYCLING  signal
STARTING  Crashed         BACKOFF    schedule retry or give up
STARTING  Rejected        FAILED     fail waiters
STARTING  StopRequested   STOPPING   fail waiters; signal
READY     Crashed         BACKOFF    schedule retry or give up
READY     BecameUnhealthy RECYCLING  signal
READY     StopRequested   DRAINING   refuse leases; await drain
READY     YieldRequested  YIELDING   refuse leases; await their return
YIELDING  Drained         STOPPING   signal
YIELDING  FellAsleep      SLEEPING   unload when idle
YIELDING  StopRequested   DRAINING   refuse leases; await drain
YIELDING  Crashed         STOPPED    fail waiters
SLEEPING  StartRequested  STARTING   reset attempts; wake engine
SLEEPING  YieldRequested  STOPPING   signal
SLEEPING  StopRequested   STOPPING   signal
SLEEPING  Crashed         STOPPED    fail waiters
STARTING  YieldRequested  STOPPING   signal
DRAINING  Drained         STOPPING   signal
DRAINING  DrainTimedOut   STOPPING   signal
DRAINING  Crashed         STOPPED    fail waiters
STOPPING  StopTimedOut    STOPPING   kill
STOPPING  Exited          STOPPED    fail waiters
RECYCLING StopTimedOut    RECYCLING  kill
RECYCLING StopRequested   STOPPING   fail waiters; signal
RECYCLING Exited          BACKOFF    schedule retry or give up
BACKOFF   BackoffElapsed  STARTING   spawn
BACKOFF   GaveUp          FAILED     fail waiters
BACKOFF   StopRequested   STOPPED    cancel retry; fail waiters
FAILED    StartRequested  STARTING   reset attempts; spawn
FAILED    StopRequested   STOPPED
"""
"""Written a second time on purpose: a changed row is a decision, and must be made in two places."""

TABLE = [tuple(line.split(maxsplit=3)) for line in ROWS.strip().splitlines()]
ILLEGAL = [pair for pair in itertools.product(State, Event) if pair not in TRANSITIONS]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}+{row[1]}")
def test_row(row: tuple[str, ...]) -> None:
    """Each row leads where it says, with its effects in order."""
    state, event, following, *effects = row
    told = next_step(State[state], Event(event))
    assert told.state is State[following]
    # An effect's words may hold the separator, so the whole text is compared.
    assert "; ".join(told.effects) == "".join(effects)


def test_the_table_has_no_other_rows() -> None:
    """Every row of the table is among those expected."""
    assert {(State[row[0]], Event(row[1])) for row in TABLE} == TRANSITIONS.keys()


@pytest.mark.parametrize(("state", "event"), ILLEGAL)
def test_an_illegal_event_raises_and_changes_nothing(state: State, event: Event) -> None:
    """Every pair without a row raises, says which it was, and leaves the table as it was."""
    before = dict(TRANSITIONS)
    assert not is_legal(state, event)
    with pytest.raises(IllegalTransition, match=f"{event.value} is not legal while {state.value}") as refusal:
        next_step(state, event)
    assert (refusal.value.state, refusal.value.event) == (state, event)
    assert before == TRANSITIONS


def test_every_state_can_be_reached_and_left() -> None:
    """From STOPPED every state can be reached, and from every state STOPPED."""
    for start, goal in [(State.STOPPED, state) for state in State] + [(state, State.STOPPED) for state in State]:
        reached = {start}
        for _ in State:
            reached |= {following for (state, _), (following, _) in TRANSITIONS.items() if state in reached}
        assert goal in reached


def test_a_process_is_started_only_where_there_is_none() -> None:
    """SPAWN stands only on rows that come from a state without a process and lead to STARTING."""
    for (state, _), (following, effects) in TRANSITIONS.items():
        begins = Effect.SPAWN in effects or (Effect.WAKE_ENGINE in effects and state is State.SLEEPING)
        assert begins == (following is State.STARTING)
        if Effect.SPAWN in effects:
            assert state not in HAS_PROCESS


def test_signals_go_only_to_processes() -> None:
    """SIGNAL and KILL stand only on rows between states that have a process."""
    for (state, _), (following, effects) in TRANSITIONS.items():
        if {Effect.SIGNAL, Effect.KILL} & set(effects):
            assert {state, following} <= HAS_PROCESS


def test_waiters_are_answered_wherever_waiting_ends() -> None:
    """Every row into READY wakes, and every row into STOPPED or FAILED fails them, except from where none can wait."""
    for (state, _), (following, effects) in TRANSITIONS.items():
        if following is State.READY:
            assert Effect.WAKE_WAITERS in effects
        if following in (State.STOPPED, State.FAILED) and state is not State.FAILED:
            assert Effect.FAIL_WAITERS in effects


def test_every_leaving_state_can_only_come_to_rest() -> None:
    """From a leaving state all rows stay among the leaving or lead to rest, so a start must be remembered."""
    for (state, _), (following, _) in TRANSITIONS.items():
        if state in LEAVING:
            assert following in {*LEAVING, *RESTING}


def test_a_start_leaves_every_state_of_rest() -> None:
    """Where a remembered start is replayed, the table has a row for it."""
    assert all(is_legal(state, Event.START_REQUESTED) for state in RESTING)


def test_yielding_is_only_ended_by_those_who_use_it() -> None:
    """No clock cuts the requests of a backend that makes room."""
    timed_out = (Event.DRAIN_TIMED_OUT, Event.STOP_TIMED_OUT, Event.START_TIMED_OUT)
    assert not any(is_legal(State.YIELDING, event) for event in timed_out)


def test_the_design_note_shows_the_table() -> None:
    """What `python -m backends.lifecycle` prints stands in backends/DESIGN.md between its marks."""
    printed = subprocess.run(
        [sys.executable, "-m", "backends.lifecycle"], capture_output=True, text=True, check=True, timeout=20
    ).stdout
    assert printed == as_markdown()
    _, opening, rest = DESIGN.read_text(encoding="utf-8").partition("<!-- lifecycle -->")
    shown, closing, _ = rest.partition("<!-- /lifecycle -->")
    assert opening
    assert closing
    assert shown.strip() == printed.strip()


def test_a_step_is_a_value() -> None:
    """Steps compare by value and cannot be changed."""
    assert next_step(State.FAILED, Event.STOP_REQUESTED) == Step(State.STOPPED, ())
