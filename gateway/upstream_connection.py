"""One HTTP/1.1 connection to an engine: a request out, its answer back as it comes, one exchange at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Protocol, cast

import httptools

from gateway.upstream_errors import (
    AnswerTooLong,
    BrokenAnswer,
    FirstByteTimedOut,
    GarbageAnswer,
    IdleTimedOut,
    UpstreamError,
    reason_of,
)

if TYPE_CHECKING:
    from backends.address import Address

Headers = Sequence[tuple[bytes, bytes]]

HIGH_WATER_BYTES = 256 * 1024  # of untaken body: above it the socket is not read; taking all of it resumes
HEAD_LIMIT_BYTES = 64 * 1024  # of head, and of any run of received bytes that brings no body
_WRITE_SLICE_BYTES = 128 * 1024
_JOINED_BODY_BYTES = 64 * 1024  # up to here one copy is cheaper than a second write

# RFC 9110 7.6.1; "trailer" belongs to chunked coding, which we take off.
HOP_BY_HOP = frozenset(
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
"""Header names, lower-case, that are about one connection and are not passed on."""


class ConnectionOwner(Protocol):
    """Who opens connections and keeps the idle ones; each connection tells it what becomes of it."""

    def opened(self, connection: Connection) -> None:
        """*connection* is established."""

    def lost(self, connection: Connection) -> None:
        """*connection* is gone; the last thing that is heard of it."""

    def drop_idle(self, connection: Connection) -> None:
        """*connection*, if it is kept idle, must not be used again."""


class Answer:
    """An engine's answer, from its head on. Valid inside its exchange only.

    ``headers``: end-to-end ones in their order, names lower-cased; Content-Length is among them, the framing is not.
    ``reused``: it came over a kept-alive connection.
    """

    __slots__ = ("_connection", "headers", "reason", "reused", "status")

    def __init__(
        self, status: int, reason: str, headers: list[tuple[bytes, bytes]], reused: bool, connection: Connection
    ) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers
        self.reused = reused
        self._connection: Connection | None = connection

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


class Connection(asyncio.Protocol):
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
        "_owner",
        "_parser",
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

    def __init__(self, owner: ConnectionOwner, address: Address, loop: asyncio.AbstractEventLoop) -> None:
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
        self._owner = owner
        self._parser: httptools.HttpResponseParser | None = None
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
        """Whether it can still be written to."""
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

    def check(self, now: float, *, first_byte_s: float, idle_s: float) -> None:
        """Fail the exchange if its reader has waited too long for the engine. *now*: the loop's time."""
        if self._waiter is None:
            return
        waited_s = now - self._moved_at
        if self._unsent is not None or self._transport.get_write_buffer_size() > 0:
            if waited_s >= idle_s:
                self.fail(IdleTimedOut(f"{self.address} took no more of the request for {waited_s:.3g} s", sent=True))
        elif self._answer is None:
            if waited_s >= first_byte_s:
                self.fail(FirstByteTimedOut(f"{self.address} has not answered after {waited_s:.3g} s", sent=True))
        elif waited_s >= idle_s:
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
        """Begin, and tell the owner."""
        self._transport = cast("asyncio.Transport", transport)
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and wake the reader if body came. Bytes nobody asked for close the connection."""
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
        """End the answer if only the end of the connection delimits it; otherwise it is broken."""
        if self._is_until_eof and self._error is None:
            self._end_of_answer()
        self._cut("closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        """Break the answer that is still running, if any, and tell the owner."""
        self._cut(f"cut the connection ({reason_of(exc)})" if isinstance(exc, OSError) else "closed the connection")
        self._owner.lost(self)

    def pause_writing(self) -> None:
        """Hold the request body back: the engine takes it more slowly than it is sent."""
        self._is_write_paused = True

    def resume_writing(self) -> None:
        """Send more of the request body."""
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
            self._owner.drop_idle(self)
            self.abort()

    def _refuse(self, why: str) -> None:
        self.fail(GarbageAnswer(f"{self.address} {why}", sent=True))

    # What the parser tells

    def on_message_begin(self) -> None:
        """Stop at an answer that no request asked for."""
        if self.is_complete:
            raise _Stop  # a second answer behind the one asked for

    def on_status(self, status: bytes) -> None:
        """Collect the reason phrase, which may come in pieces."""
        self._reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header of the head, within HEAD_LIMIT_BYTES; trailers are dropped."""
        if self._answer is not None:
            return  # a trailer
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_LIMIT_BYTES:
            self._refuse(f"sent an answer head of more than {HEAD_LIMIT_BYTES} bytes")
            raise _Stop
        self._headers.append((name.lower(), value.rstrip()))

    def on_headers_complete(self) -> None:
        """Hand the head to the reader; 1xx answers are passed over."""
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
        """Keep a piece of the body, framing taken off, until the reader takes it."""
        self.pieces.append(body)
        self._buffered_bytes += len(body)

    def on_message_complete(self) -> None:
        """End the answer; from here on the connection can carry another if the engine keeps it alive."""
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
        drops = HOP_BY_HOP | connection_options(headers)
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


def connection_options(headers: Headers) -> frozenset[bytes]:
    """The header names, lower-case, that Connection declares hop-by-hop (RFC 9110 7.6.1)."""
    values = [value for name, value in headers if name.lower() == b"connection"]
    return frozenset(option.strip().lower() for value in values for option in value.split(b","))


def _values(headers: Headers, lower_name: bytes) -> bytes:
    """All values of one header as one list (RFC 9110 5.3); empty if it is absent. Names are lower-case."""
    return b",".join([value for name, value in headers if name == lower_name])
