"""What holds of answers for every way they are chopped on the wire, and for whatever comes instead of one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from backends.address import Address
from gateway.upstream import UpstreamPool
from gateway.upstream_connection import Connection
from gateway.upstream_errors import GarbageAnswer, UpstreamError

CUTS = st.lists(st.integers(0, 100_000), max_size=12)
NAMES = st.sampled_from(["X-A", "x-b", "Content-Type", "Server"])
VALUES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20)
BODIES = st.lists(st.binary(min_size=1, max_size=50), max_size=5)


@dataclass(frozen=True)
class Outcome:
    """What the reader of an exchange saw: the head, all body, and the kind of error that ended it, if any."""

    status: int | None
    reason: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    error: type[UpstreamError] | None


@dataclass(frozen=True)
class ValidAnswer:
    """An answer's bytes and what must be read from them."""

    raw: bytes
    method: str
    expected: Outcome


class Wire:
    """A transport that answers the first write with given pieces, one per loop turn, then EOF."""

    def __init__(self, connection: Connection, pieces: list[bytes]) -> None:
        self._connection = connection
        self._pieces = iter(pieces)
        self._is_closed = False
        self._loop = asyncio.get_running_loop()

    def write(self, data: bytes) -> None:
        self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        if self._is_closed:
            return
        piece = next(self._pieces, None)
        if piece is None:
            self._connection.eof_received()
            self.abort()
            return
        self._connection.data_received(piece)
        self._loop.call_soon(self._deliver)

    def abort(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._loop.call_soon(self._connection.connection_lost, None)

    def is_closing(self) -> bool:
        return self._is_closed

    def get_write_buffer_size(self) -> int:
        return 0


class WiredPool(UpstreamPool):
    """A pool whose connections lead to a Wire."""

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__()
        self._wired = pieces

    async def _dial(self, address: Address) -> Connection:
        connection = Connection(self, address, asyncio.get_running_loop())
        wire: Any = Wire(connection, self._wired)
        connection.connection_made(wire)
        return connection


async def exchange(pieces: list[bytes], method: str) -> Outcome:
    pool = WiredPool(pieces)
    seen = Outcome(None, "", (), b"", None)
    try:
        async with asyncio.timeout(5), pool.exchange(Address("engine", 1), method, "/", []) as answer:
            seen = Outcome(answer.status, answer.reason, tuple(answer.headers), b"", None)
            async for piece in answer.chunks():
                assert piece
                seen = replace(seen, body=seen.body + piece)
    except UpstreamError as error:
        seen = replace(seen, error=type(error))
    await pool.aclose()
    return seen


def outcome(pieces: list[bytes], method: str = "GET") -> Outcome:
    return asyncio.run(exchange(pieces, method))


def chop(raw: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)})
    return [raw[start:end] for start, end in pairwise(edges)]


@st.composite
def valid_answers(draw: st.DrawFn) -> ValidAnswer:
    """An answer in one of the three framings, perhaps behind 1xx ones, perhaps to a HEAD."""
    headers = draw(st.lists(st.tuples(NAMES, VALUES), max_size=4))
    pieces = draw(BODIES)
    body = b"".join(pieces)
    framing = draw(st.sampled_from(["length", "chunked", "eof"]))
    method = draw(st.sampled_from(["GET", "GET", "POST", "HEAD"]))
    status = draw(st.sampled_from([200, 400, 503]))
    fields = [*headers, *{"length": [("Content-Length", str(len(body)))]}.get(framing, [])]
    sent = [*fields, *{"chunked": [("Transfer-Encoding", "chunked")]}.get(framing, [])]
    interim = draw(st.sampled_from(["", "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early\r\nLink: x\r\n\r\n"]))
    head = "".join([interim, f"HTTP/1.1 {status} Some Reason\r\n", *(f"{n}: {v}\r\n" for n, v in sent), "\r\n"])
    coded = body
    if framing == "chunked":
        trailer = draw(st.sampled_from([b"", b"X-T: 1\r\n"]))
        coded = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailer + b"\r\n"
    if method == "HEAD":
        body = coded = b""
    seen = tuple((n.lower().encode(), v.encode()) for n, v in fields)
    return ValidAnswer(head.encode() + coded, method, Outcome(status, "Some Reason", seen, body, None))


@given(answer=valid_answers(), cuts=CUTS)
def test_chopping_a_valid_answer_changes_nothing(answer: ValidAnswer, cuts: list[int]) -> None:
    """Status, headers and body are the same wherever the network cut the bytes."""
    assert outcome(chop(answer.raw, cuts), answer.method) == answer.expected


@given(answer=valid_answers())
def test_single_bytes_of_a_valid_answer_change_nothing(answer: ValidAnswer) -> None:
    """An answer that comes byte by byte is the same answer."""
    assert outcome([answer.raw[at : at + 1] for at in range(len(answer.raw))], answer.method) == answer.expected


@given(raw=st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: b"HTTP/1.1 " + tail), cuts=CUTS)
@example(raw=b"HTTP/1.1 101 x\r\nUpgrade: y\r\nConnection: upgrade\r\n\r\n", cuts=[])
@example(raw=b"CONNECT x HTTP/1.1\r\n\r\n", cuts=[])
def test_garbage_is_an_upstream_error(raw: bytes, cuts: list[int]) -> None:
    """Whatever comes instead of an answer ends the exchange with an UpstreamError, at once."""
    seen = outcome(chop(raw, cuts))
    assert seen.error is not None or seen.status is not None


@given(answer=valid_answers(), noise=st.binary(min_size=1, max_size=3), at=st.integers(0, 10_000), cuts=CUTS)
def test_chopping_a_damaged_answer_changes_nothing(answer: ValidAnswer, noise: bytes, at: int, cuts: list[int]) -> None:
    """An answer with bytes overwritten or cut off ends the same way, whole or chopped."""
    at %= len(answer.raw)
    damaged = answer.raw[:at] + noise + answer.raw[at + len(noise) :]
    assert outcome(chop(damaged, cuts), answer.method) == outcome([damaged], answer.method)
    truncated = answer.raw[:at]
    assert outcome(chop(truncated, cuts), answer.method) == outcome([truncated], answer.method)


@given(size=st.integers(0, 200_000), cuts=CUTS)
@example(size=200_000, cuts=[])
@example(size=60_000, cuts=[1])
def test_a_long_head_is_refused_however_it_comes(size: int, cuts: list[int]) -> None:
    """Heads well under the limit pass and heads well over it are refused, whole or chopped."""
    seen = outcome(chop(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: " + b"x" * size + b"\r\n\r\n", cuts))
    if size < 65_000:
        assert (seen.status, seen.error) == (200, None)
    elif size > 66_000:
        assert (seen.status, seen.error) == (None, GarbageAnswer)
