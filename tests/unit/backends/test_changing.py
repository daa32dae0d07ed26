"""Backends that change while they serve: new settings, newcomers, those that retire, and replicas."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.diagnosis import ExitStatus
from backends.fleet import Fleet
from backends.lease import BackendUnavailable
from backends.lifecycle import LEAVING, State
from backends.settings import BackendSettings, EngineSettings
from tests.unit.backends.fakes import (
    LIMIT_S,
    OUT_OF_MEMORY,
    World,
    asked,
    living_backend,
    outcome,
    settings,
    turns,
    until,
)
from tests.unit.backends.test_fleet import Ground, opened

ENGINE = EngineSettings()


async def change(world: World, **others: Any) -> None:
    """New settings for the world's backend."""
    setup = world.supervisor.setup
    await world.supervisor.change(replace(setup, backend=replace(setup.backend, **others)))


async def test_a_change_drains_the_old_run_and_starts_a_new_one(tmp_path: Path) -> None:
    """The running request finishes under the old settings; who asks meanwhile waits for the run of the new ones."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        old = await world.ready()
        lease = world.supervisor.try_lease()
        assert lease is not None
        await change(world, context_length=77)
        assert world.state is State.DRAINING
        assert world.supervisor.backend.context_length is None
        assert world.supervisor.setup.backend.context_length == 77
        waiting = asked(world)
        await turns()
        assert old.is_alive
        lease.release()
        await until(lambda: len(world.launcher.alive) == 1 and not old.is_alive)
        new = await world.run()
        assert "77" in new.spec.argv
        new.is_answering.set()
        assert await outcome(waiting) == "lease"
        assert world.launcher.most_alive == 1


async def test_what_only_the_supervisor_reads_changes_at_once(tmp_path: Path) -> None:
    """Another idle time ends no run, and holds from now on."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        run = await world.ready()
        await change(world, idle_unload_s=0.0001)
        await world.supervisor.settled(State.STOPPED)
        assert len(world.launcher.runs) == 1
        assert run.signals == ["TERM"]


async def test_a_change_during_a_start_begins_it_anew(tmp_path: Path) -> None:
    """A start under old settings is ended, and who waits for it gets the one that follows."""
    async with living_backend(tmp_path, settings(tmp_path, on_demand=True)) as world:
        waiting = asked(world)
        first = await world.run()
        await change(world, context_length=77)
        await until(lambda: len(world.launcher.runs) == 2)
        assert not first.is_alive
        (await world.run()).is_answering.set()
        assert await outcome(waiting) == "lease"


async def test_a_change_mends_a_failed_one(tmp_path: Path) -> None:
    """A backend that failed with its old settings is started with the new ones."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        await world.supervisor.request_start()
        run = await world.run()
        run.say(OUT_OF_MEMORY)
        run.end(ExitStatus(code=1))
        await world.supervisor.settled(State.FAILED)
        await change(world, context_length=77)
        assert world.state is State.STARTING
        (await world.launcher.started(2)).is_answering.set()
        await world.supervisor.settled(State.READY)


async def test_a_stopped_one_stays_stopped_unless_it_is_no_longer_on_demand(tmp_path: Path) -> None:
    """New settings load no model that nobody asked for; a model that is now to be loaded at startup is loaded."""
    async with living_backend(tmp_path, settings(tmp_path, on_demand=True)) as world:
        await change(world, context_length=77)
        await turns()
        assert world.launcher.runs == []
        assert world.supervisor.backend.context_length == 77
        await change(world, on_demand=False)
        assert world.state is State.STARTING


async def test_a_change_does_not_undo_an_unload(tmp_path: Path) -> None:
    """A backend that is on its way out because somebody wanted it so stays out."""
    async with living_backend(tmp_path, settings(tmp_path)) as world:
        run = await world.ready()
        run.deaf = True
        await world.supervisor.request_stop()
        await until(lambda: world.state is State.STOPPING)
        await change(world, context_length=77)
        run.kill()
        await world.supervisor.settled(State.STOPPED)
        await turns()
        assert len(world.launcher.runs) == 1
        assert world.supervisor.backend.context_length == 77


async def test_a_retired_one_is_not_started_again(tmp_path: Path) -> None:
    """Whoever asks a retired backend is refused at once, also one whose wish was still on its way."""
    async with living_backend(tmp_path, settings(tmp_path, on_demand=True)) as world:
        early = asked(world)
        await turns(1)
        world.supervisor.retire()
        assert await outcome(early) == "model_stopped"
        assert await outcome(asked(world)) == "model_stopped"
        await world.supervisor.settled(State.STOPPED)
        assert world.state is State.STOPPED


async def test_a_newcomer_is_started_and_leased(tmp_path: Path) -> None:
    """A backend that is added to an open fleet serves like any other."""
    ground = Ground(tmp_path, settings(tmp_path))
    async with opened(ground) as fleet:
        await fleet.settled("m", State.READY)
        await fleet.add(settings(tmp_path, name="new"), ENGINE)
        async with fleet.lease("new", LIMIT_S) as lease:
            assert lease.backend == "new"
        assert [status.name for status in fleet.statuses()] == ["m", "new"]
        fleet.order(["new", "m"])
        assert [status.name for status in fleet.statuses()] == ["new", "m"]


async def test_a_retired_backend_finishes_and_is_forgotten(tmp_path: Path) -> None:
    """A retired backend is leased no more, ends after its last request, and is then unknown."""
    ground = Ground(tmp_path, settings(tmp_path), settings(tmp_path, name="other"))
    async with opened(ground) as fleet:
        await fleet.settled("m", State.READY)
        async with fleet.lease("m", LIMIT_S):
            fleet.expect(["other"])
            fleet.retire("m")
            with pytest.raises(KeyError):
                async with fleet.lease("m", LIMIT_S):
                    pass
            await turns()
            leaving = next(status for status in fleet.statuses() if status.name == "m")
            assert (leaving.state, leaving.is_retired) == (State.DRAINING, True)
        await fleet.seen_off(["m"])
        assert [status.name for status in fleet.statuses()] == ["other"]
        assert list(fleet.setups()) == ["other"]
        await fleet.add(settings(tmp_path), ENGINE)
        await fleet.settled("m", State.READY)


async def test_one_that_retires_comes_back(tmp_path: Path) -> None:
    """A backend that is wanted again before it is gone is the same one: two of a name never meet."""
    ground = Ground(tmp_path, settings(tmp_path))
    async with opened(ground) as fleet:
        await fleet.settled("m", State.READY)
        async with fleet.lease("m", LIMIT_S):
            fleet.retire("m")
            await turns()
            assert fleet.statuses()[0].state in LEAVING
            await fleet.add(settings(tmp_path, context_length=77), ENGINE)
            waiting = asyncio.create_task(_leased(fleet, "m"))
        assert await waiting == "m"
        assert ground.launcher.most_alive == 1
        assert "77" in ground.launcher.alive[0].spec.argv


async def _leased(
    fleet: Fleet, model: str, affinity: bytes | None = None, without: frozenset[str] = frozenset()
) -> str:
    async with fleet.lease(model, LIMIT_S, affinity, without) as lease:
        return lease.backend


def replicas(folder: Path, count: int, **others: Any) -> list[BackendSettings]:
    """The replicas of the model ``m``."""
    names = [f"m#{number + 1}" for number in range(count)]
    return [settings(folder, name=name, replica_of="m", served_name="m", **others) for name in names]


async def test_requests_spread_and_sessions_stay(tmp_path: Path) -> None:
    """Leases held at once are of different replicas; with an affinity they are of one while its share allows."""
    ground = Ground(tmp_path, *replicas(tmp_path, 2))
    async with opened(ground) as fleet:
        for name in ("m#1", "m#2"):
            await fleet.settled(name, State.READY)
        async with fleet.lease("m", LIMIT_S) as one, fleet.lease("m", LIMIT_S) as two:
            assert {one.backend, two.backend} == {"m#1", "m#2"}
        used = {await _leased(fleet, "m", b"session") for _ in range(5)}
        assert len(used) == 1
        assert {await _leased(fleet, "m", None, frozenset(used))} == {"m#1", "m#2"} - used


async def test_the_first_that_is_ready_is_taken(tmp_path: Path) -> None:
    """Who waits for one replica while another gets READY takes that one, and leaves no lease behind."""
    ground = Ground(tmp_path, *replicas(tmp_path, 2), answers=False)
    async with opened(ground) as fleet:
        await until(lambda: len(ground.launcher.runs) == 2)
        waiting = [asyncio.create_task(_leased(fleet, "m", bytes([number]))) for number in range(8)]
        await turns()
        assert {status.waiting > 0 for status in fleet.statuses()} == {True}
        second = next(run for run in ground.launcher.runs if run.marker.startswith("m#2:"))
        second.is_answering.set()
        assert set(await asyncio.gather(*waiting)) == {"m#2"}
        await turns()
        assert [(status.leases, status.waiting) for status in fleet.statuses()] == [(0, 0), (0, 0)]


async def test_who_leaves_while_waiting_for_several_leaves_nothing(tmp_path: Path) -> None:
    """A request that is cancelled at any moment of its wait holds no lease afterwards."""
    for pause in range(12):
        ground = Ground(tmp_path, *replicas(tmp_path, 2), answers=False)
        async with opened(ground) as fleet:
            await until(lambda ground=ground: len(ground.launcher.runs) == 2)  # type: ignore[misc]
            waiting = asyncio.create_task(_leased(fleet, "m"))
            await turns()
            for run in ground.launcher.alive:
                run.is_answering.set()
            await turns(pause)
            waiting.cancel()
            await asyncio.wait([waiting])
            await turns()
            assert {(status.leases, status.waiting) for status in fleet.statuses()} == {(0, 0)}


async def test_the_queue_is_the_models(tmp_path: Path) -> None:
    """No more requests wait for a model than may, however many replicas it has."""
    ground = Ground(tmp_path, *replicas(tmp_path, 2), answers=False)
    async with opened(ground) as fleet:
        fleet.allow_waiting(3)
        waiting = [asyncio.create_task(_leased(fleet, "m")) for _ in range(3)]
        await turns()
        with pytest.raises(BackendUnavailable, match="queue for m is full") as refusal:
            await _leased(fleet, "m")
        assert refusal.value.code == "queue_full"
        for run in ground.launcher.alive:
            run.is_answering.set()
        await until(lambda: len(ground.launcher.runs) == 2)
        for run in ground.launcher.alive:
            run.is_answering.set()
        await asyncio.gather(*waiting)


async def test_a_replica_that_goes_takes_nobody_with_it(tmp_path: Path) -> None:
    """Who waits for a replica that is retired is served by another."""
    ground = Ground(tmp_path, *replicas(tmp_path, 2), answers=False)
    async with opened(ground) as fleet:
        await until(lambda: len(ground.launcher.runs) == 2)
        waiting = [asyncio.create_task(_leased(fleet, "m", bytes([number]))) for number in range(8)]
        await turns()
        fleet.retire("m#1")
        await fleet.seen_off(["m#1"])
        assert {status.waiting for status in fleet.statuses()} == {8}
        for run in ground.launcher.alive:
            run.is_answering.set()
        assert set(await asyncio.gather(*waiting)) == {"m#2"}


async def test_an_only_backend_hands_its_waiters_over(tmp_path: Path) -> None:
    """Who waits for a model's only backend while replicas come in its place is served by one of those."""
    ground = Ground(tmp_path, settings(tmp_path), answers=False)
    async with opened(ground) as fleet:
        await until(lambda: len(ground.launcher.runs) == 1)
        waiting = asyncio.create_task(_leased(fleet, "m"))
        await turns()
        for backend in replicas(tmp_path, 2):
            await fleet.add(backend, ENGINE)
        fleet.retire("m")
        await until(lambda: len(ground.launcher.runs) >= 2 and bool(ground.launcher.alive))
        ground.answers = True
        for run in ground.launcher.alive:
            run.is_answering.set()
        assert await waiting in ("m#1", "m#2")


async def test_brought_up(tmp_path: Path) -> None:
    """A backend has come to rest when it is READY, not while it passes through STOPPED on its way there."""
    ground = Ground(tmp_path, settings(tmp_path), settings(tmp_path, name="lazy", on_demand=True))
    async with opened(ground) as fleet:
        await fleet.load("m")
        assert await fleet.brought_up("m") is State.READY
        assert await fleet.brought_up("lazy") is State.STOPPED
        await fleet.change(settings(tmp_path, context_length=77), ENGINE)
        assert await fleet.brought_up("m") is State.READY
        assert len(ground.launcher.runs) == 2


async def test_a_model_between_two_backends_is_waited_for(tmp_path: Path) -> None:
    """While the last backend of an expected model leaves, a request for it waits for the one that comes; one for a
    model that is expected no more is refused."""
    ground = Ground(tmp_path, settings(tmp_path))
    async with opened(ground) as fleet:
        await fleet.settled("m", State.READY)
        fleet.retire("m")
        waiting = asyncio.create_task(_leased(fleet, "m"))
        await turns()
        assert fleet.replicas("m") == []
        await fleet.seen_off(["m"])
        await fleet.add(replicas(tmp_path, 2)[0], ENGINE)
        assert await waiting == "m#1"
        fleet.retire("m#1")
        late = asyncio.create_task(_leased(fleet, "m"))
        await turns()
        fleet.expect([])
        with pytest.raises(BackendUnavailable) as refusal:
            await late
        assert refusal.value.code == "model_stopped"


async def test_a_model_that_gets_no_backend(tmp_path: Path) -> None:
    """Who waits for a backend that does not come is told so in time."""
    async with opened(Ground(tmp_path, settings(tmp_path))) as fleet:
        await fleet.settled("m", State.READY)
        fleet.retire("m")
        with pytest.raises(BackendUnavailable, match="m got no backend") as refusal:
            async with fleet.lease("m", 0.001):
                pass
        assert refusal.value.code == "model_not_ready"
