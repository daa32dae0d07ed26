"""What breaks under a real shim, launcher, prober and fleet, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import httpx
import pytest

from backends.adapter import Call, LaunchSpec, Probe
from backends.address import Address
from backends.diagnosis import ExitStatus
from backends.fleet import Fleet
from backends.lease import BackendUnavailable
from backends.lifecycle import State
from backends.process import LocalLauncher
from backends.settings import BackendSettings, EngineSettings
from backends.status import Transition
from tests.fault.fleet_host import COMMAND, QUICK, ROOT, backend_settings, engine_settings, make_fleet
from tests.unit.backends.processes import bearing, is_alive

LIMIT_S = 40.0
"""The longest a test may take; a busy machine included."""
GONE_S = 10.0
"""Within so long after the gateway's death nothing of it may live."""
PATIENT = replace(QUICK, max_failed_starts=50)


@pytest.fixture
def name() -> Iterator[str]:
    """A backend's name nobody else has, which its marker begins with; nothing bearing it is left after the test."""
    chosen = f"test-{secrets.token_hex(6)}"
    yield chosen
    left = bearing(f"{chosen}:")
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert left == []


@contextlib.asynccontextmanager
async def opened(fleet: Fleet) -> AsyncIterator[list[Transition]]:
    """The open fleet's transitions; it is closed afterwards, and the whole has a limit."""
    transitions: list[Transition] = []
    fleet.subscribe(transitions.append)
    async with asyncio.timeout(LIMIT_S):
        await fleet.open()
        try:
            yield transitions
        finally:
            await fleet.close()


async def until(question: Callable[[], object]) -> None:
    """Wait for something in another process; the test's own limit bounds it."""
    while not question():  # noqa: ASYNC110 - it happens in another process, which sets no event here
        await asyncio.sleep(0.02)


async def ready_pid(fleet: Fleet, name: str, *, other_than: int | None = None) -> int:
    """The main process of the backend once it is READY, and another than that one."""
    while True:
        await fleet.settled(name, State.READY)
        pid = fleet.status(name).pid
        if pid is not None and pid != other_than:
            return pid
        await asyncio.sleep(0.01)  # the news of its end is under way


def parent_of(pid: int) -> int:
    """Who started *pid*: the shim, for an engine's main process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def marker_of(pid: int) -> str:
    """The value of the marker *pid* was started with."""
    variables = dict(item.partition(b"=")[::2] for item in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    return variables[b"UNIGATE_BACKEND_ID"].decode()


def events_of(transitions: list[Transition]) -> list[str]:
    """The names of their events."""
    return [transition.event.value for transition in transitions]


# --- in order ---


@pytest.mark.parametrize("engine", ["vllm", "llamacpp"])
@pytest.mark.parametrize("socket", ["unix", "tcp"])
async def test_an_engine_lives_and_stops(
    tmp_path: Path, name: str, engine: str, socket: Literal["unix", "tcp"]
) -> None:
    """Behind each adapter and on each kind of place a fake engine gets READY, answers its lease, and stops by TERM."""
    fleet = make_fleet(tmp_path, backend_settings(name, engine=engine), engine=engine_settings(socket=socket))
    async with opened(fleet) as transitions:
        await fleet.settled(name, State.READY)
        async with fleet.lease(name, 5) as lease:
            assert bool(lease.address.uds) == (socket == "unix")
            transport = httpx.AsyncHTTPTransport(uds=lease.address.uds or None, verify=False)
            url = f"http://{lease.address.authority}"
            async with httpx.AsyncClient(transport=transport, base_url=url, trust_env=False) as client:
                body = {"model": lease.backend, "messages": [{"role": "user", "content": "Hi"}]}
                answer = await client.post("/v1/chat/completions", json=body)
        assert answer.json()["usage"]["completion_tokens"] == 5
    assert events_of(transitions)[-3:] == ["StopRequested", "Drained", "Exited"]


async def test_the_environment_of_a_real_engine(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine bears its marker and inherits no key of a client, wherever it stands."""
    monkeypatch.setenv("SOME_NAME", "sk-of-a-client")
    fleet = make_fleet(tmp_path, backend_settings(name), secrets=frozenset({"sk-of-a-client"}))
    async with opened(fleet):
        pid = await ready_pid(fleet, name)
        assert marker_of(pid).startswith(f"{name}:")
        for member in bearing(marker_of(pid)):
            assert b"sk-of-a-client" not in Path(f"/proc/{member}/environ").read_bytes()
        assert os.getsid(pid) == parent_of(pid) != os.getsid(0)


# --- processes that end ---


async def test_kill_9_of_the_engine(tmp_path: Path, name: str) -> None:
    """The backend is READY again by itself, and nothing of the killed run is left."""
    fleet = make_fleet(tmp_path, backend_settings(name))
    async with opened(fleet) as transitions:
        first = await ready_pid(fleet, name)
        marker = marker_of(first)
        os.kill(first, signal.SIGKILL)
        second = await ready_pid(fleet, name, other_than=first)
        assert bearing(marker) == []
        assert marker_of(second) != marker
        assert events_of(transitions)[2:] == ["Crashed", "BackoffElapsed", "BecameReady"]
        assert transitions[2].diagnosis is not None
        assert transitions[2].diagnosis.code == "killed"
        assert fleet.status(name).restarts == 1


@pytest.mark.parametrize("flag", ["child", "setsid-child"])
async def test_what_a_killed_engine_leaves_behind(tmp_path: Path, name: str, flag: str) -> None:
    """Children that outlive their engine are ended before the next run begins, in whatever session they are."""
    fleet = make_fleet(tmp_path, backend_settings(name, flag))
    async with opened(fleet):
        first = await ready_pid(fleet, name)
        marker = marker_of(first)
        family = bearing(marker)
        assert len(family) == 3  # shim, engine, child
        os.kill(first, signal.SIGKILL)
        second = await ready_pid(fleet, name, other_than=first)
        assert not any(is_alive(pid) for pid in family)
        assert len(bearing(marker_of(second))) == 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("flags", [(), ("setsid-child", "ignore-sigterm")], ids=["obedient", "stubborn"])
async def test_the_death_of_the_shim(tmp_path: Path, name: str, number: signal.Signals, flags: tuple[str, ...]) -> None:
    """Whatever ends the shim, the engine it guarded is ended too, and the backend recovers."""
    fleet = make_fleet(tmp_path, backend_settings(name, *flags, timing=replace(QUICK, stop_grace_s=0.5)))
    async with opened(fleet):
        first = await ready_pid(fleet, name)
        family = bearing(marker_of(first))
        os.kill(parent_of(first), number)
        await ready_pid(fleet, name, other_than=first)
        assert not any(is_alive(pid) for pid in family)


async def test_a_stopped_engine_is_recycled(tmp_path: Path, name: str) -> None:
    """SIGSTOP: the health checks fail, the engine is ended, and the backend is READY again."""
    fleet = make_fleet(tmp_path, backend_settings(name))
    async with opened(fleet) as transitions:
        first = await ready_pid(fleet, name)
        os.kill(first, signal.SIGSTOP)
        await ready_pid(fleet, name, other_than=first)
        assert not is_alive(first)
        assert events_of(transitions)[2:] == ["BecameUnhealthy", "Exited", "BackoffElapsed", "BecameReady"]
        assert transitions[2].diagnosis is not None
        assert transitions[2].diagnosis.code == "unhealthy"


async def test_an_engine_deaf_to_term_is_killed(tmp_path: Path, name: str) -> None:
    """After its grace, not before, and its children with it."""
    timing = replace(QUICK, stop_grace_s=0.5)
    fleet = make_fleet(tmp_path, backend_settings(name, "ignore-sigterm", "setsid-child", timing=timing))
    async with opened(fleet) as transitions:
        await ready_pid(fleet, name)
        before = time.monotonic()
        await fleet.unload(name)
        await fleet.settled(name, State.STOPPED)
        assert 0.5 <= time.monotonic() - before < 10
        assert events_of(transitions)[2:] == ["StopRequested", "Drained", "StopTimedOut", "Exited"]
        assert bearing(f"{name}:") == []


async def test_a_close_in_a_hurry(tmp_path: Path, name: str) -> None:
    """A close that is cancelled kills what will not end, and returns when it is gone."""
    fleet = make_fleet(tmp_path, backend_settings(name, "ignore-sigterm", "child"))
    async with asyncio.timeout(LIMIT_S):
        await fleet.open()
        await ready_pid(fleet, name)
        closing = asyncio.create_task(fleet.close())
        await fleet.settled(name, State.STOPPING)
        closing.cancel()
        await asyncio.wait([closing])
        assert bearing(f"{name}:") == []


async def test_nobody_is_sent_to_what_is_left_of_an_engine(tmp_path: Path, name: str) -> None:
    """The end of the main process is known at once, not when the last of its children has been ended."""
    marker, lines = f"{name}:1", list[str]()
    argv = ("/bin/sh", "-c", "(trap '' TERM; echo left behind; sleep 600) & sleep 0.2; exit 3")
    get = Call("GET", "/")
    run = await LocalLauncher().start(LaunchSpec(Address(), Probe(get, get, ()), argv), marker, lines.append)
    async with asyncio.timeout(LIMIT_S):
        await until(lambda: run.has_exited)
        assert bearing(marker)
        assert await run.wait() == ExitStatus(code=3)
    assert bearing(marker) == []
    assert lines == ["left behind"]


# --- starts that fail ---


async def test_an_exit_during_the_start_is_retried_then_given_up(tmp_path: Path, name: str) -> None:
    """BACKOFF after the first, FAILED after max_failed_starts, with the exit code in the reason."""
    fleet = make_fleet(tmp_path, backend_settings(name, "exit-during-start=3"))
    async with opened(fleet) as transitions:
        await fleet.settled(name, State.FAILED)
        assert events_of(transitions) == ["StartRequested", "Crashed", "BackoffElapsed", "Crashed", "GaveUp"]
        with pytest.raises(BackendUnavailable, match="exit code 3") as refusal:
            async with fleet.lease(name, 5):
                pass
        assert refusal.value.code == "model_failed"


async def test_a_known_reason_is_final_at_once(tmp_path: Path, name: str) -> None:
    """Out of memory in the log of a start: FAILED after one try, with advice."""
    words = tmp_path / "oom.txt"
    words.write_text("INFO loading\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n")
    fleet = make_fleet(tmp_path, backend_settings(name, f"stderr={words}", "exit-during-start=1"))
    async with opened(fleet) as transitions:
        await fleet.settled(name, State.FAILED)
        assert events_of(transitions) == ["StartRequested", "Rejected"]
        diagnosis = fleet.status(name).diagnosis
        assert diagnosis is not None
        assert diagnosis.code == "gpu_out_of_memory"
        assert "gpu_memory_utilization" in diagnosis.advice


async def test_a_port_taken_meanwhile_is_tried_again(tmp_path: Path, name: str) -> None:
    """An engine that finds its port taken has crashed, and its next start gets another port."""
    fleet = make_fleet(tmp_path, backend_settings(name, "port-taken"), engine=engine_settings(socket="tcp"))
    async with opened(fleet) as transitions:
        await fleet.settled(name, State.FAILED)
        assert events_of(transitions) == ["StartRequested", "Crashed", "BackoffElapsed", "Crashed", "GaveUp"]
        diagnosis = fleet.status(name).diagnosis
        assert diagnosis is not None
        assert diagnosis.code == "port_in_use"
        ports = [words[words.index("--port") + 1] for words in run_lines(fleet, name)]
        assert len(set(ports)) == 2


def run_lines(fleet: Fleet, name: str) -> list[list[str]]:
    """The command lines of all runs, from the log."""
    return [line.split() for line in fleet.log(name).tail(1000) if "] run " in line and "--served-model-name" in line]


async def test_a_command_that_is_not_there(tmp_path: Path, name: str) -> None:
    """FAILED at once, naming the command."""
    fleet = make_fleet(tmp_path, backend_settings(name), engine=engine_settings(("/nowhere/vllm", "serve")))
    async with opened(fleet) as transitions:
        await fleet.settled(name, State.FAILED)
        assert events_of(transitions) == ["StartRequested", "Rejected"]
        assert "/nowhere/vllm: No such file or directory" in str(fleet.status(name).diagnosis)


async def test_an_engine_that_refuses_the_probe(tmp_path: Path, name: str) -> None:
    """One that runs but answers the proof with 401 is ended and FAILED, and its words are told."""
    fleet = make_fleet(tmp_path, backend_settings(name, "require-key=k"))
    async with opened(fleet):
        await fleet.settled(name, State.FAILED)
        diagnosis = fleet.status(name).diagnosis
        assert diagnosis is not None
        assert diagnosis.code == "probe_refused"
        assert "401" in diagnosis.reason
        assert bearing(f"{name}:") == []


@pytest.mark.parametrize(
    "flags",
    [("stall-start",), ("hang-health",), ("fault-probe", "garbage"), ("fault-probe", "garbage-body"),
     ("fault-probe", "status=503")],
    ids=lambda flags: flags[-1],
)  # fmt: skip
async def test_a_start_that_gets_nowhere(
    tmp_path: Path, name: str, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that never listens, never answers or answers nonsense is ended when it has stalled."""
    monkeypatch.setattr("backends.start.HEALTH_TIMEOUT_S", 0.2)
    timing = replace(QUICK, start_stall_timeout_s=1.0, max_failed_starts=1)
    fleet = make_fleet(tmp_path, backend_settings(name, *flags, timing=timing))
    async with opened(fleet) as transitions:
        await fleet.settled(name, State.FAILED)
        assert events_of(transitions) == ["StartRequested", "StartTimedOut", "Exited", "GaveUp"]
        diagnosis = fleet.status(name).diagnosis
        assert diagnosis is not None
        assert diagnosis.code == "start_timed_out"
        assert bearing(f"{name}:") == []


async def test_a_slow_start_is_waited_for(tmp_path: Path, name: str) -> None:
    """An engine that listens late is READY as soon as it answers."""
    fleet = make_fleet(tmp_path, backend_settings(name, "ready-after=0.7"))
    async with opened(fleet) as transitions:
        await fleet.settled(name, State.READY)
        assert transitions[-1].started_in_s is not None
        assert transitions[-1].started_in_s > 0.7


# --- the gateway dies ---


@contextlib.contextmanager
def gateway(folder: Path, name: str, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is a gateway with one READY backend."""
    argv = [sys.executable, "-m", "tests.fault.fleet_host", str(folder), name, *flags]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    "flags", [(), ("child",), ("setsid-child", "ignore-sigterm")], ids=["plain", "child", "stubborn"]
)
async def test_kill_9_of_the_gateway(tmp_path: Path, name: str, flags: tuple[str, ...]) -> None:
    """Within 10 s no process bearing its marker is left."""
    with gateway(tmp_path, name, *flags) as process:
        assert len(bearing(f"{name}:")) == 2 + any("child" in flag for flag in flags)
        process.kill()
        async with asyncio.timeout(GONE_S):
            await until(lambda: bearing(f"{name}:") == [])


async def test_the_next_gateway_reaps_what_a_crash_left(tmp_path: Path, name: str) -> None:
    """Gateway and shim killed together leave the engine alive: the next one ends it before it starts its own."""
    with gateway(tmp_path, name, "setsid-child") as process:
        family = bearing(f"{name}:")
        shim = next(pid for pid in family if parent_of(pid) == process.pid)
        os.kill(process.pid, signal.SIGSTOP)  # so that it cannot see its shim die
        os.kill(shim, signal.SIGKILL)
        process.kill()
        process.wait()
    left = set(family) - {shim}
    assert all(is_alive(pid) for pid in left)
    fleet = make_fleet(tmp_path, backend_settings(name))
    async with asyncio.timeout(LIMIT_S):
        (reaped,) = await fleet.open()
        try:
            assert (reaped.backend, set(reaped.ended), reaped.wedged) == (name, left, ())
            assert not any(is_alive(pid) for pid in left)
            await fleet.settled(name, State.READY)
        finally:
            await fleet.close()


async def test_a_restart_while_the_old_engine_is_still_ending(tmp_path: Path, name: str) -> None:
    """A gateway killed and started again at once does not have two engines, however stubborn the old one is."""
    with gateway(tmp_path, name, "ignore-sigterm") as process:
        family = bearing(f"{name}:")
        process.kill()
        process.wait()
    fleet = make_fleet(tmp_path, backend_settings(name))
    async with opened(fleet):
        await fleet.settled(name, State.READY)
        assert not any(is_alive(pid) for pid in family)


# --- logs ---


async def test_no_line_of_a_crash_is_lost(tmp_path: Path, name: str) -> None:
    """20,000 lines and an exit right behind them: all are in the file, in order, the last ones in memory."""
    count = 20_000
    words = tmp_path / "words.txt"
    words.write_text("".join(f"line {number} of the engine\n" for number in range(count)))
    timing = replace(QUICK, max_failed_starts=1)
    fleet = make_fleet(tmp_path, backend_settings(name, f"stderr={words}", "exit-during-start=1", timing=timing))
    async with opened(fleet):
        await fleet.settled(name, State.FAILED)
        assert f"line {count - 1} of the engine" in fleet.log(name).tail(10)
    written = (tmp_path / "logs" / f"{name}.log").read_text().splitlines()
    assert [line for line in written if line.startswith("line ")] == words.read_text().splitlines()


async def test_a_full_disk_under_the_log(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """An engine whose log cannot be written runs, is restarted and stops as ever; its lines are in memory."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / f"{name}.log").symlink_to("/dev/full")
    fleet = make_fleet(tmp_path, backend_settings(name))
    async with opened(fleet):
        first = await ready_pid(fleet, name)
        os.kill(first, signal.SIGKILL)
        await ready_pid(fleet, name, other_than=first)
        assert any("fake engine: listening" in line for line in fleet.log(name).tail(20))
    assert caplog.text.count("No space left on device") == 1


# --- an address we do not own ---


async def test_an_external_address_that_comes_and_goes(tmp_path: Path, name: str) -> None:
    """An external backend is READY while its address answers, is noticed when it does not, and found again."""
    port = 18990
    engine = [*COMMAND, "--port", str(port), "--served-model-name", name]
    timing = replace(PATIENT, start_stall_timeout_s=0.5)
    backend = BackendSettings(name=name, engine="external", url=f"http://127.0.0.1:{port}/v1", timing=timing)
    fleet = make_fleet(tmp_path, backend, engine=EngineSettings())
    async with opened(fleet):
        with subprocess.Popen(engine, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            await fleet.settled(name, State.READY)
            process.kill()
        await fleet.settled(name, State.BACKOFF)
        with subprocess.Popen(engine, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            await fleet.settled(name, State.READY)
            process.kill()
