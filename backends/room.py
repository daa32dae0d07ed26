"""The one place that grants memory: starts ask here before they load anything.

Theory of operation
-------------------
`acquire` puts a start into one queue. While somebody waits, a single task looks at the devices, lets `placement` decide
about every waiting start in the order they came, and acts: it grants, it asks residents to yield, it says what is
waited for. It looks again when something has changed (a lease returned, a run gone, a model READY) or when time alone
changes the answer (a residency that ends, memory that comes back).

It decides nothing about a backend's state. It reads `Tenant.occupancy` to choose whom to ask, and the asked supervisor
takes `request_yield` like any other message: what has changed meanwhile, it knows better.

A grant is held from before the spawn until nothing of the run is left. No deadlock with the start gate: room is taken
first, and whoever is inside the gate has room already.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import psutil

from backends.demand import Wish, asleep_claims, demand_of, gpu_environment, limit_flags
from backends.devices import GIB, HOST, MIB, Device, Devices
from backends.diagnosis import Diagnosis
from backends.learnt import Learnt, Peak, fingerprint
from backends.lifecycle import LEAVING, State
from backends.memory_estimate import exactly
from backends.placement import (
    Claims,
    Decision,
    Demand,
    Ground,
    Impossible,
    MakeRoom,
    Placed,
    Resident,
    Wait,
    decide,
    gib,
)
from backends.weight_facts import weight_facts

POLL_S = 0.25
"""Between two looks at memory that is on its way back: it takes 0.5 to 1.5 s (Ollama, server/sched.go)."""
TOGETHER_S = 0.005
"""Changes within so long are looked at together."""
SETTLED_S = 3.0
"""A device whose free memory has not moved for so long has given back what it will."""
SETTLED_BYTES = 64 * MIB
HELD_LIMIT_S = 30.0
"""So long is memory waited for that nobody here claims."""
ASLEEP_BYTES = 2 * GIB
"""What a sleeping engine is reckoned to keep of each GPU, its context and graphs; a guess, no GPU was at hand."""
NOTICEABLE = 1.01
"""A peak is written anew when it has grown by more than a hundredth."""

_log = logging.getLogger("unigate.backends")


class NoRoom(Exception):
    """There is no room, and waiting would bring none; the diagnosis says why."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        super().__init__(diagnosis.reason)
        self.diagnosis = diagnosis


@dataclass(frozen=True, slots=True)
class Occupancy:
    """How a backend stands, for choosing who makes room. Times are of the loop's clock, in seconds."""

    state: State
    leases: int
    ready_since: float
    last_used: float
    is_pinned: bool = False
    min_residency_s: float = 0.0


class Tenant(Protocol):
    """A backend that holds room, or wants some."""

    def occupancy(self) -> Occupancy:
        """How it stands now."""

    def request_yield(self, *, sleep: bool) -> None:
        """Make room once what runs has finished: by a sleep, if it can, else by a stop."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Room for one run: bytes by device, and what tells its engine so."""

    claims: Claims = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


class Room(Protocol):
    """Who grants memory."""

    async def acquire(
        self, tenant: Tenant, wish: Wish, unless: asyncio.Event, tell: Callable[[str], None]
    ) -> Grant | None:
        """Room for a run of *wish*, waited for as long as it takes; None once *unless* is set.

        For one that sleeps, the room it had before. *tell* gets what is waited for. Raises NoRoom.
        """

    def release(self, backend: str) -> None:
        """Nothing is left of the run: what it was granted is free again."""

    def fell_asleep(self, backend: str) -> None:
        """It has given back all but what sleepers keep."""

    def look_again(self) -> None:
        """Something has changed that may make room."""

    def claims(self, backend: str) -> Claims:
        """What a backend was granted; empty without a run."""

    async def measure(self, backend: str, pids: Callable[[], Sequence[int]]) -> None:
        """See what the run takes now, and keep the most it took for its next start. *pids* blocks."""


class Boundless:
    """Room without end, for where nobody counts: every start is placed at once, nowhere in particular."""

    async def acquire(
        self, tenant: Tenant, wish: Wish, unless: asyncio.Event, tell: Callable[[str], None]
    ) -> Grant | None:
        """An empty grant."""
        return Grant()

    def release(self, backend: str) -> None:
        """Nothing was granted."""

    def fell_asleep(self, backend: str) -> None:
        """Nothing is counted."""

    def look_again(self) -> None:
        """Nobody waits."""

    def claims(self, backend: str) -> Claims:
        """None."""
        return {}

    async def measure(self, backend: str, pids: Callable[[], Sequence[int]]) -> None:
        """Nothing is kept."""


BOUNDLESS = Boundless()


@dataclass(eq=False, slots=True)
class _Waiting:
    """A start in the queue. Without *is_reckoned* its need is not known yet, and those behind it wait too."""

    tenant: Tenant
    wish: Wish
    tell: Callable[[str], None]
    answer: asyncio.Future[Grant]
    is_reckoned: bool = False
    held_since: float | None = None
    told: str = ""


@dataclass(eq=False, slots=True)
class _Held:
    """Room that was granted. *demand* is what was asked for; *asleep* what it keeps, once it sleeps."""

    tenant: Tenant
    wish: Wish
    demand: Demand
    claims: Claims
    asleep: Claims | None = None
    peak: Peak | None = None

    @property
    def counted(self) -> Claims:
        """What it holds now."""
        return self.claims if self.asleep is None else self.asleep


class MeasuredRoom:
    """The room of this machine's *devices*. Made on the loop. *learnt* keeps what runs took, None for nothing."""

    def __init__(self, devices: Devices, learnt: Learnt | None = None) -> None:
        self._devices = devices
        self._learnt = learnt
        self._queue: list[_Waiting] = []
        self._held: dict[str, _Held] = {}
        self._free_since: dict[int, tuple[int, float]] = {}
        self._changed = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None
        self._clock = asyncio.get_running_loop().time

    def __repr__(self) -> str:
        held = {name: dict(held.counted) for name, held in self._held.items()}
        return f"<MeasuredRoom {held}, {len(self._queue)} waiting>"

    async def acquire(
        self, tenant: Tenant, wish: Wish, unless: asyncio.Event, tell: Callable[[str], None]
    ) -> Grant | None:
        """See Room."""
        waiting = _Waiting(tenant, wish, tell, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        stopping = asyncio.create_task(unless.wait())
        try:
            if wish.backend.name not in self._held:
                waiting.wish = await asyncio.to_thread(self._reckoned, wish)
            waiting.is_reckoned = True
            self._serve()
            ends: list[asyncio.Future[Any]] = [waiting.answer, stopping]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            # Granted in the same turn as stopped: the caller gives it back with the run that never began.
            return waiting.answer.result() if waiting.answer.done() else None
        finally:
            stopping.cancel()
            if waiting in self._queue:
                self._queue.remove(waiting)
            self.look_again()

    def release(self, backend: str) -> None:
        """See Room."""
        self._held.pop(backend, None)
        self.look_again()

    def fell_asleep(self, backend: str) -> None:
        """See Room."""
        held = self._held.get(backend)
        if held is not None:
            held.asleep = asleep_claims(held.wish, held.claims, ASLEEP_BYTES)
            self.look_again()

    def look_again(self) -> None:
        """See Room."""
        self._changed.set()

    def claims(self, backend: str) -> Claims:
        """See Room."""
        held = self._held.get(backend)
        return held.counted if held is not None else {}

    async def measure(self, backend: str, pids: Callable[[], Sequence[int]]) -> None:
        """See Room."""
        held = self._held.get(backend)
        if held is None or self._learnt is None:
            return
        taken = await asyncio.to_thread(self._taken, held.claims, pids)
        known, on_gpu = held.peak or held.wish.learnt, HOST not in held.claims
        is_comparable = known is not None and (known.on_gpu, known.devices) == (on_gpu, len(held.claims))
        if taken <= (known.bytes_on_each * NOTICEABLE if known is not None and is_comparable else 0):
            return
        held.peak = Peak(fingerprint(held.wish.backend, held.wish.engine), on_gpu, len(held.claims), taken)
        await asyncio.to_thread(self._learnt.write, backend, held.peak)

    def _taken(self, claims: Claims, pids: Callable[[], Sequence[int]]) -> int:
        """The most that those processes take of one of the devices, in bytes; 0 when that cannot be told."""
        members = frozenset(pids())
        if HOST in claims:
            return sum(map(_resident_bytes, members))
        devices = [device for device in self._devices.read() if device.index in claims]
        return max((sum(size for pid, size in one.processes if pid in members) for one in devices), default=0)

    def _reckoned(self, wish: Wish) -> Wish:
        learnt = self._learnt.read(wish.backend, wish.engine) if self._learnt is not None else None
        return replace(wish, facts=weight_facts(wish.backend.weights), learnt=learnt)

    # --- serving the queue ---

    def _serve(self) -> None:
        self._changed.set()
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve_all(), name="room")

    async def _serve_all(self) -> None:
        while self._queue:
            self._changed.clear()
            try:
                found = {device.index: device for device in await asyncio.to_thread(self._devices.read)}
                pause_s = self._serve_once(found)
            except Exception as mistake:
                _log.exception("placement broke")
                self._refuse_all(f"Placement broke: {mistake!r}.")
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()
                    # A backend that is idle for an instant between any two requests is not looked at for each.
                    await asyncio.sleep(TOGETHER_S)

    def _serve_once(self, devices: Mapping[int, Device]) -> float | None:
        """Decide about every waiting start, in order. Returns after how many seconds to look again, None: on change."""
        now = self._clock()
        settled = self._settled(devices.values(), now)
        reserved: set[int] = set()
        pauses: list[float] = []
        for waiting in list(self._queue):
            if not waiting.is_reckoned:
                break
            demand = self._demand(waiting, devices)
            residents = self._residents(waiting.wish.backend.model)
            ground = Ground(devices, residents, now, settled, frozenset(reserved))
            decision = decide(demand, ground)
            self._act(waiting, demand, decision, devices)
            if isinstance(decision, Wait | MakeRoom):
                reserved.update(decision.devices)
            if isinstance(decision, Wait):
                if decision.until is not None:
                    pauses.append(decision.until - now)
                if decision.is_held:
                    pauses.append(POLL_S)
        return max(0.0, min(pauses)) if pauses else None

    def _demand(self, waiting: _Waiting, devices: Mapping[int, Device]) -> Demand:
        held = self._held.get(waiting.wish.backend.name)
        if held is None:
            return demand_of(waiting.wish, list(devices.values()))
        # It wakes: where its context is, and nowhere else, and takes again what it had.
        need = held.demand.need if held.demand.need.fraction is not None else exactly(max(held.claims.values()))
        return replace(held.demand, need=need, among=tuple(held.claims), count=len(held.claims))

    def _act(self, waiting: _Waiting, demand: Demand, decision: Decision, devices: Mapping[int, Device]) -> None:
        match decision:
            case Placed(claims):
                self._grant(waiting, demand, claims, devices)
            case Impossible(reason):
                self._refuse(waiting, _does_not_fit(reason))
            case MakeRoom(victims, _, because):
                self._say(waiting, because)
                for victim in victims:
                    self._held[victim.backend].tenant.request_yield(sleep=victim.sleeps)
            case Wait(because, on, _, is_held):
                self._say(waiting, because)
                self._hold(waiting, [devices[index] for index in on], because, is_held=is_held)

    def _grant(self, waiting: _Waiting, demand: Demand, claims: Claims, devices: Mapping[int, Device]) -> None:
        wish = waiting.wish
        held = self._held.get(wish.backend.name)
        if held is None:
            self._held[wish.backend.name] = _Held(waiting.tenant, wish, demand, claims)
        else:
            held.asleep = None
        self._queue.remove(waiting)
        waiting.answer.set_result(
            Grant(claims, gpu_environment(wish, claims), tuple(limit_flags(wish, claims, devices)))
        )

    def _hold(self, waiting: _Waiting, devices: Sequence[Device], because: str, *, is_held: bool) -> None:
        """Wait for memory that nobody here claims, but not for ever."""
        now = self._clock()
        if not is_held:
            waiting.held_since = None
        elif waiting.held_since is None:
            waiting.held_since = now
        elif now - waiting.held_since >= HELD_LIMIT_S:
            self._refuse(waiting, _held_by(devices, because))

    def _say(self, waiting: _Waiting, because: str) -> None:
        if because != waiting.told:
            waiting.told = because
            waiting.tell(f"waiting for memory: {because}")

    def _refuse(self, waiting: _Waiting, diagnosis: Diagnosis) -> None:
        self._queue.remove(waiting)
        if not waiting.answer.done():
            waiting.answer.set_exception(NoRoom(diagnosis))

    def _refuse_all(self, reason: str) -> None:
        for waiting in list(self._queue):
            self._refuse(waiting, Diagnosis("placement_broke", reason, "See the gateway's log."))

    def _residents(self, model: str) -> tuple[Resident, ...]:
        """Who holds room, as a start of *model* sees them: its own replicas do not make room for one another."""
        waiting = {one.wish.backend.name for one in self._queue}
        return tuple(
            _resident(name, held, is_waiting=name in waiting, is_replica=held.wish.backend.model == model)
            for name, held in self._held.items()
        )

    def _settled(self, devices: Iterable[Device], now: float) -> frozenset[int]:
        """The devices whose free memory has stopped moving."""
        for device in devices:
            before, since = self._free_since.get(device.index, (-SETTLED_BYTES - 1, now))
            if abs(device.free_bytes - before) > SETTLED_BYTES:
                before, since = device.free_bytes, now
            self._free_since[device.index] = before, since
        return frozenset(index for index, (_, since) in self._free_since.items() if now - since >= SETTLED_S)


def _resident(name: str, held: _Held, *, is_waiting: bool, is_replica: bool) -> Resident:
    stands = held.tenant.occupancy()
    # One that waits to wake holds what it keeps asleep, and may have to leave that to another.
    waits_asleep = is_waiting and held.asleep is not None
    can_leave = stands.state in (State.READY, State.SLEEPING) or (waits_asleep and stands.state is State.STARTING)
    asleep = asleep_claims(held.wish, held.claims, ASLEEP_BYTES) if held.asleep is None else None
    return Resident(
        name,
        held.counted,
        can_leave,
        is_leaving=not can_leave and (stands.state in LEAVING or stands.state is not State.STARTING),
        is_busy=stands.leases > 0,
        is_pinned=stands.is_pinned or is_replica,
        ready_since=stands.ready_since,
        last_used=stands.last_used,
        min_residency_s=stands.min_residency_s,
        asleep_claims=asleep,
    )


def _does_not_fit(reason: str) -> Diagnosis:
    advice = "Use a smaller or quantised model, lower context_length, or give it more: memory_gib, gpus, pinned."
    return Diagnosis("does_not_fit", reason, advice, permanent=True)


def _held_by(devices: Sequence[Device], because: str) -> Diagnosis:
    found = [f"pid {pid} ({_program(pid)}) with {gib(size)} GiB" for one in devices for pid, size in one.processes]
    who = f"It is held by {', '.join(found)}" if found else "NVML does not tell by whom, as in a container"
    return Diagnosis(
        "gpu_memory_held",
        f"The memory for it is not free ({because}). {who}.",
        "End what holds it (see nvidia-smi), or give the model other gpus.",
    )


def _program(pid: int) -> str:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).name()
    return "not of this container"


def _resident_bytes(pid: int) -> int:
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0
