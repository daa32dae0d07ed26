"""Granting room: who is asked to make it, who waits and for how long, and what is told of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from backends import room as room_module
from backends.demand import Wish
from backends.devices import GIB, HOST, Device, LocalDevices, Nvml
from backends.engines import ADAPTERS
from backends.learnt import Learnt
from backends.lifecycle import State
from backends.placement import Claims
from backends.room import BOUNDLESS, Grant, MeasuredRoom, NoRoom, Occupancy
from backends.settings import BackendSettings, EngineSettings
from tests.unit.backends.fake_nvml import FakeGpu, FakeNvml
from tests.unit.backends.fakes import LIMIT_S, SLEEPY, until


class FakeTenant:
    """A backend that stands as the test says, and keeps what it is asked."""

    def __init__(self, state: State = State.STARTING) -> None:
        self.state = state
        self.leases = 0
        self.since = -1000.0
        self.asked: list[bool] = []
        self.min_residency_s = 0.0

    def occupancy(self) -> Occupancy:
        return Occupancy(self.state, self.leases, self.since, self.since, min_residency_s=self.min_residency_s)

    def request_yield(self, *, sleep: bool) -> None:
        self.asked.append(sleep)


class Asking:
    """One start that asks for room."""

    def __init__(self, room: MeasuredRoom, backend: BackendSettings, tenant: FakeTenant) -> None:
        self.tenant = tenant
        self.name = backend.name
        self.stop = asyncio.Event()
        self.told: list[str] = []
        self._room = room
        wish = Wish(backend, EngineSettings(), ADAPTERS[backend.engine])
        self.task = asyncio.create_task(room.acquire(tenant, wish, self.stop, self.told.append))

    async def granted(self) -> Grant:
        grant = await self.task
        assert grant is not None
        self.tenant.state = State.READY
        self._room.look_again()
        return grant

    async def refused(self) -> str:
        with pytest.raises(NoRoom) as refusal:
            await self.task
        return f"{refusal.value.diagnosis.code}: {refusal.value.diagnosis.reason}"

    async def waits(self, words: str) -> None:
        await until(lambda: bool(self.told) and words in self.told[-1])

    def leave(self) -> None:
        self.tenant.state = State.STOPPED
        self._room.release(self.name)


class Ground:
    """A room over fake GPUs and a host budget; all that asks there is ended afterwards."""

    def __init__(self, *gpus: FakeGpu, host: int = 24, learnt: Learnt | None = None) -> None:
        self.gpus = gpus
        api = FakeNvml(*gpus) if gpus else FakeNvml(init_problem="none")
        self.room = MeasuredRoom(LocalDevices({}, host * GIB, Nvml(api)), learnt)
        self.asking: list[Asking] = []

    def ask(self, name: str, size: int | None = 20, tenant: FakeTenant | None = None, **others: Any) -> Asking:
        fields: dict[str, Any] = {"engine": "vllm", "min_residency_s": 0.0, **others}
        backend = BackendSettings(name=name, memory_bytes=None if size is None else size * GIB, **fields)
        asking = Asking(self.room, backend, tenant or FakeTenant())
        self.asking.append(asking)
        return asking


@contextlib.asynccontextmanager
async def ground(*gpus: FakeGpu, host: int = 24, learnt: Learnt | None = None) -> AsyncIterator[Ground]:
    async with asyncio.timeout(LIMIT_S):
        made = Ground(*gpus, host=host, learnt=learnt)
        try:
            yield made
        finally:
            for asking in made.asking:
                asking.stop.set()
                await asyncio.wait([asking.task])


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory settles at once, and is looked at again soon."""
    monkeypatch.setattr(room_module, "POLL_S", 0.001)
    monkeypatch.setattr(room_module, "SETTLED_S", 0.01)
    monkeypatch.setattr(room_module, "HELD_LIMIT_S", 0.05)


async def test_what_fits_is_granted() -> None:
    """Two starts that fit together get their room, and it is theirs until they are gone."""
    async with ground() as made:
        first, second = made.ask("a", 10), made.ask("b", 10)
        assert (await first.granted()).claims == {HOST: 10 * GIB}
        await second.granted()
        assert made.room.claims("a") == made.room.claims("b") == {HOST: 10 * GIB}
        first.leave()
        assert made.room.claims("a") == {}
        assert first.told == []


async def test_an_idle_one_is_asked_and_its_room_granted_when_it_is_gone() -> None:
    """A start that needs an idle backend's room asks it to yield, and is granted nothing before it is gone."""
    async with ground() as made:
        first = made.ask("a")
        await first.granted()
        second = made.ask("b")
        await second.waits("20.0 GiB needed, 4.0 free; a makes room")
        assert first.tenant.asked[0] is False
        first.tenant.state = State.STOPPING
        made.room.look_again()
        await second.waits("a is leaving")
        assert not second.task.done()
        first.leave()
        assert (await second.granted()).claims == {HOST: 20 * GIB}


async def test_first_come_first_served() -> None:
    """Starts are granted in the order they came; a small one does not overtake a large one that waits."""
    async with ground() as made:
        holder = made.ask("a")
        await holder.granted()
        large, small = made.ask("large"), made.ask("small", 2)
        await small.waits("starts that came earlier wait for it")
        holder.leave()
        await large.granted()
        await small.granted()


async def test_a_residency_is_waited_out() -> None:
    """A backend just READY is left alone until its residency is over, then asked without anything else happening."""
    async with ground() as made:
        first = made.ask("a")
        first.tenant.min_residency_s = 0.05
        await first.granted()
        first.tenant.since = asyncio.get_running_loop().time()
        second = made.ask("b")
        await second.waits("a may stay a little longer")
        assert first.tenant.asked == []
        await until(lambda: bool(first.tenant.asked))
        assert asyncio.get_running_loop().time() - first.tenant.since >= 0.05


async def test_a_stop_ends_the_wait() -> None:
    """A start that is stopped while it waits is told so at once and stands in nobody's way."""
    async with ground() as made:
        await made.ask("a").granted()
        second, third = made.ask("b"), made.ask("c", 4)
        await third.waits("starts that came earlier")
        second.stop.set()
        assert await second.task is None
        await third.granted()


async def test_a_cancelled_wait_stands_in_nobody_s_way() -> None:
    """A cancelled start leaves the queue too."""
    async with ground() as made:
        await made.ask("a").granted()
        second, third = made.ask("b"), made.ask("c", 4)
        await third.waits("starts that came earlier")
        second.task.cancel()
        await third.granted()


async def test_what_never_fits_is_refused() -> None:
    """More than the machine has is refused with the figures, as permanent."""
    async with ground() as made:
        reason = await made.ask("a", 30).refused()
        assert reason == "does_not_fit: It needs 30.0 GiB, and this machine has 24.0."


async def test_a_run_on_gpus_is_told_which() -> None:
    """The engine sees the GPUs it was granted and no other, in NVML's order, and its limit."""
    async with ground(FakeGpu(free=2 * GIB), FakeGpu()) as made:
        grant = await made.ask("a", 12).granted()
        assert grant == Grant(
            {1: 12 * GIB},
            {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"},
            ("--gpu-memory-utilization", "0.5"),
        )
        both = await made.ask("b", 2, args={"tensor-parallel-size": 2}).granted()
        assert both.env["CUDA_VISIBLE_DEVICES"] == "0,1"


async def test_the_operator_s_choice_of_gpus() -> None:
    """`gpus` and CUDA_VISIBLE_DEVICES in the environment choose the GPU; `gpus: []` is the CPU alone."""
    async with ground(FakeGpu(), FakeGpu(), FakeGpu()) as made:
        assert (await made.ask("a", 2, gpus=(2,)).granted()).claims == {2: 2 * GIB}
        assert (await made.ask("b", 2, env={"CUDA_VISIBLE_DEVICES": "1"}).granted()).claims == {1: 2 * GIB}
        on_cpu = await made.ask("c", 2, gpus=()).granted()
        assert (on_cpu.claims, on_cpu.env["CUDA_VISIBLE_DEVICES"]) == ({HOST: 2 * GIB}, "")
        assert (await made.ask("d", None, engine="llamacpp").granted()).env == {}
        reason = await made.ask("e", 2, gpus=(7,)).refused()
        assert reason == "does_not_fit: It is to run on GPU 7, and there are 3 here."


async def test_gpu_memory_is_proven_free() -> None:
    """After a run is gone, the next start waits until NVML shows its memory free."""
    gpu = FakeGpu()
    async with ground(gpu) as made:
        first = made.ask("a")
        await first.granted()
        gpu.free = 4 * GIB
        second = made.ask("b")
        await second.waits("a makes room")
        first.leave()
        await second.waits("20.0 GiB needed on GPU 0, 4.0 free; waiting for it to be given back")
        gpu.free = 24 * GIB
        await second.granted()


@pytest.mark.usefixtures("hasty")
async def test_gpu_memory_that_a_stranger_holds() -> None:
    """Memory that does not come back ends the wait, with the pids that hold it; it is worth another try."""
    async with ground(FakeGpu(free=4 * GIB, processes=[(2**22 + 1, 20 * GIB)])) as made:
        asking = made.ask("a")
        reason = await asking.refused()
        assert reason.startswith("gpu_memory_held: The memory for it is not free (20.0 GiB needed on GPU 0, 4.0 free")
        assert "It is held by pid 4194305 (not of this container) with 20.0 GiB." in reason


@pytest.mark.usefixtures("hasty")
async def test_gpu_memory_that_nobody_is_said_to_hold() -> None:
    """In a container NVML tells of no process, which is said instead."""
    async with ground(FakeGpu(free=4 * GIB, hides_processes=True)) as made:
        assert "NVML does not tell by whom, as in a container." in await made.ask("a").refused()


@pytest.mark.usefixtures("hasty")
async def test_a_guess_settles_for_what_there_is(tmp_path: Path) -> None:
    """A reckoned need makes do with what strangers leave, once the device's free memory has stopped moving."""
    weights = tmp_path / "m.gguf"
    weights.write_bytes(b"GGUF\x03\0\0\0" + bytes(16))
    async with ground(FakeGpu(total=1000, free=900)) as made:
        grant = await made.ask("a", None, engine="llamacpp", weights=weights, args={"ngl": 99}).granted()
        assert grant.claims == {0: 900}


async def test_sleep_and_wake() -> None:
    """Asleep, a backend keeps what sleepers keep; it wakes on its own GPU, when the other has left."""
    gpu = FakeGpu()
    async with ground(gpu) as made:
        first = made.ask("a", **SLEEPY)
        await first.granted()
        second = made.ask("b")
        await second.waits("a makes room")
        assert first.tenant.asked[0] is True
        first.tenant.state = State.SLEEPING
        made.room.fell_asleep("a")
        await second.granted()
        assert made.room.claims("a") == {0: 2 * GIB, HOST: 0}
        first.tenant.state = State.STARTING
        waking = made.ask("a", tenant=first.tenant, **SLEEPY)
        await waking.waits("b makes room")
        second.leave()
        await waking.granted()
        assert made.room.claims("a") == {0: 20 * GIB}


async def test_two_sleepers_do_not_wait_for_each_other() -> None:
    """One that waits to wake gives up what it keeps when the one before it cannot wake otherwise."""
    async with ground(FakeGpu()) as made:
        first = made.ask("a", 21, **SLEEPY)
        await first.granted()
        second = made.ask("b", 22, **SLEEPY)
        await second.waits("a makes room")
        first.tenant.state = State.SLEEPING
        made.room.fell_asleep("a")
        await second.granted()
        second.tenant.state = State.SLEEPING
        made.room.fell_asleep("b")
        for asking in (first, second):
            asking.tenant.state = State.STARTING
            asking.tenant.asked.clear()
        third = made.ask("c", 21)
        waking = [
            made.ask(asking.name, size, tenant=asking.tenant, **SLEEPY) for asking, size in ((first, 21), (second, 22))
        ]
        await until(lambda: bool(first.tenant.asked or second.tenant.asked))
        (first if first.tenant.asked else second).leave()
        await third.granted()
        assert not any(asking.task.done() for asking in waking)


async def test_a_broken_reading_is_told() -> None:
    """A mistake while looking at the devices ends every wait with its reason instead of hanging them."""

    class Broken:
        def read(self) -> tuple[Device, ...]:
            raise RuntimeError("no such thing")

    async with asyncio.timeout(LIMIT_S):
        asking = Asking(MeasuredRoom(Broken()), BackendSettings(name="a", engine="vllm"), FakeTenant())
        assert await asking.refused() == "placement_broke: Placement broke: RuntimeError('no such thing')."


# --- what is learnt ---


async def test_a_peak_on_the_host_is_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run took is what its next start asks for, with a margin; a smaller figure later changes nothing."""
    learnt = Learnt(tmp_path)
    taken = {11: 3 * GIB, 12: GIB}
    monkeypatch.setattr(room_module, "_resident_bytes", taken.__getitem__)
    async with ground(learnt=learnt) as made:
        first = made.ask("a", None, engine="llamacpp")
        await first.granted()
        await made.room.measure("a", lambda: [11, 12])
        await made.room.measure("a", lambda: [12])
        await made.room.measure("nobody", lambda: [11])
        first.leave()
        again = await made.ask("a", None, engine="llamacpp").granted()
        assert again.claims == {HOST: int(4 * GIB * 1.05)}
        await made.room.measure("a", lambda: [12])
        peak = learnt.read(BackendSettings(name="a", engine="llamacpp", min_residency_s=0.0), EngineSettings())
        assert peak is not None
        assert peak.bytes_on_each == 4 * GIB
        other = await made.ask("b", None, engine="llamacpp").granted()
        assert other.claims == {HOST: 0}


@pytest.mark.parametrize(("processes", "expected"), [([(11, 3 * GIB), (99, GIB)], 3), ([], 0)])
async def test_a_peak_on_a_gpu(tmp_path: Path, processes: list[tuple[int, int | None]], expected: int) -> None:
    """On a GPU NVML's figure for the run's own processes counts; where it tells none, nothing is learnt."""
    learnt = Learnt(tmp_path)
    backend = BackendSettings(name="a", engine="llamacpp", args={"ngl": 99})
    async with ground(FakeGpu(processes=processes), learnt=learnt) as made:
        await made.ask("a", None, engine="llamacpp", args={"ngl": 99}).granted()
        await made.room.measure("a", lambda: [11, 12])
        peak = learnt.read(backend, EngineSettings())
        assert (peak.bytes_on_each if peak else 0) == expected * GIB


async def test_nobody_counts_where_nothing_is_configured() -> None:
    """The boundless room grants at once and keeps nothing."""
    wish = Wish(BackendSettings(name="a", engine="vllm"), EngineSettings(), ADAPTERS["vllm"])
    claims: Callable[[str], Claims] = BOUNDLESS.claims
    pids: Callable[[], Sequence[int]] = list
    assert await BOUNDLESS.acquire(FakeTenant(), wish, asyncio.Event(), print) == Grant()
    await BOUNDLESS.measure("a", pids)
    BOUNDLESS.fell_asleep("a")
    BOUNDLESS.release("a")
    BOUNDLESS.look_again()
    assert claims("a") == {}
