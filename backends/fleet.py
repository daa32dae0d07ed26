"""All backends of one gateway: started, stopped, shown, and leased by name."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path

from backends.adapter import Adapter
from backends.lease import BackendUnavailable, Lease
from backends.lifecycle import State
from backends.logs import BackendLog, file_name
from backends.records import Reaped, reap
from backends.settings import BackendSettings, EngineSettings
from backends.start import Host
from backends.status import BackendStatus, Transition
from backends.supervisor import Supervisor

KILL_WAIT_S = 10.0

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
        self._host = host
        self._subscribers: list[Callable[[Transition], None]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._is_closing = False
        self._supervisors = {
            backend.name: Supervisor(
                backend,
                engines.get(backend.engine, EngineSettings()),
                adapters[backend.engine],
                host,
                BackendLog(log_dir / file_name(backend.name, ".log"), rotate_bytes=log_rotate_bytes, keep=log_keep),
                self._publish,
                max_waiting=max_waiting,
            )
            for backend in backends
        }

    def __repr__(self) -> str:
        return f"<Fleet {list(self._supervisors.values())}>"

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
        for supervisor in self._supervisors.values():
            self._tasks.append(asyncio.create_task(supervisor.run(), name=f"supervise {supervisor.backend.name}"))
            if not supervisor.backend.on_demand:
                supervisor.request_start()
        return reaped

    async def close(self, drain_timeout_s: float = 0.0) -> None:
        """Drain every backend for up to *drain_timeout_s*, then stop it. Cancelled, kill. Nothing of them is left."""
        self._is_closing = True
        supervisors = self._supervisors.values()
        try:
            for supervisor in supervisors:
                supervisor.request_stop()
            stopped = asyncio.gather(*(supervisor.settled(State.STOPPED) for supervisor in supervisors))
            await asyncio.wait([stopped], timeout=drain_timeout_s)
            for supervisor in supervisors:
                supervisor.end_drain()
            await stopped
        finally:
            await self._end()

    def kill(self) -> None:
        """KILL every process now; a `close` under way then ends quickly."""
        for supervisor in self._supervisors.values():
            supervisor.kill()

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_WAIT_S):
                await asyncio.gather(*(supervisor.gone() for supervisor in self._supervisors.values()))
        for supervisor in self._supervisors.values():
            supervisor.log.close()

    async def load(self, name: str) -> None:
        """Ask for a start, of a FAILED backend too; returns once that is under way. Raises KeyError."""
        await self._supervisors[name].request_start()

    async def unload(self, name: str) -> None:
        """Ask a backend to drain and stop; returns once that is under way. Raises KeyError."""
        await self._supervisors[name].request_stop()

    async def settled(self, name: str, *states: State) -> None:
        """Until the backend is in one of *states*. Raises KeyError for an unknown name."""
        await self._supervisors[name].settled(*states)

    def log(self, name: str) -> BackendLog:
        """A backend's log. Raises KeyError for an unknown name."""
        return self._supervisors[name].log

    def status(self, name: str) -> BackendStatus:
        """One backend as it stands. Raises KeyError for an unknown name."""
        return self._supervisors[name].status()

    def statuses(self) -> list[BackendStatus]:
        """All backends as they stand, in the configuration's order."""
        return [supervisor.status() for supervisor in self._supervisors.values()]

    @contextlib.asynccontextmanager
    async def lease(self, name: str, max_wait_s: float) -> AsyncIterator[Lease]:
        """A lease for the body of the ``async with``, however it is left.

        Raises KeyError for an unknown name, BackendUnavailable when there is none to be had.
        """
        if self._is_closing:
            raise BackendUnavailable("draining", "the gateway is shutting down", 5.0)
        lease = await self._supervisors[name].lease(max_wait_s)
        try:
            yield lease
        finally:
            lease.release()

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
