"""A backend's life as recorded histories: what is done to it, and the events that must follow, row by row."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from backends.diagnosis import ExitStatus
from backends.lifecycle import TRANSITIONS, Event, State
from backends.probing import ProbeFailed
from backends.settings import Timing
from tests.unit.backends.fakes import CALM, OUT_OF_MEMORY, SLEEPY, World, living_backend, settings, turns


class Step(NamedTuple):
    """*act* is a word of `ACTS`; *then* are the events that must follow, in order, blank-separated."""

    act: str
    then: str = ""


class History(NamedTuple):
    """A life: its steps, the clocks that matter to it, and the state it ends in."""

    steps: tuple[Step, ...]
    end: State
    timing: Timing = CALM


SLOW_RETRY = replace(CALM, backoff_base_s=60, backoff_max_s=60)
IMPATIENT = replace(CALM, stop_grace_s=0.01)

HISTORIES = {
    "started, answered, stopped": History(
        (Step("start", "StartRequested"), Step("answer", "BecameReady"), Step("stop", "StopRequested Drained Exited")),
        State.STOPPED,
    ),
    "a start that takes too long is recycled": History(
        (Step("start", "StartRequested StartTimedOut Exited GaveUp"),),
        State.FAILED,
        replace(CALM, start_timeout_s=0.02, max_failed_starts=1),
    ),
    "a crash while starting is retried": History(
        (
            Step("start", "StartRequested"),
            Step("crash", "Crashed BackoffElapsed"),
            Step("answer", "BecameReady"),
        ),
        State.READY,
    ),
    "three starts that crash are enough": History(
        (
            Step("start", "StartRequested"),
            Step("crash", "Crashed BackoffElapsed"),
            Step("crash", "Crashed BackoffElapsed"),
            Step("crash", "Crashed GaveUp"),
        ),
        State.FAILED,
    ),
    "a permanent reason is not retried, but a person may": History(
        (
            Step("start", "StartRequested"),
            Step("run out of memory", "Rejected"),
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
        ),
        State.READY,
    ),
    "a failed backend can be stopped": History(
        (Step("start", "StartRequested"), Step("run out of memory", "Rejected"), Step("stop", "StopRequested")),
        State.STOPPED,
    ),
    "stopped while starting": History(
        (Step("start", "StartRequested"), Step("stop", "StopRequested Exited")), State.STOPPED
    ),
    "a crash while ready is retried": History(
        (
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("crash", "Crashed BackoffElapsed"),
            Step("answer", "BecameReady"),
        ),
        State.READY,
    ),
    "out of memory while ready is a crash, worth a retry": History(
        (
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("run out of memory", "Crashed BackoffElapsed"),
            Step("answer", "BecameReady"),
        ),
        State.READY,
    ),
    "unhealthy while ready": History(
        (
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("fall ill", "BecameUnhealthy Exited BackoffElapsed"),
            Step("answer", "BecameReady"),
        ),
        State.READY,
    ),
    "unhealthy and deaf to TERM": History(
        (
            Step("deaf from now"),
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("fall ill", "BecameUnhealthy StopTimedOut Exited BackoffElapsed"),
        ),
        State.STARTING,
        IMPATIENT,
    ),
    "stopped while recycling": History(
        (
            Step("deaf from now"),
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("fall ill", "BecameUnhealthy"),
            Step("stop", "StopRequested"),
            Step("exit", "Exited"),
        ),
        State.STOPPED,
    ),
    "drained by the last lease": History(
        (
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("lease"),
            Step("stop", "StopRequested"),
            Step("return", "Drained Exited"),
        ),
        State.STOPPED,
    ),
    "drained too long": History(
        (
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("lease"),
            Step("stop", "StopRequested DrainTimedOut Exited"),
            Step("return"),
        ),
        State.STOPPED,
        replace(CALM, drain_timeout_s=0.01),
    ),
    "a crash while draining": History(
        (
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("lease"),
            Step("stop", "StopRequested"),
            Step("crash", "Crashed"),
            Step("return"),
        ),
        State.STOPPED,
    ),
    "deaf to TERM": History(
        (
            Step("deaf from now"),
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("stop", "StopRequested Drained StopTimedOut Exited"),
        ),
        State.STOPPED,
        IMPATIENT,
    ),
    "stopped while waiting to try again": History(
        (Step("start", "StartRequested"), Step("crash", "Crashed"), Step("stop", "StopRequested")),
        State.STOPPED,
        SLOW_RETRY,
    ),
    "a start asked for while stopping is replayed": History(
        (
            Step("deaf from now"),
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("stop", "StopRequested Drained"),
            Step("start"),
            Step("exit", "Exited StartRequested"),
            Step("answer", "BecameReady"),
        ),
        State.READY,
    ),
    "a start asked for while draining is replayed after a crash": History(
        (
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("lease"),
            Step("stop", "StopRequested"),
            Step("start"),
            Step("crash", "Crashed StartRequested"),
            Step("return"),
        ),
        State.STARTING,
    ),
    "a stop forgets the start asked for before": History(
        (
            Step("deaf from now"),
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("stop", "StopRequested Drained"),
            Step("start"),
            Step("stop"),
            Step("exit", "Exited"),
        ),
        State.STOPPED,
    ),
    "yielded to another, it stops": History(
        (
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("yield", "YieldRequested Drained Exited"),
        ),
        State.STOPPED,
    ),
    "it yields when its last lease is back": History(
        (
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("lease"),
            Step("yield", "YieldRequested"),
            Step("end drain"),
            Step("return", "Drained Exited"),
        ),
        State.STOPPED,
        replace(CALM, drain_timeout_s=0.001),
    ),
    "a start asked for while yielding is replayed": History(
        (
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("lease"),
            Step("yield", "YieldRequested"),
            Step("start"),
            Step("return", "Drained Exited StartRequested"),
            Step("answer", "BecameReady"),
        ),
        State.READY,
    ),
    "stopped while yielding, it has its drain's time": History(
        (
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("lease"),
            Step("yield", "YieldRequested"),
            Step("stop", "StopRequested DrainTimedOut Exited"),
            Step("return"),
        ),
        State.STOPPED,
        replace(CALM, drain_timeout_s=0.01),
    ),
    "a crash while yielding": History(
        (
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("lease"),
            Step("yield", "YieldRequested"),
            Step("crash", "Crashed"),
            Step("return"),
        ),
        State.STOPPED,
    ),
    "asleep and awake again": History(
        (
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("sleep", "YieldRequested FellAsleep"),
            Step("start", "StartRequested BecameReady"),
        ),
        State.READY,
    ),
    "a start asked for while falling asleep wakes it": History(
        (
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("drowsy from now"),
            Step("sleep", "YieldRequested"),
            Step("start"),
            Step("nod off", "FellAsleep StartRequested BecameReady"),
        ),
        State.READY,
    ),
    "one that does not fall asleep is stopped": History(
        (
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("sleepless from now"),
            Step("sleep", "YieldRequested Drained Exited"),
        ),
        State.STOPPED,
    ),
    "one that will not wake is started anew": History(
        (
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("sleep", "YieldRequested FellAsleep"),
            Step("refuse from now"),
            Step("start", "StartRequested StartTimedOut Exited BackoffElapsed"),
            Step("answer", "BecameReady"),
        ),
        State.READY,
    ),
    "stopped asleep": History(
        (
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("sleep", "YieldRequested FellAsleep"),
            Step("stop", "StopRequested Exited"),
        ),
        State.STOPPED,
    ),
    "killed asleep, nobody misses it": History(
        (
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("sleep", "YieldRequested FellAsleep"),
            Step("crash", "Crashed"),
        ),
        State.STOPPED,
    ),
    "asleep, it yields what is left": History(
        (
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("sleep", "YieldRequested FellAsleep"),
            Step("yield", "YieldRequested Exited"),
        ),
        State.STOPPED,
    ),
    "waiting to wake, it yields what is left, and starts anew": History(
        (
            Step("start", "StartRequested"),
            Step("answer", "BecameReady"),
            Step("sleep", "YieldRequested FellAsleep"),
            Step("no room from now"),
            Step("start", "StartRequested"),
            Step("yield", "YieldRequested Exited StartRequested"),
        ),
        State.STARTING,
    ),
    "a start that never slept does not yield": History(
        (Step("start", "StartRequested"), Step("yield"), Step("answer", "BecameReady")), State.READY
    ),
    "stopped while it waits for room": History(
        (Step("no room from now"), Step("start", "StartRequested"), Step("stop", "StopRequested Exited")), State.STOPPED
    ),
    "what already is need not be asked for": History(
        (
            Step("stop"),
            Step("start", "StartRequested"),
            Step("start"),
            Step("answer", "BecameReady"),
            Step("start"),
        ),
        State.READY,
    ),
}


async def _start(world: World) -> None:
    await world.supervisor.request_start()


async def _stop(world: World) -> None:
    await world.supervisor.request_stop()


async def _answer(world: World) -> None:
    (await world.run()).is_answering.set()


async def _crash(world: World) -> None:
    (await world.run()).end(ExitStatus(code=1))


async def _exit(world: World) -> None:
    (await world.run()).end(ExitStatus(code=0))


async def _run_out_of_memory(world: World) -> None:
    run = await world.run()
    run.say(OUT_OF_MEMORY)
    run.end(ExitStatus(code=1))


async def _fall_ill(world: World) -> None:
    (await world.run()).is_well = False


async def _deaf_from_now(world: World) -> None:
    world.launcher.deaf = True


async def _lease(world: World) -> None:
    lease = world.supervisor.try_lease()
    assert lease is not None
    world.leases.append(lease)


async def _return(world: World) -> None:
    world.leases.pop().release()


async def _yield(world: World) -> None:
    world.supervisor.request_yield(sleep=False)


async def _sleep(world: World) -> None:
    world.supervisor.request_yield(sleep=True)


async def _end_drain(world: World) -> None:
    world.supervisor.end_drain()


async def _drowsy_from_now(world: World) -> None:
    (await world.run()).may_nap.clear()


async def _nod_off(world: World) -> None:
    (await world.run()).may_nap.set()


async def _sleepless_from_now(world: World) -> None:
    (await world.run()).is_sleepless = True


async def _refuse_from_now(world: World) -> None:
    (await world.run()).refusal = ProbeFailed("503")


async def _no_room_from_now(world: World) -> None:
    world.room.may_grant.clear()


ACTS: dict[str, Callable[[World], Awaitable[None]]] = {
    "start": _start,
    "stop": _stop,
    "answer": _answer,
    "crash": _crash,
    "exit": _exit,
    "run out of memory": _run_out_of_memory,
    "fall ill": _fall_ill,
    "deaf from now": _deaf_from_now,
    "lease": _lease,
    "return": _return,
    "yield": _yield,
    "sleep": _sleep,
    "end drain": _end_drain,
    "drowsy from now": _drowsy_from_now,
    "nod off": _nod_off,
    "sleepless from now": _sleepless_from_now,
    "refuse from now": _refuse_from_now,
    "no room from now": _no_room_from_now,
}


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
async def test_history(history: History, tmp_path: Path) -> None:
    """Each act is followed by exactly these events, each taking the row of the table, and never two runs live."""
    async with living_backend(tmp_path, settings(tmp_path, history.timing, **SLEEPY)) as world:
        expected: list[str] = []
        for step in history.steps:
            await ACTS[step.act](world)
            expected += step.then.split()
            await world.published(len(expected))
            await turns()
            assert world.events == expected
        assert world.state is history.end
        for transition in world.transitions:
            assert transition.after is TRANSITIONS[transition.before, transition.event][0]
        assert world.launcher.most_alive <= 1
        assert world.supervisor.status().leases == 0


def test_the_histories_reach_every_row() -> None:
    """No row of the table is without a history that takes it through the supervisor."""
    reached = set()
    for history in HISTORIES.values():
        state = State.STOPPED
        for step in history.steps:
            for name in step.then.split():
                row = (state, Event(name))
                reached.add(row)
                state = TRANSITIONS[row][0]
    assert reached == TRANSITIONS.keys()
