"""Exchanges with scripted engines on real loopback sockets, on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import socket
import ssl
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop

from backends.address import Address
from gateway.upstream import Exchange, UpstreamPool, UpstreamTimeouts
from gateway.upstream_connection import HEAD_LIMIT_BYTES, HIGH_WATER_BYTES, Answer
from gateway.upstream_errors import (
    AnswerTooLong,
    BrokenAnswer,
    ConnectFailed,
    ConnectTimedOut,
    FirstByteTimedOut,
    GarbageAnswer,
    IdleTimedOut,
    UpstreamError,
)

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
Script = Callable[["Engine", Reader, Writer], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
GET: tuple[str, str, list[tuple[bytes, bytes]]] = ("GET", "/", [])
HUGE = b"x" * 64_000_000


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test once on asyncio's own loop and once on uvloop, within ten seconds."""

    @pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
    @functools.wraps(test)
    def run(loop_factory: Callable[[], asyncio.AbstractEventLoop], **arguments: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(10):
                await test(**arguments)

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(bounded())
        gc.collect()  # so that an unclosed transport warns in the test that left it

    parameters = list(inspect.signature(test).parameters.values())
    loop_parameter = inspect.Parameter("loop_factory", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = inspect.Signature([*parameters, loop_parameter])
    return cast("Callable[..., None]", run)


@dataclass
class Engine:
    """A scripted server. *gone* is set when a script saw its peer leave."""

    script: Script
    address: Address = field(default_factory=Address)
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    running: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: Reader, writer: Writer) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.running.add(task)
        try:
            await self.script(self, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.gone.set()
        finally:
            self.running.discard(task)
            writer.transport.abort()

    async def request(self, reader: Reader) -> bytes:
        """Read one whole request; IncompleteReadError if the peer left."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = [int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
        request = head + await reader.readexactly(sum(length))
        self.requests.append(request)
        self.asked.set()
        return request

    async def peer_leaves(self, reader: Reader) -> None:
        while await reader.read(65536):
            pass
        self.gone.set()


@asynccontextmanager
async def engine(script: Script, *, uds: bool = False, tls: ssl.SSLContext | None = None) -> AsyncIterator[Engine]:
    served = Engine(script)
    with tempfile.TemporaryDirectory() as folder:
        if uds:
            served.address = Address(uds=f"{folder}/engine.sock")
            server = await asyncio.start_unix_server(served.serve, served.address.uds)
        else:
            server = await asyncio.start_server(served.serve, "127.0.0.1", 0, ssl=tls)
            served.address = Address("127.0.0.1", server.sockets[0].getsockname()[1], tls=tls is not None)
        try:
            yield served
        finally:
            server.close()
            for task in list(served.running):
                task.cancel()
            await asyncio.gather(*served.running, return_exceptions=True)
            await server.wait_closed()


@asynccontextmanager
async def pool(
    connect_s: float = 5, first_byte_s: float = 5, idle_s: float = 5, **settings: Any
) -> AsyncIterator[UpstreamPool]:
    """A pool that must have no exchange left when the test is over, and no connection when it is closed."""
    made = UpstreamPool(UpstreamTimeouts(connect_s, first_byte_s, idle_s), **settings)
    try:
        yield made
        assert not made._active
    finally:
        await made.aclose()
        assert not made._open


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what only the other side's bytes can bring about."""
    while not holds():  # noqa: ASYNC110 - the pool tells nobody what it does, and need not for a test
        await asyncio.sleep(0.001)


def answering(*answers: bytes) -> Script:
    """A script that answers one request after another on one connection, then waits for its peer to leave."""

    async def script(engine: Engine, reader: Reader, writer: Writer) -> None:
        for answer in answers:
            await engine.request(reader)
            writer.write(answer)
        await engine.peer_leaves(reader)

    return script


async def always_ok(engine: Engine, reader: Reader, writer: Writer) -> None:
    while True:
        await engine.request(reader)
        writer.write(OK)


async def silent(engine: Engine, reader: Reader, writer: Writer) -> None:
    await engine.request(reader)
    await engine.peer_leaves(reader)


async def deaf(engine: Engine, reader: Reader, writer: Writer) -> None:
    engine.asked.set()
    await asyncio.Event().wait()


async def endless(engine: Engine, reader: Reader, writer: Writer) -> None:
    await engine.request(reader)
    writer.write(STREAM_HEAD)
    try:
        while True:
            writer.write(b"5\r\nhello\r\n")
            await writer.drain()
            await asyncio.sleep(0)
    except ConnectionError:
        engine.gone.set()


def closing_after(answer: bytes) -> Script:
    async def script(engine: Engine, reader: Reader, writer: Writer) -> None:
        await engine.request(reader)
        writer.write(answer)
        writer.write_eof()
        await engine.peer_leaves(reader)

    return script


def exchanging(pool: UpstreamPool, engine: Engine) -> Exchange:
    return pool.exchange(engine.address, *GET)


async def ask(pool: UpstreamPool, address: Address) -> tuple[Answer, bytes]:
    async with pool.exchange(address, *GET) as answer:
        return answer, await answer.read(1_000_000)


async def read_into(pieces: list[bytes], pool: UpstreamPool, address: Address) -> None:
    """Read an answer so that what came before an error can be looked at."""
    async with pool.exchange(address, *GET) as answer:
        async for piece in answer.chunks():
            pieces.append(piece)  # noqa: PERF401 - a comprehension would lose them


# Answers


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (OK, b"ok"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
        (STREAM_HEAD + b"2;ext=1\r\nhe\r\n3\r\nllo\r\n0\r\nX-Trailer: 1\r\n\r\n", b"hello"),
        (b"HTTP/1.1 200 OK\r\n\r\nto the end", b"to the end"),
        (b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n", b""),
    ],
    ids=["length", "empty", "chunked", "to-eof", "to-eof-empty"],
)
@on_both_loops
async def test_every_framing_of_a_body(raw: bytes, body: bytes) -> None:
    """Bodies framed by Content-Length, by chunks and by the connection's end are read whole."""
    async with engine(closing_after(raw)) as served, pool() as upstream:
        answer, got = await ask(upstream, served.address)
        assert (answer.status, answer.reason, got) == (200, "OK", body)


@on_both_loops
async def test_headers_come_lower_cased_without_hop_by_hop_ones() -> None:
    """Answer headers keep order and repetition, lose their case, and lose what belongs to one connection only."""
    raw = (
        b"HTTP/1.1 404 Not Here\r\nX-B: 2 \r\nSet-Cookie: a\r\nSet-Cookie: b\r\nConnection: keep-alive, X-Hop\r\n"
        b"X-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: x\r\nUpgrade: h2c\r\nTrailer: y\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    async with engine(answering(raw)) as served, pool() as upstream:
        answer, _ = await ask(upstream, served.address)
        assert answer.headers == [(b"x-b", b"2"), (b"set-cookie", b"a"), (b"set-cookie", b"b")]
        assert repr(answer) == "<Answer 404 Not Here>"


@on_both_loops
async def test_interim_answers_are_skipped() -> None:
    """100 and 103 are not the answer, and leave nothing in it."""
    raw = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK
    async with engine(answering(raw)) as served, pool() as upstream:
        answer, body = await ask(upstream, served.address)
        assert (answer.status, answer.reason, answer.headers) == (200, "OK", [(b"content-length", b"2")])
        assert body == b"ok"


@pytest.mark.parametrize(
    ("method", "raw"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
    ],
)
@on_both_loops
async def test_answers_without_a_body(method: str, raw: bytes) -> None:
    """HEAD, 204 and 304 end with their head, whatever it says of a body, and the next exchange is not disturbed."""
    async with engine(answering(raw, OK)) as served, pool() as upstream:
        async with upstream.exchange(served.address, method, "/", []) as answer:
            assert await answer.read(0) == b""
        served.script = always_ok
        assert (await ask(upstream, served.address))[1] == b"ok"


@on_both_loops
async def test_pieces_come_as_they_are_sent() -> None:
    """A piece is handed out before the next one is sent."""

    async def in_step(engine: Engine, reader: Reader, writer: Writer) -> None:
        await engine.request(reader)
        writer.write(STREAM_HEAD)
        for piece in (b"1\r\na\r\n", b"1\r\nb\r\n", b"0\r\n\r\n"):
            engine.asked.clear()
            writer.write(piece)
            await engine.asked.wait()

    async with engine(in_step) as served, pool() as upstream:
        async with upstream.exchange(served.address, *GET) as answer:
            pieces = []
            async for piece in answer.chunks():
                pieces.append(piece)
                served.asked.set()
        assert pieces == [b"a", b"b"]
        served.asked.set()


@on_both_loops
async def test_read_refuses_more_than_its_limit() -> None:
    """read() returns a body of exactly the limit, raises past it, and the connection is not kept half read."""
    async with engine(answering(OK, OK)) as served, pool() as upstream:
        async with upstream.exchange(served.address, *GET) as answer:
            assert await answer.read(2) == b"ok"
        with pytest.raises(AnswerTooLong, match="1 bytes"):
            async with upstream.exchange(served.address, *GET) as answer:
                await answer.read(1)


@on_both_loops
async def test_an_answer_is_of_no_use_outside_its_exchange() -> None:
    """Reading after the exchange was left raises, and cannot touch the connection's next answer."""
    async with engine(always_ok) as served, pool() as upstream:
        async with upstream.exchange(served.address, *GET) as answer:
            pass
        with pytest.raises(RuntimeError, match="inside its exchange"):
            await answer.read(10)


@on_both_loops
async def test_an_answer_has_one_reader() -> None:
    """A second reader is refused instead of stealing pieces."""
    async with engine(answering(STREAM_HEAD)) as served, pool() as upstream:
        async with upstream.exchange(served.address, *GET) as answer:
            first = asyncio.ensure_future(answer.read(10))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="one reader"):
                await answer.read(10)
        with pytest.raises(RuntimeError, match="inside its exchange"):
            await first


# Requests


@on_both_loops
async def test_the_request_on_the_wire() -> None:
    """The caller's end-to-end headers go out as given, between our Host and our Content-Length; all others stay."""
    headers = [
        (b"Content-Type", b"application/json"),
        (b"Host", b"evil"),
        (b"Content-Length", b"99"),
        (b"Connection", b"close, X-Hop"),
        (b"X-Hop", b"1"),
        (b"TE", b"trailers"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Upgrade", b"h2c"),
        (b"Expect", b"100-continue"),
        (b"Proxy-Authorization", b"secret"),
        (b"x-request-id", b"7"),
    ]
    async with engine(always_ok) as served, pool() as upstream:
        async with upstream.exchange(served.address, "POST", "/v1/x?y=%20", headers, b"{}") as answer:
            assert answer.status == 200
        assert served.requests == [
            f"POST /v1/x?y=%20 HTTP/1.1\r\nhost: 127.0.0.1:{served.address.port}\r\n".encode()
            + b"Content-Type: application/json\r\nx-request-id: 7\r\ncontent-length: 2\r\n\r\n{}"
        ]


@on_both_loops
async def test_content_length_goes_with_methods_that_have_a_body() -> None:
    """An empty POST says so, a GET says nothing."""
    async with engine(always_ok) as served, pool() as upstream:
        for method in ("GET", "POST"):
            async with upstream.exchange(served.address, method, "/", []):
                pass
        assert [b"content-length: 0" in request for request in served.requests] == [False, True]


@pytest.mark.parametrize("size", [65536, 65537, 3_000_000])
@on_both_loops
async def test_bodies_of_every_size_arrive_whole(size: int) -> None:
    """A body is sent whole whether it is joined to the head or pushed slice by slice, and the connection is kept."""
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with engine(always_ok) as served, pool() as upstream:
        for _ in range(2):
            async with upstream.exchange(served.address, "POST", "/", [], body) as answer:
                assert await answer.read(2) == b"ok"
        assert [request.endswith(b"\r\n\r\n" + body) for request in served.requests] == [True, True]
        assert served.connections == 1


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GET", "/", [(b"x-key", b"top-secret\r\nx-evil: 1")]),
        ("GET", "/", [(b"x-key", b"top-secret\n")]),
        ("GET", "/", [(b"x-key", b"top-secret\r")]),
        ("GET", "/", [(b"x-key", b"top-secret\0")]),
        ("GET", "/", [(b"x-key: 1\r\nx-evil", b"top-secret")]),
        ("GET", "/", [(b"Transfer-Encoding ", b"top-secret")]),
        ("GET", "/", [(b"x:", b"top-secret")]),
        ("GET", "/", [(b"", b"top-secret")]),
        ("GET", "/ HTTP/1.1\r\nx-evil: 1\r\n", []),
        ("GET", "/a b", []),
        ("GET", "/ä", []),
        ("GET", "", []),
        ("GET", "http://elsewhere/", []),
        ("GET /", "/", []),
        ("", "/", []),
    ],
)
async def test_nothing_can_be_injected(method: str, target: str, headers: list[tuple[bytes, bytes]]) -> None:
    """What would read as another request on the wire is a ValueError that does not repeat the value."""
    async with pool() as upstream:
        with pytest.raises(ValueError, match=r"header|target|method") as caught:
            upstream.exchange(Address("127.0.0.1", 1), method, target, headers)
        assert "secret" not in str(caught.value)


@on_both_loops
async def test_unix_sockets() -> None:
    """An address with a socket path is reached there, with a loopback Host."""
    async with engine(always_ok, uds=True) as served, pool() as upstream:
        assert (await ask(upstream, served.address))[1] == b"ok"
        assert b"\r\nhost: localhost\r\n" in served.requests[0]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    key, cert, both = folder / "key.pem", folder / "cert.pem", folder / "both.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    extension = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command.split(), *extension], check=True, capture_output=True)
    both.write_text(key.read_text() + cert.read_text())
    return both


def serving_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@on_both_loops
async def test_tls(certificate: Path) -> None:
    """An address with tls is spoken to in TLS, over a kept-alive connection, large bodies included."""
    trusting = ssl.create_default_context(cafile=certificate)
    async with engine(always_ok, tls=serving_tls(certificate)) as served, pool(tls=trusting) as upstream:
        for reused in (False, True):
            async with upstream.exchange(served.address, "POST", "/", [], HUGE[:3_000_000]) as answer:
                assert (await answer.read(2), answer.reused) == (b"ok", reused)


@on_both_loops
async def test_an_untrusted_certificate_is_refused(certificate: Path) -> None:
    """Without trust there is no exchange, no request byte is sent, and the error says why."""
    async with engine(always_ok, tls=serving_tls(certificate)) as served, pool() as upstream:
        for _ in range(2):
            with pytest.raises(ConnectFailed, match=r"https://127\.0\.0\.1:\d+.*certificate") as caught:
                await ask(upstream, served.address)
            assert caught.value.sent is False
        assert served.requests == []


# The pool


@on_both_loops
async def test_connections_are_reused() -> None:
    """A whole answer leaves its connection to the next exchange; repr shows where it is."""
    async with engine(always_ok) as served, pool() as upstream:
        assert repr(upstream) == "<UpstreamPool 0 addresses, 0 active, 0 idle>"
        async with upstream.exchange(served.address, *GET) as answer:
            assert answer.reused is False
            assert repr(upstream) == "<UpstreamPool 1 addresses, 1 active, 0 idle>"
            await answer.read(2)
        assert repr(upstream) == "<UpstreamPool 1 addresses, 0 active, 1 idle>"
        answer, _ = await ask(upstream, served.address)
        assert answer.reused is True
        assert served.connections == 1


@on_both_loops
async def test_the_last_returned_connection_is_used_first() -> None:
    """The pool is last in, first out, so that surplus connections get old and go."""
    marks = iter(range(10))

    async def marked(engine: Engine, reader: Reader, writer: Writer) -> None:
        mark = next(marks)
        while True:
            await engine.request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nX-Mark: %d\r\nContent-Length: 0\r\n\r\n" % mark)

    async with engine(marked) as served, pool() as upstream:
        first, second = upstream.exchange(served.address, *GET), upstream.exchange(served.address, *GET)
        await first.__aenter__()
        answer = await second.__aenter__()
        mark = dict(answer.headers)[b"x-mark"]
        await first.__aexit__(None, None, None)
        await second.__aexit__(None, None, None)
        assert dict((await ask(upstream, served.address))[0].headers)[b"x-mark"] == mark


@on_both_loops
async def test_no_more_idle_connections_than_allowed() -> None:
    """Past the limit per address the longest idle connection is closed."""
    async with engine(always_ok) as served, pool(idle_connections_per_address=1) as upstream:
        exchanges = [upstream.exchange(served.address, *GET) for _ in range(3)]
        for exchange in exchanges:
            await exchange.__aenter__()
        for exchange in exchanges:
            await exchange.__aexit__(None, None, None)
        assert repr(upstream) == "<UpstreamPool 1 addresses, 0 active, 1 idle>"
        await until(lambda: len(served.running) == 1)


@on_both_loops
async def test_keep_alive_can_be_off() -> None:
    """With no idle connections allowed the engine is told that the connection closes, and it does."""
    async with engine(always_ok) as served, pool(idle_connections_per_address=0) as upstream:
        await ask(upstream, served.address)
        assert b"\r\nconnection: close\r\n" in served.requests[0]
        await served.gone.wait()


@on_both_loops
async def test_a_connection_idle_for_too_long_is_closed() -> None:
    """After keep_alive_s an idle connection is closed without anybody asking for it."""
    async with engine(always_ok) as served, pool(keep_alive_s=0.02) as upstream:
        await ask(upstream, served.address)
        await served.gone.wait()
        assert repr(upstream) == "<UpstreamPool 0 addresses, 0 active, 0 idle>"


@on_both_loops
async def test_a_connection_idle_for_too_long_is_not_reused() -> None:
    """A connection past keep_alive_s is passed over even if no sweep has come by yet."""
    async with engine(always_ok) as served, pool(keep_alive_s=4) as upstream:
        await ask(upstream, served.address)
        (connection,) = upstream._open
        connection.idle_since -= 4
        answer, _ = await ask(upstream, served.address)
        assert answer.reused is False


@pytest.mark.parametrize("unasked", [b"", b"HTTP/1.1 408 Request Timeout\r\n\r\n"], ids=["eof", "bytes"])
@on_both_loops
async def test_an_idle_connection_on_which_something_comes_is_dropped(unasked: bytes) -> None:
    """EOF or bytes on an idle connection end it at once; they never become an answer."""
    go_on = asyncio.Event()

    async def then_something(engine: Engine, reader: Reader, writer: Writer) -> None:
        await engine.request(reader)
        writer.write(OK)
        await go_on.wait()
        if unasked:
            writer.write(unasked)
        else:
            writer.write_eof()
        await engine.peer_leaves(reader)

    async with engine(then_something) as served, pool() as upstream:
        await ask(upstream, served.address)
        assert "1 idle" in repr(upstream)
        go_on.set()
        await served.gone.wait()
        assert "0 idle" in repr(upstream)
        answer, body = await ask(upstream, served.address)
        assert (answer.reused, body) == (False, b"ok")


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + OK,
        OK + b"garbage",
    ],
    ids=["close", "http-1.0", "second-answer", "garbage-behind"],
)
@on_both_loops
async def test_a_connection_that_cannot_be_reused_is_not(raw: bytes) -> None:
    """An engine that closes, or sends more than was asked, gives its answer and loses the connection."""
    async with engine(answering(raw)) as served, pool() as upstream:
        assert (await ask(upstream, served.address))[1] == b"ok"
        assert "0 idle" in repr(upstream)
        await served.gone.wait()


@on_both_loops
async def test_break_off_closes_idle_connections_and_cuts_busy_ones() -> None:
    """After break_off no connection to the address is left; a running exchange fails with BrokenAnswer."""
    async with engine(answering(STREAM_HEAD + b"1\r\na\r\n")) as served, pool() as upstream:
        async with upstream.exchange(served.address, *GET) as answer:
            upstream.break_off(served.address)
            with pytest.raises(BrokenAnswer, match="the backend stops"):
                await answer.read(100)
        assert repr(upstream) == "<UpstreamPool 0 addresses, 0 active, 0 idle>"
        await served.gone.wait()


@on_both_loops
async def test_a_closed_pool_cuts_what_runs_and_refuses_more() -> None:
    """aclose fails running exchanges, leaves no connection, and lets no new exchange begin."""
    async with engine(silent) as served, pool() as upstream:
        running = asyncio.ensure_future(ask(upstream, served.address))
        await served.asked.wait()
        await upstream.aclose()
        assert not upstream._open
        with pytest.raises(BrokenAnswer, match="the gateway closes"):
            await running
        with pytest.raises(RuntimeError, match="closed"):
            upstream.exchange(served.address, *GET)


# Stale connections


@on_both_loops
async def test_a_stale_connection_is_replaced_once() -> None:
    """A request that meets the close of a kept connection is sent again on a new one, unnoticed."""

    async def once_per_connection(engine: Engine, reader: Reader, writer: Writer) -> None:
        await engine.request(reader)
        writer.write(OK)
        await engine.request(reader)

    async with engine(once_per_connection) as served, pool() as upstream:
        await ask(upstream, served.address)
        answer, body = await ask(upstream, served.address)
        assert (answer.reused, body) == (False, b"ok")
        assert (served.connections, len(served.requests)) == (2, 3)


@on_both_loops
async def test_a_new_connection_is_not_retried() -> None:
    """An engine that hangs up on a new connection is asked once, and the error says nothing had come."""
    async with engine(closing_after(b"")) as served, pool() as upstream:
        with pytest.raises(BrokenAnswer, match="without an answer") as caught:
            await ask(upstream, served.address)
        assert (caught.value.sent, caught.value.answered) == (True, False)
        assert served.connections == 1


@on_both_loops
async def test_the_retry_is_not_retried() -> None:
    """After a stale connection one new one is tried, no more."""
    async with engine(answering(OK)) as served, pool() as upstream:
        await ask(upstream, served.address)

        async def hang_up(engine: Engine, reader: Reader, writer: Writer) -> None:
            await engine.request(reader)

        served.script = hang_up
        (connection,) = upstream._open
        exchange = asyncio.ensure_future(ask(upstream, served.address))
        await until(lambda: not connection.is_complete)
        connection.connection_lost(None)
        connection.abort()
        with pytest.raises(BrokenAnswer):
            await exchange
        assert served.connections == 2


@on_both_loops
async def test_a_reused_connection_that_began_to_answer_is_not_retried() -> None:
    """One byte of an answer is enough for the request not to be sent twice."""

    async def breaking(engine: Engine, reader: Reader, writer: Writer) -> None:
        await engine.request(reader)
        writer.write(OK)
        await engine.request(reader)
        writer.write(b"H")

    async with engine(breaking) as served, pool() as upstream:
        await ask(upstream, served.address)
        with pytest.raises(BrokenAnswer):
            await ask(upstream, served.address)
        assert (served.connections, len(served.requests)) == (1, 2)


@on_both_loops
async def test_a_failed_retry_admits_that_bytes_were_sent() -> None:
    """When the new connection is refused, the error still says that the engine may have seen the request."""

    async def once(engine: Engine, reader: Reader, writer: Writer) -> None:
        await engine.request(reader)
        writer.write(OK)
        await engine.request(reader)

    async with engine(once, uds=True) as served, pool() as upstream:
        await ask(upstream, served.address)
        Path(served.address.uds).unlink()
        with pytest.raises(ConnectFailed) as caught:
            await ask(upstream, served.address)
        assert caught.value.sent is True


# Failures


@on_both_loops
async def test_no_listener() -> None:
    """A refused connection and a missing socket name the address and the system's reason."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        async with pool() as upstream:
            with pytest.raises(ConnectFailed, match=rf"http://127\.0\.0\.1:{port}: Connection refused") as caught:
                await ask(upstream, Address("127.0.0.1", port))
            assert caught.value.sent is False
            with pytest.raises(ConnectFailed, match=r"unix:absent\.sock: No such file"):
                await ask(upstream, Address(uds="absent.sock"))


@on_both_loops
async def test_a_host_name_that_cannot_be_one() -> None:
    """A name the resolver refuses without asking anyone is a failed connection."""
    async with pool() as upstream:
        with pytest.raises(ConnectFailed):
            await ask(upstream, Address("a" * 70, 80))


@on_both_loops
async def test_connecting_is_bounded() -> None:
    """A peer that accepts but never finishes the TLS handshake is given up after connect_s, and sees us leave."""

    async def mute(engine: Engine, reader: Reader, writer: Writer) -> None:
        await engine.peer_leaves(reader)

    trust = ssl.create_default_context()  # ready, because reading the trust store is under the same limit
    async with engine(mute) as served, pool(connect_s=0.05, tls=trust) as upstream:
        address = Address("127.0.0.1", served.address.port, tls=True)
        with pytest.raises(ConnectTimedOut, match=r"0\.05 s") as caught:
            await ask(upstream, address)
        assert caught.value.sent is False
        await served.gone.wait()


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\n"])
@on_both_loops
async def test_the_head_is_bounded_in_time(sent: bytes) -> None:
    """Without a whole answer head in first_byte_s the exchange ends, and the engine sees us leave."""
    async with engine(answering(sent)) as served, pool(first_byte_s=0.05) as upstream:
        with pytest.raises(FirstByteTimedOut, match=f"127.0.0.1:{served.address.port}"):
            await ask(upstream, served.address)
        await served.gone.wait()


@on_both_loops
async def test_the_pause_between_pieces_is_bounded() -> None:
    """A body that stops coming for idle_s raises, after the pieces that came, and the engine sees us leave."""
    async with engine(answering(STREAM_HEAD + b"1\r\na\r\n")) as served, pool(idle_s=0.05) as upstream:
        pieces: list[bytes] = []
        with pytest.raises(IdleTimedOut, match="sent no more"):
            await read_into(pieces, upstream, served.address)
        assert pieces == [b"a"]
        await served.gone.wait()


@on_both_loops
async def test_a_slow_reader_makes_no_engine_late() -> None:
    """Time the reader spends elsewhere does not count against idle_s."""

    async def two_pieces(engine: Engine, reader: Reader, writer: Writer) -> None:
        await engine.request(reader)
        engine.asked.clear()
        writer.write(STREAM_HEAD + b"1\r\na\r\n")
        await engine.asked.wait()
        writer.write(b"1\r\nb\r\n0\r\n\r\n")
        await engine.peer_leaves(reader)

    async with engine(two_pieces) as served, pool(idle_s=0.1) as upstream, exchanging(upstream, served) as answer:
        chunks = answer.chunks()
        assert await anext(chunks) == b"a"
        await asyncio.sleep(0.3)
        served.asked.set()
        assert await anext(chunks) == b"b"


@on_both_loops
async def test_an_engine_that_takes_no_request_is_bounded() -> None:
    """A request body that is not taken for idle_s ends the exchange, and little of it was buffered."""
    async with engine(deaf) as served, pool(idle_s=0.1) as upstream:
        with pytest.raises(IdleTimedOut, match="took no more of the request"):
            async with upstream.exchange(served.address, "POST", "/", [], HUGE):
                pass


@on_both_loops
async def test_a_slow_but_steady_upload_is_not_late() -> None:
    """An engine that keeps taking the request may take longer than idle_s for the whole of it."""

    async def sipping(engine: Engine, reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(16):
            await reader.readexactly(1_000_000)
            await asyncio.sleep(0.03)
        writer.write(OK)
        await engine.peer_leaves(reader)

    async with engine(sipping) as served, pool(idle_s=0.25) as upstream:
        exchange = upstream.exchange(served.address, "POST", "/", [], HUGE[:16_000_000])
        async with exchange as answer:
            assert answer.status == 200


@on_both_loops
async def test_an_early_answer_is_heard() -> None:
    """An engine that refuses a large request before reading it is quoted, and the connection is not kept."""

    async def refusing(engine: Engine, reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await asyncio.Event().wait()

    async with engine(refusing) as served, pool() as upstream:
        async with upstream.exchange(served.address, "POST", "/", [], HUGE) as answer:
            assert (answer.status, await answer.read(3)) == (413, b"big")
        assert "0 idle" in repr(upstream)


@pytest.mark.parametrize(
    "rest",
    [b"Content-Length: 5\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc"]
    + [b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n" + end for end in (b"", b"0\r\n", b"0\r\nX: 1\r\n")],
)
@on_both_loops
async def test_a_body_cut_short_is_no_body(rest: bytes) -> None:
    """A body that ends before it should raises BrokenAnswer after its pieces; it never looks complete."""
    async with engine(closing_after(b"HTTP/1.1 200 OK\r\n" + rest)) as served, pool() as upstream:
        pieces: list[bytes] = []
        with pytest.raises(BrokenAnswer, match="before its answer was complete") as caught:
            await read_into(pieces, upstream, served.address)
        assert b"".join(pieces) == b"abc"
        assert (caught.value.sent, caught.value.answered) == (True, True)


@on_both_loops
async def test_a_reset_is_not_the_end_of_a_body() -> None:
    """A body that runs to the connection's end is broken, not complete, if the connection was reset."""

    async def resetting(engine: Engine, reader: Reader, writer: Writer) -> None:
        await engine.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nabc")
        engine.asked.clear()
        await engine.asked.wait()
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async with engine(resetting) as served, pool() as upstream, exchanging(upstream, served) as answer:
        chunks = answer.chunks()
        assert await anext(chunks) == b"abc"
        served.asked.set()
        with pytest.raises(BrokenAnswer, match="reset"):
            await anext(chunks)


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * HEAD_LIMIT_BYTES + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: 1234567890\r\n" * 10_000 + b"\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000,
        STREAM_HEAD + b"nonsense\r\n",
        STREAM_HEAD + b"1;" + b"x" * 1_000_000,
        STREAM_HEAD + b"0\r\n" + b"X: 1\r\n" * 100_000,
    ],
    ids=lambda raw: raw[:60].decode().replace("\r\n", "|"),
)
@on_both_loops
async def test_what_is_not_an_answer_is_refused(raw: bytes) -> None:
    """Other protocols, codings we do not take off and endless heads raise GarbageAnswer and end the connection."""
    async with engine(answering(raw)) as served, pool() as upstream:
        with pytest.raises(GarbageAnswer, match=f"127.0.0.1:{served.address.port}"):
            await ask(upstream, served.address)
        assert "0 idle" in repr(upstream)
        await served.gone.wait()


# Leaving


@on_both_loops
async def test_leaving_early_is_seen_by_the_engine() -> None:
    """An exchange left in the middle of its answer closes the connection, so that the engine stops."""
    async with engine(endless) as served, pool() as upstream:
        async with upstream.exchange(served.address, *GET) as answer:
            assert (await anext(answer.chunks())).startswith(b"hello")
        assert "0 active, 0 idle" in repr(upstream)
        await served.gone.wait()


@on_both_loops
async def test_an_unread_but_whole_answer_keeps_its_connection() -> None:
    """A body that has come whole need not be read for the connection to be reused."""
    async with engine(always_ok) as served, pool() as upstream:
        for reused in (False, True):
            async with upstream.exchange(served.address, *GET) as answer:
                (connection,) = upstream._open
                await until(lambda connection=connection: connection.is_complete)  # type: ignore[misc]
            assert answer.reused is reused


async def cancelled(task: asyncio.Future[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@on_both_loops
async def test_cancelled_while_connecting() -> None:
    """Cancelling during the connect leaves no connection, ours or the engine's."""

    async def mute(engine: Engine, reader: Reader, writer: Writer) -> None:
        engine.asked.set()
        await engine.peer_leaves(reader)

    async with engine(mute) as served, pool() as upstream:
        task = asyncio.ensure_future(ask(upstream, Address("127.0.0.1", served.address.port, tls=True)))
        await served.asked.wait()
        await cancelled(task)
        await served.gone.wait()
        assert not upstream._active


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@on_both_loops
async def test_cancelled_at_every_step_of_an_exchange(certificate: Path, tls: bool) -> None:
    """Cancelled after any number of loop turns, an exchange leaves no active and no stray connection."""
    trusting = ssl.create_default_context(cafile=certificate)
    serving = serving_tls(certificate) if tls else None
    async with engine(always_ok, tls=serving) as served, pool(tls=trusting) as upstream:
        for turns in range(40):
            upstream.break_off(served.address)
            task = asyncio.ensure_future(ask(upstream, served.address))
            for _ in range(turns):
                await asyncio.sleep(0)
            if not task.done():
                await cancelled(task)
            assert not upstream._active
        upstream.break_off(served.address)
        await until(lambda: not upstream._open)
        await until(lambda: not served.running)


@on_both_loops
async def test_cancelled_while_waiting_for_the_head() -> None:
    """Cancelling before the first byte closes the connection: the engine must not generate for nobody."""
    async with engine(silent) as served, pool() as upstream:
        task = asyncio.ensure_future(ask(upstream, served.address))
        await served.asked.wait()
        await cancelled(task)
        assert not upstream._active
        await served.gone.wait()


@on_both_loops
async def test_cancelled_in_the_body() -> None:
    """Cancelling while the body comes closes the connection."""
    async with engine(answering(STREAM_HEAD + b"1\r\na\r\n")) as served, pool() as upstream:
        begun = asyncio.Event()

        async def read() -> None:
            async with upstream.exchange(served.address, *GET) as answer:
                async for _ in answer.chunks():
                    begun.set()

        task = asyncio.ensure_future(read())
        await begun.wait()
        await cancelled(task)
        assert not upstream._active
        await served.gone.wait()


@on_both_loops
async def test_cancelling_a_read_loses_no_byte() -> None:
    """A read given up within the exchange can be taken up again where it was."""
    async with engine(answering(STREAM_HEAD)) as served, pool() as upstream, exchanging(upstream, served) as answer:
        task = asyncio.ensure_future(answer.read(10))
        await asyncio.sleep(0)
        (connection,) = upstream._open
        connection.data_received(b"1\r\na\r\n")
        await cancelled(task)
        assert await anext(answer.chunks()) == b"a"


@on_both_loops
async def test_cancelled_while_sending_a_huge_body() -> None:
    """Cancelling a request that the peer does not take closes the connection, with little of it buffered."""
    async with engine(deaf) as served, pool() as upstream:

        async def send() -> None:
            async with upstream.exchange(served.address, "POST", "/", [], HUGE):
                raise AssertionError("it was not answered")

        task = asyncio.ensure_future(send())
        await until(lambda: any(connection._is_write_paused for connection in upstream._open))
        (connection,) = upstream._open
        assert connection._transport.get_write_buffer_size() < 512 * 1024
        await cancelled(task)
        await until(lambda: not upstream._open)


# Back-pressure


@on_both_loops
async def test_a_reader_that_stays_away_stops_the_engine() -> None:
    """Of 50 MB to a reader that does not read, little is taken from the engine; read at last, all of it comes."""
    written = 0

    async def flooding(engine: Engine, reader: Reader, writer: Writer) -> None:
        nonlocal written
        await engine.request(reader)
        writer.transport.set_write_buffer_limits(0)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
        for _ in range(1000):
            writer.write(b"x" * 50_000)
            await writer.drain()
            written += 50_000
        await engine.peer_leaves(reader)

    async with engine(flooding, uds=True) as served, pool() as upstream:
        async with upstream.exchange(served.address, *GET) as answer:
            (connection,) = upstream._open
            await until(lambda: connection._is_read_paused)
            before = -1
            while before != written:
                before = written
                await asyncio.sleep(0.1)
            assert connection._buffered_bytes < 2 * HIGH_WATER_BYTES
            assert written < 2_000_000
            length = 0
            async for piece in answer.chunks():
                length += len(piece)
                assert len(piece) < 2 * HIGH_WATER_BYTES
            assert length == 50_000_000
        assert "1 idle" in repr(upstream)


@on_both_loops
async def test_an_error_is_an_upstream_error() -> None:
    """Every failure is an UpstreamError that says whether bytes were sent, so one except clause sees them all."""
    errors: list[UpstreamError] = [
        kind("x", sent=True)
        for kind in (ConnectFailed, ConnectTimedOut, FirstByteTimedOut, IdleTimedOut, GarbageAnswer, AnswerTooLong)
    ]
    errors.append(BrokenAnswer("x", sent=True, answered=False))
    assert [error.sent for error in errors] == [True] * 7
