"""The real vLLM and the real llama.cpp behind one gateway: the same weights, the same prompts, the same answers.

One gateway serves the whole module, because a vLLM takes half a minute to start; the tests that break it wait until it
is whole again, and the last one kills it.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.engines.environment import gguf_model, hf_model, vllm_python
from tests.gateways import Gateway, running_gateway, until

pytestmark = [pytest.mark.engine_vllm, pytest.mark.engine_llamacpp, pytest.mark.timeout(420)]

VLLM = "smol-vllm"
LLAMACPP = "smol-llamacpp"
EMBEDDING = "smol-embedding"
BOTH = (VLLM, LLAMACPP)

START_S = 300.0
"""vLLM on a busy machine of two cores."""
PARIS: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
STORY: list[Any] = [{"role": "user", "content": "Tell me a very long story about a river."}]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("real")
    quick_retry = {"base_s": 0.5, "max_s": 2}
    models = {
        VLLM: {
            "engine": "vllm",
            "weights": str(hf_model()),
            "context_length": 2048,
            "args": {"enforce-eager": True},
            "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"},
            "backoff": quick_retry,
        },
        LLAMACPP: {"engine": "llamacpp", "weights": str(gguf_model()), "context_length": 2048, "backoff": quick_retry},
        EMBEDDING: {
            "engine": "llamacpp",
            "weights": str(gguf_model()),
            "context_length": 512,
            "args": {"embeddings": True, "pooling": "mean"},
            "readiness": "embed",
            "load": "on_demand",
        },
    }
    engines = {"vllm": {"command": [str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server"]}}
    # vLLM writes caches into its home; where they are kept, its second start is not its first.
    with running_gateway(folder, models, engines=engines, is_ready=False) as gateway:
        gateway.until_ready(START_S)
        yield gateway


def engine_metric(gateway: Gateway, model: str, name: str) -> float:
    """A gauge or counter of the engine's own /metrics."""
    uds = gateway.backend(model)["address"].removeprefix("unix:")
    with httpx.Client(transport=httpx.HTTPTransport(uds=uds), base_url="http://localhost") as client:
        families = text_string_to_metric_families(client.get("/metrics").text)
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)


@pytest.mark.parametrize("model", BOTH)
def test_answers_paris(gateway: Gateway, model: str) -> None:
    """Asked for the capital of France at temperature 0, it says Paris, streaming and not, with the same usage."""
    with gateway.openai() as client:
        whole = client.chat.completions.create(model=model, messages=PARIS, temperature=0)
        assert "Paris" in (whole.choices[0].message.content or "")
        stream = client.chat.completions.create(
            model=model, messages=PARIS, temperature=0, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


@pytest.mark.parametrize("model", BOTH)
async def test_answers_paris_asynchronously(gateway: Gateway, model: str) -> None:
    """The asynchronous client gets the same, and no usage chunk when it did not ask for one."""
    async with gateway.async_openai() as client:
        stream = await client.chat.completions.create(model=model, messages=PARIS, temperature=0, stream=True)
        chunks = [chunk async for chunk in stream]
    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert all(chunk.choices for chunk in chunks)


def test_the_engines_count_the_same_prompt(gateway: Gateway) -> None:
    """The same weights under two names: both engines count the same number of prompt tokens, and tokenise alike."""
    counts, tokens = {}, {}
    with gateway.openai() as client:
        for model in BOTH:
            answer = client.chat.completions.create(model=model, messages=PARIS, temperature=0, max_tokens=1)
            assert answer.usage is not None
            counts[model] = answer.usage.prompt_tokens
            tokens[model] = gateway.ask("POST", "/tokenize", json={"model": model, "messages": PARIS}).json()["tokens"]
    assert counts[VLLM] == counts[LLAMACPP] == 37
    assert tokens[VLLM] == tokens[LLAMACPP]
    assert len(tokens[VLLM]) == 37


@pytest.mark.parametrize("model", BOTH)
def test_text_completion(gateway: Gateway, model: str) -> None:
    """`/v1/completions` works on both engines, and token counts arrive in the gateway's metrics."""
    before = gateway.metric("unigate_tokens_total", model=model, kind="completion")
    with gateway.openai() as client:
        answer = client.completions.create(model=model, prompt="Paris is the capital of", temperature=0, max_tokens=4)
        streamed = list(
            client.completions.create(
                model=model, prompt="Paris is the capital of", temperature=0, max_tokens=4, stream=True
            )
        )
    assert "".join(chunk.choices[0].text for chunk in streamed) == answer.choices[0].text
    assert gateway.metric("unigate_tokens_total", model=model, kind="completion") == before + 8


@pytest.mark.parametrize("model", BOTH)
@pytest.mark.parametrize(
    "extra", [{"chat_template": "{{ 1 }}"}, {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}]
)
def test_no_template_from_a_client(gateway: Gateway, model: str, extra: dict[str, Any]) -> None:
    """Neither door lets a request bring its own chat template to a real engine."""
    with gateway.openai() as client, pytest.raises(openai.BadRequestError, match="chat template"):
        client.chat.completions.create(model=model, messages=PARIS, extra_body=extra)


@pytest.mark.parametrize("model", BOTH)
def test_the_engines_own_refusal(gateway: Gateway, model: str) -> None:
    """What the engine itself refuses comes back in the OpenAI envelope, status kept, source backend."""
    with gateway.openai() as client, pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x " * 4000}])
    assert refused.value.body["source"] == "backend"  # type: ignore[index]
    assert refused.value.type == "invalid_request_error"


def test_embeddings(gateway: Gateway) -> None:
    """A cold embedding model loads on the first request and answers; a chat model refuses in the engine's own words."""
    with gateway.openai() as client:
        answer = client.with_options(timeout=60).embeddings.create(model=EMBEDDING, input=["hello", "world"])
        assert [len(item.embedding) for item in answer.data] == [576, 576]
        with pytest.raises(openai.APIStatusError, match="embeddings"):
            client.embeddings.create(model=LLAMACPP, input="hello")


@pytest.mark.parametrize(
    ("model", "running"), [(VLLM, "vllm:num_requests_running"), (LLAMACPP, "llamacpp:requests_processing")]
)
async def test_two_hundred_clients_leave(gateway: Gateway, model: str, running: str) -> None:
    """200 streaming clients that each leave at a random moment: nothing runs on afterwards, neither here nor there."""
    chance = random.Random(7)

    async def leave(client: openai.AsyncOpenAI, after_s: float) -> None:
        try:
            async with asyncio.timeout(after_s):
                stream = await client.chat.completions.create(model=model, messages=STORY, stream=True, max_tokens=1500)
                async for _ in stream:
                    pass
        except TimeoutError:
            await asyncio.sleep(0)

    async with gateway.async_openai() as client:
        await asyncio.gather(*(leave(client, chance.uniform(0.05, 8)) for _ in range(200)))

    def idle() -> bool:
        gauges = ("unigate_requests_in_flight", "unigate_leases", "unigate_queue_depth")
        return not any(gateway.metric(gauge, model=model) for gauge in gauges) and not engine_metric(
            gateway, model, running
        )

    await asyncio.to_thread(until, idle, 60, f"{model} is idle")
    assert "Traceback" not in gateway.logged()
    with gateway.openai() as after:
        answer = after.with_options(timeout=60).chat.completions.create(model=model, messages=PARIS, temperature=0)
    assert "Paris" in (answer.choices[0].message.content or "")


def process_named(gateway: Gateway, model: str, name: str) -> int:
    """The pid of the process of *model* whose title begins with *name*."""
    for pid, marker in gateway.processes().items():
        title = Path(f"/proc/{pid}/comm").read_text().strip()
        if marker.startswith(f"{model}:") and title.startswith(name):
            return pid
    raise AssertionError(f"no process {name} of {model}")


@pytest.mark.parametrize("victim", ["EngineCore", "API server"])
async def test_vllm_comes_back(gateway: Gateway, victim: str) -> None:
    """`kill -9` of vLLM's EngineCore, or of its API server: in flight gets errors, READY again by itself, no orphan."""
    before = {pid for pid, marker in gateway.processes().items() if marker.startswith(f"{VLLM}:")}
    restarts = gateway.backend(VLLM)["restarts"]
    pid = process_named(gateway, VLLM, "VLLM::EngineCor") if victim == "EngineCore" else gateway.backend(VLLM)["pid"]
    started = asyncio.Event()

    async def stream(client: openai.AsyncOpenAI) -> str:
        try:
            answer = await client.chat.completions.create(
                model=VLLM, messages=STORY, stream=True, max_tokens=1500, extra_body={"ignore_eos": True}
            )
            async for _ in answer:
                started.set()
        except openai.APIError as problem:
            return type(problem).__name__
        return "ended as if it were whole"

    async def whole(client: openai.AsyncOpenAI) -> str:
        try:
            await client.chat.completions.create(
                model=VLLM, messages=STORY, max_tokens=1500, extra_body={"ignore_eos": True}
            )
        except openai.InternalServerError as problem:
            return f"{problem.status_code // 100}xx"
        return "answered"

    async with gateway.async_openai() as client:
        waiting = [asyncio.create_task(ask(client.with_options(timeout=60))) for ask in (stream, stream, whole)]
        async with asyncio.timeout(60):
            await started.wait()
        os.kill(pid, signal.SIGKILL)
        outcomes = await asyncio.gather(*waiting)
    assert outcomes == ["APIError", "APIError", "5xx"]
    await asyncio.to_thread(
        until, lambda: (b := gateway.backend(VLLM))["state"] == "ready" and b["restarts"] > restarts, START_S
    )
    assert not before & set(gateway.processes()), "a process of the run that was killed lives on"
    with gateway.openai() as client_after:
        answer = client_after.chat.completions.create(model=VLLM, messages=PARIS, temperature=0)
    assert "Paris" in (answer.choices[0].message.content or "")


def test_llamacpp_comes_back(gateway: Gateway) -> None:
    """`kill -9` of llama.cpp: the backend is READY again by itself and answers."""
    restarts = gateway.backend(LLAMACPP)["restarts"]
    os.kill(gateway.backend(LLAMACPP)["pid"], signal.SIGKILL)
    until(lambda: (b := gateway.backend(LLAMACPP))["state"] == "ready" and b["restarts"] > restarts, 60)
    with gateway.openai() as client:
        answer = client.chat.completions.create(model=LLAMACPP, messages=PARIS, temperature=0)
    assert "Paris" in (answer.choices[0].message.content or "")


def test_nothing_outlives_a_killed_gateway(gateway: Gateway) -> None:
    """`kill -9` of the gateway: within 10 s no process with its marker is left, EngineCore and workers included."""
    titles = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in gateway.processes()}
    assert {"VLLM::EngineCor", "VLLM::Worker"} <= titles, "the marker must be readable in vLLM's own processes"
    gateway.exit_codes = (-signal.SIGKILL,)
    gateway.signal(signal.SIGKILL)
    until(lambda: not gateway.processes(), 10, "every process with the marker is gone")


def test_a_hung_engine_core_is_noticed(tmp_path: Path) -> None:
    """While vLLM's engine core hangs its /health stays 200; a request that got nothing in time has it found out."""
    model = {
        "engine": "vllm",
        "weights": str(hf_model()),
        "context_length": 512,
        "args": {"enforce-eager": True},
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
        "backoff": {"base_s": 0.5, "max_s": 2},
        "health": {"interval_s": 0.5},
        "probe_timeout_s": 20,
    }
    engines = {"vllm": {"command": [str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server"]}}
    settings = {"timeouts": {"first_byte_s": 2}}
    with running_gateway(tmp_path, {VLLM: model}, engines=engines, settings=settings, is_ready=False) as gateway:
        gateway.until_ready(START_S)
        os.kill(process_named(gateway, VLLM, "VLLM::EngineCor"), signal.SIGSTOP)
        with gateway.openai() as client, pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model=VLLM, messages=PARIS, max_tokens=1)
        assert caught.value.status_code == 504
        until(lambda: (b := gateway.backend(VLLM))["restarts"] > 0 and b["state"] == "ready", START_S, "it is back")
        assert "fell silent" in gateway.until_logged(f"{VLLM}: ready -> recycling (BecameUnhealthy)")
