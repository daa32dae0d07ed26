"""One HTTP/1.1 exchange with an engine: a request out, its answer back as it comes, over kept-alive connections.

Theory of operation. A connection is an ``asyncio.Protocol`` that feeds what it receives to httptools and keeps the body
pieces until the reader takes them all at once; per piece there is no task, no timer and no copy of our own. The request
body is pushed from ``resume_writing``, so one wait, for the head, covers sending and answering, and an engine that
answers early is heard. Time limits are kept by one sweep per pool: a connection notes when its reader began to wait,
and the sweep, some times per limit, looks for those that wait too long. A reader that is away (a slow client) makes no
engine late.

Who owns what. A connection is either idle, and in the pool, or belongs to one ``Exchange``. Leaving the exchange, by
whatever exit, cancellation included, is the only way back: whole answers return their connection to the pool, all
others close it, and that is how an engine learns that nobody wants its tokens any more.

    UpstreamError            sent: request bytes may have reached the engine
    ├── ConnectFailed        refused, unreachable, unknown host, TLS
    ├── ConnectTimedOut
    ├── FirstByteTimedOut    the whole request went out, no answer head came back
    ├── IdleTimedOut         the request body was not taken, or the answer's body stopped coming
    ├── BrokenAnswer         cut before its head (answered=False) or in its body (answered=True)
    ├── GarbageAnswer        not HTTP/1.1 as we read it
    └── AnswerTooLong        more than the caller of read() allowed
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import httptools

if TYPE_CHECKING:
    from types import TracebackType

    from backends.address import Address

Headers = Sequence[tuple[bytes, bytes]]

HIGH_WATER_BYTES = 256 * 1024  # of untaken body: above it the socket is not read; taking all of it resumes
HEAD_LIMIT_BYTES = 64 * 1024  # of head, and of any run of received bytes that brings no body
_WRITE_SLICE_BYTES = 128 * 1024
_CLOSE_TIMEOUT_S = 5.0
_JOINED_BODY_BYTES = 64 * 1024  # up to here one copy is cheaper than a second write

# RFC 9110 7.6.1; "trailer" belongs to chunked coding, which we take off.
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"trailers",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Ours to write, and Expect: the body follows at once, so nobody waits for the 100.
_REQUEST_DROPS = _HOP_BY_HOP | {b"host", b"content-length", b"expect"}
_BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})
_TOKEN_BYTES = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class UpstreamError(Exception):
    """An exchange with an engine failed. The message names the address and is meant for people.

    ``sent``: request bytes may have reached the engine, so it may have begun to work.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class ConnectFailed(UpstreamError):
    """No connection could be made."""


class ConnectTimedOut(UpstreamError):
    """No connection was made within ``connect_s``."""


class FirstByteTimedOut(UpstreamError):
    """The request went out, and no whole answer head came back within ``first_byte_s``."""


class IdleTimedOut(UpstreamError):
    """For ``idle_s`` the engine took nothing of the request body, or sent nothing more of the answer's."""


class BrokenAnswer(UpstreamError):
    """The connection ended before the answer did. ``answered``: its head had come."""

    def __init__(self, message: str, *, sent: bool, answered: bool) -> None:
        super().__init__(message, sent=sent)
        self.answered = answered


class GarbageAnswer(UpstreamError):
    """What came back is not an HTTP/1.1 answer, or one with a head past HEAD_LIMIT_BYTES."""


class AnswerTooLong(UpstreamError):
    """The body is longer than the caller of ``Answer.read`` allowed."""


@dataclass(frozen=True, slots=True)
class UpstreamTimeouts:
    """How long an engine may take, in seconds. Noticed late by up to an eighth, and by a second at most.

    ``connect_s`` covers name, TCP and TLS. ``first_byte_s`` runs from the end of the request to the end of the answer's
    head. ``idle_s`` bounds the time between two pieces of a body, in both directions.
    """

    connect_s: float = 5.0
    first_byte_s: float = 600.0
    idle_s: float = 300.0


class Answer:
    """An engine's answer, from its head on. Valid inside its exchange only.

    ``headers``: end-to-end ones in their order, names lower-cased; Content-Length is among them, the framing is not.
    ``reused``: it came over a kept-alive connection.
    """

    __slots__ = ("_connection", "headers", "reason", "reused", "status")

    def __init__(
        self, status: int, reason: str, headers: list[tuple[bytes, bytes]], reused: bool, connection: _Connection
    ) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers
        self.reused = reused
        self._connection: _Connection | None = connection

    def __repr__(self) -> str:
        return f"<Answer {self.status} {self.reason}>"

    def chunks(self) -> AsyncIterator[bytes]:
        """Iterate over the body as it comes: never empty, boundaries arbitrary, all that has been received at once.

        One reader at a time. Cancelling the reader loses no byte. Raises IdleTimedOut, BrokenAnswer or GarbageAnswer,
        after the pieces that came before the failure; RuntimeError outside the exchange.
        """
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while True:
            connection = self._connection
            if connection is None:
                raise RuntimeError("an answer can be read inside its exchange only")
            if connection.pieces:
                return connection.take()
            if connection.is_complete:
                raise StopAsyncIteration
            await connection.more()

    async def read(self, limit_bytes: int) -> bytes:
        """Return the whole body. Raises AnswerTooLong past *limit_bytes*, and what ``chunks`` raises."""
        pieces = []
        length = 0
        async for piece in self.chunks():
            length += len(piece)
            if length > limit_bytes:
                raise AnswerTooLong(f"the answer is longer than {limit_bytes} bytes", sent=True)
            pieces.append(piece)
        return b"".join(pieces)

    def _expire(self) -> None:
        self._connection = None


class _Stop(Exception):
    """Raised in a parser callback to end parsing; the connection's state already says why."""


class _Connection(asyncio.Protocol):
    """One connection: idle in the pool, or carrying one exchange at a time.

    ``is_complete`` is true while no (more) answer is expected, so it is what makes received bytes unasked for.
    """

    __slots__ = (
        "_answer",
        "_buffered_bytes",
        "_error",
        "_head_bytes",
        "_headers",
        "_is_head_request",
        "_is_read_paused",
        "_is_reusable",
        "_is_until_eof",
        "_is_write_paused",
        "_loop",
        "_moved_at",
        "_other_bytes",
        "_parser",
        "_pool",
        "_reason",
        "_transport",
        "_unsent",
        "_waiter",
        "address",
        "idle_since",
        "is_complete",
        "is_heard",
        "pieces",
    )

    def __init__(self, pool: UpstreamPool, address: Address, loop: asyncio.AbstractEventLoop) -> None:
        self.address = address
        self.idle_since = 0.0
        self.is_complete = True
        self.is_heard = False
        self.pieces: list[bytes] = []
        self._answer: Answer | None = None
        self._buffered_bytes = 0
        self._error: UpstreamError | None = None
        self._head_bytes = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._is_head_request = False
        self._is_read_paused = False
        self._is_reusable = True
        self._is_until_eof = False
        self._is_write_paused = False
        self._loop = loop
        self._moved_at = 0.0
        self._other_bytes = 0
        self._parser: httptools.HttpResponseParser | None = None
        self._pool = pool
        self._reason = b""
        self._transport: asyncio.Transport  # from connection_made on, before which nobody has this connection
        self._unsent: memoryview | None = None
        self._waiter: asyncio.Future[None] | None = None

    # What the exchange does

    async def ask(self, method: str, head: bytes, body: bytes) -> Answer:
        """Send a request and return its answer once the head has come.

        Raises UpstreamError. Whoever calls owns the connection and ends the exchange, also if this is cancelled.
        """
        self._begin(method == "HEAD")
        self._send(head, body)
        while self._answer is None:
            await self.more()
        return self._answer

    async def more(self) -> None:
        """Return when something new may have come: head, body or end. Raises UpstreamError if nothing more will."""
        if self._error is not None:
            raise self._error
        if self._waiter is not None:
            raise RuntimeError("an answer has one reader at a time")
        self._moved_at = self._loop.time()
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def take(self) -> bytes:
        """Hand out all body received so far, at least one piece, and let more come."""
        pieces = self.pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._buffered_bytes = 0
        if self._is_read_paused:
            self._resume_reading()
        return body

    def finish(self) -> bool:
        """End the exchange. Returns whether the connection can carry another; if not, the caller aborts it."""
        can_go_on = (
            self.is_complete
            and self._is_reusable
            and self._error is None
            and not self._is_read_paused
            and self._unsent is None
            and self.is_open()
            and self._transport.get_write_buffer_size() == 0
        )
        self.is_complete = True
        self._parser = None
        self._unsent = None
        self.pieces = []
        if self._answer is not None:
            self._answer._expire()
            self._answer = None
        self._wake()
        return can_go_on

    def is_open(self) -> bool:
        return not self._transport.is_closing()

    def abort(self) -> None:
        """Close at once, whatever is unsent; the peer sees the connection end."""
        self._transport.abort()

    def retire(self) -> None:
        """Let the running exchange be this connection's last."""
        self._is_reusable = False

    def fail(self, error: UpstreamError) -> None:
        """End the answer with *error*, unless it already ended; body pieces received before are still handed out."""
        if self._error is None and not self.is_complete:
            self._error = error
            self.abort()
            self._wake()

    def check(self, now: float, timeouts: UpstreamTimeouts) -> None:
        """Fail the exchange if its reader has waited too long for the engine. *now*: the loop's time."""
        if self._waiter is None:
            return
        waited_s = now - self._moved_at
        if self._unsent is not None or self._transport.get_write_buffer_size() > 0:
            if waited_s >= timeouts.idle_s:
                self.fail(IdleTimedOut(f"{self.address} took no more of the request for {waited_s:.3g} s", sent=True))
        elif self._answer is None:
            if waited_s >= timeouts.first_byte_s:
                self.fail(FirstByteTimedOut(f"{self.address} has not answered after {waited_s:.3g} s", sent=True))
        elif waited_s >= timeouts.idle_s:
            self.fail(IdleTimedOut(f"{self.address} sent no more of its answer for {waited_s:.3g} s", sent=True))

    def _begin(self, is_head_request: bool) -> None:
        self.is_complete = False
        self.is_heard = False
        self._buffered_bytes = 0
        self._head_bytes = 0
        self._headers = []
        self._is_head_request = is_head_request
        self._is_until_eof = False
        self._other_bytes = 0
        self._reason = b""
        # A new one costs 0.25 us and starts from a known state, which a kept one does not after HEAD or an error.
        self._parser = httptools.HttpResponseParser(self)

    def _send(self, head: bytes, body: bytes) -> None:
        if len(body) <= _JOINED_BODY_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._unsent = memoryview(body)
            self._push()

    def _push(self) -> None:
        while self._unsent is not None and not self._is_write_paused and self.is_open():
            self._transport.write(self._unsent[:_WRITE_SLICE_BYTES])
            self._unsent = self._unsent[_WRITE_SLICE_BYTES:] if len(self._unsent) > _WRITE_SLICE_BYTES else None
        self._moved_at = self._loop.time()

    def _resume_reading(self) -> None:
        self._is_read_paused = False
        if self.is_open():  # uvloop raises on a closed one
            self._transport.resume_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._pool._opened(self)

    def data_received(self, data: bytes) -> None:
        if self.is_complete:
            # Nobody asked for this. It must never become the answer to the next request.
            self._end_idle()
            return
        if self._error is not None:
            return
        assert self._parser is not None
        self.is_heard = True
        buffered_before = self._buffered_bytes
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._is_reusable = False
            self.fail(GarbageAnswer(f"{self.address} does not answer in HTTP/1.1: {error}", sent=True))
        if self._buffered_bytes > buffered_before:
            self._body_came()
        else:
            self._count_other(len(data))

    def eof_received(self) -> None:
        if self._is_until_eof and self._error is None:
            self._end_of_answer()
        self._cut("closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        self._cut(f"cut the connection ({_reason_of(exc)})" if isinstance(exc, OSError) else "closed the connection")
        self._pool._lost(self)

    def pause_writing(self) -> None:
        self._is_write_paused = True

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._push()

    def _body_came(self) -> None:
        self._other_bytes = 0
        if self._buffered_bytes > HIGH_WATER_BYTES and not self._is_read_paused and not self.is_complete:
            self._is_read_paused = True
            self._transport.pause_reading()
        self._wake()

    def _count_other(self, length: int) -> None:
        # Heads, 1xx answers, chunk extensions and trailers could go on for ever without filling the body buffer.
        self._other_bytes += length
        if self._other_bytes > HEAD_LIMIT_BYTES:
            self._refuse(f"sent more than {HEAD_LIMIT_BYTES} bytes without any of a body")

    def _cut(self, what: str) -> None:
        answered = self._answer is not None
        when = "before its answer was complete" if answered else "without an answer"
        self.fail(BrokenAnswer(f"{self.address} {what} {when}", sent=True, answered=answered))
        self._end_idle()

    def _end_idle(self) -> None:
        self._is_reusable = False
        if self.is_complete:
            self._pool._drop_idle(self)
            self.abort()

    def _refuse(self, why: str) -> None:
        self.fail(GarbageAnswer(f"{self.address} {why}", sent=True))

    # What the parser tells

    def on_message_begin(self) -> None:
        if self.is_complete:
            raise _Stop  # a second answer behind the one asked for

    def on_status(self, status: bytes) -> None:
        self._reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._answer is not None:
            return  # a trailer
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_LIMIT_BYTES:
            self._refuse(f"sent an answer head of more than {HEAD_LIMIT_BYTES} bytes")
            raise _Stop
        self._headers.append((name.lower(), value.rstrip()))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status: int = self._parser.get_status_code()
        if status < 100 or status == 101:
            self._refuse(f"answered with status {status}, which nobody asked for")
            raise _Stop
        if status >= 200:
            self._head_came(status)
        self._headers = []
        self._reason = b""

    def on_body(self, body: bytes) -> None:
        self.pieces.append(body)
        self._buffered_bytes += len(body)

    def on_message_complete(self) -> None:
        assert self._parser is not None
        if self._answer is None:
            return  # a 1xx
        self._is_reusable = self._is_reusable and self._parser.should_keep_alive()
        self._end_of_answer()

    def _head_came(self, status: int) -> None:
        headers = self._headers
        codings = _values(headers, b"transfer-encoding").lower()
        if codings not in (b"", b"chunked"):
            self._refuse("answered in a transfer coding other than chunked")
            raise _Stop
        self._is_until_eof = not codings and not _values(headers, b"content-length")
        drops = _HOP_BY_HOP | _connection_options(headers)
        end_to_end = [header for header in headers if header[0] not in drops]
        self._answer = Answer(status, self._reason.decode("latin-1"), end_to_end, self.idle_since > 0, self)
        self._wake()
        if self._is_head_request:
            # httptools cannot be told that no body follows, so a HEAD costs its connection.
            self._is_reusable = False
            self._end_of_answer()
            raise _Stop

    def _end_of_answer(self) -> None:
        self.is_complete = True
        self._wake()


class Exchange:
    """One request and its answer, as an async context manager; see ``UpstreamPool.exchange``."""

    __slots__ = ("_address", "_body", "_connection", "_head", "_method", "_pool")

    def __init__(self, pool: UpstreamPool, address: Address, method: str, head: bytes, body: bytes) -> None:
        self._pool = pool
        self._address = address
        self._method = method
        self._head = head
        self._body = body
        self._connection: _Connection | None = None

    async def __aenter__(self) -> Answer:
        connection = self._pool._take_idle(self._address)
        if connection is None:
            return await self._ask(await self._pool._connect(self._address))
        try:
            return await self._ask(connection)
        except BrokenAnswer:
            if connection.is_heard:
                raise
        return await self._ask_again()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._pool._give_back(self._connection)
            self._connection = None

    async def _ask(self, connection: _Connection) -> Answer:
        try:
            answer = await connection.ask(self._method, self._head, self._body)
        except BaseException:
            connection.retire()
            self._pool._give_back(connection)
            raise
        self._connection = connection
        return answer

    async def _ask_again(self) -> Answer:
        """The one retry: the engine had closed the kept connection, most likely before our request reached it."""
        try:
            return await self._ask(await self._pool._connect(self._address))
        except UpstreamError as error:
            error.sent = True
            raise


class UpstreamPool:
    """Connections to engines, kept alive between exchanges; the one place requests to them leave from.

    ``keep_alive_s``: a connection idle for longer is not used again. Just under the 5 s after which uvicorn, and so
    vLLM and LMDeploy, close it (``Config.timeout_keep_alive = 5``, uvicorn 0.54.0), because a request that crosses that
    close on the wire is lost. ``idle_connections_per_address``: more than these are closed, the longest idle first;
    0 turns keep-alive off. ``tls``: for addresses with ``tls``; by default the system's trust store.
    Belongs to one event loop; the owner calls ``aclose``.
    """

    def __init__(
        self,
        timeouts: UpstreamTimeouts | None = None,
        *,
        idle_connections_per_address: int = 64,
        keep_alive_s: float = 4.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._timeouts = timeouts or UpstreamTimeouts()
        self._idle_limit = idle_connections_per_address
        self._keep_alive_s = keep_alive_s
        self._tls = tls
        self._tls_lock = asyncio.Lock()
        self._idle: dict[Address, list[_Connection]] = {}  # the longest idle first
        self._active: set[_Connection] = set()
        self._open: set[_Connection] = set()
        self._all_lost: asyncio.Future[None] | None = None
        self._is_closed = False
        self._sweeper: asyncio.TimerHandle | None = None
        shortest_s = min(self._timeouts.first_byte_s, self._timeouts.idle_s, keep_alive_s)
        self._sweep_every_s = min(1.0, max(0.005, shortest_s / 8))

    def __repr__(self) -> str:
        idle = sum(map(len, self._idle.values()))
        addresses = {connection.address for connection in self._active}
        addresses.update(address for address, connections in self._idle.items() if connections)
        return f"<UpstreamPool {len(addresses)} addresses, {len(self._active)} active, {idle} idle>"

    def exchange(self, address: Address, method: str, target: str, headers: Headers, body: bytes = b"") -> Exchange:
        """Return a context manager that sends the request and enters with the Answer once its head has come.

        *target*: path and query as they go on the wire; ``address.base_path`` is the caller's to prepend.
        *headers*: end-to-end ones. Hop-by-hop ones, Host, Content-Length and Expect are dropped; Host and
        Content-Length are ours. *body*: must not change until the exchange is left.

        Leaving returns the connection to the pool if the whole answer had come, and closes it otherwise: leaving early,
        or being cancelled at any point, is how the engine is told to stop. A kept-alive connection that ends before any
        byte of the answer is replaced by a new one, and the request sent again, once.

        Raises ValueError for a method, target or header that would not be one on the wire, RuntimeError on a closed
        pool; entering raises UpstreamError.
        """
        if self._is_closed:
            raise RuntimeError("the upstream pool is closed")
        head = _request_head(address.authority, method, target, headers, len(body), self._idle_limit > 0)
        return Exchange(self, address, method, head, body)

    def break_off(self, address: Address) -> None:
        """Close every connection to *address*, because its backend stops. Exchanges still running get BrokenAnswer.

        vLLM does not end while a client stays connected to a stream it has given up (0.32.0: still there after 60 s).
        """
        for connection in self._idle.pop(address, ()):
            connection.abort()
        for connection in [connection for connection in self._active if connection.address == address]:
            text = f"{address}: the exchange was cut because the backend stops"
            connection.fail(BrokenAnswer(text, sent=True, answered=False))

    async def aclose(self) -> None:
        """Close every connection and return when all are gone. Exchanges still running fail with BrokenAnswer."""
        self._is_closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._idle.clear()
        for connection in list(self._open):
            text = f"{connection.address}: the exchange was cut because the gateway closes"
            connection.fail(BrokenAnswer(text, sent=True, answered=False))
            connection.abort()
        if self._open:
            self._all_lost = asyncio.get_running_loop().create_future()
            # Bounded, because a loop that forgets to report one end must not keep the gateway from ending.
            await asyncio.wait({self._all_lost}, timeout=_CLOSE_TIMEOUT_S)

    def _take_idle(self, address: Address) -> _Connection | None:
        connections = self._idle.get(address)
        if not connections:
            return None
        used_since = asyncio.get_running_loop().time() - self._keep_alive_s
        while connections:
            connection = connections.pop()
            if connection.idle_since > used_since and connection.is_open():
                self._active.add(connection)
                return connection
            connection.abort()
        return None

    async def _connect(self, address: Address) -> _Connection:
        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                connection = await self._dial(address)
        except TimeoutError as error:
            text = f"{address} took no connection within {self._timeouts.connect_s:g} s"
            raise ConnectTimedOut(text, sent=False) from error
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that IDNA refuses
            raise ConnectFailed(f"cannot connect to {address}: {_reason_of(error)}", sent=False) from error
        if self._is_closed:
            connection.abort()
            raise ConnectFailed(f"not connecting to {address}: the gateway closes", sent=False)
        self._active.add(connection)
        if self._sweeper is None:
            self._sweep()
        return connection

    async def _dial(self, address: Address) -> _Connection:
        loop = asyncio.get_running_loop()
        connection = _Connection(self, address, loop)
        if address.tls:
            context = await self._tls_context()
            transport = await _secure(await _open_transport(asyncio.Protocol(), address), address, context)
            transport.set_protocol(connection)
            connection.connection_made(transport)
            return connection
        try:
            await _open_transport(connection, address)
        except BaseException:
            # uvloop 0.23.0 closes a socket whose connect is cancelled but does not say connection_lost.
            self._lost(connection)
            raise
        return connection

    async def _tls_context(self) -> ssl.SSLContext:
        async with self._tls_lock:
            if self._tls is None:
                # Reading the trust store takes some ten milliseconds, in which every stream would stand still.
                self._tls = await asyncio.to_thread(ssl.create_default_context)
            return self._tls

    def _give_back(self, connection: _Connection) -> None:
        self._active.discard(connection)
        if not connection.finish() or self._is_closed or self._idle_limit <= 0:
            connection.abort()
            return
        connection.idle_since = asyncio.get_running_loop().time()
        connections = self._idle.setdefault(connection.address, [])
        connections.append(connection)
        if len(connections) > self._idle_limit:
            connections.pop(0).abort()

    def _opened(self, connection: _Connection) -> None:
        self._open.add(connection)

    def _lost(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if self._all_lost is not None and not self._open and not self._all_lost.done():
            self._all_lost.set_result(None)

    def _drop_idle(self, connection: _Connection) -> None:
        connections = self._idle.get(connection.address, [])
        if connection in connections:
            connections.remove(connection)

    def _sweep(self) -> None:
        """Look for readers and idle connections past their time, again and again while a connection is open."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self._active):
            connection.check(now, self._timeouts)
        self._close_idle_since(now - self._keep_alive_s)
        self._sweeper = loop.call_later(self._sweep_every_s, self._sweep) if self._open else None

    def _close_idle_since(self, used_since: float) -> None:
        for address, connections in list(self._idle.items()):
            while connections and connections[0].idle_since <= used_since:
                connections.pop(0).abort()
            if not connections:
                del self._idle[address]


async def _open_transport(protocol: asyncio.Protocol, address: Address) -> asyncio.Transport:
    loop = asyncio.get_running_loop()
    if address.uds:
        transport, _ = await loop.create_unix_connection(lambda: protocol, address.uds)
    else:
        transport, _ = await loop.create_connection(lambda: protocol, address.host, address.port)
    return transport


async def _secure(transport: asyncio.Transport, address: Address, context: ssl.SSLContext) -> asyncio.Transport:
    """Shake hands over *transport*, which is closed if that fails or is cancelled.

    Done here, not by ``create_connection(ssl=...)``, because uvloop 0.23.0 keeps the socket open when that is cancelled
    in the handshake; once it no longer does, the two become one call.
    """
    loop = asyncio.get_running_loop()
    try:
        name = address.host or "localhost"
        secured = await loop.start_tls(transport, transport.get_protocol(), context, server_hostname=name)
    except BaseException:
        transport.abort()
        raise
    if secured is None or secured.is_closing():
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    return secured


def _request_head(
    authority: str, method: str, target: str, headers: Headers, body_length: int, keep_alive: bool
) -> bytes:
    """The request line and headers, ending in the empty line. Raises ValueError for what could be read otherwise."""
    _check_request_line(method, target)
    _check_headers(headers)
    drops = _REQUEST_DROPS | _connection_options(headers)
    lines = [f"{method} {target} HTTP/1.1\r\nhost: {authority}\r\n".encode("ascii")]
    lines += [b"%b: %b\r\n" % header for header in headers if header[0].lower() not in drops]
    if body_length or method in _BODY_METHODS:
        lines.append(b"content-length: %d\r\n" % body_length)
    lines.append(b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
    return b"".join(lines)


def _check_request_line(method: str, target: str) -> None:
    if not method or not method.isascii() or method.encode().translate(None, _TOKEN_BYTES):
        raise ValueError(f"not an HTTP method: {method!r}")
    if not target.startswith("/") or not target.isascii() or not target.isprintable() or " " in target:
        raise ValueError("a request target starts with / and has neither spaces, control nor non-ASCII characters")


def _check_headers(headers: Headers) -> None:
    # All names and all values at once: one pass in C each, where a loop would cost more than the rest of the head.
    names = b"".join([name for name, _ in headers])
    values = b"".join([value for _, value in headers])
    if names.translate(None, _TOKEN_BYTES) or not all(name for name, _ in headers):
        raise ValueError("a header name is empty or has a character that no header name may have")
    if b"\r" in values or b"\n" in values or b"\0" in values:
        culprits = [name.decode() for name, value in headers if not {0, 10, 13}.isdisjoint(value)]
        raise ValueError(f"CR, LF or NUL in the value of header {culprits[0]}")


def _values(headers: Headers, lower_name: bytes) -> bytes:
    """All values of one header as one list (RFC 9110 5.3); empty if it is absent. Names are lower-case."""
    return b",".join([value for name, value in headers if name == lower_name])


def _connection_options(headers: Headers) -> frozenset[bytes]:
    """The header names, lower-case, that Connection declares hop-by-hop (RFC 9110 7.6.1)."""
    values = [value for name, value in headers if name.lower() == b"connection"]
    return frozenset(option.strip().lower() for value in values for option in value.split(b","))


def _reason_of(error: Exception) -> str:
    """What went wrong in the system's words, without Python's decoration."""
    if isinstance(error, OSError) and error.errno and not isinstance(error, (ssl.SSLError, socket.gaierror)):
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
