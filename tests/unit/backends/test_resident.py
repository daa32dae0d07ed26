"""A model's stay in a daemon: who shares its weights, and a run that is told to end at any point of its start."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import Any

import pytest

from backends.adapter import Call, LaunchSpec, Probe
from backends.address import Address
from backends.diagnosis import Diagnosis, ExitStatus
from backends.moving import Digests, Mover
from backends.residence import (
    Digest,
    Follow,
    Pause,
    Reading,
    Reply,
    Residence,
    ResidenceRefused,
    Resident,
    Step,
    Upload,
)
from backends.resident import Neighbours, ResidentRun

PROBE = Probe(Call("GET", "/health"), Call("GET", "/health"), ("ok",))
LOAD = Call("POST", "/load", {})


class Paper:
    """An HTTP server on loopback that answers by a table, and can be told to keep one path waiting."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.bodies: dict[str, bytes] = {}
        self.answers: dict[str, tuple[int, str]] = {}
        self.hanging: set[str] = set()
        self.cut = asyncio.Event()
        """Set when a client left a path that hangs."""
        self.is_hanging = asyncio.Event()
        self.serving: set[asyncio.Task[Any]] = set()
        self.address = Address()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request."""
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split(" ", 2)
        lengths = [line.split(":")[1] for line in head.lower().split("\r\n") if line.startswith("content-length")]
        self.bodies[path] = await reader.readexactly(int(lengths[0])) if lengths else b""
        self.asked.append(f"{method} {path}")
        if path in self.hanging:
            self.is_hanging.set()
            await reader.read()
            self.cut.set()
        else:
            status, text = self.answers.get(path, (200, "{}"))
            writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(text)}\r\nconnection: close\r\n\r\n".encode())
            writer.write(text.encode())
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.fixture
async def paper() -> AsyncIterator[Paper]:
    server = Paper()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    host, port = listening.sockets[0].getsockname()[:2]
    server.address = Address(host=host, port=port, base_path="", tenant="m")
    async with listening, asyncio.timeout(20):
        yield server
        if server.serving:
            await asyncio.wait(server.serving)


def resident(name: str = "m", **runner: Any) -> Resident:
    """A model that the daemon has."""

    def leave() -> Generator[Step, Reply, None]:
        yield Call("POST", "/leave", {"model": name})

    return Resident(name, "weights", runner, PROBE, LOAD, leave)


def run_of(paper: Paper, neighbours: Neighbours | None = None, *steps: Step) -> ResidentRun:
    """A run whose arrival takes *steps*."""

    def arrive() -> Generator[Step, Reply, Resident]:
        for step in steps:  # not yield from: a tuple takes no replies
            reply = yield step
            assert isinstance(reply, Reply)
        return resident()

    residence = Residence(arrive, lambda reply: Diagnosis("load", str(reply.body.get("error")), "a", permanent=True))
    spec = LaunchSpec(address=paper.address, probe=PROBE, residence=residence)
    return ResidentRun(spec, Digests(), neighbours or Neighbours(), lambda line: None)


# neighbours


def test_the_last_with_its_weights_unloads_them() -> None:
    """The one that leaves first leaves them to the other; those of another daemon do not count."""
    neighbours = Neighbours()
    for daemon in ("d", "e"):
        neighbours.enter(daemon, resident("a", num_ctx=1))
    neighbours.enter("d", resident("b", num_ctx=1))
    assert not neighbours.leave("d", resident("a", num_ctx=1))
    assert neighbours.leave("d", resident("b", num_ctx=1))
    assert neighbours.leave("d", resident("b", num_ctx=1))
    neighbours.enter("d", resident("a", num_ctx=2))


def test_neighbours_have_to_agree() -> None:
    """Other settings would start their common runner anew at every change; the same model again is no neighbour."""
    neighbours = Neighbours()
    neighbours.enter("d", resident("a", num_ctx=1, num_gpu=0))
    neighbours.enter("d", resident("a", num_ctx=2, num_gpu=0))
    with pytest.raises(ResidenceRefused) as caught:
        neighbours.enter("d", resident("b", num_ctx=3, num_gpu=0))
    assert "num_ctx (2 there, 3 here)" in caught.value.diagnosis.reason
    assert "num_gpu" not in caught.value.diagnosis.reason


# a run


async def test_a_whole_stay(paper: Paper) -> None:
    """It arrives, is loaded, and leaves when it is told to."""
    run = run_of(paper, None, Call("POST", "/create", {}))
    assert (await run.settle_in()).name == "m"
    await run.load()
    run.terminate()
    run.terminate()
    assert await run.wait() == ExitStatus(code=0)
    assert paper.asked == ["POST /create", "POST /load", "POST /leave"]


@pytest.mark.parametrize("path", ["/create", "/load"])
async def test_a_stop_breaks_off_what_is_under_way(paper: Paper, path: str) -> None:
    """The daemon is let go of in the middle of it; a model that had arrived is unloaded."""
    paper.hanging.add(path)
    run = run_of(paper, None, Call("POST", "/create", {}))

    async def begin() -> None:
        await run.settle_in()
        await run.load()

    beginning = asyncio.create_task(begin())
    await paper.is_hanging.wait()
    run.terminate()
    await run.wait()
    await paper.cut.wait()
    assert ("POST /leave" in paper.asked) == (path == "/load")
    await asyncio.wait([beginning])
    assert beginning.cancelled()


async def test_a_kill_waits_for_nobody(paper: Paper) -> None:
    """A daemon that does not let go is left; the weights are nobody's any more."""
    paper.hanging.add("/leave")
    neighbours = Neighbours()
    run = run_of(paper, neighbours)
    await run.settle_in()
    run.terminate()
    await paper.is_hanging.wait()
    run.kill()
    await run.wait()
    neighbours.enter(str(paper.address), resident("other", num_ctx=9))


async def test_a_load_that_is_refused(paper: Paper) -> None:
    """It is told with the adapter's diagnosis."""
    paper.answers["/load"] = (500, '{"error":"no room"}')
    run = run_of(paper)
    await run.settle_in()
    with pytest.raises(ResidenceRefused) as caught:
        await run.load()
    assert caught.value.diagnosis.reason == "no room"
    run.kill()


async def test_a_daemon_that_is_gone(paper: Paper) -> None:
    """An arrival says so, as something that may be better later; a leave takes it for left."""
    run = run_of(paper, None, Call("GET", "/x"))
    run._mover._address = Address(host="127.0.0.1", port=1)
    with pytest.raises(ResidenceRefused) as caught:
        await run.settle_in()
    assert (caught.value.diagnosis.code, caught.value.diagnosis.permanent) == ("daemon_unreachable", False)
    run._resident, run._is_entered = resident(), True
    run.terminate()
    assert await run.wait() == ExitStatus(code=0)


# the steps


def mover(paper: Paper, said: list[str] | None = None) -> Mover:
    """A mover of its own."""
    return Mover(paper.address, Digests(), (said if said is not None else []).append)


async def test_replies_are_objects_or_an_errors_words(paper: Paper) -> None:
    """JSON objects as they are, nothing as nothing, all else as an error."""
    paper.answers.update(
        {"/a": (200, '{"x":1}'), "/b": (404, "404 page not found"), "/c": (200, "[1]"), "/d": (200, "")}
    )
    found = [await mover(paper).do(Call("GET", path)) for path in ("/a", "/b", "/c", "/d")]
    assert [(reply.status, reply.body) for reply in found] == [
        (200, {"x": 1}), (404, {"error": "404 page not found"}), (200, {"error": "[1]"}), (200, {}),
    ]  # fmt: skip


@pytest.mark.parametrize(("line", "status"), [({"error": "x"}, 500), ({"error": "x", "status": 400}, 400)])
async def test_an_error_within_lines_has_a_status(paper: Paper, line: dict[str, Any], status: int) -> None:
    """The last line is the reply; each new phase is said once."""
    said: list[str] = []
    lines = [{"status": "a"}, {"status": "a"}, {"status": "b", "completed": 7}, line]
    paper.answers["/p"] = (200, "\n".join(json.dumps(item) for item in lines))
    moving = mover(paper, said)
    reply = await moving.do(Follow(Call("POST", "/p", {}), lambda item: item.get("status") and str(item["status"])))
    assert (reply.status, reply.body["error"]) == (status, "x")
    assert said[:2] == ["a", "b"]
    assert moving.bytes_moved == 7


async def test_uploads_and_digests(paper: Paper, tmp_path: Path) -> None:
    """Files and texts are sent as they are, and hashed; a file that did not change is hashed once."""
    file = tmp_path / "w"
    file.write_bytes(b"hello")
    moving = mover(paper)
    await moving.do(Upload("/up", file))
    assert paper.bodies["/up"] == b"hello"
    await moving.do(Upload("/text", "grüß"))
    assert paper.bodies["/text"] == "grüß".encode()
    before = moving.bytes_moved
    hello = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    for source in (file, file, "hello"):
        assert (await moving.do(Digest(source))).value == hello
    assert moving.bytes_moved == before + 5
    file.write_bytes(b"hellO")
    assert (await moving.do(Digest(file))).value != hello


async def test_readings_and_pauses(paper: Paper) -> None:
    """What is read comes back as a value; a pause brings nothing."""
    assert (await mover(paper).do(Reading(lambda: 5))).value == 5
    assert await mover(paper).do(Pause(0)) == Reply()


async def test_a_file_that_cannot_be_read(paper: Paper, tmp_path: Path) -> None:
    """It is told with its name, as what would fail the same way again."""

    def plan() -> Generator[Step, Reply, None]:
        yield Digest(tmp_path / "gone")

    with pytest.raises(ResidenceRefused) as caught:
        await mover(paper).drive(plan())
    assert (caught.value.diagnosis.code, caught.value.diagnosis.permanent) == ("file_missing", True)
    assert "gone" in caught.value.diagnosis.reason
