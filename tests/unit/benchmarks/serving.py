"""A `TimedServer` in the test's own loop, and requests against it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from benchmarks.conversations import Conversation
from benchmarks.load.connection import ConnectionPool, read_address
from benchmarks.load.driver import Driver, Limits, Load
from benchmarks.load.requests import RequestForm
from benchmarks.records import MEASURED, Row
from benchmarks.timed_server import TimedServer, Truth

WITHIN_S = 10.0


@contextlib.asynccontextmanager
async def timed_server(**truth: Any) -> AsyncIterator[tuple[TimedServer, str]]:
    """A server that behaves so, and its base URL."""
    server = TimedServer(Truth(**truth))
    url = await server.listen()
    try:
        yield server, url
    finally:
        await server.close()


@contextlib.asynccontextmanager
async def raw_server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A server of which *serve* has every connection, and its base URL; nothing of it is left afterwards."""
    tasks: set[asyncio.Task[Any]] = set()

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                await serve(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(served, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(holds: Callable[[], bool]) -> None:
    """Let the loop turn until *holds*; it is about servers in this same loop, so nothing else is waited for."""
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        if holds():
            return
        await asyncio.sleep(0)
    raise AssertionError("it does not come about")


def questions(count: int, turns: int = 1) -> list[Conversation]:
    """*count* conversations of three words each turn."""
    turn = ({"role": "user", "content": "one two three"},)
    return [Conversation(f"synthetic:{number + 1}", (turn,) * turns) for number in range(count)]


@contextlib.asynccontextmanager
async def driver(
    url: str, conversations: Sequence[Conversation], *, limits: Limits | None = None, form: Any = None,
    record: Callable[[Row], None] | None = None, **load: Any,
) -> AsyncIterator[tuple[Driver, list[Row]]]:  # fmt: skip
    """A driver that has not begun, and the rows it will give."""
    address = read_address(url)
    pool = ConnectionPool(address)
    rows: list[Row] = []
    asked = {"todo": range(len(conversations)), "phase": MEASURED, "session": 0, "max_tokens": 4, **load}
    request_form = RequestForm(address, **{"endpoint": "chat", "model": "m", **(form or {})})
    driving = Driver(
        Load(conversations, **asked),
        request_form,
        request_form.head({}),
        pool,
        record or rows.append,
        limits or Limits(),
        time.perf_counter,
    )
    try:
        yield driving, rows
    finally:
        await pool.close()


async def drive(url: str, conversations: Sequence[Conversation], **given: Any) -> list[Row]:
    """Send *conversations* to their end and return the rows."""
    async with driver(url, conversations, **given) as (driving, rows):
        await driving.run()
        return rows
