"""A request's client over ASGI: its body, its leaving, its patience."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.client import BodyTimeout, Client, ClientGone
from gateway.errors import BodyTooLarge

PATIENCE_S = 0.05
GONE = {"type": "http.disconnect"}


class Wire:
    """An ASGI server's side: what the client sends, piece by piece, and what it is sent."""

    def __init__(self, pieces: Sequence[bytes] = (), *, is_whole: bool = True) -> None:
        self._pieces = list(pieces)
        self._is_whole = is_whole
        self.gone = asyncio.Event()
        self.stalled = asyncio.Event()
        self.readable = asyncio.Event()
        self.readable.set()
        self.sent: list[Any] = []

    async def receive(self) -> dict[str, Any]:
        """The next piece, then, once it left, a disconnect."""
        if self._pieces:
            piece = self._pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self._pieces) or not self._is_whole}
        await self.gone.wait()
        return GONE

    async def send(self, message: Any) -> None:
        """Take a message; wait while the client does not read."""
        if not self.readable.is_set():
            self.stalled.set()
        await self.readable.wait()
        self.sent.append(message)

    def client(self, *headers: tuple[bytes, bytes]) -> Client:
        """The client at this wire."""
        return Client({"headers": list(headers)}, self.receive, self.send, PATIENCE_S)


async def test_a_body_in_pieces() -> None:
    """A body is put together from however many pieces it comes in, up to the limit exactly."""
    assert await Wire([b"ab", b"", b"c"]).client().read_body(3) == b"abc"
    assert await Wire([b""]).client().read_body(3) == b""


async def test_an_announced_body_too_large_is_not_read() -> None:
    """A length past the limit is refused before a byte is read, and the connection is not used again."""
    wire = Wire([b"ab"])
    with pytest.raises(BodyTooLarge, match="longer than the 3 bytes") as caught:
        await wire.client((b"content-length", b"4")).read_body(3)
    assert caught.value.headers == ((b"connection", b"close"),)
    assert (await wire.receive())["body"] == b"ab"


@pytest.mark.parametrize("announced", [[], [(b"content-length", b"3")], [(b"content-length", b"x")]])
async def test_an_unannounced_body_too_large(announced: list[tuple[bytes, bytes]]) -> None:
    """The limit holds for what comes, whatever was announced."""
    with pytest.raises(BodyTooLarge):
        await Wire([b"ab", b"cd"]).client(*announced).read_body(3)


async def test_a_body_that_does_not_come() -> None:
    """A client that stops in the middle of its body is told so after its patience is over."""
    with pytest.raises(BodyTimeout, match=r"no piece of the body came within 0\.05 s") as caught:
        await Wire([b"ab"], is_whole=False).client().read_body(3)
    assert (caught.value.status, caught.value.source) == (408, "gateway")


async def test_a_client_that_leaves_in_its_body() -> None:
    """A client that leaves before its body was whole is gone."""
    wire = Wire([b"ab"], is_whole=False)
    wire.gone.set()
    with pytest.raises(ClientGone):
        await wire.client().read_body(3)


async def test_leaving_ends_what_is_awaited() -> None:
    """Inside watched, a disconnect ends any wait and comes out as ClientGone; the task can go on."""
    wire = Wire()

    async def wait_for_ever() -> None:
        async with wire.client().watched():
            wire.gone.set()
            await asyncio.Event().wait()

    async def serve() -> str:
        with pytest.raises(ClientGone):
            await wait_for_ever()
        await asyncio.sleep(0)
        return "went on"

    async with asyncio.timeout(1):
        assert await asyncio.create_task(serve()) == "went on"


async def test_a_cancellation_from_elsewhere_stays_one() -> None:
    """Who cancels the task itself gets a cancelled task."""
    wire = Wire()
    inside = asyncio.Event()

    async def serve() -> None:
        async with wire.client().watched():
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(serve())
    await inside.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_disconnect_after_the_answer_is_none() -> None:
    """uvicorn says disconnect when the answer is complete: that is not the client leaving."""
    wire = Wire()
    client = wire.client()
    async with client.watched():
        await client.answer(200, [(b"x", b"y")], b"abc")
        wire.gone.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert wire.sent == [
        {"type": "http.response.start", "status": 200, "headers": [(b"x", b"y"), (b"content-length", b"3")]},
        {"type": "http.response.body", "body": b"abc", "more_body": False},
    ]
    assert (client.has_started, client.is_finished) == (True, True)


@pytest.mark.parametrize("last", [False, True])
async def test_a_client_that_does_not_read(last: bool) -> None:
    """A client that reads nothing for its patience is gone, be it in the middle of a stream or at its last piece."""
    wire = Wire()
    client = wire.client()

    async def answer() -> None:
        async with client.watched():
            await client.start(200, [])
            wire.readable.clear()
            await (client.finish(b"x") if last else client.write(b"x"))

    async with asyncio.timeout(2):
        with pytest.raises(ClientGone):
            await answer()
    assert wire.stalled.is_set()


async def test_a_pause_of_the_engine_is_not_the_clients() -> None:
    """Silence between two pieces, however long, costs the client none of its patience."""
    wire = Wire()
    client = wire.client()
    async with client.watched():
        await client.start(200, [])
        await client.write(b"a")
        await asyncio.sleep(PATIENCE_S * 3)
        await client.write(b"b")
        await client.finish()
    assert [message.get("body") for message in wire.sent[1:]] == [b"a", b"b", b""]
