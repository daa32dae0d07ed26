"""Where the next start goes, who makes room for it, or why it has to wait. Pure: no clock, no process, no device.

Theory of operation
-------------------
Memory is planned by *claims*: what each resident was granted on each device. A claim is given back when nothing of the
run is left. On a GPU a claim given back counts only once it is measured: what is used beyond all claims is *foreign*,
be it a stranger's or that of a process whose memory the driver has yet to free. While a device's free memory still
moves, foreign memory may go away by itself, so nobody is asked to leave because of it; once it has settled it is there
to stay.

A start that does not fit is granted room by those who are not pinned, are READY (or asleep) and past their minimum
residency: idle ones before busy ones, least recently used first, no more than needed. Busy ones are only ever asked:
they finish what they have begun. Starts are served in the order they came; one that waits keeps the devices it waits
for from those behind it, so that small ones cannot starve a large one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice

from backends.devices import GIB, HOST, Device
from backends.memory_estimate import MemoryNeed

Claims = Mapping[int, int]
"""Bytes by the index of their device."""

MAX_SETS = 4000
"""So many ways to choose GPUs are looked at: all of them up to 8 of 14."""


@dataclass(frozen=True, slots=True)
class Resident:
    """A backend that holds memory. Times are in seconds of one clock.

    *can_leave*: it is READY or asleep, and may be asked to; else it is starting, or *is_leaving* already.
    *asleep_claims*: what it would keep when it slept, None when it cannot, or does so already.
    """

    backend: str
    claims: Claims
    can_leave: bool
    is_leaving: bool = False
    is_busy: bool = False
    is_pinned: bool = False
    ready_since: float = 0.0
    last_used: float = 0.0
    min_residency_s: float = 0.0
    asleep_claims: Claims | None = None

    @property
    def leaves_from(self) -> float:
        """When it has been READY for long enough."""
        return self.ready_since + self.min_residency_s


@dataclass(frozen=True, slots=True)
class Demand:
    """What a start wants: *need* on *count* devices *among* these, by index; None: as few as will do."""

    backend: str
    need: MemoryNeed
    among: tuple[int, ...]
    count: int | None = 1


@dataclass(frozen=True, slots=True)
class Placed:
    """It may start, with these claims."""

    claims: Claims


@dataclass(frozen=True, slots=True)
class Victim:
    """A resident that has to make room: by sleeping when it *sleeps*, else by a stop."""

    backend: str
    sleeps: bool = False


@dataclass(frozen=True, slots=True)
class MakeRoom:
    """These have to leave first; then *devices* are its own."""

    victims: tuple[Victim, ...]
    devices: tuple[int, ...]
    because: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to be done before *until* (None: before something changes), *because* of what it says.

    *is_held*: the memory is there and unclaimed, but in use by somebody else, or not given back yet.
    """

    because: str
    devices: tuple[int, ...] = ()
    until: float | None = None
    is_held: bool = False


@dataclass(frozen=True, slots=True)
class Impossible:
    """It would not fit if all who may leave had left."""

    reason: str


Decision = Placed | MakeRoom | Wait | Impossible


@dataclass(frozen=True, slots=True)
class Ground:
    """Everything a decision looks at. *settled*: devices whose free memory has stopped moving; *reserved*: those that a
    start that came earlier waits for."""

    devices: Mapping[int, Device]
    residents: tuple[Resident, ...]
    now: float
    settled: frozenset[int] = frozenset()
    reserved: frozenset[int] = frozenset()

    def others(self, backend: str) -> tuple[Resident, ...]:
        """The residents but *backend* itself, which may hold what it keeps asleep."""
        return tuple(resident for resident in self.residents if resident.backend != backend)

    def foreign(self, index: int) -> int:
        """Bytes of a GPU in use beyond all claims. Of the host's memory none: the kernel has it back at once."""
        device = self.devices[index]
        if not device.is_gpu:
            return 0
        return max(0, device.total_bytes - device.free_bytes - claimed(self.residents, index))


def claimed(residents: Iterable[Resident], index: int) -> int:
    """Bytes that *residents* were granted on a device."""
    return sum(resident.claims.get(index, 0) for resident in residents)


@dataclass(frozen=True, slots=True)
class _Fit:
    """One way to place a demand: *wanted* bytes on each device of a set, and what is there for it."""

    wanted: Claims
    free: Claims
    """Unclaimed, foreign memory counted as taken."""
    patient: Claims
    """Unclaimed, foreign memory that may still go away counted as free."""
    others: tuple[Resident, ...] = field(repr=False)

    @property
    def devices(self) -> tuple[int, ...]:
        return tuple(self.wanted)

    @property
    def fits(self) -> bool:
        return all(self.free[index] >= wanted for index, wanted in self.wanted.items())

    def fits_without(self, leaving: Iterable[Resident], remaining: Mapping[str, Claims] | None = None) -> bool:
        """Whether it would fit once those are gone, but for what sleepers among them keep, as *remaining* says."""
        kept = remaining or {}
        gone = tuple(leaving)
        return all(
            self.patient[index]
            + sum(one.claims.get(index, 0) - kept.get(one.backend, {}).get(index, 0) for one in gone)
            >= wanted
            for index, wanted in self.wanted.items()
        )

    @property
    def slack(self) -> int:
        """Bytes left on its tightest device."""
        return min((self.free[index] - wanted for index, wanted in self.wanted.items()), default=0)


def decide(demand: Demand, ground: Ground) -> Decision:
    """What becomes of *demand* now."""
    present = tuple(index for index in demand.among if index in ground.devices)
    if demand.count is not None and len(present) < demand.count:
        return Impossible(_too_few(demand, ground))
    if not present:
        return Impossible(_too_few(demand, ground))
    possible = [fit for fit in _fits(demand, present, ground) if _could_ever_fit(fit, demand, ground)]
    if not possible:
        return Impossible(_never(demand, present, ground))
    allowed = [fit for fit in possible if not ground.reserved & set(fit.devices)]
    fitting = [fit for fit in allowed if fit.fits]
    if fitting:
        best = max(fitting, key=lambda fit: (-len(fit.wanted), fit.slack, tuple(-index for index in fit.devices)))
        return Placed(dict(best.wanted))
    if not allowed:
        return Wait(f"{_sum(demand, possible[0], ground)}; starts that came earlier wait for it")
    return _make_room(demand, allowed, ground)


def _fits(demand: Demand, present: Sequence[int], ground: Ground) -> Iterator[_Fit]:
    others = ground.others(demand.backend)
    for count in _counts(demand, present, ground):
        for chosen in islice(combinations(present, count), MAX_SETS):
            wanted, free, patient = {}, {}, {}
            for index in chosen:
                unclaimed = ground.devices[index].total_bytes - claimed(others, index)
                foreign = ground.foreign(index)
                settled = foreign if index in ground.settled else 0
                ceiling = ground.devices[index].total_bytes - settled - claimed(_pinned(others), index)
                low, high = _bounds(demand.need, count, ground.devices[index].total_bytes)
                wanted[index] = max(low, min(high, ceiling))
                free[index] = unclaimed - foreign
                patient[index] = unclaimed - settled
            yield _Fit(wanted, free, patient, others)


def _counts(demand: Demand, present: Sequence[int], ground: Ground) -> Iterable[int]:
    """How many devices to try: so many as were asked for, or from the fewest that hold it at all."""
    if demand.count is not None:
        return (demand.count,)
    smallest = min(ground.devices[index].total_bytes for index in present)
    enough = [n for n in range(1, len(present) + 1) if demand.need.on_each(n, smallest) <= smallest]
    return enough or (len(present),)


def _bounds(need: MemoryNeed, count: int, total_bytes: int) -> tuple[int, int]:
    """The least and the most to ask of one device. A guess may be off: down to its half it is cut to what there is."""
    bytes_needed = need.on_each(count, total_bytes)
    if need.is_firm:
        return bytes_needed, bytes_needed
    most = min(bytes_needed, total_bytes)
    return max(most // 2, need.least_on_each(count)), most


def _pinned(residents: Iterable[Resident]) -> tuple[Resident, ...]:
    """Those who stay. An operator may unload a pinned one too: once it leaves, it is no obstacle any more."""
    return tuple(resident for resident in residents if resident.is_pinned and not resident.is_leaving)


def _could_ever_fit(fit: _Fit, demand: Demand, ground: Ground) -> bool:
    """Whether it would fit if all who may ever leave had, and nothing foreign were there."""
    pinned = _pinned(fit.others)
    return all(
        max(
            _bounds(demand.need, len(fit.wanted), ground.devices[index].total_bytes)[0],
            demand.need.least_on_each(len(fit.wanted)),
        )
        <= ground.devices[index].total_bytes - claimed(pinned, index)
        for index in fit.wanted
    )


def _make_room(demand: Demand, fits: Sequence[_Fit], ground: Ground) -> Decision:
    coming = [fit for fit in fits if fit.fits_without(_on(fit, [one for one in fit.others if one.is_leaving]))]
    if coming:
        # Someone is leaving already, or memory is on its way back: nobody else has to leave for it.
        fit = max(coming, key=lambda one: one.slack)
        leaving = [one.backend for one in _on(fit, fit.others) if one.is_leaving]
        if leaving:
            return Wait(f"{_sum(demand, fit, ground)}; {_names(leaving)} is leaving", fit.devices)
        return Wait(f"{_sum(demand, fit, ground)}; waiting for it to be given back", fit.devices, is_held=True)
    plans = [(fit, victims) for fit in fits if (victims := _victims(fit, ground.now)) is not None]
    if plans:
        fit, chosen = min(plans, key=lambda plan: _cost(plan[1]))
        leaving_how = _asleep_or_gone(fit, chosen, ground)
        names = _names([one.backend for one in chosen])
        return MakeRoom(leaving_how, fit.devices, f"{_sum(demand, fit, ground)}; {names} makes room")
    return _wait(demand, fits, ground)


def _wait(demand: Demand, fits: Sequence[_Fit], ground: Ground) -> Decision:
    """Nobody can be asked to leave now: for how long, and why."""
    later = [(moment, fit) for fit in fits if (moment := _soonest(fit)) is not None]
    if later:
        moment, fit = min(later, key=lambda pair: pair[0])
        names = _names([one.backend for one in _on(fit, fit.others) if _may_leave(one)])
        return Wait(f"{_sum(demand, fit, ground)}; {names} may stay a little longer", fit.devices, until=moment)
    fit = max(fits, key=lambda one: one.slack)
    pinned = _pinned(fit.others)
    movable = [one for one in _on(fit, fit.others) if one not in pinned]
    busy = [one.backend for one in movable if not one.can_leave]
    if fit.fits_without(movable) and busy:
        return Wait(f"{_sum(demand, fit, ground)}; {_names(busy)} is starting", fit.devices)
    return Wait(f"{_sum(demand, fit, ground)}; something else holds the rest", fit.devices, is_held=True)


def _may_leave(resident: Resident) -> bool:
    return resident.can_leave and not resident.is_pinned


def _on(fit: _Fit, residents: Iterable[Resident]) -> list[Resident]:
    """Those who hold memory where *fit* wants some."""
    return [one for one in residents if any(one.claims.get(index, 0) for index in fit.devices)]


def _victims(fit: _Fit, now: float) -> tuple[Resident, ...] | None:
    """Who has to leave: idle before busy, least recently used first, none in vain. None: it would not be enough."""
    gone = [one for one in fit.others if one.is_leaving]
    able = [one for one in _on(fit, fit.others) if _may_leave(one) and now >= one.leaves_from]
    able.sort(key=lambda one: (one.is_busy, one.last_used, one.backend))
    chosen: list[Resident] = []
    for one in able:
        if fit.fits_without([*gone, *chosen]):
            break
        chosen.append(one)
    if not fit.fits_without([*gone, *chosen]):
        return None
    for one in sorted(chosen, key=lambda one: (one.is_busy, one.last_used, one.backend), reverse=True):
        without = [other for other in chosen if other is not one]
        if fit.fits_without([*gone, *without]):
            chosen = without
    return tuple(chosen)


def _cost(victims: tuple[Resident, ...]) -> tuple[int, int, float]:
    busy = sum(one.is_busy for one in victims)
    return busy, len(victims), max((one.last_used for one in victims), default=0.0)


def _asleep_or_gone(fit: _Fit, chosen: tuple[Resident, ...], ground: Ground) -> tuple[Victim, ...]:
    """Who of *chosen* may sleep: all who can, as long as what sleepers keep leaves enough, here and of the host's."""
    host = ground.devices.get(HOST)
    host_free = host.total_bytes - claimed(ground.residents, HOST) if host is not None else 0
    remaining: dict[str, Claims] = {}
    gone = [*(one for one in fit.others if one.is_leaving), *chosen]
    for one in chosen:
        if one.asleep_claims is None or one.asleep_claims.get(HOST, 0) > host_free:
            continue
        if fit.fits_without(gone, {**remaining, one.backend: one.asleep_claims}):
            remaining[one.backend] = one.asleep_claims
            host_free -= one.asleep_claims.get(HOST, 0)
    return tuple(Victim(one.backend, one.backend in remaining) for one in chosen)


def _soonest(fit: _Fit) -> float | None:
    """When enough residents will have been READY for long enough; None when that alone would not do."""
    moments = sorted(one.leaves_from for one in _on(fit, fit.others) if _may_leave(one))
    return next((moment for moment in moments if _victims(fit, moment) is not None), None)


def _sum(demand: Demand, fit: _Fit, ground: Ground) -> str:
    """``12.1 GiB needed on GPU 0, 8.0 free``, of the tightest device."""
    index = min(fit.wanted, key=lambda one: fit.free[one] - fit.wanted[one])
    place = f" on {ground.devices[index]}" if ground.devices[index].is_gpu else ""
    return f"{gib(fit.wanted[index])} GiB needed{place}, {gib(max(0, fit.free[index]))} free"


def _never(demand: Demand, present: Sequence[int], ground: Ground) -> str:
    fit = max(_fits(demand, present, ground), key=lambda one: one.slack)
    index = min(fit.wanted, key=lambda one: fit.free[one] - fit.wanted[one])
    device = ground.devices[index]
    pinned = _pinned(_on(fit, fit.others))
    wanted = max(fit.wanted[index], demand.need.least_on_each(len(fit.wanted)))
    each = f" on each of {len(fit.wanted)} GPUs" if len(fit.wanted) > 1 else ""
    held = f", of which {_names([one.backend for one in pinned])} keeps {gib(claimed(pinned, index))}"
    return f"It needs {gib(wanted)} GiB{each}, and {device} has {gib(device.total_bytes)}{held if pinned else ''}."


def _too_few(demand: Demand, ground: Ground) -> str:
    gpus = [index for index, device in ground.devices.items() if device.is_gpu]
    wanted = demand.count or 1
    missing = [index for index in demand.among if index not in ground.devices]
    found = f"there are {len(gpus)}" if gpus else "there is none"
    if missing:
        return f"It is to run on GPU {', '.join(map(str, demand.among))}, and {found} here."
    return f"It runs on {wanted} GPU{'s' if wanted > 1 else ''}, and {found} for it."


def _names(backends: Sequence[str]) -> str:
    return " and ".join(backends)


def gib(size: int) -> str:
    """*size* in bytes as GiB with one digit: 12.1."""
    return f"{size / GIB:.1f}"
