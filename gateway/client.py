"""The client of one request, over ASGI: its headers and body in, our answer out, and whether it is still there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from gateway.errors import BodyTooLarge, GatewayTimeout

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]


class ClientGone(Exception):
    """The client left, or stopped reading, before its answer was complete. Nobody is there to be told."""


class BodyTimeout(GatewayTimeout):
    """The client did not send the body it announced."""

    status = 408
    type = "invalid_request_error"
    source = "gateway"
    code = "body_timeout"


class Client:
    """One request's client. *patience_s*: how long it may neither send nor read, in seconds."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, patience_s: float) -> None:
        self._headers: Headers = scope["headers"]
        self._receive = receive
        self._send = send
        self._patience_s = patience_s
        self._clock = asyncio.get_running_loop().time
        self._writing_since: float | None = None
        self._is_gone = False
        self.has_started = False
        self.is_finished = False

    def header(self, name: bytes) -> bytes | None:
        """The first header called *name*, which is in lower case."""
        return next((value for key, value in self._headers if key == name), None)

    async def read_body(self, limit_bytes: int) -> bytes:
        """The whole body. Raises BodyTooLarge, BodyTimeout, ClientGone."""
        announced = self.header(b"content-length")
        if announced is not None and announced.isdigit() and int(announced) > limit_bytes:
            raise self._too_large(limit_bytes)
        pieces: list[bytes] = []
        length = 0
        while True:
            try:
                async with asyncio.timeout(self._patience_s):
                    message = await self._receive()
            except TimeoutError:
                raise BodyTimeout(f"no piece of the body came within {self._patience_s:g} s") from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece = message.get("body", b"")
            length += len(piece)
            if length > limit_bytes:
                raise self._too_large(limit_bytes)
            pieces.append(piece)
            if not message.get("more_body", False):
                return b"".join(pieces)

    @staticmethod
    def _too_large(limit_bytes: int) -> BodyTooLarge:
        # The rest of the body is not read, so the connection cannot serve another request.
        message = f"the body is longer than the {limit_bytes} bytes that gateway.body_limit_bytes allows"
        return BodyTooLarge(message, headers=[(b"connection", b"close")])

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Inside, the client's leaving ends whatever is awaited, and comes out as ClientGone.

        To be entered when the body has been read. A cancellation from elsewhere stays one.
        """
        task = asyncio.current_task()
        assert task is not None
        watcher = asyncio.create_task(self._watch(task))
        patience = self._watch_writing(task)
        try:
            yield
        except asyncio.CancelledError:
            if self._is_gone and task.uncancel() == 0:
                raise ClientGone from None
            raise
        finally:
            # No await from here: a cancellation by the watcher always lands in the body, never behind us.
            watcher.cancel()
            patience.cancel()

    async def _watch(self, task: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        # uvicorn also says disconnect when the answer is complete (uvicorn/protocols/http/httptools_impl.py, 0.54).
        if not self.is_finished:
            self._leave(task)

    def _watch_writing(self, task: asyncio.Task[Any]) -> _Repeating:
        def check() -> None:
            since = self._writing_since
            if since is not None and self._clock() - since >= self._patience_s:
                self._leave(task)

        return _Repeating(self._patience_s / 2, check)

    def _leave(self, task: asyncio.Task[Any]) -> None:
        if not self._is_gone:
            self._is_gone = True
            task.cancel()

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head of the answer."""
        self.has_started = True
        await self._send({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def write(self, piece: bytes) -> None:
        """Send a piece of the body; waits while the client reads more slowly than we write."""
        self._writing_since = self._clock()
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        self._writing_since = None

    async def finish(self, piece: bytes = b"") -> None:
        """Send the last piece of the body; waits like `write`."""
        self.is_finished = True
        self._writing_since = self._clock()
        await self._send({"type": "http.response.body", "body": piece, "more_body": False})
        self._writing_since = None

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer at once."""
        await self.start(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self.finish(body)


class _Repeating:
    """A callback every *interval_s* until cancelled."""

    def __init__(self, interval_s: float, callback: Callable[[], None]) -> None:
        self._interval_s = interval_s
        self._callback = callback
        self._timer = asyncio.get_running_loop().call_later(interval_s, self._fire)

    def _fire(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._fire)
        self._callback()

    def cancel(self) -> None:
        self._timer.cancel()
