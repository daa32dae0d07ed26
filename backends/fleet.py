"""All backends of one gateway: started, stopped, exchanged, shown, and leased by the model they serve.

A model has one backend or several replicas. Which one serves a request is `choosing`'s to say; here it is only asked.
The backends may change while they serve: a reload of the configuration is made of `add`, `change` and `retire`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from backends.adapter import Adapter
from backends.choosing import Replica, choose, to_wake
from backends.lease import BackendUnavailable, Lease
from backends.lifecycle import RESTING, Event, State
from backends.logs import BackendLog, file_name
from backends.records import Reaped, reap
from backends.settings import BackendSettings, EngineSettings
from backends.start import Host
from backends.status import BackendStatus, Transition
from backends.supervisor import Setup, Supervisor
from chat_templates.proof import Proof

KILL_WAIT_S = 10.0
NO_NAMES: frozenset[str] = frozenset()

_log = logging.getLogger("unigate.backends")


class Fleet:
    """The supervisors by backend name. Make it on the loop, `open` it, `close` it."""

    def __init__(
        self,
        backends: Iterable[BackendSettings],
        engines: Mapping[str, EngineSettings],
        adapters: Mapping[str, Adapter],
        host: Host,
        log_dir: Path,
        *,
        log_rotate_bytes: int = 50 * 1024 * 1024,
        log_keep: int = 5,
        max_waiting: int = 256,
    ) -> None:
        self._adapters = adapters
        self._host = host
        self._log_dir = log_dir
        self._log_rotate_bytes = log_rotate_bytes
        self._log_keep = log_keep
        self._max_waiting = max_waiting
        self._subscribers: list[Callable[[Transition], None]] = []
        self._tasks: dict[Supervisor, asyncio.Task[None]] = {}
        self._farewells: dict[str, asyncio.Task[None]] = {}
        self._retired: dict[str, Supervisor] = {}
        self._turns = itertools.count()
        self._is_open = self._is_closing = False
        self._daemons: dict[str, Supervisor] = {}
        """By engine: the processes that serve several backends, which no configuration names."""
        self._sent_away: set[str] = set()
        setups = (self._setup(backend, engines.get(backend.engine, EngineSettings())) for backend in backends)
        self._supervisors = {setup.backend.name: self._supervisor(setup, self._daemon_of(setup)) for setup in setups}
        self._replicas: dict[str, tuple[Supervisor, ...]] = {}
        self._regrouped = asyncio.Event()
        self._expected = frozenset(supervisor.backend.model for supervisor in self._supervisors.values())
        self._group()

    def __repr__(self) -> str:
        return f"<Fleet {list(self._supervisors.values())}>"

    def _setup(self, backend: BackendSettings, engine: EngineSettings) -> Setup:
        return Setup(backend, engine, self._adapters[backend.engine])

    def _daemon_of(self, setup: Setup) -> Supervisor | None:
        """The daemon in which a backend of *setup* lives, made if it is the first; None for one with a process."""
        engine = setup.backend.engine
        if engine not in self._daemons:
            described = setup.adapter.daemon(setup.backend, setup.engine)
            if described is None:
                return None
            self._daemons[engine] = self._supervisor(Setup(described.backend, setup.engine, described.adapter))
            if self._is_open:
                self._begin(self._daemons[engine])
        daemon = self._daemons[engine]
        if daemon.setup.engine != setup.engine:
            daemon.change(replace(daemon.setup, engine=setup.engine))
        return daemon

    def _supervisor(self, setup: Setup, daemon: Supervisor | None = None) -> Supervisor:
        path = self._log_dir / file_name(setup.backend.name, ".log")
        return Supervisor(
            setup.backend,
            setup.engine,
            setup.adapter,
            self._host,
            BackendLog(path, rotate_bytes=self._log_rotate_bytes, keep=self._log_keep),
            self._publish,
            max_waiting=self._max_waiting,
            daemon=daemon,
        )

    def _group(self) -> None:
        replicas: dict[str, list[Supervisor]] = {model: [] for model in self._expected}
        for supervisor in self._supervisors.values():
            replicas.setdefault(supervisor.setup.backend.model, []).append(supervisor)
        self._replicas = {model: tuple(group) for model, group in replicas.items()}
        self._regrouped.set()
        self._regrouped = asyncio.Event()

    def _all(self) -> list[Supervisor]:
        return [*self._daemons.values(), *self._supervisors.values(), *self._retired.values()]

    def _named(self, name: str) -> Supervisor:
        """A backend that the configuration names, or a daemon. Raises KeyError."""
        daemons = {daemon.backend.name: daemon for daemon in self._daemons.values()}
        return self._supervisors[name] if name in self._supervisors else daemons[name]

    def subscribe(self, subscriber: Callable[[Transition], None]) -> None:
        """*subscriber* gets every transition from now on, on the loop; it must not raise nor wait."""
        self._subscribers.append(subscriber)

    async def open(self) -> list[Reaped]:
        """End what a crashed gateway left behind, then start every backend that is not on demand."""
        reaped = await asyncio.to_thread(reap, self._host.records)
        for found in reaped:
            _log.warning("ended processes of an earlier run of %s: %s", found.backend, list(found.ended))
            if found.wedged:
                _log.error("processes of %s would not die: %s", found.backend, list(found.wedged))
        self._is_open = True
        for daemon in self._daemons.values():
            self._begin(daemon)
        for supervisor in self._supervisors.values():
            self._begin(supervisor)
            if not supervisor.backend.on_demand:
                supervisor.request_start()
        return reaped

    def _begin(self, supervisor: Supervisor) -> None:
        task = asyncio.create_task(supervisor.run(), name=f"supervise {supervisor.backend.name}")
        self._tasks[supervisor] = task

    async def close(self, drain_timeout_s: float = 0.0) -> None:
        """Drain every backend for up to *drain_timeout_s*, then stop it. Cancelled, kill. Nothing of them is left."""
        self._is_closing = True
        supervisors = self._all()
        try:
            for supervisor in supervisors:
                supervisor.request_stop()
            stopped = asyncio.gather(*(supervisor.settled(State.STOPPED) for supervisor in supervisors))
            await asyncio.wait([stopped], timeout=drain_timeout_s)
            for supervisor in supervisors:
                supervisor.end_drain()
            await stopped
        finally:
            await self._end(supervisors)

    def kill(self) -> None:
        """KILL every process now; a `close` under way then ends quickly."""
        for supervisor in self._all():
            supervisor.kill()

    async def _end(self, supervisors: Sequence[Supervisor]) -> None:
        tasks = [*self._farewells.values(), *self._tasks.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._farewells.clear()
        self._tasks.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_WAIT_S):
                await asyncio.gather(*(supervisor.gone() for supervisor in supervisors))
        for supervisor in supervisors:
            supervisor.log.close()

    # --- changed while it serves ---

    def setups(self) -> dict[str, Setup]:
        """What each backend runs under, or will soon: what a new configuration is compared with."""
        return {name: supervisor.setup for name, supervisor in self._supervisors.items()}

    def names(self) -> list[str]:
        """Whatever has a name of its own to be asked by: backends, and the daemons that no configuration names."""
        return [*(daemon.backend.name for daemon in self._daemons.values()), *self._supervisors]

    async def add(self, backend: BackendSettings, engine: EngineSettings) -> None:
        """Take a new backend in and, unless it is on demand, start it; returns once that is under way.

        One that is just retiring comes back instead.
        """
        setup = self._setup(backend, engine)
        supervisor = self._retired.pop(backend.name, None)
        if supervisor is not None:
            self._farewells.pop(backend.name).cancel()
            taken = supervisor.change(setup)
        else:
            supervisor = self._supervisor(setup, self._daemon_of(setup))
            self._begin(supervisor)
            taken = None
        if not backend.on_demand:
            taken = supervisor.request_start()
        self._supervisors[backend.name] = supervisor
        self._group()
        if taken is not None:
            await taken

    async def change(self, backend: BackendSettings, engine: EngineSettings) -> None:
        """Give the backend of that name new settings, at once or by a new run; returns once that is under way.

        Who waits for it, or asks while it drains, waits for the new run. Raises KeyError.
        """
        setup = self._setup(backend, engine)
        self._daemon_of(setup)
        await self._supervisors[backend.name].change(setup)

    def retire(self, name: str) -> None:
        """Choose the backend no more, let its requests finish, stop it and forget it. Raises KeyError."""
        supervisor = self._supervisors.pop(name)
        self._retired[name] = supervisor
        self._group()
        taken = supervisor.retire()
        self._farewells[name] = asyncio.create_task(self._see_off(name, supervisor, taken), name=f"retire {name}")

    async def _see_off(self, name: str, supervisor: Supervisor, taken: asyncio.Future[None]) -> None:
        await taken
        await supervisor.settled(State.STOPPED)
        # From here to its end it is nobody's: no await between the look and the parting.
        del self._retired[name]
        task = self._tasks.pop(supervisor)
        task.cancel()
        try:
            await asyncio.wait([task])
            await supervisor.gone()
        finally:
            supervisor.log.close()
            if self._farewells.get(name) is asyncio.current_task():
                del self._farewells[name]

    async def seen_off(self, names: Iterable[str]) -> None:
        """Until none of the retired backends called *names* is left."""
        farewells = [self._farewells[name] for name in names if name in self._farewells]
        if farewells:
            await asyncio.wait(farewells)

    def order(self, names: Iterable[str]) -> None:
        """Show the backends in the order of *names*; those not named come last."""
        wanted = {name: index for index, name in enumerate(names)}
        by_order = sorted(self._supervisors.items(), key=lambda item: wanted.get(item[0], len(wanted)))
        self._supervisors = dict(by_order)
        self._group()

    def expect(self, models: Iterable[str]) -> None:
        """Know *models*, and no others, as those that are to be served.

        One of them may be without a backend while it gets another; a request for it waits.
        """
        self._expected = frozenset(models)
        self._group()

    def allow_waiting(self, limit: int) -> None:
        """At most *limit* requests wait for one model from now on."""
        self._max_waiting = limit
        for supervisor in self._all():
            supervisor.allow_waiting(limit)

    async def brought_up(self, name: str) -> State:
        """The state a backend comes to rest in: READY, FAILED, BACKOFF, or STOPPED or asleep where nobody starts it.

        To be asked when what it was told to do has been taken, as `add`, `change` and `load` see to. Raises KeyError.
        """
        supervisor = self._supervisors[name]
        at_rest = (State.READY, State.FAILED, State.BACKOFF, *RESTING)
        await supervisor.settled(*at_rest)
        # It may only have passed through on its way to a start that was asked for.
        while supervisor.state not in at_rest:
            await supervisor.settled(*at_rest)
        return supervisor.state

    # --- by a backend's name ---

    async def load(self, name: str) -> None:
        """Ask for a start, of a FAILED backend too; returns once that is under way. Raises KeyError."""
        await self._named(name).request_start()

    async def unload(self, name: str) -> None:
        """Ask a backend to drain and stop; returns once that is under way. Raises KeyError."""
        await self._named(name).request_stop()

    async def settled(self, name: str, *states: State) -> None:
        """Until the backend is in one of *states*. Raises KeyError for an unknown name."""
        await self._named(name).settled(*states)

    def log(self, name: str) -> BackendLog:
        """A backend's log. Raises KeyError for an unknown name."""
        return self._named(name).log

    def proof(self, name: str) -> Proof | None:
        """What was seen of a backend's prompts, by its last run; None where nothing was to be proven, or not yet.

        Raises KeyError for an unknown name.
        """
        return self._named(name).proof

    def status(self, name: str) -> BackendStatus:
        """One backend as it stands. Raises KeyError for an unknown name."""
        return self._named(name).status()

    def statuses(self) -> list[BackendStatus]:
        """All backends as they stand, in the configuration's order; last those that are leaving."""
        return [supervisor.status() for supervisor in self._all()]

    # --- by a model's name ---

    def replicas(self, model: str) -> list[BackendStatus]:
        """The backends of a model as they stand; none while a reload exchanges its last one."""
        return [supervisor.status() for supervisor in self._replicas.get(model, ())]

    def has_other(self, model: str, tried: frozenset[str]) -> bool:
        """Whether a replica that was not *tried* may yet answer."""
        others = (other for other in self._replicas.get(model, ()) if other.backend.name not in tried)
        return any(other.state is not State.FAILED for other in others)

    @contextlib.asynccontextmanager
    async def lease(
        self, model: str, max_wait_s: float, affinity: bytes | None = None, without: frozenset[str] = NO_NAMES
    ) -> AsyncIterator[Lease]:
        """A lease of one of the model's backends for the body of the ``async with``, however it is left.

        *affinity* is as `choosing.choose` has it; the backends named in *without* are not chosen. Raises KeyError for
        an unknown model, BackendUnavailable when there is none to be had.
        """
        if self._is_closing:
            raise BackendUnavailable("draining", "the gateway is shutting down", 5.0)
        replicas = self._replicas[model]
        if len(replicas) == 1 and not without:
            lease = await self._lease_or_successor(replicas[0], model, max_wait_s)
        else:
            lease = await self._lease_of_any(model, max_wait_s, affinity, without)
        try:
            yield lease
        finally:
            lease.release()

    async def _lease_or_successor(self, supervisor: Supervisor, model: str, max_wait_s: float) -> Lease:
        """The only backend's lease; should it be retired meanwhile, that of those which came in its place."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + max_wait_s
        try:
            return await supervisor.lease(max_wait_s)
        except BackendUnavailable:
            if supervisor in self._replicas.get(model, ()) or model not in self._replicas:
                raise
            return await self._lease_of_any(model, max(0.0, deadline - clock()), None, NO_NAMES)

    async def _lease_of_any(
        self, model: str, max_wait_s: float, affinity: bytes | None, without: frozenset[str]
    ) -> Lease:
        clock = asyncio.get_running_loop().time
        deadline = clock() + max_wait_s
        while True:
            if self._is_closing:
                raise BackendUnavailable("draining", "the gateway is shutting down", 5.0)
            group = [other for other in self._replicas.get(model, ()) if other.backend.name not in without]
            if not group:
                if model not in self._expected or without:
                    raise BackendUnavailable("model_stopped", f"{model} was stopped", 10.0)
                await self._until_regrouped(model, deadline - clock())
                continue
            chosen = self._choose(group, affinity)
            lease = chosen.try_lease()
            if lease is not None:
                return lease
            waiting = sum(other.status().waiting for other in group)
            if waiting >= self._max_waiting:
                raise BackendUnavailable("queue_full", f"the queue for {model} is full ({waiting} waiting)", 10.0)
            try:
                lease = await self._first_of(chosen, group, max(0.0, deadline - clock()))
            except BackendUnavailable:
                is_one_of_them = chosen in self._replicas.get(model, ())
                if clock() >= deadline or (is_one_of_them and not self._is_hopeful(model, chosen, without)):
                    raise
            if lease is not None:
                return lease

    async def _until_regrouped(self, model: str, max_wait_s: float) -> None:
        try:
            async with asyncio.timeout(max_wait_s):
                await self._regrouped.wait()
        except TimeoutError:
            message = f"{model} got no backend within the time that a request may wait"
            raise BackendUnavailable("model_not_ready", message, 10.0) from None

    def _choose(self, group: Sequence[Supervisor], affinity: bytes | None) -> Supervisor:
        # One whose process is gone may be READY for a second yet, with the fewest requests of all.
        alive = [other for other in group if not other.has_exited] or group
        replicas = [Replica(other.backend.name, other.state, other.outstanding) for other in alive]
        by_name = {other.backend.name: other for other in group}
        spare = to_wake(replicas)
        if spare is not None and by_name[spare].backend.on_demand:
            by_name[spare].request_start()
        return by_name[choose(replicas, affinity, next(self._turns))]

    def _is_hopeful(self, model: str, failed: Supervisor, without: frozenset[str]) -> bool:
        """Whether another replica than the one that *failed* is serving or on its way to it."""
        hopeful = (State.READY, State.STARTING, State.RECYCLING, State.BACKOFF)
        return any(
            other is not failed and other.backend.name not in without and other.state in hopeful
            for other in self._replicas.get(model, ())
        )

    async def _first_of(self, chosen: Supervisor, group: Sequence[Supervisor], max_wait_s: float) -> Lease | None:
        """The lease of *chosen*, or None as soon as another of the *group* is READY. Raises BackendUnavailable."""
        others = [other for other in group if other is not chosen]
        if not others:
            return await chosen.lease(max_wait_s)
        leasing = asyncio.create_task(chosen.lease(max_wait_s))
        watching = [asyncio.create_task(other.settled(State.READY)) for other in others]
        try:
            await asyncio.wait([leasing, *watching], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            leasing.cancel()
            leasing.add_done_callback(_give_back)
            raise
        finally:
            for task in watching:
                task.cancel()
        if leasing.done():
            return leasing.result()
        leasing.cancel()
        leasing.add_done_callback(_give_back)
        return None

    def _publish(self, transition: Transition) -> None:
        _log.info(
            "%s: %s -> %s (%s)%s",
            transition.backend,
            transition.before.value,
            transition.after.value,
            transition.event.value,
            f": {transition.diagnosis}" if transition.diagnosis is not None else "",
        )
        for subscriber in self._subscribers:
            subscriber(transition)
        self._follow_daemon(transition)

    def _follow_daemon(self, transition: Transition) -> None:
        """A daemon that is stopped drains by its residents' leaving; those of the startup come back with it."""
        daemon = self._daemons.get(transition.engine)
        if daemon is None or transition.backend != daemon.backend.name:
            return
        residents = [
            other for other in self._all() if other.backend.engine == transition.engine and other is not daemon
        ]
        if transition.event is Event.STOP_REQUESTED:
            for resident in residents:
                self._sent_away.add(resident.backend.name)
                resident.request_stop()
        elif transition.after is State.READY:
            for resident in residents:
                if resident.backend.name in self._sent_away and not resident.backend.on_demand:
                    resident.request_start()
                self._sent_away.discard(resident.backend.name)


def _give_back(leasing: asyncio.Task[Lease]) -> None:
    """A lease that came in the very turn in which nobody wanted it any more."""
    if not leasing.cancelled() and leasing.exception() is None:
        leasing.result().release()
