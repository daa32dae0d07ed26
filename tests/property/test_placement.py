"""What is always true of placement, whatever is on the machine, and of a queue of starts served by it."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from backends.devices import HOST, Device
from backends.memory_estimate import MemoryNeed
from backends.placement import Demand, Ground, Impossible, MakeRoom, Placed, Resident, Wait, claimed, decide

NOW = 100.0
SIZE = 24

sizes = st.integers(0, 30)
indices = st.lists(st.sampled_from([0, 1, 2]), unique=True, min_size=1)


@st.composite
def grounds(draw: st.DrawFn) -> Ground:
    """Up to three GPUs and the host, with residents that were placed without overcommitting."""
    gpus = draw(st.lists(st.sampled_from([0, 1, 2]), unique=True))
    left = {HOST: SIZE, **dict.fromkeys(gpus, SIZE)}
    residents = []
    for name in "abcdef"[: draw(st.integers(0, 6))]:
        claims = {}
        for index in draw(st.lists(st.sampled_from(sorted(left)), unique=True, min_size=1, max_size=2)):
            claims[index] = draw(st.integers(0, left[index]))
            left[index] -= claims[index]
        can_leave = draw(st.booleans())
        kept = {index: size // 4 for index, size in claims.items()} if draw(st.booleans()) else None
        residents.append(
            Resident(
                name, claims, can_leave,
                is_leaving=not can_leave and draw(st.booleans()),
                is_busy=draw(st.booleans()),
                is_pinned=draw(st.sampled_from([False, False, True])),
                ready_since=draw(st.floats(0, NOW)),
                last_used=draw(st.floats(0, NOW)),
                min_residency_s=draw(st.sampled_from([0.0, 10.0, 50.0])),
                asleep_claims=kept if can_leave else None,
            )
        )  # fmt: skip
    foreign = {index: draw(st.integers(0, left[index])) if index != HOST else 0 for index in left}
    devices = {index: Device(index, "", "", SIZE, left[index] - foreign[index]) for index in sorted(left)}
    settled = frozenset(draw(st.lists(st.sampled_from(sorted(left)), unique=True)))
    return Ground(devices, tuple(residents), NOW, settled)


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    """A firm figure, a guess with weights, or a share."""
    need = draw(
        st.one_of(
            st.builds(MemoryNeed, overhead_bytes=st.integers(0, 30), is_firm=st.just(True)),
            st.builds(
                MemoryNeed, st.integers(0, 30), st.integers(0, 30), st.integers(0, 5), needs_all_weights=st.booleans()
            ),
            st.builds(MemoryNeed, fraction=st.floats(0.1, 1.0), is_firm=st.just(True)),
        )
    )
    among = tuple(draw(st.one_of(st.just([HOST]), indices)))
    return Demand("new", need, among, draw(st.sampled_from([1, 1, 2, None])))


PINNED_AND_LEAVING = Ground(
    {HOST: Device(HOST, "", "", SIZE, 7)},
    (
        Resident("a", {HOST: 8}, can_leave=False, is_leaving=True, is_pinned=True),
        Resident("b", {HOST: 1}, can_leave=True),
        Resident("c", {HOST: 8}, can_leave=False),
    ),
    NOW,
)


@given(grounds(), demands())
@example(PINNED_AND_LEAVING, Demand("new", MemoryNeed(0, 12, 5), (HOST,)))
@settings(max_examples=1000, deadline=None)
def test_a_decision_keeps_the_rules(ground: Ground, demand: Demand) -> None:
    """Placed never overcommits; only those past their residency leave, never a pinned one, LRU and none in vain."""
    decision = decide(demand, ground)
    by_name = {resident.backend: resident for resident in ground.residents}
    if isinstance(decision, Placed):
        assert set(decision.claims) <= set(demand.among)
        for index, size in decision.claims.items():
            device = ground.devices[index]
            assert size + claimed(ground.residents, index) + ground.foreign(index) <= device.total_bytes
            if device.is_gpu:
                assert size <= max(0, device.free_bytes) or size == 0
    elif isinstance(decision, MakeRoom):
        victims = [by_name[victim.backend] for victim in decision.victims]
        assert victims
        for victim in victims:
            assert victim.can_leave
            assert not victim.is_pinned
            assert ground.now >= victim.leaves_from
        assert not any(resident.is_leaving and fits_after(ground, demand, decision.devices, [resident])
                       for resident in ground.residents)  # fmt: skip
        # None in vain: without any one of them the rest would not be enough.
        leaving = [resident for resident in ground.residents if resident.is_leaving]
        assert fits_after(ground, demand, decision.devices, [*leaving, *victims])
        for victim in victims:
            rest = [other for other in victims if other is not victim]
            assert not fits_after(ground, demand, decision.devices, [*leaving, *rest])
        if len(victims) == 1 and len(demand.among) == 1:
            (victim,) = victims
            for other in ground.residents:
                is_candidate = other.can_leave and not other.is_pinned and ground.now >= other.leaves_from
                if is_candidate and (other.is_busy, other.last_used) < (victim.is_busy, victim.last_used):
                    assert not fits_after(ground, demand, decision.devices, [*leaving, other])
    elif isinstance(decision, Wait):
        assert decision.until is None or decision.until > ground.now
    else:
        assert isinstance(decision, Impossible)
        assert decision.reason.startswith("It ")


def fits_after(ground: Ground, demand: Demand, devices: tuple[int, ...], gone: list[Resident]) -> bool:
    """Whether *demand* would be placed on exactly *devices* once those are gone, and all that may come back is back."""
    rest = tuple(resident for resident in ground.residents if resident not in gone)
    emptied = {}
    for index in devices:
        foreign = ground.foreign(index) if index in ground.settled else 0
        used = claimed(rest, index) + foreign
        emptied[index] = Device(index, "", "", SIZE, SIZE - used)
    after = Ground(emptied, rest, ground.now, frozenset(devices))
    return isinstance(decide(Demand(demand.backend, demand.need, devices, len(devices)), after), Placed)


@given(grounds(), demands())
@settings(max_examples=500, deadline=None)
def test_nobody_overtakes(ground: Ground, demand: Demand) -> None:
    """What a start that waits wants is never given to a later one, nor is anybody asked to leave there for it."""
    decision = decide(demand, ground)
    if not isinstance(decision, Wait | MakeRoom):
        return
    behind = Ground(ground.devices, ground.residents, ground.now, ground.settled, frozenset(decision.devices))
    later = decide(Demand("later", MemoryNeed(), tuple(ground.devices)), behind)
    if isinstance(later, Placed | MakeRoom):
        taken = later.claims if isinstance(later, Placed) else later.devices
        assert not set(taken) & set(decision.devices)
