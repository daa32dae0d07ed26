"""One client's connection: requests read one after the other, answers written, a client that leaves noticed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request; *body* is its JSON object, empty without one."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]


class BadRequest(Exception):
    """The request is not one we can read; the message says why."""


class Connection:
    """A keep-alive HTTP/1.1 connection. What the client sends during an answer is kept for the next request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._early = b""

    async def serve(self, answer: Callable[[Request, Connection], Awaitable[None]]) -> None:
        """Answer requests until the client leaves or the connection is closed here."""
        try:
            while not self._writer.is_closing():
                request = await self._read_request()
                if request is None:
                    return
                if not await self._until_answered_or_left(answer(request, self)):
                    return
        except (OSError, BadRequest, asyncio.IncompleteReadError):
            pass
        finally:
            self.close()

    def close(self) -> None:
        """Close once what was written has been sent."""
        self._writer.close()

    async def send(self, payload: bytes) -> None:
        """Write *payload* as it is."""
        self._writer.write(payload)
        await self._writer.drain()

    async def send_whole(self, status: int, body: object, *, content_type: str = "application/json") -> None:
        """A whole answer; *body* is text or becomes JSON."""
        payload = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        await self.send(head(status, content_type, f"content-length: {len(payload)}") + payload)

    async def begin_stream(self) -> None:
        """The head of an event stream."""
        await self.send(head(HTTPStatus.OK, "text/event-stream; charset=utf-8", "transfer-encoding: chunked"))

    async def send_event(self, event: object) -> None:
        """One ``data:`` event; text goes as it is, all else as JSON."""
        payload = f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()
        await self.send(b"%x\r\n%b\r\n" % (len(payload), payload))

    async def end_stream(self) -> None:
        """The empty chunk that ends a stream."""
        await self.send(b"0\r\n\r\n")

    async def _until_answered_or_left(self, answering: Awaitable[None]) -> bool:
        """Whether the answer was given; False when the client left first, which cancels *answering*."""
        work = asyncio.ensure_future(answering)
        leaving = asyncio.ensure_future(self._until_left())
        try:
            await asyncio.wait([work, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, leaving):
                task.cancel()
            await asyncio.wait([work, leaving])
        if work.cancelled():
            return False
        work.result()
        return True

    async def _until_left(self) -> None:
        with contextlib.suppress(OSError):
            while chunk := await self._reader.read(64 * 1024):
                self._early += chunk

    async def _read_request(self) -> Request | None:
        while b"\r\n\r\n" not in self._early:
            chunk = await self._reader.read(64 * 1024)
            if not chunk:
                return None
            self._early += chunk
        top, _, self._early = self._early.partition(b"\r\n\r\n")
        first, *lines = top.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await self._read_body(headers)
        return Request(method, target.partition("?")[0], headers, body)

    async def _read_body(self, headers: Mapping[str, str]) -> Mapping[str, Any]:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            raw = await self._read_chunked()
        else:
            raw = await self._read_exactly(int(headers.get("content-length", 0)))
        if not raw:
            return {}
        try:
            body = json.loads(raw)
        except ValueError as problem:
            raise BadRequest(f"the body is not JSON: {problem}") from problem
        return body if isinstance(body, dict) else {}

    async def _read_chunked(self) -> bytes:
        whole = b""
        while size := int(await self._read_line(), 16):
            whole += await self._read_exactly(size)
            await self._read_line()
        await self._read_line()
        return whole

    async def _read_line(self) -> bytes:
        while b"\r\n" not in self._early:
            await self._read_more()
        line, _, self._early = self._early.partition(b"\r\n")
        return line

    async def _read_exactly(self, count: int) -> bytes:
        while len(self._early) < count:
            await self._read_more()
        wanted, self._early = self._early[:count], self._early[count:]
        return wanted

    async def _read_more(self) -> None:
        chunk = await self._reader.read(64 * 1024)
        if not chunk:
            raise BadRequest("the connection ended inside a request")
        self._early += chunk


def head(status: int, content_type: str, framing: str) -> bytes:
    """Status line and headers; *framing* is the header that says how long the body is."""
    phrase = HTTPStatus(status).phrase if status in {code.value for code in HTTPStatus} else "Unknown"
    return f"HTTP/1.1 {status} {phrase}\r\ncontent-type: {content_type}\r\n{framing}\r\n\r\n".encode()
