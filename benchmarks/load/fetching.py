"""One ordinary GET beside the load, over the same kind of connection and so as cheap."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.load.connection import Address, ConnectionPool, request_head

BODY_LIMIT_BYTES = 16 * 1024 * 1024


class FetchFailed(Exception):
    """Nothing was answered; the message says why."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer."""

    status: int
    body: bytes


class _Fetch:
    """Listens to one answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.answer: asyncio.Future[Fetched] = loop.create_future()
        self._status = 0
        self._pieces: list[bytes] = []
        self._length = 0

    def began(self, at: float, is_reused: bool) -> None:
        """The request is being written."""

    def head(self, status: int, at: float) -> None:
        """The head came."""
        self._status = status

    def body(self, piece: bytes, at: float) -> None:
        """A piece came."""
        self._length += len(piece)
        if self._length <= BODY_LIMIT_BYTES:
            self._pieces.append(piece)

    def ended(self, at: float) -> None:
        """The answer is complete."""
        if not self.answer.done():
            self.answer.set_result(Fetched(self._status, b"".join(self._pieces)))

    def failed(self, kind: str, text: str, at: float) -> None:
        """There is none."""
        if not self.answer.done():
            self.answer.set_exception(FetchFailed(text))


async def fetch(
    pool: ConnectionPool, address: Address, path: str, headers: Mapping[str, str], timeout_s: float
) -> Fetched:
    """GET *path* (absolute). Raises FetchFailed. Cancelled or late, it closes the connection."""
    listener = _Fetch(asyncio.get_running_loop())
    pool.ask(request_head(address, "GET", path, dict(headers)) + b"\r\n", listener)
    try:
        async with asyncio.timeout(timeout_s):
            return await listener.answer
    except TimeoutError as problem:
        raise FetchFailed(f"{address.origin}{path}: no answer after {timeout_s:g} s") from problem
    finally:
        if not listener.answer.done() or listener.answer.cancelled():
            pool.leave(listener)
        else:
            pool.release(listener)
