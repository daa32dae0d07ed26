"""One start of a backend: a place, a process, and the wait until one real token came back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx

from backends.adapter import Adapter, LaunchSpec
from backends.address import Address
from backends.contracts import contract_problems
from backends.demand import Wish, sleep_of
from backends.diagnosis import Diagnosis, ExitStatus
from backends.downloader import NO_MODELS_DIR, Downloader, DownloadProgress
from backends.kill_set import read_entry
from backends.lease import BackendUnavailable
from backends.lifecycle import Event, State
from backends.logs import BackendLog, file_name
from backends.oom_kills import oom_kills
from backends.places import Places
from backends.ports import NoFreePort
from backends.probing import ProbeFailed, Prober
from backends.process import EngineRun, Launcher, SpawnFailed
from backends.proving import ProofFailed, Prover, mismatch, summary
from backends.records import ProcessRecord, ProcessRecords
from backends.residence import ResidenceRefused
from backends.resident import SERVING, DaemonLife
from backends.resolving import NOWHERE, Environments, EnvironmentUnusable
from backends.room import BOUNDLESS, Grant, NoRoom, Room, Tenant
from backends.run_folder import TargetMissing, remove_run_folder, write_run_folder
from backends.settings import BackendSettings, EngineSettings
from backends.sources import HubSource
from chat_templates.parity import Parity
from chat_templates.proof import Proof

POLL_FIRST_S = 0.05
POLL_LAST_S = 1.0
HEALTH_TIMEOUT_S = 5.0
ACTIVITY_EVERY_S = 5.0
MIN_PROGRESS_BYTES = 1024 * 1024
GATE_HOLD_S = 120.0
"""One start keeps the others waiting no longer than this: one that hangs must not hang them all."""
QUEUED = "queued behind another start"
SLEEP_LIMIT_S = 60.0
"""So long may an engine take to fall asleep: it copies its weights into the host's memory."""
MEASURE_EVERY_S = 15.0
"""Between two looks at the memory a READY run takes."""
NOTICED_IN_S = 1.0
"""So soon is it noticed that a process has ended."""
TAIL_LINES = 400
"""How far back a diagnosis looks: vLLM prints its root cause well above its last line."""

Outcome = TypeVar("Outcome")

_log = logging.getLogger("unigate.backends")


@dataclass(frozen=True, slots=True)
class Host:
    """What starting takes on this machine, shared by all backends. *start_gate* admits one starting engine at a time:
    several that load together misjudge the free memory and race for internal ports (vllm#43206). In *run_folders* each
    backend has a folder for the files of its run."""

    launcher: Launcher
    prober: Prober
    places: Places
    records: ProcessRecords
    start_gate: asyncio.Semaphore
    run_folders: Path
    environments: Environments = NOWHERE
    downloader: Downloader = NO_MODELS_DIR
    room: Room = BOUNDLESS
    """Who grants memory, before the gate."""
    prover: Prover | None = None
    """Who proves that an engine makes the prompts of its contract; without one nothing is proven."""


@dataclass(frozen=True, slots=True)
class Occurrence:
    """Something that happened to run *generation*, told to the supervisor; it decides what event that is."""

    generation: int
    event: Event | None = None
    """None: the process is gone, and whether that was asked for is the supervisor's to say."""
    diagnosis: Diagnosis | None = None


class Start:
    """Run *generation* of a backend, from the reservation of its place until its process is gone.

    `begin` starts it; every outcome is told to *tell*. Whatever happens, the last thing told is an Occurrence without
    an event, once nothing of the run is left.
    """

    def __init__(
        self,
        generation: int,
        backend: BackendSettings,
        engine: EngineSettings,
        adapter: Adapter,
        host: Host,
        log: BackendLog,
        tell: Callable[[Occurrence], None],
        tenant: Tenant,
        daemon: DaemonLife | None = None,
    ) -> None:
        self.generation = generation
        self.phase = QUEUED
        self.is_ready = False
        self.is_asleep = False
        """Whether its GPU memory is given back."""
        self.spec: LaunchSpec | None = None
        self.proof: Proof | None = None
        """What was seen of its prompts, of a run that is ended for it too; None where nothing was to be proven."""
        self._backend = backend
        self._engine = engine
        self._adapter = adapter
        self._timing = adapter.timing(backend.timing)
        self._host = host
        self._log = log
        self._tell = tell
        self._tenant = tenant
        self._wish = Wish(backend, engine, adapter)
        self._napping: asyncio.Task[None] | None = None
        self._is_over = False
        self._daemon = daemon
        self._run: EngineRun | None = None
        self._verdict: Diagnosis | None = None
        self._stop = asyncio.Event()
        self._kill_wanted = False
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The engine's main process while there is one."""
        return self._run.pid if self._run is not None else None

    @property
    def has_exited(self) -> bool:
        """Whether the engine's main process is gone already, while the rest of its run is still ending.

        The engine of a model in a daemon is that daemon.
        """
        is_daemon_gone = self._daemon is not None and self._daemon.has_exited
        return is_daemon_gone or (self._run is not None and self._run.has_exited)

    def begin(self) -> None:
        """Start. Called once, on the loop."""
        self._task = asyncio.create_task(self._whole_life(), name=f"start {self._backend.name}#{self.generation}")

    def terminate(self) -> None:
        """TERM to the engine, now or as soon as it is there."""
        self._stop.set()
        self._end_nap()
        if self._run is not None:
            self._run.terminate()

    def kill(self) -> None:
        """KILL to everything of the run, now or as soon as it is there."""
        self._kill_wanted = True
        self._stop.set()
        self._end_nap()
        if self._run is not None:
            self._run.kill()

    def fall_asleep(self) -> None:
        """Send a READY engine to sleep: FellAsleep is told; or Drained, when it cannot, so that it is stopped."""
        self._nap(self._fall_asleep)

    def wake(self) -> None:
        """Wake it, as soon as there is room: told like the end of a start."""
        self.phase = "waking up"
        self._nap(self._wake)

    def _nap(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._end_nap()
        if not self._is_over:  # else the news of its end is under way, and there is nothing left to wake
            self._napping = asyncio.create_task(work(), name=f"nap {self._backend.name}#{self.generation}")

    def _end_nap(self) -> None:
        if self._napping is not None:
            self._napping.cancel()

    async def _end(self) -> None:
        """Give back its room, once nothing of it can ask for any more."""
        self._is_over = True
        self._end_nap()
        if self._napping is not None:
            await asyncio.wait([self._napping])
        self._host.room.release(self._backend.name)

    async def gone(self) -> None:
        """Until nothing of the run is left."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def bytes_read(self) -> int:
        """Bytes read from files for the run so far, by its daemon too. Blocks for some milliseconds."""
        run, daemon = self._run, self._daemon
        return (run.bytes_read() if run is not None else 0) + (daemon.bytes_read() if daemon is not None else 0)

    async def _whole_life(self) -> None:
        diagnosis = None
        try:
            diagnosis = await self._live()
        except BackendUnavailable as problem:
            diagnosis = _without_daemon(problem)
        except SpawnFailed as problem:
            diagnosis = Diagnosis(
                "not_started",
                f"The engine could not be started: {problem}.",
                "Correct engines.<name>.command, or install the engine; `unigate doctor` lists what was found.",
                permanent=True,
            )
        except (NoFreePort, OSError) as problem:
            # This machine's state, not the configuration's: it may be better at the next try.
            message = f"The engine could not be started: {problem}."
            diagnosis = Diagnosis("host_refused", message, "Free what is short: disk, ports or processes.")
        except NoRoom as problem:
            diagnosis = problem.diagnosis
        except EnvironmentUnusable as problem:
            message = f"The engine's environment cannot be used: {problem}."
            # No full stop after it: a remedy often ends in a command to be copied.
            advice = problem.remedy[:1].upper() + problem.remedy[1:]
            diagnosis = Diagnosis("environment_unusable", message, advice, permanent=True)
        except TargetMissing as problem:
            message = f"A file that the engine is to read at its start is missing: {problem}."
            diagnosis = Diagnosis("file_missing", message, "Correct the model's weights or template.", permanent=True)
        finally:
            self._tell(Occurrence(self.generation, None, self._verdict or diagnosis))

    async def _live(self) -> Diagnosis | None:
        engine = self._engine
        if engine.environment is not None:
            engine = await asyncio.to_thread(self._host.environments.settle, engine, self._adapter)
        if isinstance(self._backend.source, HubSource):
            # Before the place and the gate: it may take hours, and holds nobody up.
            problem = await self._bring_weights(self._backend.source)
            if problem is not None or self._stop.is_set():
                return problem
        if self._backend.contract is not None:
            problem = await asyncio.to_thread(self._contract_problem)
            if problem is not None:
                return problem
        async with self._place() as place:
            return await self._live_at(place, engine) if place is not None else None

    def _contract_problem(self) -> Diagnosis | None:
        """Why the contract cannot be kept, now that the weights are there. Blocks."""
        problems = contract_problems(self._backend)
        if not problems and (problem := self._adapter.contract_problem(self._backend)) is not None:
            problems = (problem,)
        if not problems:
            return None
        message = f"The contract of the model's prompts cannot be kept: {'; '.join(problems)}."
        advice = "Correct the model's template.contract, or use another engine; `unigate check` says the same at once."
        return Diagnosis("contract_unusable", message, advice, permanent=True)

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncIterator[Address | None]:
        """Where the run is to listen; for a resident its daemon's, which is leased meanwhile. None: a stop came first.

        Raises NoFreePort, OSError, BackendUnavailable.
        """
        if self._daemon is None:
            kind = self._engine.socket if self._engine.socket in self._adapter.sockets else "tcp"
            place = self._host.places.reserve(self._backend.name, kind)
            try:
                yield place
            finally:
                self._host.places.release(place)
            return
        self.phase = "waiting for the daemon"
        lease = await _unless(self._stop, self._daemon.lease(self._timing.start_timeout_s))
        if lease is None:
            yield None
            return
        watching = asyncio.create_task(self._until_daemon_leaves(self._daemon), name=f"daemon of {self._backend.name}")
        try:
            yield replace(lease.address, base_path="", tenant=self._backend.name)
        finally:
            watching.cancel()
            lease.release()

    async def _until_daemon_leaves(self, daemon: DaemonLife) -> None:
        """The daemon is gone or going: so is the model, whatever it was doing."""
        await daemon.settled(*(set(State) - SERVING))
        if not self._stop.is_set():
            self._verdict = Diagnosis(
                "daemon_ended", "The daemon that had the model ended.", "The model is loaded again when it is back."
            )
        self.kill()

    async def _live_at(self, place: Address, engine: EngineSettings) -> Diagnosis | None:
        folder = self._host.run_folders / file_name(self._backend.name, "")
        gate = _Gate(self._host.start_gate)
        try:
            spec = self.spec = await self._described(engine, place, folder)
            if spec.argv:
                # Room first, then the gate: whoever is inside the gate waits for nobody outside it.
                self._wish = replace(self._wish, engine=engine)
                grant = await self._room()
                if grant is None:
                    return None
                self.phase = QUEUED
                # What the operator's environment says wins.
                self.spec = replace(spec, argv=(*spec.argv, *grant.flags), env={**grant.env, **spec.env})
            if self.spec.argv and not await gate.enter(unless=self._stop):
                return None
            if self.spec.files:
                await asyncio.to_thread(write_run_folder, folder, self.spec.files)
            return await self._spawn_and_wait(self.spec, gate)
        finally:
            await self._end()
            gate.leave()
            if self.spec is not None and self.spec.files:
                remove_run_folder(folder)

    async def _described(self, engine: EngineSettings, place: Address, folder: Path) -> LaunchSpec:
        describe = partial(self._adapter.launch_spec, self._backend, engine, place, folder)
        # What it reads is of the LoRA adapters and of what a contract replaces, and their disk may be slow.
        reads = bool(self._backend.adapters) or self._backend.prompting is not None
        return await asyncio.to_thread(describe) if reads else describe()

    async def _bring_weights(self, source: HubSource) -> Diagnosis | None:
        """Why *source* is not there to be loaded; None when it is, or when a stop was asked for meanwhile."""
        assert self._backend.weights is not None
        self.phase = "looking for the weights"
        said = ""

        def show(progress: DownloadProgress) -> None:
            nonlocal said
            self.phase = str(progress)
            if progress.phase != said:
                said = progress.phase
                self._log.note(f"{source}: {progress}")

        download = self._host.downloader.fetch(source, self._timing.download_stall_timeout_s, show, self._log.write)
        problem = await _unless(self._stop, download)
        if problem is None and not self._stop.is_set():
            fault = await asyncio.to_thread(self._adapter.weights_problem, self._backend.weights)
            if fault is not None:
                advice = "Correct the model's weights, or use another engine for it."
                problem = Diagnosis(
                    "weights_unusable", f"{source} was downloaded, but: {fault}.", advice, permanent=True
                )
        self.phase = QUEUED
        return problem

    async def _spawn_and_wait(self, spec: LaunchSpec, gate: _Gate) -> Diagnosis | None:
        marker = f"{self._backend.name}:{secrets.token_hex(8)}"
        self.phase = "starting the process"
        self._log.note(f"run {self.generation}: {' '.join(spec.argv) or spec.address}")
        first_line = self._log.lines_written
        self._host.records.write(ProcessRecord(self._backend.name, marker))
        # From the kernel, not from a disk: no thread is needed for it.
        killed_before = oom_kills()
        try:
            self._run = run = await self._host.launcher.start(spec, marker, self._on_line)
            self._record(run, marker)
            if self._stop.is_set():
                run.terminate()
            if self._kill_wanted:
                run.kill()
            status = await self._until_gone(spec, run, gate)
            status = replace(status, oom_killed=_has_grown(killed_before, oom_kills()))
        finally:
            self._host.records.remove(self._backend.name)
            self._run = None
        # Only what this run printed: an earlier run's last words would explain this one's end wrongly.
        tail = self._log.tail(min(TAIL_LINES, self._log.lines_written - first_line))
        self._log.note(f"run {self.generation} ended: {status}")
        return self._adapter.diagnose(status, tail)

    async def _until_gone(self, spec: LaunchSpec, run: EngineRun, gate: _Gate) -> ExitStatus:
        readying = asyncio.create_task(self._become_ready(spec, run, gate), name=f"ready {self._backend.name}")
        readying.add_done_callback(lambda _: gate.leave())
        readying.add_done_callback(self._look_for_mistake)
        measuring = asyncio.create_task(self._measure(readying, run), name=f"measure {self._backend.name}")
        try:
            return await run.wait()
        finally:
            for task in (readying, measuring):
                task.cancel()
            await asyncio.wait([readying, measuring])

    async def _measure(self, readying: asyncio.Task[None], run: EngineRun) -> None:
        """Tell the room what the run takes, from READY on: its next start is reckoned by that."""
        await asyncio.wait([readying])
        while self.is_ready:
            await self._host.room.measure(self._backend.name, run.pids)
            await asyncio.sleep(MEASURE_EVERY_S)

    async def _room(self) -> Grant | None:
        return await self._host.room.acquire(self._tenant, self._wish, self._stop, self._say_phase)

    def _say_phase(self, phase: str) -> None:
        self.phase = phase
        self._log.note(phase)

    async def _fall_asleep(self) -> None:
        sleep = sleep_of(self._wish)
        assert sleep is not None
        assert self.spec is not None
        try:
            async with asyncio.timeout(SLEEP_LIMIT_S):
                await self._host.prober.tell(self.spec, sleep.sleep, SLEEP_LIMIT_S)
                answer = await self._host.prober.tell(self.spec, sleep.is_sleeping, HEALTH_TIMEOUT_S)
        except (ProbeFailed, httpx.RequestError, TimeoutError) as problem:
            self._log.note(f"it did not fall asleep, and is stopped instead: {problem}")
            self._tell(Occurrence(self.generation, Event.DRAINED))
            return
        if not (isinstance(answer, dict) and answer.get("is_sleeping") is True):
            self._log.note(f"it says that it does not sleep, and is stopped instead: {answer}")
            self._tell(Occurrence(self.generation, Event.DRAINED))
            return
        self.is_asleep = True
        self._host.room.fell_asleep(self._backend.name)
        self._tell(Occurrence(self.generation, Event.FELL_ASLEEP))

    async def _wake(self) -> None:
        sleep = sleep_of(self._wish)
        assert sleep is not None
        assert self.spec is not None
        try:
            if await self._room() is None:
                return
            self.is_asleep = False
            self.phase = "waking up"
            async with asyncio.timeout(self._timing.start_timeout_s):
                for call in sleep.wake:
                    await self._host.prober.tell(self.spec, call, self._timing.start_timeout_s)
                await self._until_proven(self.spec)
        except NoRoom as refusal:
            self._tell(Occurrence(self.generation, Event.START_TIMED_OUT, refusal.diagnosis))
        except (ProbeFailed, _Refused, httpx.RequestError, TimeoutError) as problem:
            self._give_up(f"The engine did not wake up: {str(problem) or 'it took too long'}.")
        else:
            self.phase = ""
            self._tell(Occurrence(self.generation, Event.BECAME_READY))

    def _look_for_mistake(self, readying: asyncio.Task[None]) -> None:
        mistake = None if readying.cancelled() else readying.exception()
        if mistake is None:
            return
        # Nobody watches this start any more: it must not stay STARTING for ever.
        _log.error("%s: the readiness probe broke", self._backend.name, exc_info=mistake)
        self._give_up(f"The readiness probe broke: {mistake!r}.")

    def _record(self, run: EngineRun, marker: str) -> None:
        leader = read_entry(run.session) if run.session else None
        if leader is None:
            return
        try:
            self._host.records.write(ProcessRecord(self._backend.name, marker, run.session, leader.started_ticks))
        except OSError as problem:
            # The run is alive, and the record without its session still finds it by its marker.
            self._log.note(f"cannot complete the process record: {problem}")

    def _on_line(self, line: str) -> None:
        self._log.write(line)
        phase = self._adapter.phase(line)
        if phase is not None:
            self.phase = phase

    async def _become_ready(self, spec: LaunchSpec, run: EngineRun, gate: _Gate) -> None:
        progress = _Progress(self.bytes_read, self._log, self._timing.start_stall_timeout_s)
        try:
            resident = await progress.watch(run.settle_in())
            if resident is not None:
                # A download may take hours, and uses no memory: only what follows is a load. Where in the memory that
                # was granted, is the daemon's to say.
                if await self._room() is None or not await gate.enter(unless=self._stop):
                    return
                self.spec = spec = replace(spec, probe=resident.probe, served_name=resident.name)
            async with asyncio.timeout(self._timing.start_timeout_s):
                self.phase = "loading"
                await progress.watch(run.load())
                await self._until_answering(spec, progress)
            gate.leave()  # it has its memory
            await self._prove_template(spec)
        except TimeoutError:
            self._give_up("The start took longer than start_timeout_s allows.")
        except _Stalled:
            self._give_up("The start made no progress: no log line, nothing read.")
        except (ResidenceRefused, NoRoom) as refusal:
            self._verdict = refusal.diagnosis
            run.terminate()
        except _Refused as refusal:
            # It runs, but it will never answer: end it, and let its end carry this verdict.
            self._verdict = refusal.diagnosis
            run.terminate()
            await asyncio.sleep(spec.stop_grace_s)
            run.kill()
        else:
            self.phase = ""
            self.is_ready = True
            self._tell(Occurrence(self.generation, Event.BECAME_READY))

    def _give_up(self, reason: str) -> None:
        self._verdict = Diagnosis(
            "start_timed_out",
            f"{reason} It was last seen {self.phase}.",
            "Raise start_stall_timeout_s or start_timeout_s if the model is only slow; else see its log.",
        )
        self._tell(Occurrence(self.generation, Event.START_TIMED_OUT, self._verdict))

    async def _until_answering(self, spec: LaunchSpec, progress: _Progress) -> None:
        pause_s = POLL_FIRST_S
        while not await self._host.prober.is_healthy(spec, HEALTH_TIMEOUT_S):
            await progress.check()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, POLL_LAST_S)
        self.phase = "waiting for the first token"
        while not await self._answers(spec):
            await progress.check()
            await asyncio.sleep(pause_s)

    async def _prove_template(self, spec: LaunchSpec) -> None:
        """Have the engine's prompts compared with those of the contract. Raises _Refused where the policy says so."""
        prompting, prover = self._backend.prompting, self._host.prover
        if prompting is None or prompting.policy == "off" or prover is None:
            return
        self._log.note("proving the template")
        try:
            self.proof = await prover.prove(self._backend, self._adapter, spec, self._show_phase)
        except ProofFailed as failure:
            # An engine that has died is noticed meanwhile, which ends this, and what it said last is the better reason.
            await asyncio.sleep(NOTICED_IN_S)
            nothing = Parity(prompting.contract.hash, self._backend.engine)
            reason = f"That its prompts are the contract's could not be proven: {failure}."
            self.proof = Proof(nothing, {"contract_name": prompting.contract.name, "cases": []}, reason)
            verdict: Diagnosis | None = Diagnosis(
                "template_unproven", reason, "It is tried again; see the model's log."
            )
        else:
            verdict = mismatch(self.proof)
        for line in summary(self.proof):
            self._log.note(line)
        if verdict is not None and prompting.policy == "enforce":
            raise _Refused(verdict)
        if verdict is not None:
            _log.warning("%s: served although %s", self._backend.name, verdict.reason)

    def _show_phase(self, phase: str) -> None:
        self.phase = phase

    async def _until_proven(self, spec: LaunchSpec) -> None:
        while not await self._answers(spec):  # noqa: ASYNC110 - it happens in another process
            await asyncio.sleep(POLL_LAST_S)

    async def _answers(self, spec: LaunchSpec) -> bool:
        try:
            await self._host.prober.prove(spec, self._timing.probe_timeout_s)
        except ProbeFailed as failure:
            if failure.is_permanent:
                reason = f"The engine runs but does not answer: {failure}"
                raise _Refused(Diagnosis("probe_refused", reason, "See the model's log.", permanent=True)) from failure
            return False
        except httpx.RequestError:
            return False
        return True


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, Outcome]) -> Outcome | None:
    """What *work* returns; None when *stop* was set before, with *work* cancelled and ended."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait([working])
    return None if working.cancelled() else working.result()


def _has_grown(before: int | None, after: int | None) -> bool | None:
    return after > before if before is not None and after is not None else None


class _Gate:
    """One passage through the start gate, left once however often it is said, and after GATE_HOLD_S by itself."""

    def __init__(self, semaphore: asyncio.Semaphore) -> None:
        self._semaphore = semaphore
        self._is_inside = False
        self._hold: asyncio.TimerHandle | None = None

    async def enter(self, *, unless: asyncio.Event) -> bool:
        """Whether we got in before *unless* was set."""
        entering = asyncio.create_task(self._semaphore.acquire())
        stopping = asyncio.create_task(unless.wait())
        try:
            await asyncio.wait([entering, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not entering.done():
                entering.cancel()
                await asyncio.wait([entering])
            self._is_inside = not entering.cancelled()
            if self._is_inside:
                self._hold = asyncio.get_running_loop().call_later(GATE_HOLD_S, self.leave)
        return self._is_inside and not unless.is_set()

    def leave(self) -> None:
        """Let the next one in."""
        if self._is_inside:
            self._is_inside = False
            self._semaphore.release()
        if self._hold is not None:
            self._hold.cancel()


class _Stalled(Exception):
    pass


class _Refused(Exception):
    """It runs, and must not serve."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        super().__init__(diagnosis.reason)
        self.diagnosis = diagnosis


class _Progress:
    """Signs of life of a start: new log lines, or bytes read from files."""

    def __init__(self, bytes_read: Callable[[], int], log: BackendLog, stall_timeout_s: float) -> None:
        self._count = bytes_read
        self._log = log
        self._stall_timeout_s = stall_timeout_s
        self._clock = asyncio.get_running_loop().time
        self._seen = (-1, -1)
        self._seen_at = self._clock()
        self._counted_at = float("-inf")
        self._bytes_read = 0

    async def check(self) -> None:
        """Raises _Stalled when nothing has moved for too long."""
        now = self._clock()
        if now - self._counted_at >= min(ACTIVITY_EVERY_S, self._stall_timeout_s / 4):
            self._counted_at = now
            self._bytes_read = await asyncio.to_thread(self._count)
        # Reads below MIN_PROGRESS_BYTES are no progress: our own health checks are read from sockets, and count too.
        signs = (self._log.lines_written, self._bytes_read // MIN_PROGRESS_BYTES)
        if signs != self._seen:
            self._seen, self._seen_at = signs, now
        elif now - self._seen_at > self._stall_timeout_s:
            raise _Stalled

    async def watch(self, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        """What *work* comes to, as long as it makes progress. Raises _Stalled, and then *work* is broken off."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait([task], timeout=POLL_LAST_S)
                if not task.done():
                    await self.check()
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])


def _without_daemon(problem: BackendUnavailable) -> Diagnosis:
    known = problem.diagnosis
    has_failed = problem.code == "model_failed"
    if known is None:
        return Diagnosis("daemon_unavailable", f"The daemon does not serve: {problem}.", "It is tried again.")
    return Diagnosis(known.code, f"The daemon does not serve: {known.reason}", known.advice, has_failed, known.evidence)
