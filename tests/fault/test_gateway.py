"""A gateway when things break around it: clients that leave, engines that fail, processes that are killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.gateways import Gateway, events_of, fake_model, processes_of, running_gateway, until

CHAT = "/v1/chat/completions"
TIMEOUTS = {"first_byte_s": 1.5, "idle_s": 1.5, "send_s": 1}
QUICK_BACKOFF = {"base_s": 0.05, "max_s": 0.2}
GONE_WITHIN_S = 10.0
CLIENTS = 200
SEED = 20_260_101


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with small timeouts, whose models each have one fault and are loaded by whoever asks."""
    folder: Path = tmp_path_factory.mktemp("faults")
    last_words = folder / "last-words.txt"
    last_words.write_text("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n")
    faults: dict[str, tuple[str, ...]] = {
        "well": (),
        "slow": ("chunks=200", "chunk-interval=0.05"),
        "brief": ("chunks=40", "chunk-interval=0.02"),
        "flood": ("chunks=100000",),
        "late": ("ready-after=1",),
        "never": ("stall-start",),
        "gives-up": ("ready-after=1", f"stderr={last_words}", "exit-during-start=1"),
        "stall-headers": ("stall-headers",),
        "stall-mid-stream": ("stall-mid-stream",),
        "garbage": ("garbage",),
        "garbage-body": ("garbage-body",),
        "close-mid-stream": ("close-mid-stream", "chunk-interval=0.01"),
        "error-mid-stream": ("error-mid-stream",),
        "no-done": ("no-done",),
    }
    models = {name: fake_model(folder, *flags, load="on_demand") for name, flags in faults.items()}
    with running_gateway(folder, models, settings={"timeouts": TIMEOUTS}) as running:
        yield running


def request(model: str, *, stream: bool = True) -> dict[str, Any]:
    """A chat request's body."""
    return {"model": model, "messages": [{"role": "user", "content": "one two"}], "stream": stream}


# -- clients that leave


class Visitor:
    """A client by hand: it can leave at any byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, gateway: Gateway, body: dict[str, Any], *, share: float = 1.0) -> None:
        """Send a request, or only the first *share* of its body."""
        content = json.dumps(body).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: 127.0.0.1:{gateway.port}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\n\r\n"
        )
        self._writer.write(head.encode() + content[: int(len(content) * share)])
        await self._writer.drain()

    async def read(self) -> bytes:
        """What comes next; empty at the end."""
        return await self._reader.read(65536)

    def leave(self, how: str) -> None:
        """Go away: politely, with FIN, or at once, with RST."""
        if how == "resets":
            raw: socket.socket = self._writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._writer.transport.abort()
        self._writer.close()


@contextlib.asynccontextmanager
async def visitor(gateway: Gateway, receive_buffer_bytes: int | None = None) -> AsyncIterator[Visitor]:
    """A connection to the gateway; closed at the latest here."""
    raw = socket.socket()
    if receive_buffer_bytes is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", gateway.port))
    reader, writer = await asyncio.open_connection(sock=raw, limit=4096)
    try:
        yield Visitor(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def departures(gateway: Gateway, model: str, phase: str) -> float:
    """How many clients have left in *phase*."""
    return gateway.metric("unigate_client_disconnects_total", model=model, phase=phase)


leaving = pytest.mark.parametrize("how", ["closes", "resets"])


@leaving
async def test_a_client_leaves_while_its_body_is_sent(gateway: Gateway, how: str) -> None:
    """A client that leaves in the middle of its body is noted, and no model is asked."""
    before = departures(gateway, "_unknown", "read")
    async with visitor(gateway) as client:
        await client.send(gateway, request("well"), share=0.5)
        await asyncio.sleep(0.1)  # so that the gateway has begun to read: nothing shows that from outside
        client.leave(how)
    until(lambda: departures(gateway, "_unknown", "read") == before + 1, what="the departure is noted")
    assert gateway.backend("well")["state"] == "stopped"


@leaving
async def test_a_client_leaves_while_waiting_for_a_cold_start(gateway: Gateway, how: str) -> None:
    """A client that leaves the queue frees its place in it."""
    before = departures(gateway, "never", "lease")
    async with visitor(gateway) as client:
        await client.send(gateway, request("never"))
        until(lambda: gateway.metric("unigate_queue_depth", model="never") == 1, what="the request waits")
        client.leave(how)
    until(lambda: departures(gateway, "never", "lease") == before + 1, what="the departure is noted")
    assert gateway.metric("unigate_queue_depth", model="never") == 0
    assert gateway.metric("unigate_requests_in_flight", model="never") == 0
    # one that starts keeps all others from starting
    gateway.ask("POST", "/admin/backends/never/unload", params={"wait_s": 8})


@leaving
@pytest.mark.parametrize(("model", "stream"), [("stall-headers", True), ("stall-headers", False), ("slow", False)])
async def test_a_client_leaves_before_the_engines_answer(gateway: Gateway, how: str, model: str, stream: bool) -> None:
    """A client that leaves before the engine's headers ends the engine's work, streamed or not."""
    gateway.load(model)
    cancelled, before = gateway.engine_state(model)["cancelled"], departures(gateway, model, "forward")
    async with visitor(gateway) as client:
        await client.send(gateway, request(model, stream=stream))
        until(lambda: gateway.engine_state(model)["running"] == 1, what="the engine works")
        client.leave(how)
    assert gateway.until_idle(model)["cancelled"] == cancelled + 1
    assert departures(gateway, model, "forward") == before + 1


@leaving
async def test_a_client_leaves_between_two_chunks(gateway: Gateway, how: str) -> None:
    """A client that leaves in mid-stream ends the engine's work."""
    gateway.load("slow")
    cancelled, before = gateway.engine_state("slow")["cancelled"], departures(gateway, "slow", "relay")
    async with visitor(gateway) as client:
        await client.send(gateway, request("slow"))
        while b"word1" not in await client.read():
            pass
        client.leave(how)
    assert gateway.until_idle("slow")["cancelled"] == cancelled + 1
    assert departures(gateway, "slow", "relay") == before + 1
    assert gateway.metric("unigate_requests_total", model="slow", code="499") >= 1


async def test_a_client_stops_reading(gateway: Gateway) -> None:
    """A client that stays and reads nothing is given up after timeouts.send_s, and its engine is free again."""
    gateway.load("flood")
    before = departures(gateway, "flood", "relay")
    async with visitor(gateway, receive_buffer_bytes=4096) as client:
        await client.send(gateway, request("flood"))
        assert await client.read()
        state = await asyncio.to_thread(gateway.until_idle, "flood")
        assert (state["cancelled"], state["finished"]) == (1, 0)
        assert departures(gateway, "flood", "relay") == before + 1


async def test_a_client_reads_slowly(gateway: Gateway) -> None:
    """A client that reads slowly, but reads, gets its whole stream though the engine was done long before."""
    gateway.load("brief")
    async with visitor(gateway, receive_buffer_bytes=4096) as client:
        await client.send(gateway, request("brief"))
        answer = b""
        while not answer.endswith(b"0\r\n\r\n"):
            await asyncio.sleep(0.02)
            piece = await client.read()
            assert piece
            answer += piece
    assert b"word39" in answer
    assert b"data: [DONE]\n\n" in answer


async def test_many_clients_leave_at_any_moment(gateway: Gateway) -> None:
    """After 200 streaming clients left at random moments nothing is under way, here or in the engine, no lease lost."""
    gateway.load("brief")
    before = gateway.engine_state("brief")
    chance = random.Random(SEED)

    async def visit(stays_s: float, how: str) -> None:
        async with visitor(gateway) as client:
            await client.send(gateway, request("brief"))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(stays_s):
                    while await client.read():
                        pass
            client.leave(how)

    visits = [visit(chance.uniform(0, 2), chance.choice(["closes", "resets"])) for _ in range(CLIENTS)]
    await asyncio.gather(*visits)
    after = await asyncio.to_thread(gateway.until_idle, "brief")
    started, finished, cancelled = (after[name] - before[name] for name in ("started", "finished", "cancelled"))
    assert started == finished + cancelled
    assert cancelled >= CLIENTS / 10
    assert started >= CLIENTS / 2
    assert gateway.backend("brief")["leases"] == 0
    assert "Traceback" not in gateway.logged()


# -- engines that fail


@pytest.mark.parametrize(
    ("model", "stream", "status", "code", "message"),
    [
        ("garbage", True, 502, "backend_garbage", "the backend of garbage sent something that is not an HTTP answer"),
        ("garbage", False, 502, "backend_garbage", "the backend of garbage sent something that is not an HTTP answer"),
        ("garbage-body", True, 502, "backend_garbage", "the backend answered something that is not a JSON object"),
        ("garbage-body", False, 502, "backend_garbage", "the backend answered something that is not a JSON object"),
        ("stall-headers", True, 504, "backend_timeout", "the backend of stall-headers did not answer in time"),
        ("stall-headers", False, 504, "backend_timeout", "the backend of stall-headers did not answer in time"),
        (
            "stall-mid-stream",
            False,
            504,
            "backend_timeout",
            "the backend of stall-mid-stream fell silent before its answer was complete",
        ),
        (
            "close-mid-stream",
            False,
            502,
            "backend_broke_off",
            "the backend of close-mid-stream closed the connection before its answer was complete",
        ),
        ("error-mid-stream", False, 500, None, "the fake engine failed in mid-answer"),
    ],
)
def test_before_the_first_byte(
    gateway: Gateway, model: str, stream: bool, status: int, code: str | None, message: str
) -> None:
    """An engine that fails before its answer began is told as a status and an envelope with source backend."""
    gateway.load(model)
    answer = gateway.ask("POST", CHAT, json=request(model, stream=stream))
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["code"], error["message"], error["source"]) == (code, message, "backend")
    gateway.until_idle(model)


@pytest.mark.parametrize(
    ("model", "code", "message"),
    [
        (
            "close-mid-stream",
            "backend_broke_off",
            "the backend of close-mid-stream closed the connection before its answer was complete",
        ),
        (
            "stall-mid-stream",
            "backend_timeout",
            "the backend of stall-mid-stream fell silent before its answer was complete",
        ),
        ("no-done", "backend_broke_off", "the backend ended its stream before it was complete"),
        ("error-mid-stream", None, "the fake engine failed in mid-stream"),
    ],
)
def test_in_mid_stream(gateway: Gateway, model: str, code: str | None, message: str) -> None:
    """A stream that breaks ends in exactly one error event and no [DONE], and the official client raises APIError."""
    gateway.load(model)
    answer = gateway.ask("POST", CHAT, json=request(model))
    assert answer.status_code == 200
    *whole, last = events_of(answer.text)
    assert whole
    assert all("choices" in event for event in whole)
    error = last["error"]
    assert (error["code"], error["message"], error["source"]) == (code, message, "backend")
    with gateway.openai() as client, pytest.raises(openai.APIError, match=message):
        for _ in client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "one two"}], stream=True
        ):
            pass
    gateway.until_idle(model)


def test_failures_are_counted_by_kind(gateway: Gateway) -> None:
    """Each failed exchange counts once, under what went wrong with it."""

    def counted(model: str, kind: str) -> float:
        return gateway.metric("unigate_upstream_errors_total", model=model, engine="vllm", kind=kind)

    kinds = {
        "garbage": "GarbageAnswer",
        "close-mid-stream": "BrokenAnswer",
        "error-mid-stream": "error_in_stream",
        "stall-headers": "FirstByteTimedOut",
    }
    for model, kind in kinds.items():
        before = counted(model, kind)
        gateway.ask("POST", CHAT, json=request(model))
        until(lambda model=model, kind=kind, before=before: counted(model, kind) == before + 1, what=kind)  # type: ignore[misc]


def test_a_cold_model_answers_all_who_waited(gateway: Gateway) -> None:
    """Requests that come while a model loads wait for it, are all answered by one start, and their wait is measured."""
    with httpx.Client(base_url=gateway.url, timeout=20, trust_env=False) as client:

        async def both() -> list[httpx.Response]:
            asked = (asyncio.to_thread(client.post, CHAT, json=request("late", stream=way)) for way in (True, False))
            return await asyncio.gather(*asked)

        streamed, whole = asyncio.run(both())
    assert events_of(streamed.text)[-1] == "[DONE]"
    assert whole.json()["choices"][0]["message"]["content"].startswith("word0")
    assert gateway.metric("unigate_backend_starts_total", model="late", result="ready") == 1
    assert gateway.metric("unigate_queue_wait_seconds_sum", model="late") > 1


def test_a_start_that_fails_is_told_to_who_waits(gateway: Gateway) -> None:
    """Who waits for a start that cannot succeed gets 503 with the diagnosis when it fails, not at the deadline."""
    answer = gateway.ask("POST", CHAT, json=request("gives-up"))
    assert answer.status_code == 503
    assert answer.headers["x-should-retry"] == "false"
    error = answer.json()["error"]
    assert error["code"] == "model_failed"
    assert error["diagnosis"]["code"] == "gpu_out_of_memory"
    assert error["diagnosis"]["reason"] == "The GPU ran out of memory."
    assert gateway.metric("unigate_backend_starts_total", model="gives-up", result="failed") == 1


def test_an_engine_dies_in_mid_stream(tmp_path: Path) -> None:
    """A stream whose engine dies ends in one error event, and the backend is READY again by itself."""
    models = {"chat": fake_model(tmp_path, "crash-after-chunks=2", "chunk-interval=0.01", backoff=QUICK_BACKOFF)}
    with running_gateway(tmp_path, models) as gateway:
        for crashes in (1, 2):
            answer = gateway.ask("POST", CHAT, json=request("chat"))
            assert answer.status_code == 200
            *whole, last = events_of(answer.text)
            assert [event["choices"][0]["delta"]["content"] for event in whole][-2:] == ["word0 ", "word1 "]
            assert last["error"]["code"] == "backend_broke_off"
            until_restarted(gateway, "chat", crashes)
        assert gateway.ask("POST", CHAT, json=request("chat", stream=False)).status_code == 502
        assert gateway.metric("unigate_backend_restarts_total", model="chat", engine="vllm", reason="crashed") == 2
        until_restarted(gateway, "chat", 3)


def until_restarted(gateway: Gateway, model: str, times: int) -> dict[str, Any]:
    """Wait until a backend has been started anew so many times and is READY; returns how it stands."""

    def again() -> dict[str, Any] | None:
        backend = gateway.backend(model)
        return backend if backend["restarts"] == times and backend["state"] == "ready" else None

    return until(again, 20, f"{model} is ready after restart {times}")


@contextlib.contextmanager
def streaming(gateway: Gateway, model: str) -> Iterator[Iterator[str]]:
    """A stream under way: its lines after the first token has come."""
    body = request(model)
    with httpx.stream("POST", f"{gateway.url}{CHAT}", json=body, timeout=20, trust_env=False) as answer:
        lines = answer.iter_lines()
        assert any("word0" in line for line in lines)
        yield lines


def test_an_engine_is_killed(tmp_path: Path) -> None:
    """kill -9 of an engine: the stream in flight gets one error event, and another process serves soon after."""
    models = {"chat": fake_model(tmp_path, "chunks=200", "chunk-interval=0.05", backoff=QUICK_BACKOFF)}
    with running_gateway(tmp_path, models) as gateway:
        before = gateway.backend("chat")["pid"]
        with streaming(gateway, "chat") as lines:
            os.kill(before, signal.SIGKILL)
            last = events_of(list(lines))[-1]
        assert last["error"]["code"] == "backend_broke_off"
        after = until_restarted(gateway, "chat", 1)
        assert after["pid"] != before
        assert len(gateway.processes()) == 2  # the shim and the engine
        body = request("chat", stream=False) | {"max_tokens": 2}
        assert gateway.ask("POST", CHAT, json=body).status_code == 200


def test_an_engine_hangs(tmp_path: Path) -> None:
    """An engine that stands still is noticed, ended and started anew; the stream in flight gets one error event."""
    health = {"interval_s": 0.2, "timeout_s": 0.5, "failures": 2}
    models = {
        "chat": fake_model(
            tmp_path, "chunks=200", "chunk-interval=0.05", backoff=QUICK_BACKOFF, health=health, stop_grace_s=1
        )
    }
    with running_gateway(tmp_path, models) as gateway:
        with streaming(gateway, "chat") as lines:
            os.kill(gateway.backend("chat")["pid"], signal.SIGSTOP)
            last = events_of(list(lines))[-1]
        assert last["error"]["code"] == "backend_broke_off"
        until_restarted(gateway, "chat", 1)
        assert gateway.metric("unigate_backend_restarts_total", model="chat", reason="unhealthy") == 1


# -- the gateway's own end


def test_the_gateway_is_killed(tmp_path: Path) -> None:
    """kill -9 of the gateway in mid-stream: within 10 s no marked process is left, though the engine ignores TERM."""
    models = {
        "chat": fake_model(tmp_path, "chunks=200", "chunk-interval=0.05"),
        "stubborn": fake_model(tmp_path, "ignore-sigterm", "setsid-child", stop_grace_s=0.5),
    }
    with running_gateway(tmp_path, models) as gateway:
        gateway.exit_codes = (-signal.SIGKILL,)
        assert len(gateway.processes()) == 5
        with streaming(gateway, "chat") as lines:
            gateway.process.kill()
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        gateway.process.wait(10)
        until(lambda: not processes_of(gateway.run), GONE_WITHIN_S, "nothing is left")
    with running_gateway(tmp_path, models) as gateway:
        assert gateway.ask("POST", CHAT, json=request("stubborn")).status_code == 200


def test_a_stop_lets_running_answers_finish(tmp_path: Path) -> None:
    """After TERM running answers are completed, new requests get 503 draining, and the exit code is 0."""
    with running_gateway(tmp_path, {"chat": fake_model(tmp_path, "chunks=10", "chunk-interval=0.1")}) as gateway:
        with streaming(gateway, "chat") as lines:
            gateway.signal(signal.SIGTERM)
            until(lambda: gateway.ask("GET", "/ready").status_code == 503, what="it drains")
            refused = gateway.ask("POST", CHAT, json=request("chat"))
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "draining"
            assert refused.json()["error"]["message"] == "the gateway is shutting down"
            assert refused.headers["retry-after"] == "5"
            assert refused.headers["connection"] == "close"
            events = events_of(list(lines))
        assert events[-1] == "[DONE]"
        assert gateway.process.wait(10) == 0


def test_a_stop_waits_no_longer_than_told(tmp_path: Path) -> None:
    """A stream that outlasts drain_timeout_s ends in an error event, and the gateway exits with 0 all the same."""
    models = {"chat": fake_model(tmp_path, "chunks=1000", "chunk-interval=0.05")}
    with running_gateway(tmp_path, models, settings={"drain_timeout_s": 0.5}) as gateway:
        with streaming(gateway, "chat") as lines:
            gateway.signal(signal.SIGINT)
            events = events_of(list(lines))
        assert events[-1]["error"]["code"] == "backend_broke_off"
        assert gateway.process.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_kills(tmp_path: Path, number: signal.Signals) -> None:
    """A second TERM or Ctrl-C waits for nothing: engines are killed, and the gateway is gone at once."""
    models = {
        "chat": fake_model(tmp_path, "chunks=1000", "chunk-interval=0.05"),
        "stubborn": fake_model(tmp_path, "ignore-sigterm"),
    }
    with running_gateway(tmp_path, models) as gateway, streaming(gateway, "chat"):
        gateway.signal(number)
        until(lambda: gateway.ask("GET", "/ready").status_code == 503, what="it drains")
        gateway.signal(number)
        assert gateway.process.wait(5) == 0


async def test_a_stop_answers_who_waits(tmp_path: Path) -> None:
    """A request that waits for a model when the gateway stops is answered, not cut."""
    models = {"never": fake_model(tmp_path, "stall-start", load="on_demand")}
    with running_gateway(tmp_path, models) as gateway:
        waiting = asyncio.create_task(asyncio.to_thread(gateway.ask, "POST", CHAT, json=request("never")))
        await asyncio.to_thread(until, lambda: gateway.metric("unigate_queue_depth", model="never") == 1)
        gateway.signal(signal.SIGTERM)
        answer = await waiting
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "model_stopped"
        assert answer.json()["error"]["message"] == "never was stopped"
        assert gateway.process.wait(10) == 0


def test_idle_connections_do_not_hold_a_stop(tmp_path: Path) -> None:
    """A stop does not wait for clients that keep a connection open, nor for one that follows a log."""
    with running_gateway(tmp_path, {"chat": fake_model(tmp_path)}) as gateway, httpx.Client(trust_env=False) as client:
        client.get(f"{gateway.url}/health")
        with client.stream("GET", f"{gateway.url}/admin/backends/chat/logs?follow=true") as following:
            lines = following.iter_lines()
            assert next(lines)
            gateway.signal(signal.SIGTERM)
            assert any("stopped" in line for line in lines)
        assert gateway.process.wait(4) == 0
