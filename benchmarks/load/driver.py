"""Sends conversations: in an open loop at the times of a schedule, or in a closed one, so many at once."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.conversations import Conversation, Message
from benchmarks.load.connection import Clock, ConnectionPool, whole_request
from benchmarks.load.reading import Reading, StreamReading, WholeReading
from benchmarks.load.requests import RequestForm
from benchmarks.records import Row

SWEEP_S = 0.1
UNEXPECTED = (AttributeError, IndexError, KeyError, TypeError)
"""What reading JSON of another shape than OpenAI's ends in."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a request may take, in seconds: to connect, without anything being heard, altogether."""

    connect_s: float = 10.0
    idle_s: float = 120.0
    total_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Load:
    """What to send and when.

    ``todo``: indices into ``conversations``, in the order of sending. ``times``: seconds after the start at which
    each of *todo* begins, ascending; None is a closed loop. ``concurrency``: of a closed loop; of an open one the
    most requests under way, 0 for no limit. ``ramp_s``: seconds over which a closed loop's conversations begin.
    ``think_s``: between an answer and the next question of its conversation.
    """

    conversations: Sequence[Conversation]
    todo: Sequence[int]
    phase: str
    session: int
    max_tokens: int
    times: Sequence[float] | None = None
    concurrency: int = 0
    ramp_s: float = 0.0
    think_s: float = 0.0
    keeps_text: bool = True


@dataclass(slots=True)
class Counts:
    """How a phase is going, for whoever shows it."""

    sent: int = 0
    ended: int = 0
    failed: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    tokens: int = 0
    last_ttft_s: float | None = None


class Driver:
    """Drives one phase of one session through *pool*. Each request becomes a row, given to *record* as it ends."""

    def __init__(
        self,
        load: Load,
        form: RequestForm,
        head: bytes,
        pool: ConnectionPool,
        record: Callable[[Row], None],
        limits: Limits,
        clock: Clock,
    ) -> None:
        self.counts = Counts()
        self.load = load
        self.form = form
        self.head = head
        self.clock = clock
        self.origin = 0.0
        self._pool = pool
        self.record = record
        self._limits = limits
        self._next = 0
        self._exchanges: set[Exchange] = set()
        self._unfinished = 0
        self._held_back = False
        self._is_stopped = False
        self._timers: set[asyncio.TimerHandle] = set()
        self._loop: asyncio.AbstractEventLoop
        self._over: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Send everything, and return when all of it has ended or `stop` was called. Raises what *record* raises.

        Cancelled, it closes what is under way; no row is written for that.
        """
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        self.origin = self.clock()
        self._unfinished = len(self.load.todo)
        if not self._unfinished or self._is_stopped:
            return
        if self.load.times is None:
            self._begin_closed()
        else:
            self._pump()
        sweep = self._loop.create_task(self._expire())
        try:
            await self._over
        finally:
            self._is_stopped = True
            sweep.cancel()
            for timer in self._timers:
                timer.cancel()
            for exchange in self._exchanges:
                self._pool.leave(exchange)
            self._exchanges.clear()
            await asyncio.gather(sweep, return_exceptions=True)

    def stop(self) -> None:
        """End now. What is under way is given up, without a row."""
        self._is_stopped = True
        self._end(None)

    def now(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.origin

    # The open loop

    def _pump(self) -> None:
        """Send what is due, then wait for what is next: its time, or room."""
        times = self.load.times
        assert times is not None
        limit = self.load.concurrency or math.inf
        while self._next < len(times) and not self._is_stopped:
            now = self.now()
            due = times[self._next]
            if due > now:
                # Timers have a grain of 1 ms; rounded up, so that the loop never spins until the time has come.
                self._after(math.ceil((due - now) * 1000) / 1000, self._pump)
                return
            if self.counts.in_flight >= limit:
                self._held_back = True
                return
            held = max(0.0, now - due) if self._held_back else 0.0
            self._held_back = False
            index = self.load.todo[self._next]
            self._next += 1
            self._ask(index, 0, [], due, held)

    # The closed loop

    def _begin_closed(self) -> None:
        count = min(max(1, self.load.concurrency), len(self.load.todo))
        gap = self.load.ramp_s / count
        for place in range(count):
            if gap:
                self._after(place * gap, self._begin_next)
            else:
                self._begin_next()

    def _begin_next(self) -> None:
        if self._next < len(self.load.todo) and not self._is_stopped:
            index = self.load.todo[self._next]
            self._next += 1
            self._ask(index, 0, [], self.now(), 0.0)

    # Both

    def _after(self, delay_s: float, act: Callable[[], None]) -> None:
        def acting() -> None:
            self._timers.discard(timer)
            try:
                act()
            except BaseException as problem:
                self._end(problem)
                if not isinstance(problem, Exception):
                    raise

        timer = self._loop.call_later(delay_s, acting)
        self._timers.add(timer)

    def _ask(self, index: int, turn: int, said: list[Message], intended: float, held: float) -> None:
        conversation = self.load.conversations[index]
        messages = [*said, *conversation.turns[turn]]
        max_tokens = conversation.output_tokens or self.load.max_tokens
        body = self.form.body(messages, max_tokens)
        exchange = Exchange(self, index, turn, messages, max_tokens, intended, held)
        self._exchanges.add(exchange)
        counts = self.counts
        counts.sent += 1
        counts.in_flight += 1
        exchange.in_flight = counts.in_flight
        counts.most_in_flight = max(counts.most_in_flight, counts.in_flight)
        exchange.sent_at = self.clock()
        self._pool.ask(whole_request(self.head, body), exchange)

    def exchange_over(self, exchange: Exchange, row: Row) -> None:
        """*exchange* has ended; go on with its conversation, or with the next."""
        self._pool.release(exchange)
        if self._is_stopped:
            return
        self._exchanges.discard(exchange)
        counts = self.counts
        counts.in_flight -= 1
        counts.ended += 1
        counts.failed += not row.is_good
        counts.tokens += row.output_tokens or len(row.token_us)
        if row.first_token is not None:
            counts.last_ttft_s = row.first_token - row.sent
        try:
            self.record(row)
            self._go_on(exchange, row)
        except Exception as problem:
            self._end(problem)

    def _go_on(self, exchange: Exchange, row: Row) -> None:
        if row.is_good and not row.is_last_turn:
            answer = {"role": "assistant", "content": "".join(exchange.reading.answer)}
            said = [*exchange.messages, answer]
            think_s = self.load.think_s

            def ask_on() -> None:
                self._ask(exchange.index, exchange.turn + 1, said, row.end + think_s, 0.0)

            if think_s:
                self._after(think_s, ask_on)
            else:
                ask_on()
            return
        self._unfinished -= 1
        if self._unfinished == 0:
            self._end(None)
        elif self.load.times is None:
            self._begin_next()
        elif self._held_back:
            self._pump()

    def _end(self, problem: BaseException | None) -> None:
        if self._over is not None and not self._over.done():
            if problem is None:
                self._over.set_result(None)
            else:
                self._over.set_exception(problem)

    async def _expire(self) -> None:
        """Fail what takes too long."""
        limits = self._limits
        while True:
            await asyncio.sleep(SWEEP_S)
            now = self.clock()
            for exchange in list(self._exchanges):
                heard_at = self._pool.heard_at(exchange)
                why = ""
                if heard_at is None:
                    if now - exchange.sent_at > limits.connect_s:
                        why = f"no connection after {limits.connect_s:g} s"
                elif now - heard_at > limits.idle_s:
                    why = f"nothing was heard for {limits.idle_s:g} s"
                elif now - exchange.sent_at > limits.total_s:
                    why = f"not over after {limits.total_s:g} s"
                if why:
                    self._pool.leave(exchange)
                    exchange.failed("timeout", why, now)


class Exchange:
    """One request under way; listens to its connection and becomes a row."""

    __slots__ = (
        "_driver",
        "_held",
        "_intended",
        "connected_at",
        "in_flight",
        "index",
        "max_tokens",
        "messages",
        "reading",
        "sent_at",
        "turn",
    )

    def __init__(
        self,
        driver: Driver,
        index: int,
        turn: int,
        messages: Sequence[Message],
        max_tokens: int,
        intended: float,
        held: float,
    ) -> None:
        self._driver = driver
        self._held = held
        self._intended = intended
        self.index = index
        self.turn = turn
        self.messages = messages
        self.max_tokens = max_tokens
        self.reading: Reading = StreamReading() if driver.form.is_streamed else WholeReading()
        self.connected_at: float | None = None
        self.sent_at = 0.0
        self.in_flight = 0

    def began(self, at: float, is_reused: bool) -> None:
        """The request is being written."""
        if not is_reused:
            self.connected_at = at

    def head(self, status: int, at: float) -> None:
        """The answer's head came."""
        self.reading.head(status, at)

    def body(self, piece: bytes, at: float) -> None:
        """A piece of the body came."""
        try:
            self.reading.body(piece, at)
        except UNEXPECTED as problem:
            self.reading.fail("garbage", f"the answer is not as OpenAI's API has it: {problem!r}")

    def ended(self, at: float) -> None:
        """The answer is complete."""
        try:
            self.reading.end(at)
        except UNEXPECTED as problem:
            self.reading.fail("garbage", f"the answer is not as OpenAI's API has it: {problem!r}")
        if self._driver.form.ignore_eos:
            self._check_length()
        self._driver.exchange_over(self, self._row(at))

    def failed(self, kind: str, text: str, at: float) -> None:
        """There will be no (more) answer."""
        self.reading.fail(kind, text)
        self._driver.exchange_over(self, self._row(at))

    def _check_length(self) -> None:
        """An answer whose length was forced has it, or failed."""
        reading = self.reading
        came = (reading.usage or {}).get("completion_tokens")
        if reading.finish_reason != "length" or came not in (None, self.max_tokens):
            text = f"asked for exactly {self.max_tokens} tokens, came {came} with finish_reason {reading.finish_reason}"
            reading.fail("unexpected_finish", text)

    def _row(self, end: float) -> Row:
        driver, reading = self._driver, self.reading
        load, origin = driver.load, driver.origin
        conversation = load.conversations[self.index]
        usage = reading.usage or {}

        def since(at: float | None) -> float | None:
            return None if at is None else round(at - origin, 6)

        gaps = []
        before = self.sent_at
        for at in reading.token_times:
            gaps.append(round((at - before) * 1e6))
            before = at
        return Row(
            index=self.index,
            turn=self.turn,
            is_last_turn=self.turn == len(conversation.turns) - 1,
            phase=load.phase,
            session=load.session,
            prompt=conversation.name,
            intended=round(self._intended, 6),
            held=round(self._held, 6),
            sent=round(self.sent_at - origin, 6),
            end=round(end - origin, 6),
            in_flight=self.in_flight,
            status=reading.status,
            connected=since(self.connected_at),
            first_byte=since(reading.first_byte),
            first_chunk=since(reading.first_chunk),
            first_token=since(reading.first_token),
            first_output=since(reading.first_output),
            last_chunk=since(reading.last_chunk),
            expected_prompt_tokens=conversation.prompt_tokens if self.turn == 0 else None,
            wanted_tokens=self.max_tokens,
            prompt_tokens=_count(usage.get("prompt_tokens")),
            output_tokens=_count(usage.get("completion_tokens")),
            cached_tokens=_cached(usage),
            finish_reason=reading.finish_reason,
            model=reading.model,
            fingerprint=reading.fingerprint,
            error_kind=reading.error_kind,
            error_text=reading.error_text,
            token_us=tuple(gaps),
            token_chars=tuple(reading.token_chars),
            text="".join(reading.text) if load.keeps_text else None,
        )


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _cached(usage: Mapping[str, Any]) -> int | None:
    details = usage.get("prompt_tokens_details")
    return _count(details.get("cached_tokens")) if isinstance(details, dict) else None
