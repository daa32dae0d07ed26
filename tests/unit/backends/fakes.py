"""A launcher, a prober and an adapter without processes or sockets, and a supervisor that lives on them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from backends.adapter import Call, LaunchSpec
from backends.demand import Wish
from backends.diagnosis import Diagnosis, ExitStatus
from backends.downloader import DownloadProgress
from backends.engines import ADAPTERS
from backends.lease import BackendUnavailable, Lease
from backends.lifecycle import State
from backends.logs import BackendLog
from backends.places import Places
from backends.process import SpawnFailed
from backends.records import ProcessRecords
from backends.room import Boundless, Grant, Tenant
from backends.settings import BackendSettings, EngineSettings, Timing
from backends.sources import HubSource
from backends.start import Host
from backends.status import Transition
from backends.supervisor import Supervisor

LIMIT_S = 20.0
"""The longest any wait of a test may take; every one of them is for an event that comes at once."""

OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
"""A line after which vLLM's adapter calls an end permanent."""

CALM = Timing(
    start_stall_timeout_s=60,
    start_timeout_s=60,
    stop_grace_s=60,
    drain_timeout_s=60,
    backoff_base_s=0.001,
    backoff_max_s=0.002,
    backoff_reset_s=600,
    max_failed_starts=3,
    health_interval_s=0.001,
    health_timeout_s=1,
    health_failures=2,
    probe_timeout_s=1,
)
"""Clocks that do not run out while a test looks, and pauses so short that it need not wait for them."""


@dataclass(eq=False)
class FakeRun:
    """A run that ends when it is told to: by the test, by TERM unless it is *deaf*, by KILL always."""

    number: int
    spec: LaunchSpec
    marker: str
    say: Callable[[str], None]
    deaf: bool = False
    kills_ignored: int = 0
    pid: int | None = None
    session: int = 0
    has_exited: bool = False
    signals: list[str] = field(default_factory=list)
    status: asyncio.Future[ExitStatus] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    is_answering: asyncio.Event = field(default_factory=asyncio.Event)
    is_well: bool = True
    health_calls: int = 0
    calls: list[str] = field(default_factory=list)
    may_nap: asyncio.Event = field(default_factory=asyncio.Event)
    is_asleep: bool = False
    is_sleepless: bool = False
    refusal: Exception | None = None
    read_bytes: Callable[[], int] = lambda: 0

    async def wait(self) -> ExitStatus:
        """Until it has ended."""
        return await asyncio.shield(self.status)

    def terminate(self) -> None:
        """Ends it, unless it is deaf."""
        self.signals.append("TERM")
        if not self.deaf:
            self.end(ExitStatus(code=0))

    def kill(self) -> None:
        """Ends it, unless it sleeps uninterruptibly."""
        self.signals.append("KILL")
        self.kills_ignored -= 1
        if self.kills_ignored < 0:
            self.end(ExitStatus(signal=9))

    def pids(self) -> list[int]:
        """One, its number."""
        return [self.number]

    def bytes_read(self) -> int:
        """What the test says."""
        return self.read_bytes()

    def end(self, status: ExitStatus) -> None:
        """The process is gone."""
        if not self.status.done():
            self.status.set_result(status)

    async def settle_in(self) -> None:
        """A process."""

    async def load(self) -> None:
        """A process."""

    async def checked(self, times: int) -> None:
        """Until so many health checks in all have come."""
        await until(lambda: self.health_calls >= times)

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return not self.status.done()


class FakeLauncher:
    """Keeps every run it starts; *deaf*, *answers* and *session* shape the next ones, *failures* are raised instead."""

    def __init__(self) -> None:
        self.runs: list[FakeRun] = []
        self.failures: list[SpawnFailed] = []
        self.deaf = False
        self.answers = False
        self.session = 0
        self.most_alive = 0
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.starting = 0
        self._changed = asyncio.Event()

    async def start(self, spec: LaunchSpec, marker: str, on_line: Callable[[str], None]) -> FakeRun:
        """A run, in the next turn of the loop as with a real process."""
        self.starting += 1
        await asyncio.sleep(0)
        await self.may_start.wait()
        if self.failures:
            raise self.failures.pop(0)
        run = FakeRun(len(self.runs) + 1, spec, marker, on_line, deaf=self.deaf, session=self.session)
        run.may_nap.set()
        if self.answers:
            run.is_answering.set()
        self.runs.append(run)
        self.most_alive = max(self.most_alive, len(self.alive))
        self._changed.set()
        return run

    @property
    def alive(self) -> list[FakeRun]:
        """The runs that have not ended."""
        return [run for run in self.runs if run.is_alive]

    async def started(self, number: int = 0) -> FakeRun:
        """Run *number*, or the living one, as soon as there is one."""
        while True:
            found = [run for run in self.runs if (run.number == number if number else run.is_alive)]
            if found:
                return found[-1]
            self._changed.clear()
            await self._changed.wait()


class FakeProber:
    """Answers as the run behind the address is set: silent until it answers, then well or not."""

    def __init__(self, launcher: FakeLauncher) -> None:
        self._launcher = launcher

    def _run(self, spec: LaunchSpec) -> FakeRun:
        return next(run for run in reversed(self._launcher.runs) if run.spec is spec)

    async def is_healthy(self, spec: LaunchSpec, timeout_s: float) -> bool:
        """False at once while it is unwell; else True once it answers."""
        run = self._run(spec)
        run.health_calls += 1
        if not run.is_well:
            return False
        await run.is_answering.wait()
        return run.is_well

    async def prove(self, spec: LaunchSpec, timeout_s: float) -> None:
        """Raises the run's refusal."""
        refusal = self._run(spec).refusal
        if refusal is not None:
            raise refusal

    async def tell(self, spec: LaunchSpec, request: Call, timeout_s: float) -> Any:
        """Sleep and wake as asked, unless the run is sleepless; raises the run's refusal."""
        run = self._run(spec)
        run.calls.append(request.target)
        if run.refusal is not None:
            raise run.refusal
        await run.may_nap.wait()
        if request.target.startswith("/sleep"):
            run.is_asleep = not run.is_sleepless
        elif request.target.startswith("/wake"):
            run.is_asleep = False
        return {"is_sleeping": run.is_asleep}


class FakeRoom(Boundless):
    """Grants at once while *may_grant*; keeps who has room, and who was said to sleep."""

    def __init__(self) -> None:
        self.may_grant = asyncio.Event()
        self.may_grant.set()
        self.granted: list[str] = []
        self.asleep: list[str] = []
        self.looks = 0

    async def acquire(
        self, tenant: Tenant, wish: Wish, unless: asyncio.Event, tell: Callable[[str], None]
    ) -> Grant | None:
        """A grant once the test lets it, None once *unless* is set."""
        if not self.may_grant.is_set():
            tell("waiting for memory: 2.0 GiB needed, 1.0 free")
        waits = [asyncio.create_task(event.wait()) for event in (self.may_grant, unless)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if unless.is_set():
            return None
        self.granted.append(wish.backend.name)
        return Grant(env={"GRANTED": "yes"}, flags=("--granted",))

    def release(self, backend: str) -> None:
        """It has none any more."""
        self.granted = [name for name in self.granted if name != backend]

    def fell_asleep(self, backend: str) -> None:
        """Kept."""
        self.asleep.append(backend)

    def look_again(self) -> None:
        """Counted."""
        self.looks += 1


class FakeDownloader:
    """Fetches nothing: each call waits in *calls* until the test ends it with a diagnosis or None."""

    def __init__(self) -> None:
        self.calls: list[FakeFetch] = []
        self._changed = asyncio.Event()

    async def fetch(
        self,
        source: HubSource,
        stall_timeout_s: float,
        show: Callable[[DownloadProgress], None],
        say: Callable[[str], None],
    ) -> Diagnosis | None:
        """What the test says of this call."""
        fetch = FakeFetch(source, show, say, asyncio.get_running_loop().create_future())
        self.calls.append(fetch)
        self._changed.set()
        return await fetch.outcome

    async def called(self, number: int = 1) -> FakeFetch:
        """Call *number*, counted from 1, as soon as there is one."""
        while len(self.calls) < number:
            self._changed.clear()
            await self._changed.wait()
        return self.calls[number - 1]


@dataclass
class FakeFetch:
    """One call of a FakeDownloader; *outcome* is cancelled with it."""

    source: HubSource
    show: Callable[[DownloadProgress], None]
    say: Callable[[str], None]
    outcome: asyncio.Future[Diagnosis | None]


class World:
    """One supervisor over fakes: *transitions* is all it published. Made by `living_backend`."""

    def __init__(self, folder: Path, backend: BackendSettings, *, max_waiting: int = 256) -> None:
        self.launcher = FakeLauncher()
        self.transitions: list[Transition] = []
        self.leases: list[Lease] = []
        self._published = asyncio.Event()
        self.records = ProcessRecords(folder / "records")
        self.downloader = FakeDownloader()
        self.room = FakeRoom()
        self.host = Host(
            self.launcher,
            FakeProber(self.launcher),
            Places(folder / "sockets"),
            self.records,
            asyncio.Semaphore(1),
            folder / "runs",
            downloader=self.downloader,
            room=self.room,
        )
        self.log = BackendLog(folder / "backend.log")
        self.supervisor = Supervisor(
            backend,
            EngineSettings(),
            ADAPTERS[backend.engine],
            self.host,
            self.log,
            self._publish,
            max_waiting=max_waiting,
        )
        self.task = asyncio.create_task(self.supervisor.run())

    def _publish(self, transition: Transition) -> None:
        self.transitions.append(transition)
        self._published.set()

    @property
    def state(self) -> State:
        """As shown."""
        return self.supervisor.status().state

    @property
    def events(self) -> list[str]:
        """The events of all transitions so far."""
        return [transition.event.value for transition in self.transitions]

    async def published(self, count: int) -> None:
        """Until so many transitions were published."""
        while len(self.transitions) < count:
            self._published.clear()
            await self._published.wait()

    async def run(self) -> FakeRun:
        """The living run, as soon as there is one."""
        return await self.launcher.started()

    async def ready(self) -> FakeRun:
        """Ask for a start and let it become READY."""
        await self.supervisor.request_start()
        run = await self.run()
        run.is_answering.set()
        await self.supervisor.settled(State.READY)
        return run

    async def close(self) -> None:
        """Cancel the task; what is left of it ends."""
        self.task.cancel()
        await asyncio.wait([self.task])
        await self.supervisor.gone()
        self.log.close()


def settings(folder: Path, timing: Timing = CALM, **others: Any) -> BackendSettings:
    """A vLLM backend called ``m``."""
    backend = BackendSettings(name="m", engine="vllm", weights=folder, timing=timing)
    return replace(backend, **others)


SLEEPY: dict[str, Any] = {"options": {"sleep": True}}
"""What makes vLLM one that can sleep."""


@contextlib.asynccontextmanager
async def living_backend(folder: Path, backend: BackendSettings, *, max_waiting: int = 256) -> AsyncIterator[World]:
    """A World whose waits are bounded; afterwards nothing of it lives."""
    async with asyncio.timeout(LIMIT_S):
        world = World(folder, backend, max_waiting=max_waiting)
        try:
            yield world
        finally:
            await world.close()
    assert world.launcher.alive == []


async def turns(count: int = 20) -> None:
    """Let the loop run: long enough for whatever needs no timer to have happened."""
    for _ in itertools.repeat(None, count):
        await asyncio.sleep(0)


async def until(question: Callable[[], bool]) -> None:
    """Let the loop run until *question* is true; the test's own limit bounds it."""
    while not question():
        await turns(1)


async def outcome(lease: asyncio.Task[Lease]) -> str:
    """``lease``, or the code of its refusal."""
    try:
        await lease
    except BackendUnavailable as refusal:
        return refusal.code
    return "lease"


def asked(world: World, max_wait_s: float = LIMIT_S) -> asyncio.Task[Lease]:
    """A request that waits for a lease."""
    return asyncio.create_task(world.supervisor.lease(max_wait_s))
