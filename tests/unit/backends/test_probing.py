"""Asking an engine whether it lives and whether it can answer, against canned bytes on a Unix socket."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.adapter import Call, LaunchSpec, Probe
from backends.address import Address
from backends.probing import HttpProber, ProbeFailed, client_for

POINTER = ("choices", 0, "text")
GOOD: dict[str, Any] = {"choices": [{"text": "Hi"}]}


def answer(status: int, body: bytes, *headers: str) -> bytes:
    """A whole HTTP answer."""
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class Canned:
    """A server that answers every request with the same bytes, a piece every *pause_s*."""

    def __init__(self, path: Path) -> None:
        self.reply = b""
        self.pause_s: float | None = None
        self.requests: list[bytes] = []
        self.connections: set[asyncio.Task[Any]] = set()
        self.spec = LaunchSpec(
            Address(uds=str(path)),
            Probe(Call("GET", "/health"), Call("POST", "/v1/completions", {"model": "m"}), POINTER),
            authorization="Bearer sk-1",
        )

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append(await reader.readuntil(b"\r\n\r\n"))
        pieces = [self.reply] if self.pause_s is None else [self.reply[i : i + 1] for i in range(len(self.reply))]
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            if self.pause_s is not None:
                await asyncio.sleep(self.pause_s)

    async def close(self) -> None:
        """End the connections that are still open."""
        for task in self.connections:
            task.cancel()
        if self.connections:
            await asyncio.wait(self.connections)


@pytest.fixture
async def canned(tmp_path: Path) -> AsyncIterator[Canned]:
    """A listening Canned."""
    path = tmp_path / "m.sock"
    engine = Canned(path)
    async with asyncio.timeout(20):
        server = await asyncio.start_unix_server(engine.connected, path)
        yield engine
        server.close()
        await engine.close()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (204, True), (302, False), (404, False), (503, False)])
async def test_health_is_a_2xx(canned: Canned, status: int, healthy: bool) -> None:
    """Any 2xx is well, all else is not."""
    canned.reply = answer(status, b"")
    assert await HttpProber().is_healthy(canned.spec, 5) is healthy


@pytest.mark.parametrize(
    "reply",
    [b"", b"not http at all\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nxx",
     answer(200, b"no gzip", "content-encoding: gzip")],
)  # fmt: skip
async def test_garbage_is_not_well(canned: Canned, reply: bytes) -> None:
    """Nothing, no HTTP, half a body and a body that cannot be decoded are no health, and no exception."""
    canned.reply = reply
    assert await HttpProber().is_healthy(canned.spec, 5) is False


async def test_nobody_is_not_well(tmp_path: Path, canned: Canned) -> None:
    """Where nobody listens there is no health."""
    spec = LaunchSpec(Address(uds=str(tmp_path / "none.sock")), canned.spec.probe)
    assert await HttpProber().is_healthy(spec, 5) is False


@pytest.mark.parametrize("pause_s", [60, 0.02])
async def test_health_comes_in_time_or_not_at_all(canned: Canned, pause_s: float) -> None:
    """Silence and an answer that trickles in are both too late after timeout_s."""
    canned.reply = answer(200, b"x" * 500)
    canned.pause_s = pause_s
    async with asyncio.timeout(5):
        assert await HttpProber().is_healthy(canned.spec, 0.1) is False


async def test_the_proof_is_a_value_behind_the_pointer(canned: Canned) -> None:
    """A 200 with the value is proof; the key went with it."""
    canned.reply = answer(200, json.dumps(GOOD).encode())
    await HttpProber().prove(canned.spec, 5)
    assert b"authorization: Bearer sk-1" in canned.requests[0]
    canned.reply = answer(200, gzip.compress(json.dumps(GOOD).encode()), "content-encoding: gzip")
    await HttpProber().prove(canned.spec, 5)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"text": null}]}', b'"choices"', b"\xff"]
)
async def test_a_200_without_the_value_is_no_proof(canned: Canned, body: bytes) -> None:
    """An answer without a result is a failure worth asking again."""
    canned.reply = answer(200, body)
    with pytest.raises(ProbeFailed, match="brought no result back") as failure:
        await HttpProber().prove(canned.spec, 5)
    assert not failure.value.is_permanent


@pytest.mark.parametrize(
    ("status", "permanent"),
    [(status, True) for status in (400, 401, 404, 422)] + [(status, False) for status in (408, 425, 429, 500, 503)],
)
async def test_a_refusal_is_final_when_it_is_ours_to_mend(canned: Canned, status: int, permanent: bool) -> None:
    """4xx would come again, except those that say "later"; 5xx may pass. The body is told, cut."""
    canned.reply = answer(status, b"because " + b"x" * 1000)
    with pytest.raises(ProbeFailed, match=f"answered {status}: because x") as failure:
        await HttpProber().prove(canned.spec, 5)
    assert failure.value.is_permanent is permanent
    assert len(str(failure.value)) < 400


async def test_no_answer_is_httpx_error(tmp_path: Path, canned: Canned) -> None:
    """Where nobody listens, and where the body cannot be decoded, prove raises httpx.RequestError."""
    spec = LaunchSpec(Address(uds=str(tmp_path / "none.sock")), canned.spec.probe)
    with pytest.raises(httpx.RequestError):
        await HttpProber().prove(spec, 5)
    canned.reply = answer(200, b"no gzip", "content-encoding: gzip")
    with pytest.raises(httpx.RequestError):
        await HttpProber().prove(canned.spec, 5)


async def test_the_environments_proxy_is_not_used(canned: Canned, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are on this machine, whatever proxy the environment names."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    canned.reply = answer(200, b"")
    assert await HttpProber().is_healthy(canned.spec, 5)


async def test_certificates_are_loaded_for_tls_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client for a plain address loads no certificates, which would hold up the loop; one for TLS verifies."""
    loaded = []
    load = ssl.SSLContext.load_verify_locations

    def loading(context: ssl.SSLContext, *places: Any, **named: Any) -> None:
        loaded.append(context.verify_mode)
        load(context, *places, **named)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", loading)
    async with client_for(Address(host="127.0.0.1", port=1), 1):
        assert loaded == []
    async with client_for(Address(host="127.0.0.1", port=1, tls=True), 1):
        assert loaded == [ssl.CERT_REQUIRED]
