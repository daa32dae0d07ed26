"""The wire between a gateway and a real engine, with faults on request: a program that stands before the engine's own.

    python -m tests.fault.wire CONTROL -- COMMAND...

Theory of operation
-------------------
A gateway starts this in the place of an engine's command. It rewrites the address in *COMMAND* to one of its own, forks
a *relay* that listens at the address the gateway chose, and then becomes the engine by exec: the main process that the
shim watches is the real engine, as always, and the relay is one more process of the same run, which ends with it.

*CONTROL* is a folder. In it, ``starts`` holds the faults of the coming starts, a word a line, and each start takes the
first: ``exit`` (the engine is ended behind its first log line, exit code 3), ``stall`` (it is stopped once it has
begun), ``port`` (a stranger listens at its port already), ``none``. Over the socket ``control.sock`` the relay is told
of faults for the next generation that is asked for, and to print numbered lines into the engine's log: see `Relay`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

STARTS = "starts"
SAID = "said"
CONTROL = "control.sock"
LINE = "wire line {:06d} of the engine's log"

EXIT_CODE = 3
GARBAGE = b"\x16\x03\x01 this is not HTTP\r\n\r\n"
EVENTS_BEFORE_A_BREAK = 3
FLOOD_BYTES = 1024 * 1024 * 1024
READ_BYTES = 64 * 1024
ADDRESS_OPTIONS = ("--uds", "--host", "--port", "--server-port")
"""In which vLLM, llama.cpp (a Unix socket is its --host) and LMDeploy are told where to listen."""


@dataclass(frozen=True, slots=True)
class Place:
    """A Unix socket's path, else a port of 127.0.0.1."""

    path: str = ""
    port: int = 0

    def listener(self) -> socket.socket:
        """A socket that listens here."""
        if not self.path:
            return socket.create_server(("127.0.0.1", self.port))
        Path(self.path).unlink(missing_ok=True)
        raw = socket.socket(socket.AF_UNIX)
        raw.bind(self.path)
        raw.listen()
        return raw

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to whoever listens here. Raises OSError."""
        if self.path:
            return await asyncio.open_unix_connection(self.path)
        return await asyncio.open_connection("127.0.0.1", self.port)


@dataclass(frozen=True, slots=True)
class Launch:
    """An engine's command and environment as the gateway wrote them, and where they make it listen."""

    argv: tuple[str, ...]
    environ: dict[str, str]
    place: Place

    def moved(self) -> Launch:
        """The same engine at another address of the same kind."""
        place = _another(self.place)
        old, new = (self.place.path, place.path) if place.path else (str(self.place.port), str(place.port))
        argv = [new if option in ADDRESS_OPTIONS and word == old else word for option, word in _pairs(self.argv)]
        environ = dict(self.environ)
        if "OLLAMA_HOST" in environ:
            environ["OLLAMA_HOST"] = f"127.0.0.1:{place.port}"
        return Launch(tuple(argv), environ, place)


def read_launch(argv: Sequence[str], environ: dict[str, str]) -> Launch:
    """Where *argv*, or else OLLAMA_HOST, makes an engine listen.

    Raises ValueError when neither says so.
    """
    for option, word in _pairs(argv):
        if option == "--uds" or (option == "--host" and word.endswith(".sock")):
            return Launch(tuple(argv), environ, Place(path=word))
        if option in ("--port", "--server-port"):
            return Launch(tuple(argv), environ, Place(port=int(word)))
    _, colon, port = environ.get("OLLAMA_HOST", "").rpartition(":")
    if not colon:
        raise ValueError(f"nothing says where the engine shall listen: {argv}")
    return Launch(tuple(argv), environ, Place(port=int(port)))


def _pairs(argv: Sequence[str]) -> list[tuple[str, str]]:
    """Each word with the one before it."""
    return list(zip(["", *argv[:-1]], argv, strict=True))


def _another(place: Place) -> Place:
    if place.path:
        path = Path(f"{place.path.removesuffix('.sock')}-e.sock")
        path.unlink(missing_ok=True)  # a killed engine leaves it, and the gateway knows only of the one it chose
        return Place(path=str(path))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Place(port=probe.getsockname()[1])


# --- one start ---


def main(arguments: Sequence[str]) -> NoReturn:
    """Become the engine, with a relay before it, or with the fault that this start was given."""
    control, dashes, *command = arguments
    assert dashes == "--", arguments
    folder, main_pid = Path(control), os.getpid()
    launch = read_launch(command, dict(os.environ))
    match take_start_fault(folder):
        case "exit":
            sys.exit(end_after_first_line(launch))
        case "stall":
            before = words_of(main_pid)
            fork_beside(lambda: stop_once_begun(main_pid, before))
        case "port":
            with launch.place.listener():
                fork_beside(signal.pause)
        case _:
            engine = launch.moved()
            with launch.place.listener() as door, Place(path=str(folder / CONTROL)).listener() as orders:
                fork_beside(lambda: asyncio.run(Relay(folder, engine.place).serve(door, orders)))
            launch = engine
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and exec would hand that on
    os.execvpe(launch.argv[0], launch.argv, launch.environ)


def take_start_fault(folder: Path) -> str:
    """The fault of this start, which the next one will not meet; empty without one."""
    file = folder / STARTS
    words = file.read_text().split() if file.exists() else []
    file.write_text("\n".join(words[1:]))
    return words[0] if words else ""


def fork_beside(life: Callable[[], object]) -> None:
    """Live *life* in a process that is no child of the engine: those have to be its own."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    if os.fork() == 0:
        with contextlib.suppress(KeyboardInterrupt):
            life()
    os._exit(0)


def end_after_first_line(launch: Launch) -> int:
    """Run the engine until it has printed a line, and end it there. Returns the exit code of both."""
    with subprocess.Popen(launch.argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as engine:
        assert engine.stdout is not None
        os.write(2, engine.stdout.readline())
        engine.kill()
    return EXIT_CODE


def words_of(pid: int) -> bytes:
    """The command line of *pid*."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def stop_once_begun(pid: int, before: bytes) -> None:
    """SIGSTOP to *pid* as soon as it has become the engine, and its command line is no longer *before*."""
    while words_of(pid) == before:
        time.sleep(0.001)
    os.kill(pid, signal.SIGSTOP)
    signal.pause()


# --- the relay ---


class Relay:
    """Bytes from the gateway to the engine and back, and a fault for a generation that was armed for one.

    Orders, each a JSON line over the control socket, each answered by one:

    - ``{"arm": FAULT}``: the next generation meets FAULT, a name of `FAULTS`;
    - ``{"say": N}``: N numbered lines go to the log; the answer's ``said`` is the number of the last;
    - ``{"state": true}``: the answer's ``open`` is how many of the gateway's connections are open.
    """

    def __init__(self, folder: Path, engine: Place) -> None:
        self._said_file = folder / SAID
        self._said = int(self._said_file.read_text()) if self._said_file.exists() else 0
        self._engine = engine
        self._armed: list[str] = []
        self._open = 0

    async def serve(self, door: socket.socket, orders: socket.socket) -> None:
        """Relay what comes through *door*, obey what comes over *orders*; ends with its process."""
        serve_orders = await asyncio.start_unix_server(self._serve_orders, sock=orders)
        start = asyncio.start_unix_server if door.family == socket.AF_UNIX else asyncio.start_server
        async with serve_orders, await start(self._serve_gateway, sock=door):
            await asyncio.Event().wait()

    async def _serve_orders(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(json.dumps(self.obey(json.loads(line))).encode() + b"\n")
        writer.close()

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry one order out."""
        if "arm" in order:
            assert order["arm"] in FAULTS, order
            self._armed.append(order["arm"])
        for _ in range(order.get("say", 0)):
            os.write(2, LINE.format(self._said + 1).encode() + b"\n")
            self._said += 1
            self._said_file.write_text(str(self._said))
        return {"armed": self._armed, "said": self._said, "open": self._open}

    async def _serve_gateway(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            await self._relay(reader, writer)
        except OSError:
            pass  # either side left in its own way: the other is told by the close
        finally:
            self._open -= 1
            writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, requests = await self._engine.connect()
        line = Line()
        ways = [
            asyncio.create_task(self._carry_requests(reader, requests, line)),
            asyncio.create_task(line.carry_answers(answers, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
            requests.close()
        for way in ways:
            if not way.cancelled():
                way.result()

    async def _carry_requests(self, reader: asyncio.StreamReader, requests: asyncio.StreamWriter, line: Line) -> None:
        while chunk := await reader.read(READ_BYTES):
            if self._armed and is_generation(chunk):
                line.fault = FAULTS[self._armed.pop(0)]
            requests.write(chunk)
            await requests.drain()


def is_generation(chunk: bytes) -> bool:
    """Whether *chunk*, read at the beginning of a request, begins one that generates for a client."""
    target = chunk.partition(b"\r\n")[0]
    return target.startswith((b"POST /v1/chat/completions ", b"POST /api/chat ", b"POST /api/generate "))


class Line:
    """One connection's answers on their way to the gateway, and what is wrong with them."""

    def __init__(self) -> None:
        self.fault: Callable[[bytes, bytes, asyncio.StreamWriter], Awaitable[bool]] | None = None

    async def carry_answers(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry answers until the engine, or a fault, ends the connection."""
        seen = b""
        while chunk := await answers.read(READ_BYTES):
            if self.fault is not None:
                seen += chunk
                if await self.fault(seen, chunk, writer):
                    return
            else:
                writer.write(chunk)
                await writer.drain()


async def _garbage_head(seen: bytes, chunk: bytes, writer: asyncio.StreamWriter) -> bool:
    """Bytes that are not HTTP in the place of the answer."""
    writer.write(GARBAGE)
    await writer.drain()
    return True


async def _garbage_body(seen: bytes, chunk: bytes, writer: asyncio.StreamWriter) -> bool:
    """Some events, then bytes that no chunked body holds."""
    return await _break_off(seen, chunk, writer, GARBAGE)


async def _close(seen: bytes, chunk: bytes, writer: asyncio.StreamWriter) -> bool:
    """Some events, then the end of the connection."""
    return await _break_off(seen, chunk, writer, b"")


async def _break_off(seen: bytes, chunk: bytes, writer: asyncio.StreamWriter, last: bytes) -> bool:
    end = end_of_events(seen, EVENTS_BEFORE_A_BREAK)
    before = len(seen) - len(chunk)
    writer.write(chunk if end is None else seen[before:end] + last)
    await writer.drain()
    return end is not None


async def _mute(seen: bytes, chunk: bytes, writer: asyncio.StreamWriter) -> bool:
    """Nothing of the answer, ever."""
    return False


async def _flood(seen: bytes, chunk: bytes, writer: asyncio.StreamWriter) -> bool:
    """One event of the answer again and again, as fast as it is taken: an engine that outruns its client."""
    piece = whole_piece_in(seen)
    if piece is None:
        return False
    head = seen[: seen.index(b"\r\n\r\n") + 4]
    writer.write(head)
    for _ in range(FLOOD_BYTES // len(piece)):
        writer.write(piece)
        await writer.drain()
    return True


FAULTS = {
    "garbage-head": _garbage_head,
    "garbage-body": _garbage_body,
    "close": _close,
    "mute": _mute,
    "flood": _flood,
}


def events_in(content: bytes) -> int:
    """How many events of a stream begin in *content*: of SSE, or lines of NDJSON."""
    return max(content.count(b"data: {"), content.count(b'{"model":'))


def end_of_events(answer: bytes, count: int) -> int | None:
    """Where the HTTP chunk ends that brings event number *count*; None before it has come whole."""
    seen = 0
    for end, content in chunks_in(answer):
        seen += events_in(content)
        if seen >= count:
            return end
    return None


def whole_piece_in(answer: bytes) -> bytes | None:
    """The first HTTP chunk that carries text, framed as it came; None before it has come whole."""
    for _, content in chunks_in(answer):
        if re.search(rb'"content": ?"[^"]', content):
            return b"%x\r\n%b\r\n" % (len(content), content)
    return None


def chunks_in(answer: bytes) -> Iterator[tuple[int, bytes]]:
    """The whole chunks of a chunked *answer*, and where each ends."""
    head, found, _ = answer.partition(b"\r\n\r\n")
    start = len(head) + len(found)
    while found:
        size, found, _ = answer[start:].partition(b"\r\n")
        length = int(size, 16) if found else 0
        end = start + len(size) + 2 + length + 2
        if not length or end > len(answer):
            return
        yield end, answer[end - 2 - length : end - 2]
        start = end


if __name__ == "__main__":
    main(sys.argv[1:])
