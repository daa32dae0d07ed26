"""What is always true of a supervisor, whatever is done to it and in whatever order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from backends.diagnosis import ExitStatus
from backends.lease import BackendUnavailable, Lease
from backends.lifecycle import TRANSITIONS, State
from backends.probing import ProbeFailed
from backends.process import SpawnFailed
from tests.unit.backends.fakes import CALM, OUT_OF_MEMORY, SLEEPY, World, turns
from tests.unit.backends.fakes import settings as backend_settings

LIMIT_S = 30.0
RESTED = (State.READY, State.STOPPED, State.SLEEPING, State.FAILED)

HASTY = replace(
    CALM, stop_grace_s=0.003, drain_timeout_s=0.003, max_failed_starts=2, start_timeout_s=0.006, health_interval_s=0.002
)
"""Every timer elapses within the life of an example, now and then before what it waits for."""


class Play:
    """One supervisor and those who use it: leases held, requests waiting."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.held: list[Lease] = []
        self.waiters: list[asyncio.Task[None]] = []
        self.refusals: list[str] = []

    @property
    def is_engine_gone(self) -> bool:
        """Whether the main process has exited, and what it left behind has not."""
        return any(run.has_exited for run in self.world.launcher.alive)

    def check(self) -> None:
        """What holds at every moment."""
        world = self.world
        status = world.supervisor.status()
        assert len(world.launcher.alive) <= 1
        assert len(world.room.granted) <= 2  # its run's, and while that wakes, the same again
        assert status.leases == len(self.held)
        assert status.waiting <= len([waiter for waiter in self.waiters if not waiter.done()])
        assert len(world.launcher.runs) <= [t.after for t in world.transitions].count(State.STARTING)

    async def check_waiters(self) -> None:
        """Where nothing will come, nobody waits, once those who were told have gone."""
        state = self.world.state
        await turns()
        # of an engine that is gone the end will come, and the next start with it
        if self.world.state is state and state in RESTED and not self.is_engine_gone:
            assert self.world.supervisor.status().waiting == 0

    async def wait(self) -> None:
        """One request: a lease, granted only in READY, or a refusal with a code."""
        try:
            lease = await self.world.supervisor.lease(LIMIT_S)
        except BackendUnavailable as refusal:
            self.refusals.append(refusal.code)
        else:
            assert self.world.state is State.READY
            self.held.append(lease)

    def try_lease(self) -> None:
        """One request that does not wait."""
        state = self.world.state
        lease = self.world.supervisor.try_lease()
        # A run that has ended altogether is READY's until the supervisor has taken its last message.
        has_ended = any(not run.is_alive for run in self.world.launcher.runs[-1:])
        assert lease is None or (state is State.READY and not self.is_engine_gone)
        assert lease is not None or state is not State.READY or self.is_engine_gone or has_ended
        if lease is not None:
            self.held.append(lease)

    def give_back(self) -> None:
        """The oldest lease comes back, twice."""
        if self.held:
            lease = self.held.pop(0)
            lease.release(answered=True)
            lease.release()

    def cancel_a_waiter(self) -> None:
        """The oldest request leaves."""
        for waiter in [waiter for waiter in self.waiters if not waiter.done()][:1]:
            waiter.cancel()

    def end(self, status: ExitStatus, line: str = "") -> None:
        """The engine ends by itself."""
        for run in self.world.launcher.alive:
            if line:
                run.say(line)
            run.end(status)

    def answer(self, refusal: ProbeFailed | None = None) -> None:
        """The engine begins to answer, well or with a refusal."""
        for run in self.world.launcher.alive:
            run.refusal = refusal
            run.is_answering.set()

    def exit_first(self) -> None:
        """The main process is gone, and what it left behind is not."""
        for run in self.world.launcher.alive:
            run.has_exited = True

    def fall_ill(self) -> None:
        """The engine's health fails from now on."""
        for run in self.world.launcher.alive:
            run.is_well = False

    def make_deaf(self) -> None:
        """Engines ignore TERM from now on, or obey again."""
        self.world.launcher.deaf = not self.world.launcher.deaf
        for run in self.world.launcher.alive:
            run.deaf = self.world.launcher.deaf

    def toggle_room(self) -> None:
        """Starts wait for room from now on, or no more."""
        room = self.world.room
        room.may_grant.clear() if room.may_grant.is_set() else room.may_grant.set()

    def make_sleepless(self) -> None:
        """The engine does not fall asleep."""
        for run in self.world.launcher.alive:
            run.is_sleepless = True

    def break_command(self) -> None:
        """The next start cannot spawn."""
        self.world.launcher.failures.append(SpawnFailed("engine: no such file"))

    def change(self, **settings: object) -> None:
        """New settings: what the engine would notice, or only what its supervisor reads."""
        setup = self.world.supervisor.setup
        self.world.supervisor.change(replace(setup, backend=replace(setup.backend, **settings)))  # type: ignore[arg-type]

    def wait_in_background(self) -> None:
        """Another request."""
        self.waiters.append(asyncio.create_task(self.wait()))


ACTS: dict[str, Callable[[Play], object]] = {
    "start": lambda play: play.world.supervisor.request_start(),
    "stop": lambda play: play.world.supervisor.request_stop(),
    "end drain": lambda play: play.world.supervisor.end_drain(),
    "kill": lambda play: play.world.supervisor.kill(),
    "yield": lambda play: play.world.supervisor.request_yield(sleep=False),
    "sleep": lambda play: play.world.supervisor.request_yield(sleep=True),
    "toggle room": Play.toggle_room,
    "make sleepless": Play.make_sleepless,
    "idle": lambda play: play.world.supervisor._idle_elapsed(),
    "wait": Play.wait_in_background,
    "cancel a waiter": Play.cancel_a_waiter,
    "try lease": Play.try_lease,
    "give back": Play.give_back,
    "answer": Play.answer,
    "refuse": lambda play: play.answer(ProbeFailed("404", is_permanent=True)),
    "crash": lambda play: play.end(ExitStatus(code=1)),
    "exit": lambda play: play.end(ExitStatus(code=0)),
    "run out of memory": lambda play: play.end(ExitStatus(code=1), OUT_OF_MEMORY),
    "exit first": Play.exit_first,
    "fall ill": Play.fall_ill,
    "make deaf": Play.make_deaf,
    "break command": Play.break_command,
    "change": lambda play: play.change(context_length=len(play.world.transitions) + 1),
    "change to on demand": lambda play: play.change(on_demand=True, context_length=len(play.world.transitions) + 1),
    "adjust": lambda play: play.change(on_demand=False, idle_unload_s=None),
    "retire": lambda play: play.world.supervisor.retire(),
}

PAUSES: dict[str, Callable[[], Awaitable[None]]] = {
    "at once": lambda: turns(0),
    "next turn": lambda: turns(1),
    "some turns": lambda: turns(15),
    "a moment": lambda: asyncio.sleep(0.004),
}

LIKELY = ["start", "answer", "answer", "try lease", "wait", "sleep", *ACTS]
"""Acts to draw from: what leads to READY and to leases more often, else hardly any life would get that far."""

steps = st.lists(st.tuples(st.sampled_from(LIKELY), st.sampled_from(["some turns", *PAUSES])), min_size=15, max_size=40)


async def stop(world: World) -> None:
    """Stop it, again while requests that still wait start it anew."""
    while world.state is not State.STOPPED:
        await world.supervisor.request_stop()
        world.supervisor.end_drain()
        await PAUSES["a moment"]()


async def play_out(folder: Path, script: list[tuple[str, str]], is_orderly: bool) -> World:
    """Every step of *script*, then the end: a stop that is waited for, or a cancelled task."""
    async with asyncio.timeout(LIMIT_S):
        world = World(folder, backend_settings(folder, HASTY, **SLEEPY), max_waiting=4)
        play = Play(world)
        await turns(1)
        for act, pause in script:
            ACTS[act](play)
            await PAUSES[pause]()
            play.check()
            if pause == "some turns":
                await play.check_waiters()
        if is_orderly:
            await stop(world)
            play.check()
        await world.close()
        if play.waiters:
            done, waiting = await asyncio.wait(play.waiters, timeout=LIMIT_S / 2)
            assert not waiting
            for waiter in done:
                assert waiter.cancelled() or waiter.exception() is None
        while play.held:
            play.give_back()
        assert world.supervisor.status().leases == 0
        assert world.supervisor.status().waiting == 0
        assert set(play.refusals) <= {"model_failed", "model_stopped", "queue_full"}
        return world


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder for all examples: what they leave in it is overwritten. Early stops are as hasty as later ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backends.supervisor.EARLY_STOP_GRACE_S", HASTY.stop_grace_s)
        yield tmp_path_factory.mktemp("supervisor")


@given(script=steps, is_orderly=st.booleans())
@hypothesis_settings(max_examples=300, deadline=None)
def test_whatever_is_done(folder: Path, script: list[tuple[str, str]], is_orderly: bool) -> None:
    """At most one process lives, leases are granted in READY only, every waiter is answered, nothing is left."""
    world = asyncio.run(play_out(folder, script, is_orderly))
    assert world.launcher.alive == []
    assert world.launcher.most_alive <= 1
    assert world.records.read_all() == []
    assert world.room.granted == []
    state = State.STOPPED
    for transition in world.transitions:
        assert transition.before is state
        state = TRANSITIONS[state, transition.event][0]
        assert transition.after is state
