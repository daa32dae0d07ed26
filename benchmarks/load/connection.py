"""Our own HTTP/1.1 client: a request out, its answer to whoever asked, with the time of every arrival.

Ordinary clients cost more per event than a small answer may, and take the time after their own queues. Here one
callback runs from the socket to the reading of the answer; there is no task per request.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

from benchmarks.errors import BenchmarkError

HEAD_LIMIT_BYTES = 64 * 1024
RACE_S = 0.5
"""How long after a request a kept connection may close for having been idle. Later it is the server that failed."""

Clock = Callable[[], float]


class Listener(Protocol):
    """Who asked. ``began`` comes once per connection used, ``head`` and ``body`` as they come, then one of the rest."""

    def began(self, at: float, is_reused: bool) -> None:
        """The request is being written, on a connection that was there or is new."""

    def head(self, status: int, at: float) -> None:
        """The answer's head came."""

    def body(self, piece: bytes, at: float) -> None:
        """A piece of the body came."""

    def ended(self, at: float) -> None:
        """The answer is complete."""

    def failed(self, kind: str, text: str, at: float) -> None:
        """There will be no (more) answer."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where requests go: *path* is what stands before ``/chat/completions``, without a slash at its end."""

    host: str
    port: int
    path: str
    is_tls: bool

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_tls else 80) else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"{'https' if self.is_tls else 'http'}://{self.authority}"


def read_address(url: str) -> Address:
    """The address in *url*. Raises BenchmarkError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as problem:
        raise BenchmarkError(f"--base-url {url}: {problem}") from problem
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BenchmarkError(f"--base-url {url}: not an address; write one like http://127.0.0.1:8080/v1")
    if parts.username or parts.query or parts.fragment:
        raise BenchmarkError("--base-url: only scheme, host, port and path; a key goes into the environment")
    is_tls = parts.scheme == "https"
    return Address(parts.hostname, port or (443 if is_tls else 80), parts.path.rstrip("/"), is_tls)


def request_head(address: Address, method: str, path: str, headers: dict[str, str]) -> bytes:
    """Everything of a request's head but its length and the empty line."""
    lines = [f"{method} {path} HTTP/1.1", f"host: {address.authority}", "accept: */*"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n"


def whole_request(head: bytes, body: bytes) -> bytes:
    """The bytes of a request."""
    return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)


class Connection(asyncio.Protocol):
    """One kept-alive connection, carrying at most one exchange at a time."""

    __slots__ = (
        "_clock",
        "_head_bytes",
        "_is_complete",
        "_is_head_read",
        "_is_heard",
        "_is_length_known",
        "_is_reusable",
        "_is_reused",
        "_listener",
        "_parser",
        "_pool",
        "_request",
        "_transport",
        "heard_at",
    )

    def __init__(self, pool: ConnectionPool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._listener: Listener | None = None
        self._request = b""
        self._is_reused = False
        self._is_heard = False
        self._is_head_read = False
        self._is_complete = False
        self._is_length_known = False
        self._is_reusable = False
        self._head_bytes = 0
        self.heard_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether it can carry a request."""
        return not self._transport.is_closing()

    def ask(self, request: bytes, listener: Listener, *, is_reused: bool) -> None:
        """Write *request*; the answer goes to *listener*."""
        self._parser = httptools.HttpResponseParser(self)
        self._listener = listener
        self._request = request
        self._is_reused = is_reused
        self._is_heard = self._is_head_read = self._is_complete = False
        self._is_length_known = self._is_reusable = False
        self._head_bytes = 0
        self.heard_at = self._clock()
        listener.began(self.heard_at, is_reused)
        self._transport.write(request)

    def abort(self) -> None:
        """Close at once; the listener hears no more."""
        self._listener = None
        self._transport.abort()

    # What the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Hand on what came."""
        if self._listener is None:
            self._drop()  # nobody asked: it must not become the next request's answer
            return
        self.heard_at = self._clock()
        self._is_heard = True
        if not self._is_head_read:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as problem:
            self._fail("garbage", f"the answer is not HTTP/1.1: {problem}")
            return
        if self._is_complete:
            self._finish()
        elif not self._is_head_read and self._head_bytes > HEAD_LIMIT_BYTES:
            self._fail("garbage", f"the answer's head is longer than {HEAD_LIMIT_BYTES} bytes")

    def eof_received(self) -> None:
        """An answer without a length ends here; any other is cut."""
        if self._listener is not None and self._is_head_read and not self._is_length_known:
            self.heard_at = self._clock()
            self._is_complete = True
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who still waits."""
        self._pool.forget(self)
        if self._listener is None:
            return
        if not self._is_heard and self._is_reused and self._clock() - self.heard_at < RACE_S:
            # The server closed an idle connection while we were taking it: no request has been answered on it.
            listener, self._listener = self._listener, None
            self._pool.ask_anew(self._request, listener)
            return
        when = "in the middle of the answer" if self._is_heard else "without an answer"
        why = f": {exc}" if exc is not None else ""
        self._fail("connection", f"the connection was closed {when}{why}")

    # What the parser tells

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note whether the head says where the body ends."""
        if len(name) in (14, 17) and name.lower() in (b"content-length", b"transfer-encoding"):
            self._is_length_known = True

    def on_headers_complete(self) -> None:
        """The head came; 1xx ones are not the answer."""
        if self._is_complete:
            return  # a second answer, which nobody asked for
        status = self._parser.get_status_code()
        if status >= 200 and self._listener is not None:
            self._is_head_read = True
            self._listener.head(status, self.heard_at)

    def on_body(self, piece: bytes) -> None:
        """A piece of the body came."""
        if self._listener is not None and not self._is_complete:
            self._listener.body(piece, self.heard_at)

    def on_message_complete(self) -> None:
        """The answer is complete, if it was one."""
        if self._is_complete:
            self._is_reusable = False
            return
        self._is_complete = self._is_head_read
        self._is_reusable = self._parser.should_keep_alive()  # the parser knows this here and no longer

    # Ends

    def _finish(self) -> None:
        listener, self._listener = self._listener, None
        if self._is_reusable and self.is_open:
            self._pool.keep(self)
        else:
            self._drop()
        if listener is not None:
            listener.ended(self.heard_at)

    def _fail(self, kind: str, text: str) -> None:
        listener, self._listener = self._listener, None
        self._drop()
        if listener is not None:
            listener.failed(kind, text, self._clock())

    def _drop(self) -> None:
        self._pool.forget(self)
        self._transport.abort()


class ConnectionPool:
    """Opens connections to one address and keeps the idle ones, the last used first. The caller closes it."""

    def __init__(
        self, address: Address, *, tls: ssl.SSLContext | None = None, clock: Clock = time.perf_counter
    ) -> None:
        self._address = address
        self._tls = tls if address.is_tls else None
        self._clock = clock
        self._idle: list[Connection] = []
        self._busy: dict[Listener, Connection] = {}
        self._opening: dict[Listener, asyncio.Task[None]] = {}
        self._place: str | None = None
        self.opened = 0

    async def resolve(self) -> None:
        """Look the host up, once, so that no request waits for it. Raises BenchmarkError."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self._address.host, self._address.port, type=1)
        except OSError as problem:
            raise BenchmarkError(f"{self._address.host}: cannot be resolved: {problem}") from problem
        self._place = str(found[0][4][0])

    def ask(self, request: bytes, listener: Listener) -> None:
        """Send *request* over an idle connection or a new one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                self._busy[listener] = connection
                connection.ask(request, listener, is_reused=True)
                return
        self.ask_anew(request, listener)

    def ask_anew(self, request: bytes, listener: Listener) -> None:
        """Send *request* over a new connection."""
        self._busy.pop(listener, None)
        self._opening[listener] = asyncio.get_running_loop().create_task(self._open(request, listener))

    def heard_at(self, listener: Listener) -> float | None:
        """When anything was last heard on the connection of *listener*; None while it is being opened."""
        connection = self._busy.get(listener)
        return connection.heard_at if connection is not None else None

    def leave(self, listener: Listener) -> None:
        """Close the connection of *listener*, which hears no more."""
        task = self._opening.pop(listener, None)
        if task is not None:
            task.cancel()
        connection = self._busy.pop(listener, None)
        if connection is not None:
            connection.abort()

    def release(self, listener: Listener) -> None:
        """The exchange of *listener* is over."""
        self._busy.pop(listener, None)

    def keep(self, connection: Connection) -> None:
        """*connection* can carry another exchange."""
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        """*connection* is of no more use."""
        if connection in self._idle:
            self._idle.remove(connection)

    async def close(self) -> None:
        """Close every connection; nobody hears of it."""
        tasks = list(self._opening.values())
        for listener in [*self._opening, *self._busy]:
            self.leave(listener)
        for connection in self._idle[:]:
            connection.abort()
        self._idle.clear()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in the loop's next turn

    async def _open(self, request: bytes, listener: Listener) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: Connection(self, self._clock),
                self._place or self._address.host,
                self._address.port,
                ssl=self._tls,
                server_hostname=self._address.host if self._tls else None,
            )
        except (OSError, ssl.SSLError) as problem:
            if self._opening.pop(listener, None) is not None:
                listener.failed("connection", f"cannot connect to {self._address.origin}: {problem}", self._clock())
            return
        if self._opening.pop(listener, None) is None:
            connection.abort()
            return
        self.opened += 1
        self._busy[listener] = connection
        connection.ask(request, listener, is_reused=False)
