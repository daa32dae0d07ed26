"""The wire does what it is told, else what the matrix shows proves nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fault.fleet_host import ROOT
from tests.fault.wire import CONTROL, EXIT_CODE, LINE, STARTS, Launch, Place, end_of_events, events_in, read_launch
from tests.fault.wire import whole_piece_in as first_piece
from tests.unit.backends.processes import MARKER, bearing, new_marker, until

BODY = {"model": "m", "messages": [{"role": "user", "content": "one"}], "stream": True}

# --- where an engine listens ---


@pytest.mark.parametrize(
    ("argv", "environ", "place", "moved"),
    [
        (["vllm", "serve", "--uds", "/r/a.sock"], {}, Place("/r/a.sock"), ["vllm", "serve", "--uds", "/r/a-e.sock"]),
        (["llama", "--host", "/r/a.sock"], {}, Place("/r/a.sock"), ["llama", "--host", "/r/a-e.sock"]),
        (["x", "--host", "127.0.0.1", "--port", "18000"], {}, Place(port=18000), None),
        (["lmdeploy", "--server-name", "127.0.0.1", "--server-port", "18000"], {}, Place(port=18000), None),
        (["ollama", "serve"], {"OLLAMA_HOST": "127.0.0.1:18000"}, Place(port=18000), None),
    ],
)
def test_an_engine_is_moved(argv: list[str], environ: dict[str, str], place: Place, moved: list[str] | None) -> None:
    """The address is read where each engine is told it, and the same engine is told another."""
    launch = read_launch(argv, environ)
    assert launch == Launch(tuple(argv), environ, place)
    other = launch.moved()
    assert other.place != place
    assert bool(other.place.path) == bool(place.path)
    if moved is not None:
        assert list(other.argv) == moved
    else:
        assert str(other.place.port) in " ".join([*other.argv, *other.environ.values()])
        assert "18000" not in " ".join([*other.argv, *other.environ.values()])


def test_an_engine_without_an_address() -> None:
    """A command that names none is refused, not guessed at."""
    with pytest.raises(ValueError, match="nothing says where"):
        read_launch(["vllm", "serve", "--host", "127.0.0.1"], {})


# --- what a fault is cut from ---

PIECE = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
ROLE = b'data: {"choices":[{"delta":{"content":"","role":"assistant"}}]}\n\n'


def test_the_piece_that_floods() -> None:
    """It is the first whole chunk with text in it, whatever came before and however far its bytes have come."""
    role, framed = (b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (ROLE, PIECE))
    whole = HEAD + role + framed
    assert first_piece(whole + b"5\r\n") == framed
    assert [first_piece(whole[:end]) for end in range(len(whole))] == [None] * len(whole)


def test_where_a_stream_is_broken() -> None:
    """Behind the chunk that brings the event, however its bytes have come."""
    role, framed = (b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (ROLE, PIECE))
    start = HEAD + role + framed
    whole = start + framed + framed
    assert [end_of_events(whole[:end], 2) for end in range(len(whole))] == [
        None if end < len(start) else len(start) for end in range(len(whole))
    ]


def test_events_are_counted() -> None:
    """Those of SSE and the lines of NDJSON."""
    assert events_in(HEAD) == 0
    assert events_in(HEAD + PIECE * 3) == 3
    assert events_in(b'{"model":"m","done":false}\n' * 2) == 2


# --- the process ---


@dataclass
class Wired:
    """A fake engine behind a wire."""

    process: subprocess.Popen[bytes]
    control: Path
    door: Path

    def order(self, **order: Any) -> dict[str, Any]:
        """Tell the relay."""
        with socket.socket(socket.AF_UNIX) as wire:
            wire.connect(str(self.control / CONTROL))
            wire.sendall(json.dumps(order).encode() + b"\n")
            answer: dict[str, Any] = json.loads(wire.makefile().readline())
            return answer

    def ask(self, within_s: float = 5) -> str:
        """A streamed answer's text."""
        transport = httpx.HTTPTransport(uds=str(self.door))
        with httpx.Client(transport=transport, base_url="http://m", timeout=within_s) as http:
            return http.post("/v1/chat/completions", json=BODY).text

    def is_healthy(self) -> bool:
        """Whether the engine answers."""
        # by hand: httpcore 1.0 leaves the socket of a refused connection to the garbage collector
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.connect(str(self.door))
            client.sendall(b"GET /health HTTP/1.1\r\nhost: m\r\n\r\n")
            return client.recv(1024).startswith(b"HTTP/1.1 200")
        return False


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path fits into a socket's address."""
    with tempfile.TemporaryDirectory(prefix="unigate-") as made:
        yield Path(made)


@contextlib.contextmanager
def wired(folder: Path, *flags: str, starts: str = "") -> Iterator[Wired]:
    """A fake engine behind a wire; all of it is killed afterwards."""
    marker, door = new_marker(), folder / "m.sock"
    (folder / STARTS).write_text(starts)
    argv = [sys.executable, "-m", "tests.fault.wire", str(folder), "--"]
    argv += [sys.executable, "-m", "tests.fake_engine", "--uds", str(door), "--chunks", "50", *flags]
    environ = {**os.environ, MARKER: marker, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, env=environ, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            yield Wired(process, folder, door)
        finally:
            for pid in bearing(marker):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_the_main_process_is_the_engine(folder: Path) -> None:
    """The wire becomes the engine by exec, the relay is none of its children, and bytes pass both ways."""
    with wired(folder) as engine:
        until(engine.is_healthy)
        words = Path(f"/proc/{engine.process.pid}/cmdline").read_text()
        assert "tests.fake_engine" in words
        assert "tests.fault.wire" not in words
        assert Path(f"/proc/{engine.process.pid}/task/{engine.process.pid}/children").read_text() == ""
        assert engine.ask().endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("fault", ["garbage-head", "garbage-body", "close"])
def test_a_fault_meets_one_generation(folder: Path, fault: str) -> None:
    """What was armed breaks the next generation, not a health check before it and not the one after."""
    with wired(folder) as engine:
        until(engine.is_healthy)
        assert engine.order(arm=fault)["armed"] == [fault]
        assert engine.is_healthy()
        with pytest.raises(httpx.RemoteProtocolError):
            engine.ask()
        assert engine.order()["armed"] == []
        assert engine.ask().endswith("data: [DONE]\n\n")


def test_a_mute_answer(folder: Path) -> None:
    """The engine gets the request, its client gets nothing, and the engine notices when that one leaves."""
    with wired(folder) as engine:
        until(engine.is_healthy)
        engine.order(arm="mute")
        with pytest.raises(httpx.ReadTimeout):
            engine.ask(within_s=0.3)
        until(lambda: engine.order()["open"] == 0)


def test_lines_are_numbered_over_all_starts(folder: Path) -> None:
    """Each line is in the log, and the next start goes on where the last one ended."""
    printed = b""
    for last in (3, 6):
        with wired(folder) as engine:
            until(engine.is_healthy)
            assert engine.order(say=3)["said"] == last
            assert engine.process.stderr is not None
            while LINE.format(last).encode() not in printed:
                printed += engine.process.stderr.readline()
    numbers = [line for line in printed.decode().splitlines() if line.startswith("wire line")]
    assert numbers == [LINE.format(number) for number in range(1, 7)]


@pytest.mark.parametrize(("starts", "left"), [("exit", ""), ("exit\nstall", "stall")])
def test_an_exit_at_the_start(folder: Path, starts: str, left: str) -> None:
    """The engine really begins and prints, ends with the code, and the next start has the next fault."""
    with wired(folder, starts=starts) as engine:
        _, printed = engine.process.communicate(timeout=20)
        assert engine.process.returncode == EXIT_CODE
        assert b"fake engine" in printed
        assert (folder / STARTS).read_text() == left


def test_a_stall_at_the_start(folder: Path) -> None:
    """The engine's process stands still before it has listened."""
    with wired(folder, starts="stall") as engine:
        stat = Path(f"/proc/{engine.process.pid}/stat")
        until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
        assert not engine.door.exists()


def test_a_stranger_at_the_port(folder: Path) -> None:
    """Somebody else listens where the engine was to listen, before it begins."""
    with wired(folder, starts="port") as engine:

        def is_taken() -> bool:
            with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
                client.connect(str(engine.door))
                return True
            return False

        until(is_taken)
