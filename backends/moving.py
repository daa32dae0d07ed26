"""What the plans of a residence ask for, done: calls to the daemon, uploads, hashing, reading. One step at a time."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Generator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import httpx

from backends.adapter import Body, Call
from backends.address import Address
from backends.diagnosis import Diagnosis
from backends.probing import client_for
from backends.residence import Digest, Follow, Pause, Reading, Reply, ResidenceRefused, Source, Step, Upload
from chat_templates.forms.gguf_file import RewrittenGguf

PIECE_BYTES = 1024 * 1024
CONNECT_TIMEOUT_S = 5.0
ERROR_CHARS = 2000

T = TypeVar("T")


class Digests:
    """The sha256 of files, each computed once as long as the file stays as it is (size, time of change, inode)."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path | RewrittenGguf, int, int, int], str] = {}

    def of(self, source: Path | RewrittenGguf, count: Callable[[int], None], stop: threading.Event) -> str:
        """The digest of *source* in hex, empty once *stop* is set. Blocks: about two seconds for each GiB.

        *count* gets the number of bytes of each piece read.
        """
        with _opened(source) as file:
            seen = os.fstat(file.fileno())
            named = source.resolve() if isinstance(source, Path) else source
            key = (named, seen.st_size, seen.st_mtime_ns, seen.st_ino)
            if key not in self._known:
                found = hashlib.sha256()
                while piece := file.read(PIECE_BYTES):
                    if stop.is_set():
                        return ""
                    found.update(piece)
                    count(len(piece))
                self._known[key] = found.hexdigest()
        return self._known[key]


class Mover:
    """Carries out the steps for one resident of the daemon at *address*; *say* gets each new phase.

    No step has a time limit of its own: who drives it looks at `bytes_moved` for progress. Cancelled, the step under
    way is broken off, which ends a load or a download in the daemon too.
    """

    def __init__(self, address: Address, digests: Digests, say: Callable[[str], None]) -> None:
        self.bytes_moved = 0
        self._address = address
        self._digests = digests
        self._say = say
        self._said = ""

    async def drive(self, plan: Generator[Step, Reply, T]) -> T:
        """What *plan* comes to. Raises ResidenceRefused, also for a daemon that cannot be reached."""
        try:
            step = next(plan)
            while True:
                step = plan.send(await self.do(step))
        except StopIteration as done:
            result: T = done.value
            return result
        except httpx.RequestError as problem:
            raise ResidenceRefused(_unreachable(problem)) from problem
        except OSError as problem:
            raise ResidenceRefused(_unreadable(problem)) from problem

    async def do(self, step: Step) -> Reply:
        """One step. Raises httpx.RequestError, OSError for files."""
        match step:
            case Call():
                return await self._call(step)
            case Follow():
                return await self._follow(step)
            case Upload():
                return await self._upload(step)
            case Digest():
                return Reply(value=await self._digest(step.source))
            case Reading():
                return Reply(value=await asyncio.to_thread(step.read))
            case Pause():
                await asyncio.sleep(step.seconds)
                return Reply()

    def _client(self) -> httpx.AsyncClient:
        client = client_for(self._address, CONNECT_TIMEOUT_S)
        client.timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
        return client

    async def _call(self, call: Call) -> Reply:
        async with self._client() as client:
            answer = await client.request(call.method, call.target, json=call.body)
        return Reply(answer.status_code, _object(answer.text))

    async def _follow(self, step: Follow) -> Reply:
        last: Body = {}
        async with (
            self._client() as client,
            client.stream(step.call.method, step.call.target, json=step.call.body) as answer,
        ):
            async for line in answer.aiter_lines():
                if not line.strip():
                    continue
                last = _object(line)
                self._count_progress(last)
                self._tell(step.phase(last))
            status = answer.status_code
        if status == 200 and "error" in last:
            told = last.get("status")
            status = told if isinstance(told, int) else 500
        return Reply(status, last)

    async def _upload(self, step: Upload) -> Reply:
        with await asyncio.to_thread(_opened, step.source) as file:
            size = file.seek(0, os.SEEK_END)
        headers = {"content-length": str(size), "content-type": "application/octet-stream"}
        async with self._client() as client:
            answer = await client.post(step.target, content=self._pieces(step.source, size), headers=headers)
        return Reply(answer.status_code, _object(answer.text))

    async def _pieces(self, source: Source, size: int) -> AsyncIterator[bytes]:
        sent = 0
        with await asyncio.to_thread(_opened, source) as file:
            while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                sent += len(piece)
                self.bytes_moved += len(piece)
                self._tell(f"copying the weights to the daemon {sent * 100 // max(size, 1)}%")
                yield piece

    async def _digest(self, source: Source) -> str:
        if isinstance(source, str):
            return hashlib.sha256(bytes(source, "utf-8")).hexdigest()
        stop = threading.Event()
        self._tell("reading the weights")
        try:
            return await asyncio.to_thread(self._digests.of, source, self._count, stop)
        finally:
            stop.set()  # a thread cannot be cancelled, only asked

    def _count(self, number: int) -> None:
        self.bytes_moved += number

    def _count_progress(self, line: Body) -> None:
        """A download counts as progress while its figure changes, as it is written in each line."""
        completed = line.get("completed")
        if isinstance(completed, int):
            self.bytes_moved = max(self.bytes_moved, completed)

    def _tell(self, phase: str | None) -> None:
        if phase and phase != self._said:
            self._said = phase
            self._say(phase)


def _opened(source: Source) -> BinaryIO:
    """Blocks, for one that is to be rewritten: its header is read."""
    if isinstance(source, str):
        return io.BytesIO(source.encode())
    return source.open("rb") if isinstance(source, Path) else source.open()


def _object(text: str) -> Body:
    """The JSON object in *text*; what is none is an error's words."""
    try:
        parsed: Any = json.loads(text) if text.strip() else {}
    except ValueError:
        parsed = None
    return parsed if isinstance(parsed, dict) else {"error": text[:ERROR_CHARS]}


def _unreachable(problem: httpx.RequestError) -> Diagnosis:
    return Diagnosis(
        "daemon_unreachable",
        f"The daemon did not answer: {problem or type(problem).__name__}.",
        "It is tried again; see the daemon's own log.",
    )


def _unreadable(problem: OSError) -> Diagnosis:
    where = f"{problem.filename}: " if problem.filename else ""
    return Diagnosis(
        "file_missing",
        f"A file of the model cannot be read: {where}{problem.strerror or problem}.",
        "Correct the model's weights.",
        permanent=True,
    )
