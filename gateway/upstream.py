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
One connection is ``upstream_connection``; what can fail is drawn at the top of ``upstream_errors``.
"""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.upstream_connection import HOP_BY_HOP, Answer, Connection, Headers, connection_options
from gateway.upstream_errors import BrokenAnswer, ConnectFailed, ConnectTimedOut, UpstreamError, reason_of

if TYPE_CHECKING:
    from types import TracebackType

    from backends.address import Address

_CLOSE_TIMEOUT_S = 5.0

# Ours to write, and Expect: the body follows at once, so nobody waits for the 100.
_REQUEST_DROPS = HOP_BY_HOP | {b"host", b"content-length", b"expect"}
_BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})
_TOKEN_BYTES = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class UpstreamTimeouts:
    """How long an engine may take, in seconds. Noticed late by up to an eighth, and by a second at most.

    ``connect_s`` covers name, TCP and TLS. ``first_byte_s`` runs from the end of the request to the end of the answer's
    head. ``idle_s`` bounds the time between two pieces of a body, in both directions.
    """

    connect_s: float = 5.0
    first_byte_s: float = 600.0
    idle_s: float = 300.0


class Exchange:
    """One request and its answer, as an async context manager; see ``UpstreamPool.exchange``."""

    __slots__ = ("_address", "_body", "_connection", "_head", "_method", "_pool")

    def __init__(self, pool: UpstreamPool, address: Address, method: str, head: bytes, body: bytes) -> None:
        self._pool = pool
        self._address = address
        self._method = method
        self._head = head
        self._body = body
        self._connection: Connection | None = None

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

    async def _ask(self, connection: Connection) -> Answer:
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
        self._idle: dict[Address, list[Connection]] = {}  # the longest idle first
        self._active: set[Connection] = set()
        self._open: set[Connection] = set()
        self._all_lost: asyncio.Future[None] | None = None
        self._is_closed = False
        self._sweeper: asyncio.TimerHandle | None = None
        self._sweep_every_s = self._sweep_interval_s()

    def _sweep_interval_s(self) -> float:
        shortest_s = min(self._timeouts.first_byte_s, self._timeouts.idle_s, self._keep_alive_s)
        return min(1.0, max(0.005, shortest_s / 8))

    def keep_to(self, timeouts: UpstreamTimeouts) -> None:
        """Keep to other *timeouts* from now on, in the exchanges under way too."""
        self._timeouts = timeouts
        self._sweep_every_s = self._sweep_interval_s()

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

    def _take_idle(self, address: Address) -> Connection | None:
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

    async def _connect(self, address: Address) -> Connection:
        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                connection = await self._dial(address)
        except TimeoutError as error:
            text = f"{address} took no connection within {self._timeouts.connect_s:g} s"
            raise ConnectTimedOut(text, sent=False) from error
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that IDNA refuses
            raise ConnectFailed(f"cannot connect to {address}: {reason_of(error)}", sent=False) from error
        if self._is_closed:
            connection.abort()
            raise ConnectFailed(f"not connecting to {address}: the gateway closes", sent=False)
        self._active.add(connection)
        if self._sweeper is None:
            self._sweep()
        return connection

    async def _dial(self, address: Address) -> Connection:
        loop = asyncio.get_running_loop()
        connection = Connection(self, address, loop)
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
            self.lost(connection)
            raise
        return connection

    async def _tls_context(self) -> ssl.SSLContext:
        async with self._tls_lock:
            if self._tls is None:
                # Reading the trust store takes some ten milliseconds, in which every stream would stand still.
                self._tls = await asyncio.to_thread(ssl.create_default_context)
            return self._tls

    def _give_back(self, connection: Connection) -> None:
        self._active.discard(connection)
        if not connection.finish() or self._is_closed or self._idle_limit <= 0:
            connection.abort()
            return
        connection.idle_since = asyncio.get_running_loop().time()
        connections = self._idle.setdefault(connection.address, [])
        connections.append(connection)
        if len(connections) > self._idle_limit:
            connections.pop(0).abort()

    def opened(self, connection: Connection) -> None:
        """Count *connection* among those that ``aclose`` closes; it tells so itself."""
        self._open.add(connection)

    def lost(self, connection: Connection) -> None:
        """Forget *connection*, which is gone; it tells so itself."""
        self._open.discard(connection)
        if self._all_lost is not None and not self._open and not self._all_lost.done():
            self._all_lost.set_result(None)

    def drop_idle(self, connection: Connection) -> None:
        """Give *connection* to no exchange any more; it tells so itself when it ends while it is idle."""
        connections = self._idle.get(connection.address, [])
        if connection in connections:
            connections.remove(connection)

    def _sweep(self) -> None:
        """Look for readers and idle connections past their time, again and again while a connection is open."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self._active):
            connection.check(now, first_byte_s=self._timeouts.first_byte_s, idle_s=self._timeouts.idle_s)
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
    drops = _REQUEST_DROPS | connection_options(headers)
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
