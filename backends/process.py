"""One run of an engine as seen from the gateway: started through a shim, told to stop, waited for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from backends.adapter import LaunchSpec
from backends.diagnosis import ExitStatus
from backends.kill_set import MARKER, members, sweep
from backends.logs import LineSplitter
from backends.moving import Digests
from backends.residence import Resident
from backends.resident import Neighbours, ResidentRun
from backends.shim import COMMAND_KILL, COMMAND_TERM

ORPHAN_GRACE_S = 4.0
"""From TERM to KILL once the gateway is gone: nobody is left who could read an answer."""

READ_BYTES = 64 * 1024

INHERITED_BUT_HARMFUL = (
    # vLLM writes its metrics into a folder named here, and would mix them with another's
    # (vllm/v1/metrics/prometheus.py, 0.32.0).
    "PROMETHEUS_MULTIPROC_DIR",
    # Base of vLLM's internal ports: engines that share one collide (vllm/envs.py, 0.32.0).
    "VLLM_PORT",
    "MASTER_PORT",
    # Would make the engine ask for a key we do not send.
    "VLLM_API_KEY",
    "LLAMA_API_KEY",
    # What downloads with: the gateway's to use, in a process of its own. An engine that needs it gets it by its env.
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "MODELSCOPE_API_TOKEN",
)


class SpawnFailed(Exception):
    """The engine's command could not be run; the message names it and says why."""


class EngineRun(Protocol):
    """A started run, or an address that is merely attached to."""

    @property
    def pid(self) -> int | None:
        """The engine's main process; None where there is none, or not yet."""

    @property
    def session(self) -> int:
        """The session all its processes began in, which is the shim's pid; 0 where there is none."""

    @property
    def has_exited(self) -> bool:
        """Whether its main process is gone, though something it left behind may still be ending."""

    async def wait(self) -> ExitStatus:
        """Until nothing of the run is left. May be awaited by several, again and again.

        Raises SpawnFailed when the engine's command could not be run at all.
        """

    def terminate(self) -> None:
        """TERM to the main process."""

    def kill(self) -> None:
        """KILL to everything of the run."""

    def pids(self) -> Sequence[int]:
        """Its living processes. Blocks for some milliseconds."""

    def bytes_read(self) -> int:
        """Bytes all its processes have read from files so far: a load that goes on. Blocks for some milliseconds."""

    async def settle_in(self) -> Resident | None:
        """What has to be done before a load, for a model in a daemon: see ResidentRun. None, at once, for a process."""

    async def load(self) -> None:
        """Until it is loaded, for a model in a daemon. At once for a process, which loads by itself."""


class Launcher(Protocol):
    """Starts runs: on this machine now, on a cluster's nodes later."""

    async def start(self, spec: LaunchSpec, marker: str, on_line: Callable[[str], None]) -> EngineRun:
        """Start *spec*; see LocalLauncher."""


class Attachment:
    """A run of something we did not start: it ends when told to, and at once."""

    pid: int | None = None
    session = 0
    has_exited = False

    def __init__(self) -> None:
        self._ended = asyncio.Event()

    async def wait(self) -> ExitStatus:
        """Until terminate or kill is called."""
        await self._ended.wait()
        return ExitStatus(code=0)

    def terminate(self) -> None:
        """Let go of the address."""
        self._ended.set()

    def kill(self) -> None:
        """Let go of the address."""
        self._ended.set()

    def pids(self) -> Sequence[int]:
        """None of ours."""
        return ()

    def bytes_read(self) -> int:
        """Nothing is known of it."""
        return 0

    async def settle_in(self) -> None:
        """It is there or not."""

    async def load(self) -> None:
        """It is somebody else's to load."""


class ShimmedRun:
    """A run behind a shim. Made by LocalLauncher; await `wait` to its end, else its pumps are left running."""

    def __init__(self, shim: asyncio.subprocess.Process, marker: str, on_line: Callable[[str], None]) -> None:
        self.pid: int | None = None
        self.session = shim.pid
        self.has_exited = False
        self._shim = shim
        self._marker = marker
        self._on_line = on_line
        self._failure: str | None = None
        self._status = ExitStatus()
        self._ended_orderly = False
        self._ended = asyncio.create_task(self._watch(), name=f"watch {marker}")

    async def wait(self) -> ExitStatus:
        """Until the shim, and with it everything of the run, is gone."""
        return await asyncio.shield(self._ended)

    def terminate(self) -> None:
        """TERM to the engine's main process."""
        self._command(COMMAND_TERM)

    def kill(self) -> None:
        """KILL to everything of the run."""
        self._command(COMMAND_KILL)

    def pids(self) -> Sequence[int]:
        """The engine and all it has started, without the shim."""
        return [entry.pid for entry in members(self._marker, session=self.session) if entry.pid != self.session]

    def bytes_read(self) -> int:
        """Sum of ``rchar`` over the run's processes (proc(5)): page cache reads count, which is what a reload does."""
        total = 0
        for entry in members(self._marker, session=self.session):
            with contextlib.suppress(OSError, ValueError, IndexError):
                total += int(Path(f"/proc/{entry.pid}/io").read_bytes().split()[1])
        return total

    async def settle_in(self) -> None:
        """A process needs no place."""

    async def load(self) -> None:
        """It loads by itself."""

    def _command(self, command: bytes) -> None:
        stdin = self._shim.stdin
        if stdin is not None and not stdin.is_closing():
            stdin.write(command)

    async def _watch(self) -> ExitStatus:
        assert self._shim.stdout is not None
        assert self._shim.stderr is not None
        log = asyncio.create_task(self._pump_log(self._shim.stderr), name=f"log {self._marker}")
        async for line in self._shim.stdout:
            self._take(json.loads(line))
        self.has_exited = True
        if not self._ended_orderly:
            # The shim itself was killed: what it guarded is ours to end now.
            await asyncio.to_thread(
                sweep, lambda: members(self._marker, session=self.session), term_s=ORPHAN_GRACE_S / 2
            )
        # Everything that could write is gone, so the pipes end by themselves; a stranger that inherited one may not
        # hold us up. It would, without a limit: Process.wait waits for the pipes too (CPython 3.11, gh-119710), which
        # is also why the sweep comes first.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await self._shim.wait()
                await asyncio.shield(log)
        log.cancel()
        if self._failure is not None:
            raise SpawnFailed(self._failure)
        return self._status

    def _take(self, event: Mapping[str, object]) -> None:
        if event["event"] == "started":
            self.pid = int(str(event["pid"]))
        elif event["event"] == "exited":
            self.has_exited = True
        elif event["event"] == "failed":
            self._failure = str(event["message"])
            self._ended_orderly = True
        elif event["event"] == "ended":
            code = int(str(event["status"]))
            self._status = ExitStatus(signal=-code) if code < 0 else ExitStatus(code=code)
            self._ended_orderly = True
            if event["wedged"]:
                self._on_line(f"[unigate] processes that would not die: {event['wedged']}")

    async def _pump_log(self, stream: asyncio.StreamReader) -> None:
        splitter = LineSplitter()
        while chunk := await stream.read(READ_BYTES):
            for line in splitter.feed(chunk):
                self._on_line(line)
        for line in splitter.close():
            self._on_line(line)


class LocalLauncher:
    """Starts runs on this machine. *secrets* are values no engine may inherit: the keys of the gateway's clients."""

    def __init__(self, secrets: frozenset[str] = frozenset()) -> None:
        self._secrets = secrets
        self._digests = Digests()
        self._neighbours = Neighbours()

    def withhold(self, secrets: frozenset[str]) -> None:
        """Keep these from the engines started from now on, beside those it knew."""
        self._secrets |= secrets

    async def start(self, spec: LaunchSpec, marker: str, on_line: Callable[[str], None]) -> EngineRun:
        """Start *spec* behind a shim in a session of its own; *on_line* gets each line of its log.

        Nothing is started for a spec without argv: its run is a model's stay in a daemon, or a mere address. Raises
        SpawnFailed when not even the shim could be started; an engine command that cannot be run shows in `wait`.
        """
        if spec.residence is not None:
            return ResidentRun(spec, self._digests, self._neighbours, on_line)
        if not spec.argv:
            return Attachment()
        try:
            shim = await asyncio.create_subprocess_exec(
                *_shim_argv(spec.argv),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=engine_environment(os.environ, spec, marker, self._secrets),
                start_new_session=True,
            )
        except OSError as problem:
            raise SpawnFailed(f"cannot start a process: {problem.strerror}") from problem
        return ShimmedRun(shim, marker, on_line)


def _shim_argv(argv: Sequence[str]) -> list[str]:
    return [sys.executable, "-P", "-m", "backends.shim", "--orphan-grace-s", str(ORPHAN_GRACE_S), "--", *argv]


def engine_environment(
    inherited: Mapping[str, str], spec: LaunchSpec, marker: str, secrets: frozenset[str] = frozenset()
) -> dict[str, str]:
    """The environment of an engine: ours, less what would harm it, with the spec's additions and the marker."""
    removed = {*INHERITED_BUT_HARMFUL, *spec.env_removed}
    kept = {name: value for name, value in inherited.items() if name not in removed and value not in secrets}
    return {
        **kept,
        "PYTHONUNBUFFERED": "1",
        # vLLM opens a chat template without naming an encoding (vllm/renderers/chat_utils.py, 0.32.0).
        "PYTHONUTF8": "1",
        **spec.env,
        MARKER: marker,
        # setproctitle, which vLLM uses, would write its titles over the environment block, and with it over the
        # marker (py-setproctitle README, "SPT_NOENV").
        "SPT_NOENV": "1",
    }
