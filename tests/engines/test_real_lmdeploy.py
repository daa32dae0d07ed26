"""LMDeploy's own server behind a gateway, on both of its engines' paths; only the CUDA engines in it are replaced.

One gateway serves the whole module; the tests that break it wait until it is whole again, and the last one kills it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jinja2
import openai
import psutil
import pytest

from backends.engines.lmdeploy import BUILT_IN_TEMPLATES, OWNED, LmDeploy
from tests.engines.environment import hf_model, lmdeploy_command, lmdeploy_python
from tests.engines.lora import peft_adapter
from tests.gateways import Gateway, events_of, running_gateway, until
from tests.unit.backends.test_lmdeploy import BACKEND, SETTINGS, spec_of

pytestmark = [pytest.mark.engine_lmdeploy, pytest.mark.timeout(180)]

TURBOMIND = "smol-turbomind"
PYTORCH = "smol-pytorch"
TUNE = "smol-tune"
OVERLAID = "smol-overlaid"
FAILING = "smol-out-of-memory"
MISSPELT = "smol-misspelt"
LATE = "smol-late"
BOTH = (TURBOMIND, PYTORCH)

START_S = 90.0
"""LMDeploy on a busy machine of two cores; alone it takes 6 to 15 s."""
PARIS: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
STORY: list[Any] = [{"role": "user", "content": "Tell me a very long story about a river."}]
FAIL_WORD = "please meet an error"

TEMPLATE = (
    "{% for message in messages %}{{ '\\n## ' + message.role + '\\n' + message.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n## assistant\\n' }}{% endif %}"
)


def model(**settings: Any) -> dict[str, Any]:
    """A model's section, retried at once and watched closely."""
    env = {"HF_HUB_OFFLINE": "1", "LMDEPLOY_CPU_FAIL_WORD": FAIL_WORD, **settings.pop("env", {})}
    return {
        "engine": "lmdeploy",
        "weights": str(hf_model()),
        "context_length": 2048,
        "env": env,
        "backoff": {"base_s": 0.5, "max_s": 2},
        "health": {"interval_s": 1, "failures": 2},
        **settings,
    }


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("real")
    template = folder / "operators.jinja"
    template.write_text(TEMPLATE)
    models = {
        TURBOMIND: model(),
        PYTORCH: model(options={"backend": "pytorch"}),
        TUNE: {"base": PYTORCH, "adapter": str(peft_adapter(folder / "tune"))},
        OVERLAID: model(template={"from": str(template)}),
        FAILING: model(env={"LMDEPLOY_CPU_OUT_OF_MEMORY": "1"}, load="on_demand"),
        MISSPELT: model(args={"quant-policy": 5}, load="on_demand"),
        LATE: model(load="on_demand"),
    }
    engines = {"lmdeploy": {"command": lmdeploy_command()}}
    with running_gateway(folder, models, engines=engines, is_ready=False) as gateway:
        gateway.until_ready(START_S)
        yield gateway


def answers_paris(gateway: Gateway, name: str) -> None:
    """A whole answer, as proof that the model works."""
    with gateway.openai() as client:
        answer = client.with_options(timeout=60).chat.completions.create(model=name, messages=PARIS, temperature=0)
    assert "Paris" in (answer.choices[0].message.content or "")


def pids_of(gateway: Gateway, name: str) -> set[int]:
    """Every process of the model's run, shim included."""
    return {pid for pid, marker in gateway.processes().items() if marker.startswith(f"{name}:")}


# --- the command line and the wheel ---

PARSE = """
import json, sys
from lmdeploy.cli.entrypoint import CLI, SubCliLite, SubCliServe
from lmdeploy.model import MODELS
for group in (CLI, SubCliServe, SubCliLite):
    group.add_parsers()
api_server = SubCliServe.subparsers.choices["api_server"]
parsed = [vars(CLI.parser.parse_args(argv)) for argv in json.load(sys.stdin)]
options = sorted(api_server._option_string_actions)
json.dump({"parsed": parsed, "options": options, "templates": list(MODELS.module_dict)}, sys.stdout, default=str)
"""


@pytest.fixture(scope="module")
def wheel() -> dict[str, Any]:
    """What the parser of LMDeploy's wheel makes of the adapter's command lines, and the names the wheel knows."""
    backends = [replace(BACKEND, context_length=4096, args=args) for args, _ in SETTINGS.values()]
    argvs = [spec_of(backend).argv[1:] for backend in backends]
    done = subprocess.run(
        [lmdeploy_python(), "-c", PARSE], input=json.dumps(argvs), capture_output=True, text=True, timeout=90,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return read


READ = {
    "engine": ("backend", "pytorch"),
    "tensor parallel": ("tp", 2),
    "KV cache in 8 bits": ("quant_policy", 8),
    "weights in AWQ": ("model_format", "awq"),
    "cache": ("cache_max_entry_count", 0.5),
    "batch": ("max_batch_size", 64),
    "prefix cache": ("enable_prefix_caching", True),
    "no metrics": ("disable_metrics", False),
    "parsers": ("tool_call_parser", "qwen"),
}


def test_the_wheels_parser_takes_every_setting(wheel: dict[str, Any]) -> None:
    """LMDeploy's own parser reads each command line of the adapter's as it was meant."""
    assert set(READ) == set(SETTINGS)
    ours = {"model_path": "/models/m", "model_name": "m", "server_name": "127.0.0.1", "server_port": 18000}
    ours |= {"session_len": 4096, "chat_template": "hf"}
    for setting, parsed in zip(SETTINGS, wheel["parsed"], strict=True):
        name, value = READ[setting]
        assert {**ours, name: value}.items() <= parsed.items(), setting


def test_the_adapters_names_are_the_wheels(wheel: dict[str, Any]) -> None:
    """Every option that is refused exists, and the names no adapter may have are those of LMDeploy's templates."""
    assert {f"--{name}" for name in OWNED} <= set(wheel["options"])
    assert set(wheel["templates"]) == BUILT_IN_TEMPLATES


# --- answers ---


@pytest.mark.parametrize("name", BOTH)
def test_answers_paris(gateway: Gateway, name: str) -> None:
    """At temperature 0 it says Paris, streaming and not, and counts the 37 prompt tokens that the others count."""
    with gateway.openai() as client:
        whole = client.chat.completions.create(model=name, messages=PARIS, temperature=0)
        chunks = list(
            client.chat.completions.create(
                model=name, messages=PARIS, temperature=0, stream=True, stream_options={"include_usage": True}
            )
        )
    assert whole.choices[0].message.content == "The capital of France is Paris."
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert whole.usage.prompt_tokens == chunks[-1].usage.prompt_tokens == 37
    assert whole.usage.completion_tokens == chunks[-1].usage.completion_tokens


def test_text_completion(gateway: Gateway) -> None:
    """`/v1/completions` gives the same text streaming and not."""
    asked: dict[str, Any] = {"model": TURBOMIND, "prompt": "Paris is the capital of", "temperature": 0, "max_tokens": 4}
    with gateway.openai() as client:
        whole = client.completions.create(**asked)
        streamed = list(client.completions.create(**asked, stream=True))
    assert whole.choices[0].text
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole.choices[0].text


def test_no_embeddings(gateway: Gateway) -> None:
    """What LMDeploy answers 400 whatever the model, the gateway refuses by itself."""
    with gateway.openai() as client, pytest.raises(openai.NotFoundError) as refused:
        client.embeddings.create(model=TURBOMIND, input="hello")
    assert refused.value.code == "endpoint_not_supported"


def test_tokenize(gateway: Gateway) -> None:
    """A prompt and a single user message are tokenised as the chat path counts; a conversation is refused."""
    one = gateway.ask("POST", "/tokenize", json={"model": TURBOMIND, "messages": PARIS})
    assert one.json()["count"] == 37
    assert gateway.ask("POST", "/tokenize", json={"model": PYTORCH, "prompt": "Hi"}).json()["tokens"] == [26843]
    refused = gateway.ask("POST", "/tokenize", json={"model": TURBOMIND, "messages": [*PARIS, *PARIS]})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "endpoint_not_supported"


# --- adapters and sleep ---


def test_an_adapter_is_served_by_its_base(gateway: Gateway) -> None:
    """An adapter is a model of its own to clients and to LMDeploy, in the process of its base.

    What it changes is not seen here: the engine that stands in for LMDeploy's computes with the base's weights.
    """
    answers_paris(gateway, TUNE)
    address = gateway.backend(PYTORCH)["address"]
    listed = httpx.get(f"{address}/v1/models", trust_env=False).json()["data"]
    assert {entry["id"] for entry in listed} == {PYTORCH, TUNE}
    shown = {entry["id"]: entry for entry in gateway.ask("GET", "/v1/models").json()["data"]}
    assert shown[TUNE]["parent"] == PYTORCH


@pytest.mark.parametrize("name", BOTH)
def test_it_sleeps_and_wakes(gateway: Gateway, name: str) -> None:
    """The adapter's calls put it to sleep, where it answers nothing, and wake it, where it answers again."""
    sleep = LmDeploy().sleep(replace(BACKEND, options={"sleep": True}))
    assert sleep is not None
    with httpx.Client(base_url=gateway.backend(name)["address"], trust_env=False, timeout=30) as client:

        def is_sleeping() -> bool:
            said: bool = client.request(sleep.is_sleeping.method, sleep.is_sleeping.target).json()["is_sleeping"]
            return said

        assert not is_sleeping()
        assert client.request(sleep.sleep.method, sleep.sleep.target, json=sleep.sleep.body).status_code == 200
        assert is_sleeping()
        question = {"model": name, "messages": PARIS, "max_tokens": 1}
        assert client.post("/v1/chat/completions", json=question).status_code == 503
        for call in sleep.wake:
            assert client.request(call.method, call.target, json=call.body).status_code == 200
        assert not is_sleeping()
    answers_paris(gateway, name)


# --- the operator's template ---


def test_the_operators_template_is_in_force(gateway: Gateway) -> None:
    """The prompt has as many tokens as the operator's template renders, on one turn and on several."""
    conversation = [*PARIS, {"role": "assistant", "content": "Paris."}, *STORY]
    with gateway.openai() as client:
        for messages in (PARIS, conversation):
            rendered = jinja2.Template(TEMPLATE).render(messages=messages, add_generation_prompt=True)
            expected = gateway.ask("POST", "/tokenize", json={"model": TURBOMIND, "prompt": rendered}).json()["count"]
            answer = client.chat.completions.create(model=OVERLAID, messages=messages, max_tokens=1)
            assert answer.usage is not None
            assert answer.usage.prompt_tokens == expected
            own = client.chat.completions.create(model=TURBOMIND, messages=messages, max_tokens=1)
            assert own.usage is not None
            assert own.usage.prompt_tokens > expected


@pytest.mark.parametrize("name", [TURBOMIND, OVERLAID])
@pytest.mark.parametrize(
    "extra", [{"chat_template": "{{ 1 }}"}, {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}]
)
def test_no_template_from_a_client(gateway: Gateway, name: str, extra: dict[str, Any]) -> None:
    """Neither door lets a request bring its own chat template, though LMDeploy would honour the second."""
    with gateway.openai() as client, pytest.raises(openai.BadRequestError, match="chat template"):
        client.chat.completions.create(model=name, messages=PARIS, extra_body=extra)


# --- errors ---


def test_the_engines_own_refusal(gateway: Gateway) -> None:
    """A prompt that is too long comes back in the OpenAI envelope, status kept, source backend."""
    with gateway.openai() as client, pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=TURBOMIND, messages=[{"role": "user", "content": "x " * 4000}])
    assert refused.value.body["source"] == "backend"  # type: ignore[index]
    assert refused.value.type == "invalid_request_error"


@pytest.mark.parametrize("name", BOTH)
def test_an_engine_error_mid_stream(gateway: Gateway, name: str) -> None:
    """A stream whose engine fails ends in one error event and without [DONE], which LMDeploy itself would send."""
    body = {"model": name, "messages": [{"role": "user", "content": FAIL_WORD}], "stream": True}
    events = events_of(gateway.ask("POST", "/v1/chat/completions", json=body).text)
    assert "[DONE]" not in events
    assert [event["choices"][0]["delta"].get("content") for event in events[:-1]] != []
    assert ["error" in event for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1]["error"]["source"] == "backend"
    answers_paris(gateway, name)


def test_no_memory_for_the_cache(gateway: Gateway) -> None:
    """A start that finds no GPU memory for its KV cache is FAILED at once, and for that reason."""
    failed = gateway.load(FAILING)
    assert failed["state"] == "failed"
    assert failed["diagnosis"]["code"] == "no_cache_memory"
    assert failed["restarts"] == 0


def test_a_wrong_value_is_told_in_lmdeploys_words(gateway: Gateway) -> None:
    """What LMDeploy's parser refuses is FAILED with its message, and no second start is tried."""
    failed = gateway.load(MISSPELT)
    assert failed["state"] == "failed"
    assert "argument --quant-policy: invalid _parse value: '5'" in failed["diagnosis"]["reason"]
    assert failed["restarts"] == 0


def test_a_port_that_is_taken_while_it_loads(gateway: Gateway) -> None:
    """LMDeploy binds its port after the load; one that a stranger took meanwhile is given up for another."""
    gateway.ask("POST", f"/admin/backends/{LATE}/load")
    address = until(lambda: str(gateway.backend(LATE)["address"]), what=f"{LATE} has a place")
    port = int(address.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        backend = gateway.until_state(LATE, "backoff", within_s=START_S)
        assert backend["diagnosis"]["code"] == "port_in_use"
        ready = gateway.until_state(LATE, "ready", within_s=START_S)
    assert ready["address"] != address
    answers_paris(gateway, LATE)
    gateway.ask("POST", f"/admin/backends/{LATE}/unload")
    gateway.until_state(LATE, "stopped")


# --- clients that leave ---


def busy_share(gateway: Gateway, name: str) -> float:
    """How much of one core the model's processes use, over half a second."""

    def used_s() -> float:
        times = [psutil.Process(pid).cpu_times() for pid in pids_of(gateway, name)]
        return sum(spent.user + spent.system for spent in times)

    before = used_s()
    psutil.cpu_percent(0.5)  # waits that long
    return (used_s() - before) / 0.5


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves(gateway: Gateway, name: str, stream: bool) -> None:
    """A client that goes away leaves an engine that does nothing, and a gateway that holds nothing."""
    async with gateway.async_openai() as client:
        asked = client.with_options(timeout=60).chat.completions.create(
            model=name, messages=STORY, max_tokens=1500, stream=stream, extra_body={"ignore_eos": True}
        )
        request = asyncio.ensure_future(asked)
        await asyncio.to_thread(until, lambda: busy_share(gateway, name) > 0.4, 30, f"{name} works")
        if stream:
            answer = await request
            assert isinstance(answer, openai.AsyncStream)
            await answer.close()
        else:
            request.cancel()
            await asyncio.wait([request])

    def idle() -> bool:
        gauges = ("unigate_requests_in_flight", "unigate_leases", "unigate_queue_depth")
        is_held = any(gateway.metric(gauge, model=name) for gauge in gauges)
        return not is_held and busy_share(gateway, name) < 0.2

    await asyncio.to_thread(until, idle, 30, f"{name} is idle")
    await asyncio.to_thread(answers_paris, gateway, name)


# --- ends ---


@pytest.mark.parametrize("victim", ["the PyTorch engine process", "its server", "the TurboMind server"])
async def test_it_comes_back(gateway: Gateway, victim: str) -> None:
    """`kill -9` of a process of LMDeploy's: the stream ends in an error, READY again by itself, and no orphan."""
    name = TURBOMIND if "TurboMind" in victim else PYTORCH
    before, pid = pids_of(gateway, name), gateway.backend(name)["pid"]
    restarts = gateway.backend(name)["restarts"]
    if victim == "the PyTorch engine process":
        (pid,) = (p for p in before if Path(f"/proc/{p}/comm").read_text().strip() == "ZMQMPEngine")
    async with gateway.async_openai() as client:
        stream = await client.with_options(timeout=60).chat.completions.create(
            model=name, messages=STORY, stream=True, max_tokens=1500, extra_body={"ignore_eos": True}
        )
        await anext(aiter(stream))
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(openai.APIError):
            async for _ in stream:
                pass
    await asyncio.to_thread(
        until, lambda: (b := gateway.backend(name))["state"] == "ready" and b["restarts"] > restarts, START_S
    )
    assert not before & pids_of(gateway, name), "a process of the run that was killed lives on"
    await asyncio.to_thread(answers_paris, gateway, name)


async def test_a_stop_lets_a_stream_finish(tmp_path: Path) -> None:
    """TERM of the gateway while it streams: the stream ends whole, then the gateway ends, and nothing is left."""
    engines = {"lmdeploy": {"command": lmdeploy_command()}}
    models = {TURBOMIND: model(env={"LMDEPLOY_CPU_DELAY": "0.05"})}
    with running_gateway(tmp_path, models, engines=engines, is_ready=False) as gateway:
        await asyncio.to_thread(gateway.until_ready, START_S)
        async with gateway.async_openai() as client:
            stream = await client.with_options(timeout=60).chat.completions.create(
                model=TURBOMIND, messages=STORY, stream=True, max_tokens=30, extra_body={"ignore_eos": True},
                stream_options={"include_usage": True},
            )  # fmt: skip
            await anext(aiter(stream))
            gateway.signal(signal.SIGTERM)
            chunks = [chunk async for chunk in stream]
        assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["length"]
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 30
        await asyncio.to_thread(until, lambda: gateway.process.poll() is not None, 30, "the gateway has ended")
        assert not list((gateway.folder / "state" / "runs").glob("*"))


def test_nothing_outlives_a_killed_gateway(gateway: Gateway) -> None:
    """`kill -9` of the gateway: within 10 s no process with its marker is left, the engine process included."""
    titles = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in gateway.processes()}
    assert "ZMQMPEngine" in titles, "the marker must be readable in the engine process"
    gateway.exit_codes = (-signal.SIGKILL,)
    gateway.signal(signal.SIGKILL)
    until(lambda: not gateway.processes(), 10, "every process with the marker is gone")
