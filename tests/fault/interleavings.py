"""Random lives of real processes, one after the other in one fleet, and what must hold after each.

    python -m tests.fault.interleavings --first 1 --count 500
    python -m tests.fault.interleavings --script "load a; kill a; lease a; pause 30; unload a"

Each interleaving is a script drawn from its seed: whoever has the seed has the script. A broken one is told with both;
`--script` plays a shorter one, to find out what of it matters.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from backends.engines import ADAPTERS
from backends.fleet import Fleet
from backends.kill_set import all_entries
from backends.lease import BackendUnavailable
from backends.lifecycle import HAS_PROCESS, State
from backends.places import Places
from backends.probing import HttpProber
from backends.process import LocalLauncher
from backends.records import ProcessRecords
from backends.settings import BackendSettings, EngineSettings
from backends.start import Host
from tests.fault.fleet_host import QUICK, ROOT
from tests.unit.backends.processes import MARKER, bearing, is_alive

NAMES = ("a", "b")
STEPS = (8, 20)
"""Fewest and most acts of a script."""
LONGEST_PAUSE_MS = 100
READY_WITHIN_S = 0.4
LIMIT_S = 60.0
"""For everything of one interleaving to settle, on a busy machine."""
HASTY = replace(
    QUICK,
    stop_grace_s=0.2,
    drain_timeout_s=0.1,
    backoff_base_s=0.01,
    backoff_max_s=0.02,
    max_failed_starts=2,
    start_stall_timeout_s=1.0,
    health_interval_s=0.05,
    health_timeout_s=0.3,
    health_failures=2,
    probe_timeout_s=2.0,
)
GROWTH_S = 5.0
MOODS = ("exit", "exit", "late", "late", "child", "deaf child", "deaf", "mute")
REFUSALS = {"model_failed", "model_stopped", "model_not_ready", "queue_full"}

Act = tuple[str, str]
"""What is done, and to whom: ``("kill", "a")``; a pause is ``("pause", "30")``, in milliseconds."""

ACTS = {
    "load": 3,
    "unload": 2,
    "restart": 1,
    "lease": 5,
    "cancel": 2,
    "kill": 4,
    "kill-shim": 1,
    "kill-child": 1,
    "stop": 1,
    "continue": 1,
    "mood": 3,
    "ready": 5,
    "pause": 5,
}
"""Weights: what leads to READY and to leases more often, else hardly any life would get that far."""


def script_of(seed: int) -> list[Act]:
    """The script of *seed*."""
    chance = random.Random(seed)
    acts = chance.choices(list(ACTS), list(ACTS.values()), k=chance.randint(*STEPS))
    return [(act, _object(chance, act)) for act in ["load", *acts]]


def _object(chance: random.Random, act: str) -> str:
    if act == "pause":
        return str(chance.randint(0, LONGEST_PAUSE_MS))
    name = chance.choice(NAMES)
    return f"{name} {chance.choice(MOODS)}" if act == "mood" else name


def as_text(script: list[Act]) -> str:
    """A script as `--script` takes it."""
    return "; ".join(f"{act} {what}" for act, what in script)


def from_text(text: str) -> list[Act]:
    """The script that *text* says."""
    words = (act.split(maxsplit=1) for act in text.split(";"))
    return [(act, what) for act, what in words]


class Violated(AssertionError):
    """Something that must hold does not; the message says what."""


@dataclass
class Census:
    """How often what happened over all interleavings: a run without crashes would prove little."""

    starts: int = 0
    events: Counter[str] = field(default_factory=Counter)
    leases: int = 0
    refusals: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        events = ", ".join(f"{name} {count}" for name, count in sorted(self.events.items()))
        refusals = ", ".join(f"{name} {count}" for name, count in sorted(self.refusals.items()))
        return f"{self.leases} leases; refused: {refusals or 'none'}; events: {events}"


class Ear(logging.Handler):
    """Writes down what the product itself calls an error."""

    def __init__(self, heard: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        """One more."""
        self._heard.append(self.format(record))


class Play:
    """One fleet of two backends, and those who use it. Made and used on one loop."""

    def __init__(self, folder: Path) -> None:
        self.census = Census()
        self._folder = folder
        self._run = secrets.token_hex(4)
        self._records = ProcessRecords(folder / "records")
        self._sockets = folder / "sockets"
        self._fleet = self._make_fleet()
        self._fleet.subscribe(lambda change: self.census.events.update([change.event.value]))
        self._users: list[asyncio.Task[None]] = []
        self._baseline: tuple[int, int] | None = None
        self._mistakes: list[str] = []
        self._ear = Ear(self._mistakes)

    def _make_fleet(self) -> Fleet:
        engine = Path(__file__).with_name("brief_engine.py")
        backends = [
            BackendSettings(
                name=self._full(name), engine="vllm", weights=Path("/nowhere"), timing=HASTY, on_demand=True,
                args={"mood": str(self._mood_file(name))},
            )
            for name in NAMES
        ]  # fmt: skip
        host = Host(
            LocalLauncher(),
            HttpProber(),
            Places(self._sockets),
            self._records,
            asyncio.Semaphore(1),
            self._folder / "runs",
        )
        command = EngineSettings(command=(sys.executable, "-S", "-E", str(engine)), env={"PYTHONPATH": str(ROOT)})
        return Fleet(backends, {"vllm": command}, ADAPTERS, host, self._folder / "logs")

    def _full(self, name: str) -> str:
        """A backend's name that nobody else on this machine has."""
        return f"{name}-{self._run}"

    def _mood_file(self, name: str) -> Path:
        return self._folder / f"{name}.mood"

    async def open(self) -> None:
        """Begin, listen for mistakes that nobody else would hear of, and go once through what is opened once."""
        asyncio.get_running_loop().set_exception_handler(self._hear)
        logging.getLogger("unigate.backends").addHandler(self._ear)
        await self._fleet.open()
        await play(self, from_text("load a; load b; lease a; lease b; pause 100"))

    async def close(self) -> None:
        """End, in whatever state it is."""
        for user in self._users:
            user.cancel()
        await self._fleet.close()
        logging.getLogger("unigate.backends").removeHandler(self._ear)

    def _hear(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # anyio 4.16 sets the result of a future that was cancelled in the same turn (UNIXSocketStream
        # ._wait_until_readable): a probe that timed out just when its answer came.
        if not (isinstance(context.get("exception"), asyncio.InvalidStateError) and "set_result" in str(context)):
            self._mistakes.append(str(context))

    # acts

    async def act(self, act: str, what: str) -> None:
        """Do one thing; one that has no object now does nothing."""
        if act == "pause":
            await asyncio.sleep(int(what) / 1000)
            return
        name, _, mood = what.partition(" ")
        full = self._full(name)
        if act == "mood":
            self._mood_file(name).write_text(mood)
        elif act == "load":
            await self._fleet.load(full)
        elif act == "unload":
            await self._fleet.unload(full)
        elif act == "restart":
            await self._fleet.unload(full)
            await self._fleet.load(full)
        elif act == "ready":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(READY_WITHIN_S):
                    await self._fleet.settled(full, State.READY)
        elif act == "lease":
            self._users.append(asyncio.create_task(self._use(full)))
        elif act == "cancel":
            for user in [user for user in self._users if not user.done()][:1]:
                user.cancel()
        else:
            self._signal(act, full)

    def _signal(self, act: str, full: str) -> None:
        pid = self._fleet.status(full).pid
        if pid is None:
            return
        if act in ("kill", "stop", "continue"):
            numbers = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "continue": signal.SIGCONT}
            _send(pid, numbers[act])
            return
        entries = {entry.pid: entry for entry in all_entries()}
        if pid not in entries:
            return
        shim = entries[pid].parent
        children = [entry.pid for entry in entries.values() if entry.parent == pid]
        for victim in [shim] if act == "kill-shim" else children:
            if victim != os.getpid():
                _send(victim, signal.SIGKILL)

    async def _use(self, full: str) -> None:
        """One request: a lease for a moment, granted in READY only, or a refusal with a code."""
        try:
            async with self._fleet.lease(full, LIMIT_S) as lease:
                state = self._fleet.status(full).state
                if state is not State.READY:
                    raise Violated(f"a lease of {full} was granted in {state}")
                self.census.leases += 1
                await asyncio.sleep(0.02)
                lease.release(answered=True)
        except BackendUnavailable as refusal:
            self.census.refusals[refusal.code] += 1
            if refusal.code not in REFUSALS:
                raise Violated(f"a lease of {full} was refused with {refusal.code}") from refusal

    # what must hold

    def check_now(self) -> None:
        """At every moment: no two runs of a backend live, and none where the state says that there is no process."""
        for name in NAMES:
            full = self._full(name)
            before = self._fleet.status(full)
            markers = {_marker_of(pid) for pid in bearing(f"{full}:")} - {""}
            if len(markers) > 1:
                raise Violated(f"{len(markers)} runs of {name} live: {markers}")
            # the state may be a moment older than the end that it tells of, never a moment younger
            if markers and before.state not in HAS_PROCESS and self._fleet.status(full).state is before.state:
                raise Violated(f"a process of {name} lives while it is {before.state}")

    async def settle(self) -> None:
        """Stop everything, and see that no waiter, lease, process, record, socket, task or descriptor is left."""
        for name in NAMES:
            self._mood_file(name).unlink(missing_ok=True)
        async with asyncio.timeout(LIMIT_S):
            while not self._is_at_rest():
                for name in NAMES:
                    await self._fleet.unload(self._full(name))
                # a request that waits starts its backend again after each stop, as it may
                await asyncio.wait(self._users or [asyncio.create_task(asyncio.sleep(0))], timeout=0.05)
        for user in self._users:
            if not user.cancelled():
                user.result()
        self._users.clear()
        self._check_rest()
        await self._check_growth()

    def _is_at_rest(self) -> bool:
        states = [self._fleet.status(self._full(name)).state for name in NAMES]
        return all(state is State.STOPPED for state in states) and all(user.done() for user in self._users)

    def _check_rest(self) -> None:
        if self._mistakes:
            raise Violated(f"mistakes were made: {self._mistakes}")
        for name in NAMES:
            status = self._fleet.status(self._full(name))
            if status.leases or status.waiting:
                raise Violated(f"{name} has {status.leases} leases and {status.waiting} waiting, and nobody is there")
            if left := bearing(f"{self._full(name)}:"):
                raise Violated(f"processes of {name} live on: {left}")
        if records := self._records.read_all():
            raise Violated(f"records of no process: {records}")
        if sockets := [path.name for path in self._sockets.glob("*")]:
            raise Violated(f"sockets of no process: {sockets}")

    async def _check_growth(self) -> None:
        """No more tasks and descriptors than after the first script; what is being closed may take some turns."""
        deadline = time.monotonic() + GROWTH_S
        while True:
            now = (len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd")))  # noqa: PTH208
            self._baseline = self._baseline or now
            if now[0] <= self._baseline[0] and now[1] <= self._baseline[1]:
                return
            if time.monotonic() > deadline:
                raise Violated(f"(tasks, descriptors) were {self._baseline} after the first, and are {now}")
            await asyncio.sleep(0.05)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _marker_of(pid: int) -> str:
    try:
        block = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    return next((item.decode() for item in block if item.startswith(MARKER.encode())), "") if is_alive(pid) else ""


async def play(play_: Play, script: list[Act]) -> None:
    """One interleaving. Raises Violated, with what was done last."""
    for number, (act, what) in enumerate(script):
        try:
            await play_.act(act, what)
            if act not in ("pause", "ready"):
                play_.check_now()
        except Violated as problem:
            raise Violated(f"after {as_text(script[: number + 1])}: {problem}") from problem
    await play_.settle()


async def play_all(
    folder: Path, scripts: Iterator[tuple[int, list[Act]]], tell: Callable[[str], None]
) -> tuple[list[int], Census]:
    """Every script in one fleet; the seeds of the broken ones, behind which the fleet is another."""
    broken, census = [], Census()
    stage = Play(folder)
    await stage.open()
    for seed, script in scripts:
        try:
            await play(stage, script)
        except (Violated, TimeoutError) as problem:
            broken.append(seed)
            tell(f"seed {seed} is broken: {problem or 'it did not settle'}\n  {as_text(script)}")
            await stage.close()
            _add(census, stage.census)
            stage = Play(folder)
            await stage.open()
    await stage.close()
    _add(census, stage.census)
    return broken, census


def _add(total: Census, one: Census) -> None:
    total.leases += one.leases
    total.events += one.events
    total.refusals += one.refusals


def main(arguments: list[str]) -> int:
    """The command line. Exit code 1 when something did not hold."""
    p = argparse.ArgumentParser(prog="python -m tests.fault.interleavings", description=__doc__)
    p.add_argument("--first", type=int, default=1, metavar="SEED")
    p.add_argument("--count", type=int, default=500)
    p.add_argument("--script", help="play this, and nothing else")
    options = p.parse_args(arguments)
    seeds = range(options.first, options.first + options.count)
    scripts = iter([(0, from_text(options.script))]) if options.script else ((seed, script_of(seed)) for seed in seeds)
    before = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="unigate-") as folder:
        broken, census = asyncio.run(play_all(Path(folder), scripts, print))
    took_s = time.monotonic() - before
    played = 1 if options.script else options.count
    print(f"{played} interleavings from seed {options.first}, {len(broken)} broken, {took_s:.0f} s; {census}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
