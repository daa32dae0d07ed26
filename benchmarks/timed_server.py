"""A server whose times are known: what the measuring is measured with.

    python -m benchmarks.timed_server --ttft 0.1 --tpot 0.02

It answers OpenAI's API with words, each at its exact time after the request came (the timers' grain makes it up to 1 ms
late, never early), prints its address, and ends on TERM. It is no engine and proves nothing about one.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import httptools
import orjson
import uvloop

CUT = "cut"
ERROR_EVENT = "error_event"
NO_FINISH = "no_finish"
FAILURES = (CUT, ERROR_EVENT, NO_FINISH)


@dataclass(frozen=True, slots=True)
class Truth:
    """How the server behaves. Seconds; ``slower`` multiplies both times. ``slots``: answers at once, 0 for any number.

    ``fail_every``: of that many streams the last one breaks after half its words, as ``failure`` says; 0 for none.
    ``stall_at_s``, ``stall_s``: so long after the first request it falls silent, so long. ``bundle``: words per
    event. ``others``: requests of other clients that its metrics show running. ``renamed_after``: answers after which
    it calls the model by another name. ``miscounts``: words it charges for beyond those it sent.
    """

    ttft_s: float = 0.0
    tpot_s: float = 0.0
    slower: float = 1.0
    slots: int = 0
    fail_every: int = 0
    failure: str = ERROR_EVENT
    stall_at_s: float = 0.0
    stall_s: float = 0.0
    bundle: int = 1
    others: int = 0
    renamed_after: int = 0
    miscounts: int = 0


class TimedServer:
    """Answers with *truth*; one per process or loop. It counts what it ``started`` and what is ``running``."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.started = 0
        self.finished = 0
        self.running = 0
        self._first_at: float | None = None
        self.connections: set[_Connection] = set()
        self._waiting: deque[_Stream] = deque()
        self._server: asyncio.Server | None = None

    async def listen(self, port: int = 0) -> str:
        """Listen on a port of 127.0.0.1 and return the base URL. The caller closes it."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", port, backlog=4096)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def close(self) -> None:
        """Listen no more and cut what is open."""
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # transports close in the loop's next turn

    def number(self, came_at: float) -> int:
        """A request came; returns its number, from 1 on."""
        self.started += 1
        if self._first_at is None:
            self._first_at = came_at
        return self.started

    def begin(self, stream: _Stream) -> None:
        """Answer now, or when there is room."""
        if self.truth.slots and self.running >= self.truth.slots:
            self._waiting.append(stream)
        else:
            self.running += 1
            stream.go_on()

    def end(self, stream: _Stream) -> None:
        """A generation is over, or nobody waits for it any more."""
        if stream in self._waiting:
            self._waiting.remove(stream)
            return
        self.running -= 1
        self.finished += 1
        if self._waiting:
            self.running += 1
            self._waiting.popleft().begin_late()

    def not_before(self, at: float) -> float:
        """When what is due at *at* may be sent: then, or after the stall."""
        if self.truth.stall_s and self._first_at is not None:
            begins = self._first_at + self.truth.stall_at_s
            if begins <= at < begins + self.truth.stall_s:
                return begins + self.truth.stall_s
        return at

    def model(self, asked: str) -> str:
        """What it calls the model now."""
        after = self.truth.renamed_after
        return f"{asked}-renamed" if after and self.finished >= after else asked

    def metrics(self) -> str:
        """As vLLM names them."""
        label = '{engine="0",model_name="timed"}'
        return (
            f"vllm:num_requests_running{label} {self.running + self.truth.others}.0\n"
            f"vllm:num_requests_waiting{label} {len(self._waiting)}.0\n"
            f"vllm:kv_cache_usage_perc{label} {min(1.0, self.running / 100)}\n"
            f'vllm:request_success_total{{engine="0",finished_reason="stop",model_name="timed"}} {self.finished}.0\n'
        )


class _Connection(asyncio.Protocol):
    def __init__(self, server: TimedServer) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""
        self._pieces: list[bytes] = []
        self._stream: _Stream | None = None
        self._came_at = 0.0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        if self._stream is not None:
            self._stream.cancel()

    def data_received(self, data: bytes) -> None:
        self._came_at = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        path, body = self._path, b"".join(self._pieces)
        self._path, self._pieces = b"", []
        if path in (b"/v1/chat/completions", b"/v1/completions"):
            self._generate(orjson.loads(body), is_chat=path == b"/v1/chat/completions")
        elif path == b"/v1/models":
            self.send_whole({"object": "list", "data": [{"id": "timed", "object": "model", "root": "timed"}]})
        elif path == b"/metrics":
            self.send_whole(self._server.metrics())
        else:
            self.send_whole({"error": {"message": f"no {path.decode('latin-1')} here"}}, b"404 Not Found")

    def _generate(self, asked: dict[str, Any], *, is_chat: bool) -> None:
        self._stream = _Stream(self, self._server, asked, self._came_at, is_chat=is_chat)
        self._server.begin(self._stream)

    def send_whole(self, answer: object, status: bytes = b"200 OK") -> None:
        body = answer.encode() if isinstance(answer, str) else orjson.dumps(answer)
        self.transport.write(
            b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)
        )


class _Stream:
    """One answer on its way."""

    def __init__(
        self, connection: _Connection, server: TimedServer, asked: dict[str, Any], came_at: float, *, is_chat: bool
    ) -> None:
        truth = server.truth
        self._connection = connection
        self._server = server
        self._number = server.number(came_at)
        self._model = server.model(str(asked.get("model")))
        self._words = int(asked.get("max_tokens") or asked.get("max_completion_tokens") or 16)
        self._is_streamed = bool(asked.get("stream"))
        self._is_chat = is_chat
        self._prompt_tokens = len(_prompt(asked).split())
        self._ttft_s = truth.ttft_s * truth.slower
        self._tpot_s = truth.tpot_s * truth.slower
        self._came_at = came_at
        self._sent = 0
        self._is_begun = False
        self._timer: asyncio.TimerHandle | None = None
        fails = truth.fail_every and self._number % truth.fail_every == 0
        self._breaks_at = self._words // 2 if fails else None

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._sent <= self._words:
            self._finish()

    def begin_late(self) -> None:
        """There is room now: its times count from here."""
        self._came_at = time.perf_counter()
        asyncio.get_running_loop().call_soon(self.go_on)

    def go_on(self) -> None:
        """Send all that is due, and come back when more is."""
        loop = asyncio.get_running_loop()
        while self._sent <= self._words:
            due = self._due()
            now = time.perf_counter()
            if due > now:
                self._timer = loop.call_later(math.ceil((due - now) * 1000) / 1000, self.go_on)
                return
            if not self._is_streamed:
                self._finish()
                self._connection.send_whole(self._whole())
                return
            if self._breaks_at is not None and self._sent >= self._breaks_at:
                self._break()
                return
            if self._send():
                return

    def _due(self) -> float:
        word = self._words if not self._is_streamed else self._sent + self._server.truth.bundle
        return self._server.not_before(self._came_at + self._ttft_s + (min(word, self._words) - 1) * self._tpot_s)

    def _send(self) -> bool:
        """Send the next event; whether it was the last."""
        if not self._is_begun:
            self._begin()
        count = min(self._server.truth.bundle, self._words - self._sent)
        self._sent += count
        is_last = self._sent >= self._words
        payload = self._event("word " * count, "length" if is_last else None)
        if not is_last:
            self._connection.transport.write(_chunk(payload))
            return False
        ending = payload + self._usage_event() + b"data: [DONE]\n\n"
        self._finish()
        self._connection.transport.write(_chunk(ending) + b"0\r\n\r\n")
        return True

    def _begin(self) -> None:
        self._is_begun = True
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        role = self._event("", None, role=True) if self._is_chat else b""
        self._connection.transport.write(head + (_chunk(role) if role else b""))

    def _break(self) -> None:
        if not self._is_begun:
            self._begin()
        failure = self._server.truth.failure
        self._finish()
        if failure == CUT:
            self._connection.transport.abort()
            return
        error = b'data: {"error":{"message":"planted","type":"server_error","code":500}}\n\n'
        ending = error if failure == ERROR_EVENT else b"data: [DONE]\n\n"
        self._connection.transport.write(_chunk(ending) + b"0\r\n\r\n")

    def _finish(self) -> None:
        self._sent = self._words + 1
        self._server.end(self)

    def _event(self, text: str, reason: str | None, *, role: bool = False) -> bytes:
        if self._is_chat:
            delta = {"role": "assistant", "content": text} if role else {"content": text}
            choice: dict[str, Any] = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        else:
            choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        chunk = {"id": f"timed-{self._number}", "object": kind, "created": 0, "model": self._model, "choices": [choice]}
        return b"data: " + orjson.dumps(chunk) + b"\n\n"

    def _usage(self) -> dict[str, int]:
        words = self._words + self._server.truth.miscounts
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": words,
            "total_tokens": self._prompt_tokens + words,
        }

    def _usage_event(self) -> bytes:
        chunk = {"id": f"timed-{self._number}", "model": self._model, "choices": [], "usage": self._usage()}
        return b"data: " + orjson.dumps(chunk) + b"\n\n"

    def _whole(self) -> dict[str, Any]:
        text = "word " * self._words
        content: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        )
        choice = {"index": 0, **content, "finish_reason": "length"}
        return {"id": f"timed-{self._number}", "model": self._model, "choices": [choice], "usage": self._usage()}


def _prompt(asked: dict[str, Any]) -> str:
    if "messages" in asked:
        return " ".join(str(message.get("content") or "") for message in asked["messages"])
    return str(asked.get("prompt") or "")


def _chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def read_truth(arguments: Sequence[str]) -> tuple[Truth, int]:
    """What the command line asks for, and the port."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timed_server", allow_abbrev=False)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ttft", type=float, default=0.0, dest="ttft_s", metavar="S")
    parser.add_argument("--tpot", type=float, default=0.0, dest="tpot_s", metavar="S")
    parser.add_argument("--slower", type=float, default=1.0, metavar="FACTOR")
    parser.add_argument("--slots", type=int, default=0, metavar="N")
    parser.add_argument("--fail-every", type=int, default=0, metavar="N")
    parser.add_argument("--failure", choices=FAILURES, default=ERROR_EVENT)
    parser.add_argument("--stall-at", type=float, default=0.0, dest="stall_at_s", metavar="S")
    parser.add_argument("--stall", type=float, default=0.0, dest="stall_s", metavar="S")
    parser.add_argument("--bundle", type=int, default=1, metavar="WORDS")
    parser.add_argument("--others", type=int, default=0, metavar="N")
    parser.add_argument("--renamed-after", type=int, default=0, metavar="N")
    parser.add_argument("--miscounts", type=int, default=0, metavar="N")
    given = vars(parser.parse_args(arguments))
    port = given.pop("port")
    return Truth(**given), port


async def _serve(truth: Truth, port: int) -> None:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    server = TimedServer(truth)
    sys.stdout.write(await server.listen(port) + "\n")
    sys.stdout.flush()
    parent = os.getppid()
    while not over.is_set() and os.getppid() == parent:  # whoever started it may be gone without a word
        try:
            await asyncio.wait_for(over.wait(), 1)
        except TimeoutError:
            continue
    await server.close()


def main() -> None:
    """Serve until TERM, INT or the end of whoever started it."""
    truth, port = read_truth(sys.argv[1:])
    uvloop.run(_serve(truth, port))


if __name__ == "__main__":
    main()
