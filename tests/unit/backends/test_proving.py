"""A proof that comes to nothing, and what is said of one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from backends.adapter import LaunchSpec
from backends.address import Address
from backends.engines import ADAPTERS
from backends.openai_probe import openai_probe
from backends.prompting import Prompting
from backends.proof_records import ProofRecords
from backends.proving import LocalProver, ProofFailed, mismatch, summary
from backends.render_pool import RenderPool
from backends.settings import BackendSettings
from chat_templates.battery import FEATURES
from chat_templates.contract import Contract
from chat_templates.parity import Parity
from chat_templates.proof import Proof

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def engine(folder: Path, serve: Serve) -> Any:
    """The spec of an engine on a socket in *folder*."""
    uds = str(folder / "e.sock")
    serving: set[asyncio.Task[None]] = set()

    async def watched(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await serve(reader, writer)
        with suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_unix_server(watched, uds):
        backend = BackendSettings("m", "vllm", folder)
        try:
            yield LaunchSpec(Address(uds=uds), openai_probe(backend))
        finally:
            # No connection outlives the test that opened it.
            if serving:
                await asyncio.wait(serving)


async def prove(folder: Path, serve: Serve, limit_s: float = 20) -> Proof:
    contract = Contract("c", {"default": "{{ messages[0].content }}"}, "here")
    backend = BackendSettings("m", "vllm", folder, prompting=Prompting(contract, folder / "c"))
    async with RenderPool() as pool, engine(folder, serve) as spec:
        prover = LocalProver(pool, ProofRecords(folder / "proofs"), limit_s)
        return await prover.prove(backend, ADAPTERS["vllm"], spec, lambda _: None)


async def test_it_ends_in_time(tmp_path: Path) -> None:
    """An engine that never answers is waited for as long as the limit says, and no longer."""
    over = asyncio.Event()

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    asyncio.get_running_loop().call_later(0.5, over.set)
    with pytest.raises(ProofFailed, match=r"it took more than 0\.1 s"):
        await prove(tmp_path, silent, 0.1)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"", "the engine did not answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "the engine gave an answer of no known form"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nno!", "the engine gave an answer of no known form"),
    ],
)
async def test_an_engine_that_makes_no_sense(tmp_path: Path, said: bytes, why: str) -> None:
    """Whatever comes instead of an answer is told in words, and nothing is taken for proven."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    with pytest.raises(ProofFailed, match=why):
        await prove(tmp_path, serve)


def test_what_keeps_an_engine_from_serving() -> None:
    """A plain request that would get another prompt does; tools alone do not."""
    problem = "of 42 conversations 3 get another prompt than the contract's, such as user (double_bos)"
    bad = Proof(Parity("h", "vllm"), {}, problem, "start it without a BOS")
    found = mismatch(bad)
    assert found is not None
    assert (found.code, found.permanent) == ("template_mismatch", True)
    assert found.reason == f"The engine's prompts are not those of the contract: {problem}."
    assert found.advice.startswith("Start it without a BOS. `unigate template verify` shows")
    part = Parity("h", "vllm", {feature: ("native",) for feature in FEATURES if feature != "tools"})
    assert mismatch(Proof(part, {}, "x")) is None
    assert summary(Proof(part, {"is_from_cache": True}, "x")) == [
        "the template is proven (native): text, system, multi_turn, reasoning_history, prefill, parts"
        " (kept from an earlier start)",
        "the template is not proven: tools",
        "the template: x",
    ]
