"""All backends of one gateway, over fakes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from backends.engines import ADAPTERS
from backends.fleet import Fleet
from backends.lease import BackendUnavailable
from backends.lifecycle import LEAVING, State
from backends.places import Places
from backends.records import ProcessRecord, ProcessRecords
from backends.settings import BackendSettings
from backends.start import Host
from backends.status import Transition
from tests.unit.backends.fakes import CALM, LIMIT_S, FakeLauncher, FakeProber, settings, turns, until


class Ground:
    """A fleet over a fake launcher; engines answer as soon as they run."""

    def __init__(self, folder: Path, *backends: BackendSettings, answers: bool = True) -> None:
        self.launcher = FakeLauncher()
        self.answers = answers
        self.records = ProcessRecords(folder / "records")
        host = Host(
            self.launcher,
            FakeProber(self.launcher),
            Places(folder / "sockets"),
            self.records,
            asyncio.Semaphore(len(backends)),
            folder / "runs",
        )
        self.fleet = Fleet(backends, {}, ADAPTERS, host, folder / "logs")
        self.transitions: list[Transition] = []
        self.fleet.subscribe(self.transitions.append)
        self.fleet.subscribe(self._let_answer)

    def _let_answer(self, transition: Transition) -> None:
        if self.answers and transition.after is State.STARTING:
            asyncio.get_running_loop().create_task(self._answer(len(self.launcher.runs)))

    async def _answer(self, known: int) -> None:
        await until(lambda: len(self.launcher.runs) > known)
        for run in self.launcher.alive:
            run.is_answering.set()


@contextlib.asynccontextmanager
async def opened(ground: Ground) -> AsyncIterator[Fleet]:
    """The fleet, open for the body; nothing lives afterwards."""
    async with asyncio.timeout(LIMIT_S):
        await ground.fleet.open()
        try:
            yield ground.fleet
        finally:
            await ground.fleet.close()
    assert ground.launcher.alive == []
    assert ground.records.read_all() == []


async def test_a_fleet_starts_what_is_not_on_demand(tmp_path: Path) -> None:
    """open starts the backends that are to run with the gateway, and no other."""
    ground = Ground(tmp_path, settings(tmp_path), settings(tmp_path, name="lazy", on_demand=True))
    async with opened(ground) as fleet:
        await fleet.settled("m", State.READY)
        assert [(status.name, status.state) for status in fleet.statuses()] == [
            ("m", State.READY),
            ("lazy", State.STOPPED),
        ]
        assert [status.on_demand for status in fleet.statuses()] == [False, True]


async def test_a_lease_lasts_as_long_as_its_block(tmp_path: Path) -> None:
    """The lease goes back however the block is left."""
    ground = Ground(tmp_path, settings(tmp_path, on_demand=True))
    async with opened(ground) as fleet:
        async with fleet.lease("m", 5):
            assert fleet.status("m").leases == 1
        assert fleet.status("m").leases == 0
        with pytest.raises(ValueError, match="in the body"):
            async with fleet.lease("m", 5):
                raise ValueError("in the body")
        assert fleet.status("m").leases == 0


async def test_an_unknown_name_is_a_key_error(tmp_path: Path) -> None:
    """Every question by name raises KeyError for one that is not configured."""
    async with opened(Ground(tmp_path, settings(tmp_path))) as fleet:
        for question in (fleet.log, fleet.status):
            with pytest.raises(KeyError):
                question("nope")
        for request in (fleet.load, fleet.unload):
            with pytest.raises(KeyError):
                await request("nope")
        with pytest.raises(KeyError):
            async with fleet.lease("nope", 1):
                pass


async def test_load_and_unload(tmp_path: Path) -> None:
    """load has begun a start when it returns, unload a stop."""
    ground = Ground(tmp_path, settings(tmp_path, on_demand=True))
    async with opened(ground) as fleet:
        await fleet.load("m")
        assert fleet.status("m").state is State.STARTING
        await fleet.settled("m", State.READY)
        await fleet.unload("m")
        assert fleet.status("m").state in LEAVING
        await fleet.settled("m", State.STOPPED)


async def test_close_waits_for_leases_as_long_as_told(tmp_path: Path) -> None:
    """close drains: a lease that comes back in time lets its backend stop in order; new ones are refused."""
    ground = Ground(tmp_path, settings(tmp_path))
    async with asyncio.timeout(LIMIT_S):
        await ground.fleet.open()
        await ground.fleet.settled("m", State.READY)
        async with ground.fleet.lease("m", 5):
            closing = asyncio.create_task(ground.fleet.close(drain_timeout_s=LIMIT_S))
            await turns()
            assert ground.fleet.status("m").state is State.DRAINING
            with pytest.raises(BackendUnavailable, match="shutting down") as refusal:
                async with ground.fleet.lease("m", 5):
                    pass
            assert refusal.value.code == "draining"
        await closing
    assert [transition.event.value for transition in ground.transitions][-2:] == ["Drained", "Exited"]
    assert ground.launcher.runs[0].signals == ["TERM"]


async def test_close_does_not_wait_longer(tmp_path: Path) -> None:
    """A lease that does not come back ends with the drain time of close, not with the backend's own."""
    ground = Ground(tmp_path, settings(tmp_path))
    async with asyncio.timeout(LIMIT_S):
        await ground.fleet.open()
        async with ground.fleet.lease("m", 5):
            await ground.fleet.close(drain_timeout_s=0.02)
    assert "DrainTimedOut" in [transition.event.value for transition in ground.transitions]
    assert ground.launcher.alive == []


async def test_a_close_that_is_cancelled_kills(tmp_path: Path) -> None:
    """Cancelled while an engine takes its time, close kills it; nothing is left when it returns."""
    ground = Ground(tmp_path, settings(tmp_path))
    ground.launcher.deaf = True
    async with asyncio.timeout(LIMIT_S):
        await ground.fleet.open()
        await ground.fleet.settled("m", State.READY)
        closing = asyncio.create_task(ground.fleet.close())
        await turns()
        assert ground.fleet.status("m").state is State.STOPPING
        closing.cancel()
        await asyncio.wait([closing])
    assert closing.cancelled()
    assert ground.launcher.runs[0].signals == ["TERM", "KILL"]


async def test_kill_hurries_a_close(tmp_path: Path) -> None:
    """kill ends what close still waits for."""
    ground = Ground(tmp_path, settings(tmp_path))
    ground.launcher.deaf = True
    async with asyncio.timeout(LIMIT_S):
        await ground.fleet.open()
        await ground.fleet.settled("m", State.READY)
        closing = asyncio.create_task(ground.fleet.close())
        await turns()
        ground.fleet.kill()
        await closing
    assert ground.launcher.alive == []


async def test_close_right_after_open(tmp_path: Path) -> None:
    """A gateway told to end before it did anything starts nothing."""
    ground = Ground(tmp_path, settings(tmp_path))
    async with asyncio.timeout(LIMIT_S):
        await ground.fleet.open()
        await ground.fleet.close()
    assert ground.launcher.alive == []


@pytest.mark.parametrize("state", [State.STARTING, State.BACKOFF, State.FAILED])
async def test_close_from_every_state(tmp_path: Path, state: State) -> None:
    """close ends in STOPPED also from STARTING, BACKOFF and FAILED."""
    timing = replace(CALM, backoff_base_s=60, backoff_max_s=60, max_failed_starts=1 if state is State.FAILED else 3)
    ground = Ground(tmp_path, settings(tmp_path, timing), answers=False)
    async with opened(ground) as fleet:
        run = await ground.launcher.started()
        if state is not State.STARTING:
            run.kill()
        await fleet.settled("m", state)
    assert ground.fleet.status("m").state is State.STOPPED


async def test_a_waiter_does_not_outlive_the_fleet(tmp_path: Path) -> None:
    """Who waits for a lease when the gateway ends is answered."""
    ground = Ground(tmp_path, settings(tmp_path, on_demand=True), answers=False)

    async def wait() -> str:
        try:
            async with ground.fleet.lease("m", 60):
                return "lease"
        except BackendUnavailable as refusal:
            return refusal.code

    async with asyncio.timeout(LIMIT_S):
        await ground.fleet.open()
        waiter = asyncio.create_task(wait())
        await ground.launcher.started()
        await ground.fleet.close()
        assert await waiter == "model_stopped"


async def test_requests_after_close_are_answered(tmp_path: Path) -> None:
    """load and unload of a closed fleet return, and start nothing."""
    ground = Ground(tmp_path, settings(tmp_path, on_demand=True))
    async with opened(ground) as fleet:
        pass
    async with asyncio.timeout(5):
        await fleet.load("m")
        await fleet.unload("m")
    assert ground.launcher.runs == []


async def test_what_an_earlier_gateway_left_is_reaped_first(tmp_path: Path) -> None:
    """open forgets the records of runs that are gone before it starts anything."""
    ground = Ground(tmp_path, settings(tmp_path, on_demand=True))
    ground.records.write(ProcessRecord("m", "m:0123456789abcdef"))
    async with asyncio.timeout(LIMIT_S):
        assert await ground.fleet.open() == []
        assert ground.records.read_all() == []
        await ground.fleet.close()


async def test_transitions_are_logged_with_their_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One structured line per transition, the diagnosis with it."""
    ground = Ground(tmp_path, settings(tmp_path, replace(CALM, max_failed_starts=1)), answers=False)
    with caplog.at_level(logging.INFO, logger="unigate.backends"):
        async with opened(ground) as fleet:
            (await ground.launcher.started()).kill()
            await fleet.settled("m", State.FAILED)
    assert "m: stopped -> starting (StartRequested)" in caplog.text
    assert "m: backoff -> failed (GaveUp): The engine was killed by signal 9" in caplog.text


async def test_each_backend_has_its_own_log_file(tmp_path: Path) -> None:
    """A backend's log is a file named for it, whatever is in its name."""
    ground = Ground(tmp_path, settings(tmp_path, name="Qwen/Qwen3"), settings(tmp_path))
    async with opened(ground) as fleet:
        assert fleet.log("Qwen/Qwen3").path == tmp_path / "logs" / "Qwen%2FQwen3.log"
        assert fleet.log("m").path == tmp_path / "logs" / "m.log"
        await fleet.settled("m", State.READY)
    assert "starting -> ready" in (tmp_path / "logs" / "m.log").read_text()
