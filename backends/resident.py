"""A run that is no process: a model in a daemon, from its arrival until the daemon has forgotten it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from backends.adapter import LaunchSpec
from backends.diagnosis import Diagnosis, ExitStatus
from backends.lease import Lease
from backends.lifecycle import State
from backends.moving import Digests, Mover
from backends.residence import PHASE_MARK, ResidenceRefused, Resident


class DaemonLife(Protocol):
    """What a resident has to know of its daemon's backend: the supervisor of that."""

    async def lease(self, max_wait_s: float) -> Lease:
        """A lease on the daemon, started if need be. Raises BackendUnavailable."""

    async def settled(self, *states: State) -> None:
        """Until it is in one of *states*."""

    @property
    def has_exited(self) -> bool:
        """Whether its main process is gone, though its state may not say so yet."""

    def bytes_read(self) -> int:
        """Bytes its processes have read from files so far. Blocks for some milliseconds."""


SERVING = frozenset({State.READY, State.DRAINING})
"""The states of a daemon in which its residents live."""


class Neighbours:
    """Who has which weights in memory, for all daemons: residents with the same weights share them.

    Ollama has one runner for each weights *file*; what loads it with other settings ends it and starts it anew, and
    what unloads it unloads it for all (llm/llama_server.go, server/sched.go; measured with 0.33.0-rc2).
    """

    def __init__(self) -> None:
        self._there: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}

    def enter(self, daemon: str, resident: Resident) -> None:
        """Take *resident* down as loaded. Raises ResidenceRefused when it needs other settings than one that is."""
        there = self._there.setdefault((daemon, resident.weights), {})
        for other, settings in there.items():
            if other != resident.name and settings != resident.runner:
                raise ResidenceRefused(_disagreement(other, settings, resident.runner))
        there[resident.name] = resident.runner

    def leave(self, daemon: str, resident: Resident) -> bool:
        """Strike *resident* off; returns whether it was the last with its weights, so that they can be unloaded."""
        there = self._there.get((daemon, resident.weights), {})
        there.pop(resident.name, None)
        if not there:
            self._there.pop((daemon, resident.weights), None)
        return not there


class ResidentRun:
    """The stay of one model. `settle_in` and `load` are its start, in this order; `wait` is its end."""

    pid: int | None = None
    session = 0

    def __init__(
        self, spec: LaunchSpec, digests: Digests, neighbours: Neighbours, on_line: Callable[[str], None]
    ) -> None:
        assert spec.residence is not None
        self._residence = spec.residence
        self._daemon = str(spec.address)
        self._neighbours = neighbours
        self._mover = Mover(spec.address, digests, lambda phase: on_line(PHASE_MARK + phase))
        self._resident: Resident | None = None
        self._is_entered = False
        self._ended: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self._doing: asyncio.Task[Any] | None = None
        self._leaving: asyncio.Task[None] | None = None

    has_exited = False

    def pids(self) -> Sequence[int]:
        """It has no process: what it takes is seen at its daemon only."""
        return ()

    async def settle_in(self) -> Resident:
        """Until the daemon has the model. Raises ResidenceRefused; CancelledError when the run ends meanwhile."""
        resident: Resident = await self._do(self._mover.drive(self._residence.arrive()))
        self._neighbours.enter(self._daemon, resident)
        self._resident, self._is_entered = resident, True
        return resident

    async def load(self) -> None:
        """Until the model is in memory. Raises ResidenceRefused, CancelledError likewise."""
        assert self._resident is not None
        await self._do(self._load(self._resident))

    async def _load(self, resident: Resident) -> None:
        def plan() -> Any:
            reply = yield resident.load
            if reply.status != 200:
                raise ResidenceRefused(self._residence.diagnose(reply))

        await self._mover.drive(plan())

    async def _do(self, work: Any) -> Any:
        """*work*, broken off when the run is told to end. Raises CancelledError then, to whoever waits."""
        self._doing = asyncio.ensure_future(work)
        if self._leaving is not None or self._ended.done():
            self._doing.cancel()
        try:
            return await self._doing
        finally:
            # Cancelled from outside, the work under way must not go on by itself.
            if not self._doing.done():
                self._doing.cancel()
                await asyncio.wait([self._doing])

    async def wait(self) -> ExitStatus:
        """Until the model has left."""
        return await asyncio.shield(self._ended)

    def terminate(self) -> None:
        """Break off what is under way, and have the daemon unload the model."""
        if self._leaving is None and not self._ended.done():
            if self._doing is not None:
                self._doing.cancel()
            self._leaving = asyncio.create_task(self._leave(), name="a model leaves its daemon")

    def kill(self) -> None:
        """The stay is over, whatever the daemon does: it is gone itself, or does not obey."""
        for task in (self._doing, self._leaving):
            if task is not None:
                task.cancel()
        if self._is_entered and self._resident is not None:
            self._neighbours.leave(self._daemon, self._resident)
            self._is_entered = False
        self._end()

    async def _leave(self) -> None:
        try:
            if self._doing is not None and not self._doing.done():
                await asyncio.wait([self._doing])
            resident = self._resident
            if resident is not None and self._is_entered:
                self._is_entered = False
                if self._neighbours.leave(self._daemon, resident):
                    await self._mover.drive(resident.leave())
        except ResidenceRefused:
            pass  # the daemon is gone, and the model with it
        finally:
            self._end()

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(ExitStatus(code=0))

    def bytes_read(self) -> int:
        """Bytes moved for it: hashed, copied, downloaded. What the daemon reads is the daemon's to count."""
        return self._mover.bytes_moved


def _disagreement(other: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Diagnosis:
    names = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
    shown = ", ".join(f"{name} ({theirs.get(name)} there, {ours.get(name)} here)" for name in names)
    return Diagnosis(
        "weights_shared",
        f"It has the same weights as {other}, which is loaded with another {shown}; the daemon has them in memory only"
        " once, and would load them anew at every change from one to the other.",
        "Give both models the same context_length and args, or unload the other first.",
        permanent=True,
    )
