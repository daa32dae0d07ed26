"""Who goes where, who makes room, and who waits: single decisions."""

from __future__ import annotations

from typing import Any

import pytest

from backends.devices import GIB, HOST, Device
from backends.memory_estimate import NO_NEED, MemoryNeed, exactly, reckoned
from backends.memory_estimate import WeightFacts as Facts
from backends.placement import Decision, Demand, Ground, Impossible, MakeRoom, Placed, Resident, Victim, Wait, decide

NOW = 1000.0


def gpu(index: int = 0, total: int = 24, free: int | None = None) -> Device:
    return Device(index, f"GPU-{index}", "Fake", total * GIB, (total if free is None else free) * GIB)


HOST_24 = Device(HOST, "", "host memory", 24 * GIB, 24 * GIB)


def resident(name: str = "a", size: int = 20, *, on: tuple[int, ...] = (HOST,), **others: Any) -> Resident:
    """A READY backend without requests, long past its residency."""
    return Resident(name, dict.fromkeys(on, size * GIB), **{"can_leave": True, **others})


def ask(
    *residents: Resident,
    devices: tuple[Device, ...] = (HOST_24,),
    size: int = 20,
    need: MemoryNeed | None = None,
    among: tuple[int, ...] | None = None,
    count: int | None = 1,
    backend: str = "new",
    settled: bool = True,
    reserved: tuple[int, ...] = (),
) -> Decision:
    """The decision about a start of *size* GiB on each of *count* devices."""
    indices = tuple(device.index for device in devices)
    ground = Ground(
        {device.index: device for device in devices},
        residents,
        NOW,
        frozenset(indices if settled else ()),
        frozenset(reserved),
    )
    return decide(Demand(backend, need or exactly(size * GIB), indices if among is None else among, count), ground)


# --- it fits ---


def test_an_empty_machine() -> None:
    """What fits is placed with what it asked for."""
    assert ask() == Placed({HOST: 20 * GIB})


def test_beside_others() -> None:
    """A second backend that fits beside the first asks nobody to leave."""
    assert ask(resident(size=4)) == Placed({HOST: 20 * GIB})


def test_nothing_needed_nothing_claimed() -> None:
    """A start of which nothing is known is placed on a full machine too."""
    assert ask(resident(size=24), need=NO_NEED) == Placed({HOST: 0})


def test_the_emptiest_gpu() -> None:
    """Of several GPUs that do, the one with the most room is taken, and of equals the first."""
    two = (gpu(0), gpu(1))
    assert ask(devices=two, size=10) == Placed({0: 10 * GIB})
    used = (gpu(0, free=14), gpu(1))
    assert ask(resident(size=10, on=(0,)), devices=used, size=10) == Placed({1: 10 * GIB})


def test_several_gpus() -> None:
    """A start on two GPUs claims its share on each."""
    three = (gpu(0), gpu(1, free=4), gpu(2))
    assert ask(resident(size=20, on=(1,)), devices=three, count=2) == Placed({0: 20 * GIB, 2: 20 * GIB})


def test_as_few_gpus_as_will_do() -> None:
    """An engine that spreads its layers gets the fewest GPUs its weights fit on."""
    need = reckoned(Facts(30 * GIB), None, GIB)
    assert ask(devices=(gpu(0), gpu(1), gpu(2)), need=need, count=None) == Placed({0: 16 * GIB, 1: 16 * GIB})
    mapped = reckoned(Facts(30 * GIB), None, GIB, needs_all=False)
    assert ask(devices=(gpu(0), gpu(1), gpu(2)), need=mapped, count=None) == Placed({0: 16 * GIB, 1: 16 * GIB})
    huge = reckoned(Facts(60 * GIB), None, GIB, needs_all=False)
    assert ask(devices=(gpu(0), gpu(1)), need=huge, count=None) == Placed({0: 24 * GIB, 1: 24 * GIB})
    small = reckoned(Facts(3 * GIB), None, GIB)
    assert ask(devices=(gpu(0), gpu(1)), need=small, count=None) == Placed({0: 4 * GIB})


def test_a_share_of_each_device() -> None:
    """An engine that takes a share of a device's memory claims that share of the one it gets."""
    need = MemoryNeed(fraction=0.5, is_firm=True)
    assert ask(devices=(gpu(0, total=40),), need=need) == Placed({0: 20 * GIB})


def test_a_guess_beyond_the_device() -> None:
    """A guess is no reason to refuse: it gets the whole device, where its weights at least fit."""
    assert ask(need=MemoryNeed(10 * GIB, 90 * GIB)) == Placed({HOST: 24 * GIB})


def test_a_guess_makes_do_beside_a_pinned_one() -> None:
    """Down to its half, a guess is cut to what pinned backends leave; below it, it is refused."""
    assert ask(resident("p", 10, is_pinned=True), need=MemoryNeed(10 * GIB, 8 * GIB)) == Placed({HOST: 14 * GIB})
    refused = ask(resident("p", 16, is_pinned=True), need=MemoryNeed(1 * GIB, 19 * GIB))
    assert isinstance(refused, Impossible)


# --- it never will ---


@pytest.mark.parametrize(
    ("need", "devices", "count", "words"),
    [
        (exactly(30 * GIB), (HOST_24,), 1, "It needs 30.0 GiB, and this machine has 24.0."),
        (MemoryNeed(30 * GIB), (HOST_24,), 1, "It needs 30.0 GiB, and this machine has 24.0."),
        (exactly(30 * GIB), (gpu(0), gpu(1)), 2, "It needs 30.0 GiB on each of 2 GPUs, and GPU 0 has 24.0."),
        (exactly(1), (gpu(0), gpu(1)), 4, "It runs on 4 GPUs, and there are 2 for it."),
        (exactly(1), (), 1, "It runs on 1 GPU, and there is none for it."),
    ],
)
def test_what_never_fits(need: MemoryNeed, devices: tuple[Device, ...], count: int, words: str) -> None:
    """What could not fit on the empty machine is refused with its figures."""
    assert ask(need=need, devices=devices, count=count) == Impossible(words)


def test_gpus_that_are_not_there() -> None:
    """A GPU that the configuration names and the machine has not is named."""
    assert ask(devices=(gpu(0),), among=(0, 3)) == Placed({0: 20 * GIB})
    assert ask(devices=(gpu(0),), among=(3,)) == Impossible("It is to run on GPU 3, and there are 1 here.")


def test_pinned_residents_are_never_asked() -> None:
    """What does not fit beside a pinned backend is refused, and the pinned one named."""
    reason = "It needs 20.0 GiB, and this machine has 24.0, of which a keeps 20.0."
    assert ask(resident(is_pinned=True)) == Impossible(reason)


# --- somebody makes room ---


def test_an_idle_one_makes_room() -> None:
    """An idle backend past its residency is asked to leave."""
    because = "20.0 GiB needed, 4.0 free; a makes room"
    assert ask(resident()) == MakeRoom((Victim("a"),), (HOST,), because)


def test_the_least_recently_used() -> None:
    """Of several that would do, the one that was used longest ago leaves, and no other."""
    three = [resident(name, 8, last_used=used) for name, used in (("a", 30.0), ("b", 10.0), ("c", 20.0))]
    decision = ask(*three, size=8)
    assert isinstance(decision, MakeRoom)
    assert decision.victims == (Victim("b"),)


def test_no_more_than_needed() -> None:
    """An older one that would be asked in vain stays when a younger one alone is enough and needed anyway."""
    decision = ask(resident("old", 4, last_used=1), resident("young", 20, last_used=2), size=20)
    assert isinstance(decision, MakeRoom)
    assert decision.victims == (Victim("young"),)


def test_idle_before_busy() -> None:
    """A busy backend is asked only where the idle ones are not enough."""
    both = (resident("idle", 10, last_used=9), resident("busy", 10, is_busy=True, last_used=1))
    first = ask(*both, size=10)
    assert isinstance(first, MakeRoom)
    assert first.victims == (Victim("idle"),)
    second = ask(*both, size=20)
    assert isinstance(second, MakeRoom)
    assert set(second.victims) == {Victim("idle"), Victim("busy")}


def test_the_gpu_where_it_hurts_least() -> None:
    """Room is made on the GPU with the idle backend, not on the one with the busy."""
    used = (gpu(0, free=4), gpu(1, free=4))
    decision = ask(resident("busy", on=(0,), is_busy=True), resident("idle", on=(1,)), devices=used)
    assert isinstance(decision, MakeRoom)
    assert (decision.victims, decision.devices) == ((Victim("idle"),), (1,))


def test_sleep_instead_of_stop() -> None:
    """One that can sleep does, where what it keeps leaves enough; else it stops."""
    used = (gpu(0, free=2),)
    sleeper = resident("a", 22, on=(0,), asleep_claims={0: 2 * GIB})
    for size, sleeps in ((22, True), (23, False)):
        decision = ask(sleeper, devices=used, size=size)
        assert isinstance(decision, MakeRoom)
        assert decision.victims == (Victim("a", sleeps),)


def test_sleepers_need_room_in_the_host_s_memory() -> None:
    """Weights that go to the host's memory asleep have to fit there; else the backend stops."""
    for size, sleeps in ((24, True), (25, False)):
        sleeper = resident("a", 22, on=(0,), asleep_claims={0: GIB, HOST: size * GIB})
        decision = ask(sleeper, devices=(gpu(0, free=2), HOST_24), among=(0,))
        assert isinstance(decision, MakeRoom)
        assert decision.victims == (Victim("a", sleeps),)


def test_a_sleeper_wakes_where_it_lies() -> None:
    """What a backend itself keeps asleep does not stand in its own way."""
    asleep = resident("new", 2, on=(0,))
    assert ask(asleep, devices=(gpu(0, free=22),), size=23) == Placed({0: 23 * GIB})


# --- it waits ---


def test_nobody_leaves_before_its_residency() -> None:
    """A backend that has not been READY for long enough stays, and the start waits for exactly that."""
    young = resident(ready_since=NOW - 5, min_residency_s=30)
    assert ask(young) == Wait("20.0 GiB needed, 4.0 free; a may stay a little longer", (HOST,), until=NOW + 25)


def test_who_is_leaving_is_waited_for() -> None:
    """While one leaves whose room is enough, nobody else is asked to."""
    decision = ask(resident("a", 12, can_leave=False, is_leaving=True), resident("b", 12), size=12)
    assert decision == Wait("12.0 GiB needed, 0.0 free; a is leaving", (HOST,))


def test_who_is_starting_is_waited_for() -> None:
    """A backend that starts is not asked to leave."""
    decision = ask(resident(can_leave=False))
    assert decision == Wait("20.0 GiB needed, 4.0 free; a is starting", (HOST,))


def test_memory_on_its_way_back() -> None:
    """Memory that nobody claims and that still moves is waited for: no idle backend is asked to leave for it."""
    decision = ask(resident("b", 4, on=(0,)), devices=(gpu(0, free=2),), settled=False)
    assert decision == Wait("20.0 GiB needed on GPU 0, 2.0 free; waiting for it to be given back", (0,), is_held=True)


def test_memory_that_somebody_else_keeps() -> None:
    """Foreign memory that has settled is there to stay: idle backends make room if that helps, else it is told."""
    helps = ask(resident("b", 4, on=(0,)), devices=(gpu(0, free=18),), size=20)
    assert isinstance(helps, MakeRoom)
    held = ask(devices=(gpu(0, free=2),))
    assert held == Wait("20.0 GiB needed on GPU 0, 2.0 free; something else holds the rest", (0,), is_held=True)


def test_a_guess_takes_what_a_stranger_leaves() -> None:
    """A guess makes do with a device of which a stranger keeps a part, once that has settled."""
    need = MemoryNeed(10 * GIB, 14 * GIB)
    assert ask(need=need, devices=(gpu(0, free=22),)) == Placed({0: 22 * GIB})
    assert isinstance(ask(need=need, devices=(gpu(0, free=22),), settled=False), Wait)


def test_nobody_overtakes() -> None:
    """What an earlier start waits for is not given to a later one that would fit; another device is."""
    two = (gpu(0), gpu(1))
    assert ask(devices=two, size=1, reserved=(0,)) == Placed({1: GIB})
    decision = ask(devices=(gpu(0),), size=1, reserved=(0,))
    assert decision == Wait("1.0 GiB needed on GPU 0, 24.0 free; starts that came earlier wait for it")


def test_a_pinned_one_that_is_unloaded_is_no_obstacle() -> None:
    """Once an operator has unloaded it, it is waited for like anybody who leaves, and nobody else goes in vain."""
    leaving = resident("kept", 8, can_leave=False, is_leaving=True, is_pinned=True)
    decision = ask(leaving, resident("idle", 1), resident("starting", 8, can_leave=False), size=17)
    assert isinstance(decision, Wait)
    whole = ask(resident("kept", 20, can_leave=False, is_leaving=True, is_pinned=True))
    assert isinstance(whole, Wait)
    assert "kept is leaving" in whole.because
