"""The fake engine does what its flags say, else the tests that rely on it prove nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fake_engine.server import CRASH_EXIT_CODE
from tests.fault.fleet_host import ROOT

LIMIT_S = 20.0
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "one two three"}]}


@contextlib.contextmanager
def fake_engine(folder: Path, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """A fake engine that listens on ``folder/s``, or has ended; killed afterwards."""
    uds = folder / "s"
    argv = [sys.executable, "-m", "tests.fake_engine", "--uds", str(uds), "--served-model-name", "m", *flags]
    with subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + LIMIT_S
            while not uds.exists() and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


@contextlib.asynccontextmanager
async def client(folder: Path, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the fake engine in *folder*."""
    transport = httpx.AsyncHTTPTransport(uds=str(folder / "s"), verify=False)
    async with asyncio.timeout(LIMIT_S), httpx.AsyncClient(transport=transport, base_url="http://m", **options) as http:
        yield http


async def streamed(http: httpx.AsyncClient, path: str = "/v1/chat/completions", **others: Any) -> list[str]:
    """The data of every event of one stream."""
    async with http.stream("POST", path, json={**CHAT, "stream": True, **others}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [line.removeprefix("data: ") async for line in answer.aiter_lines() if line]


async def test_the_openai_surface(tmp_path: Path) -> None:
    """Health, models, chat, completions, embeddings, tokenize and metrics are answered, unknown flags ignored."""
    with fake_engine(tmp_path, "--model", "x", "--max-model-len", "9", "--enforce-eager", "--chunks", "3"):
        async with client(tmp_path) as http:
            assert (await http.get("/health")).status_code == 200
            assert (await http.get("/v1/models")).json()["data"][0]["id"] == "m"
            chat = (await http.post("/v1/chat/completions", json=CHAT)).json()
            assert chat["choices"][0]["message"]["content"] == "word0 word1 word2 "
            assert chat["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
            text = (await http.post("/v1/completions", json={"prompt": "a b", "max_tokens": 2})).json()
            assert text["choices"][0] == {
                "index": 0,
                "text": "word0 word1 ",
                "logprobs": None,
                "finish_reason": "length",
            }
            vectors = (await http.post("/v1/embeddings", json={"input": ["a", "b"]})).json()
            assert [row["index"] for row in vectors["data"]] == [0, 1]
            assert (await http.post("/tokenize", json={"prompt": "a bb"})).json()["tokens"] == [1, 2]
            assert 'vllm:num_requests_running{model_name="m"} 0.0' in (await http.get("/metrics")).text
            assert (await http.get("/__state")).json() == {"running": 0, "started": 3, "finished": 3, "cancelled": 0}
            assert (await http.get("/nope")).status_code == 404


async def test_a_stream_with_and_without_usage(tmp_path: Path) -> None:
    """A stream is role, tokens, reason, usage when asked for, [DONE]."""
    with fake_engine(tmp_path, "--chunks", "2"):
        async with client(tmp_path) as http:
            plain = await streamed(http)
            assert len(plain) == 1 + 2 + 1 + 1
            assert plain[-1] == "[DONE]"
            counted = await streamed(http, stream_options={"include_usage": True})
            assert json.loads(counted[-2])["usage"]["completion_tokens"] == 2
            assert json.loads(counted[-2])["choices"] == []


async def test_faults_in_mid_stream(tmp_path: Path) -> None:
    """An error event comes before [DONE]; without [DONE] the stream still ends whole."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with fake_engine(tmp_path / "a", "--error-mid-stream"), fake_engine(tmp_path / "b", "--no-done"):
        async with client(tmp_path / "a") as http:
            events = await streamed(http)
            assert "error" in json.loads(events[-2])
            assert events[-1] == "[DONE]"
        async with client(tmp_path / "b") as http:
            assert "[DONE]" not in await streamed(http)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("flag", ["--close-mid-stream", "--garbage"])
async def test_broken_answers(tmp_path: Path, flag: str, stream: bool) -> None:
    """A closed connection and bytes that are no HTTP are protocol errors; the readiness proof is spared."""
    with fake_engine(tmp_path, flag):
        async with client(tmp_path) as http:
            with pytest.raises(httpx.RemoteProtocolError):
                await http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
            assert (await http.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 1})).is_success


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("flag", ["--stall-headers", "--stall-mid-stream"])
async def test_stalls_and_the_client_that_leaves(tmp_path: Path, flag: str, stream: bool) -> None:
    """A stalled answer runs until its client leaves, which the engine notices and counts."""
    with fake_engine(tmp_path, flag):
        async with client(tmp_path) as http:
            with pytest.raises(httpx.ReadTimeout):
                await http.post("/v1/chat/completions", json={**CHAT, "stream": stream}, timeout=0.3)
            while (state := (await http.get("/__state")).json())["running"]:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
            assert state == {"running": 0, "started": 1, "finished": 0, "cancelled": 1}


@pytest.mark.parametrize("count", [0, 2, 5])
async def test_a_crash_in_mid_stream(tmp_path: Path, count: int) -> None:
    """The process ends hard after so many tokens."""
    with fake_engine(tmp_path, "--crash-after-chunks", str(count)) as process:
        async with client(tmp_path) as http:
            with pytest.raises(httpx.RemoteProtocolError):
                await streamed(http)
        assert process.wait(LIMIT_S) == CRASH_EXIT_CODE


SHAPES: list[tuple[str, Any]] = [
    ("vllm", lambda body: json.loads(body)["error"]["message"]),
    ("lmdeploy", lambda body: json.loads(body)["message"]),
    ("string", lambda body: json.loads(body)["error"]),
    ("text", lambda body: body),
]


@pytest.mark.parametrize(("shape", "message"), SHAPES, ids=lambda value: value if isinstance(value, str) else "")
async def test_error_shapes(tmp_path: Path, shape: str, message: Any) -> None:
    """Each shape carries the message in its own place, with the status asked for."""
    with fake_engine(tmp_path, "--status", "529", "--error-shape", shape):
        async with client(tmp_path) as http:
            answer = await http.post("/v1/chat/completions", json=CHAT)
            assert answer.status_code == 529
            assert message(answer.text) == "the fake engine answers 529"


async def test_a_key_is_required(tmp_path: Path) -> None:
    """Below /v1 a bearer token is needed; health is open."""
    with fake_engine(tmp_path, "--require-key", "k"):
        async with client(tmp_path) as http:
            assert (await http.get("/health")).is_success
            assert (await http.get("/v1/models")).json() == {"error": "Unauthorized"}
            assert (await http.get("/v1/models", headers={"authorization": "Bearer k"})).is_success


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--exit-during-start", "3"), 3, b"serving m"),
        (("--port-taken",), 1, b"address already in use"),
        (("--exit-after", "0.01"), 1, b"listening"),
    ],
)
def test_ends_by_itself(tmp_path: Path, flags: tuple[str, ...], code: int, said: bytes) -> None:
    """The exit code and the last words are those asked for."""
    with fake_engine(tmp_path, *flags) as process:
        _, printed = process.communicate(timeout=LIMIT_S)
        assert process.returncode == code
        assert said in printed


def test_term_is_obeyed_or_not(tmp_path: Path) -> None:
    """TERM ends it with 0, unless it was told to ignore it."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with fake_engine(tmp_path / "a") as obedient, fake_engine(tmp_path / "b", "--ignore-sigterm") as stubborn:
        for process in (obedient, stubborn):
            process.terminate()
        assert obedient.wait(LIMIT_S) == 0
        with pytest.raises(subprocess.TimeoutExpired):
            stubborn.wait(0.3)
