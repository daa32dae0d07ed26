"""What is always true of the table, whatever sequence of events comes."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from backends.lifecycle import HAS_PROCESS, LEAVING, Effect, Event, IllegalTransition, State, is_legal, next_step

GONE = frozenset({Event.EXITED, Event.CRASHED, Event.REJECTED})
"""Events that say that the process is no more."""


class Life(RuleBasedStateMachine):
    """Any events, legal or not, with a process and waiters as the effects would have them."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State.STOPPED
        self.is_alive = False
        self.waiting = 0
        self.has_timer = False

    @rule(event=st.sampled_from(Event))
    def happen(self, event: Event) -> None:
        """One event: its row, or a refusal that changes nothing."""
        if not is_legal(self.state, event):
            with pytest.raises(IllegalTransition):
                next_step(self.state, event)
            return
        step = next_step(self.state, event)
        if event in GONE:
            assert self.is_alive
            self.is_alive = False
        self.state = step.state
        for effect in step.effects:
            self._carry_out(effect)

    @rule()
    def wait(self) -> None:
        """A request waits, which asks for a start where none is under way."""
        if self.state is State.FAILED:
            return  # refused at once
        self.waiting += 1
        self.happen(Event.START_REQUESTED)
        if self.state in (State.READY, *LEAVING):
            self.waiting -= 1  # served at once, or remembered: it waits for the next start

    def _carry_out(self, effect: Effect) -> None:
        if effect is Effect.SPAWN:
            assert not self.is_alive
            self.is_alive = True
        elif effect in (Effect.SIGNAL, Effect.KILL):
            assert self.is_alive
        elif effect in (Effect.WAKE_WAITERS, Effect.FAIL_WAITERS):
            assert (effect is Effect.WAKE_WAITERS) == (self.state is State.READY)
            self.waiting = 0

    @invariant()
    def a_process_lives_exactly_where_the_state_says(self) -> None:
        """HAS_PROCESS names the states in which one lives."""
        assert self.is_alive == (self.state in HAS_PROCESS)

    @invariant()
    def nobody_waits_where_nothing_will_come(self) -> None:
        """In STOPPED, SLEEPING, FAILED and READY every waiter has been answered."""
        if self.state in (State.STOPPED, State.SLEEPING, State.FAILED, State.READY):
            assert self.waiting == 0


EXAMPLES = max(200, settings().max_examples)
"""`make fault` asks for 10,000, by the profile in conftest.py."""

Life.TestCase.settings = settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None)
test_life = Life.TestCase
test_life = pytest.mark.timeout(60 + EXAMPLES / 20)(test_life)
test_life.__doc__ = (
    "Any sequence of events keeps at most one process, where the state says, and leaves no waiter behind."
)
