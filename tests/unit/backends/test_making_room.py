"""A fleet of backends that do not fit together: supervisors, starts and the room, over fake processes."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.devices import GIB, LocalDevices, Nvml
from backends.diagnosis import ExitStatus
from backends.engines import ADAPTERS
from backends.fleet import Fleet
from backends.lease import BackendUnavailable
from backends.lifecycle import State
from backends.places import Places
from backends.records import ProcessRecords
from backends.room import MeasuredRoom
from backends.settings import BackendSettings, EngineSettings
from backends.start import Host
from backends.status import Transition
from tests.unit.backends.fake_nvml import FakeGpu, FakeNvml
from tests.unit.backends.fakes import LIMIT_S, SLEEPY, FakeLauncher, FakeProber, settings, turns, until


class Machine:
    """A fleet with room for one backend of 20 GiB, whose engines answer at once."""

    def __init__(self, folder: Path, *backends: BackendSettings, gpu: FakeGpu | None = None) -> None:
        self.launcher = FakeLauncher()
        self.launcher.answers = True
        self.transitions: list[Transition] = []
        nvml = Nvml(FakeNvml(gpu) if gpu else FakeNvml(init_problem="none"))
        host = Host(
            self.launcher,
            FakeProber(self.launcher),
            Places(folder / "sockets"),
            ProcessRecords(folder / "records"),
            asyncio.Semaphore(1),
            folder / "runs",
            room=MeasuredRoom(LocalDevices({}, 24 * GIB, nvml)),
        )
        self.fleet = Fleet(backends, {}, ADAPTERS, host, folder / "logs")
        self.fleet.subscribe(self.transitions.append)

    def events_of(self, name: str) -> list[str]:
        return [change.event.value for change in self.transitions if change.backend == name]

    async def use(self, name: str, gate: asyncio.Event | None = None) -> None:
        """One request: a lease, held for some turns or until *gate* opens."""
        async with self.fleet.lease(name, LIMIT_S):
            assert self.fleet.status(name).state in (State.READY, State.YIELDING)
            await (gate.wait() if gate else turns(3))


@contextlib.asynccontextmanager
async def machine(folder: Path, *backends: BackendSettings, gpu: FakeGpu | None = None) -> AsyncIterator[Machine]:
    async with asyncio.timeout(LIMIT_S):
        made = Machine(folder, *backends, gpu=gpu)
        await made.fleet.open()
        try:
            yield made
        finally:
            await made.fleet.close()
    assert made.launcher.alive == []


def on_demand(folder: Path, name: str, size: int = 20, **others: Any) -> BackendSettings:
    fields: dict[str, Any] = {"min_residency_s": 0.0, "on_demand": True, **others}
    return settings(folder, name=name, memory_bytes=size * GIB, **fields)


async def test_a_second_model_takes_the_place_of_an_idle_one(tmp_path: Path) -> None:
    """A request for a model that does not fit beside an idle one stops that one, and is answered."""
    async with machine(tmp_path, on_demand(tmp_path, "a"), on_demand(tmp_path, "b")) as made:
        await made.use("a")
        await made.use("b")
        await made.use("a")
        assert made.launcher.most_alive == 1
        assert made.events_of("b")[-3:] == ["YieldRequested", "Drained", "Exited"]
        assert made.fleet.status("b").has_given_room
        assert made.fleet.status("b").memory_bytes == 0
        assert made.fleet.status("a").memory_bytes == 20 * GIB


async def test_a_running_request_is_never_cut(tmp_path: Path) -> None:
    """A busy model finishes what it has begun, takes nothing new meanwhile, and those who come wait their turn."""
    async with machine(tmp_path, on_demand(tmp_path, "a"), on_demand(tmp_path, "b")) as made:
        done = asyncio.Event()
        running = asyncio.create_task(made.use("a", done))
        await until(lambda: made.fleet.status("a").leases == 1)
        second = asyncio.create_task(made.use("b"))
        await made.fleet.settled("a", State.YIELDING)
        late = asyncio.create_task(made.use("a"))
        phase = "waiting for memory: 20.0 GiB needed, 4.0 free; a is leaving"
        await until(lambda: made.fleet.status("b").phase == phase)
        assert not late.done()
        done.set()
        await asyncio.gather(running, second, late)
        assert made.launcher.most_alive == 1
        assert [change.backend for change in made.transitions if change.after is State.READY] == ["a", "b", "a"]


async def test_a_pinned_model_stays(tmp_path: Path) -> None:
    """What does not fit beside a pinned model fails at once, names it, and leaves it alone."""
    pinned = on_demand(tmp_path, "a", is_pinned=True)
    async with machine(tmp_path, pinned, on_demand(tmp_path, "b")) as made:
        await made.use("a")
        with pytest.raises(BackendUnavailable, match=r"of which a keeps 20\.0") as refusal:
            await made.use("b")
        assert refusal.value.code == "model_failed"
        assert refusal.value.diagnosis is not None
        assert refusal.value.diagnosis.code == "does_not_fit"
        assert made.fleet.status("a").state is State.READY


async def test_replicas_do_not_swap_with_each_other(tmp_path: Path) -> None:
    """A replica for which there is no room beside its like is refused, and the other serves on."""
    replicas = [on_demand(tmp_path, name, replica_of="m") for name in ("m#1", "m#2")]
    async with machine(tmp_path, *replicas) as made:
        await made.fleet.load("m#1")
        await made.fleet.settled("m#1", State.READY)
        await made.fleet.load("m#2")
        await made.fleet.settled("m#2", State.FAILED)
        diagnosis = made.fleet.status("m#2").diagnosis
        assert diagnosis is not None
        assert "of which m#1 keeps 20.0" in diagnosis.reason
        assert made.events_of("m#1") == ["StartRequested", "BecameReady"]


async def test_a_running_engine_is_pinned(tmp_path: Path) -> None:
    """A reload that pins a running model holds from then on, without a new run."""
    a, b = on_demand(tmp_path, "a"), on_demand(tmp_path, "b")
    async with machine(tmp_path, a, b) as made:
        await made.use("a")
        await made.fleet.change(replace(a, is_pinned=True), EngineSettings())
        with pytest.raises(BackendUnavailable, match=r"of which a keeps 20\.0"):
            await made.use("b")
        assert len(made.launcher.runs) == 1


async def test_startup_models_that_do_not_fit_take_turns(tmp_path: Path) -> None:
    """Two models to be loaded at startup are loaded one after the other, and either comes back when asked for."""
    startup = [on_demand(tmp_path, name, on_demand=False) for name in "ab"]
    async with machine(tmp_path, *startup) as made:
        await made.fleet.settled("b", State.READY)
        assert made.fleet.status("a").has_given_room
        await made.use("a")
        assert made.launcher.most_alive == 1


async def test_a_start_stopped_while_it_waits(tmp_path: Path) -> None:
    """Unloading a model that waits for memory ends its wait, and the one it waited for stays if it was not asked."""
    backends = on_demand(tmp_path, "a", min_residency_s=600), on_demand(tmp_path, "b")
    async with machine(tmp_path, *backends) as made:
        await made.use("a")
        waiting = asyncio.create_task(made.use("b"))
        await until(lambda: "a may stay" in made.fleet.status("b").phase)
        await made.fleet.unload("b")
        with pytest.raises(BackendUnavailable, match="b was stopped"):
            await waiting
        assert made.fleet.status("a").state is State.READY


async def test_sleep_instead_of_stop(tmp_path: Path) -> None:
    """Engines that can sleep change places without a process being started again."""
    backends = [on_demand(tmp_path, name, **SLEEPY) for name in "ab"]
    async with machine(tmp_path, *backends, gpu=FakeGpu()) as made:
        for name in "abab":
            await made.use(name)
        assert len(made.launcher.runs) == 2
        assert made.fleet.status("a").state is State.SLEEPING
        assert made.fleet.status("a").gpus == (0,)
        assert [run.is_asleep for run in made.launcher.runs] == [True, False]


async def test_an_idle_sleeper_is_unloaded(tmp_path: Path) -> None:
    """What sleeps and is not used for idle_unload_s is stopped like any other."""
    backends = [on_demand(tmp_path, "a", idle_unload_s=0.05, **SLEEPY), on_demand(tmp_path, "b")]
    async with machine(tmp_path, *backends, gpu=FakeGpu()) as made:
        await made.use("a")
        await made.use("b")
        await made.fleet.settled("a", State.STOPPED)
        assert made.events_of("a")[-3:] == ["FellAsleep", "StopRequested", "Exited"]


@pytest.mark.parametrize("seed", range(20))
async def test_whoever_alternates_every_request_is_answered(tmp_path: Path, seed: int) -> None:
    """Clients that jump between models of which one fits are all answered, and never do two engines live."""
    chance = random.Random(seed)
    gpu = FakeGpu() if seed % 2 else None
    sleepy = SLEEPY if seed % 4 == 1 else {}
    backends = [on_demand(tmp_path, name, chance.choice([13, 20]), **sleepy) for name in "abc"]
    answered = 0

    async def client(made: Machine) -> None:
        nonlocal answered
        for _ in range(8):
            await made.use(chance.choice("abc"))
            answered += 1
            await turns(chance.randrange(4))

    async with machine(tmp_path, *backends, gpu=gpu) as made:
        await asyncio.gather(*(client(made) for _ in range(4)))
        assert answered == 32
        awake = {State.STARTING, State.READY, State.YIELDING}
        assert sum(status.state in awake for status in made.fleet.statuses()) <= 1
        if seed % 4 != 1:
            assert made.launcher.most_alive == 1


async def test_an_engine_that_dies_asleep_as_it_is_wanted(tmp_path: Path) -> None:
    """A wake asked for in the instant its engine is gone holds no room, and the request is served by a new run."""
    async with machine(tmp_path, on_demand(tmp_path, "a", **SLEEPY), on_demand(tmp_path, "b"), gpu=FakeGpu()) as made:
        await made.use("a")
        await made.use("b")
        await made.fleet.settled("a", State.SLEEPING)
        sleeping = made.launcher.runs[0]
        wanted = asyncio.create_task(made.use("a"))
        sleeping.end(ExitStatus(code=1))
        await wanted
        assert made.fleet.status("a").memory_bytes == 20 * GIB
        assert made.fleet.status("b").memory_bytes == 0
