"""A fleet over real processes, for tests in this process and as a gateway of its own that can be killed.

``python -m tests.fault.fleet_host FOLDER NAME [FLAG...]`` serves one backend and prints ``ready`` when it is READY.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from backends.engines import ADAPTERS
from backends.fleet import Fleet
from backends.lifecycle import State
from backends.places import Places, socket_folder
from backends.probing import HttpProber
from backends.process import LocalLauncher
from backends.records import ProcessRecords
from backends.room import BOUNDLESS, Room
from backends.settings import ArgValue, BackendSettings, EngineSettings, Timing
from backends.start import Host

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "tests.fake_engine")

QUICK = Timing(
    start_stall_timeout_s=30,
    start_timeout_s=30,
    stop_grace_s=5,
    drain_timeout_s=5,
    backoff_base_s=0.05,
    backoff_max_s=0.1,
    max_failed_starts=2,
    health_interval_s=0.1,
    health_timeout_s=0.5,
    health_failures=3,
    probe_timeout_s=10,
)
"""Short pauses; limits that a busy machine does not reach."""


def backend_settings(name: str, *flags: str, engine: str = "vllm", timing: Timing = QUICK) -> BackendSettings:
    """A fake engine behind a real adapter; *flags* are its faults: ``child``, ``chunks=3``."""
    args: Mapping[str, ArgValue] = {
        word: value if equals else True for word, equals, value in (flag.partition("=") for flag in flags)
    }
    return BackendSettings(name=name, engine=engine, weights=Path("/nowhere"), args=args, timing=timing)


def make_fleet(
    folder: Path,
    *backends: BackendSettings,
    engine: EngineSettings | None = None,
    secrets: frozenset[str] = frozenset(),
    room: Room = BOUNDLESS,
) -> Fleet:
    """A fleet with its state, sockets and logs in *folder*; call it on the loop."""
    host = Host(
        LocalLauncher(secrets),
        HttpProber(),
        Places(socket_folder(folder)),
        ProcessRecords(folder / "records"),
        asyncio.Semaphore(1),
        folder / "runs",
        room=room,
    )
    settings = engine or engine_settings()
    return Fleet(backends, dict.fromkeys(ADAPTERS, settings), ADAPTERS, host, folder / "logs")


def engine_settings(command: tuple[str, ...] = COMMAND, socket: Literal["unix", "tcp"] = "unix") -> EngineSettings:
    """How the fake engine is started from any folder."""
    return EngineSettings(command=command, env={"PYTHONPATH": str(ROOT)}, socket=socket)


async def serve(folder: Path, name: str, flags: Sequence[str]) -> None:
    """Open a fleet, say when it is ready, and never end by itself."""
    fleet = make_fleet(folder, backend_settings(name, *flags))
    await fleet.open()
    await fleet.settled(name, State.READY)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
