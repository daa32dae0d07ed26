"""A model with replicas: who serves a request, what happens when one is lost, and how it is steered."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.gateways import Gateway, fake_model, running_gateway, until

CHAT = "/v1/chat/completions"
QUICK_BACKOFF = {"base_s": 0.05, "max_s": 0.2}
SLOW_BACKOFF = {"base_s": 60, "max_s": 60}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """*pair* has two replicas, *lazy* two that are loaded on demand, *slow* two that take a second for an answer."""
    folder = tmp_path_factory.mktemp("replicas")
    models = {
        "pair": fake_model(folder, replicas=2, backoff=QUICK_BACKOFF),
        "lazy": fake_model(folder, "chunk-interval=0.2", replicas=2, load="on_demand"),
        "slow": fake_model(folder, "chunk-interval=0.2", replicas=2, backoff=SLOW_BACKOFF),
        "single": fake_model(folder),
    }
    with running_gateway(folder, models) as running:
        for name in ("pair#1", "pair#2", "slow#1", "slow#2"):
            running.until_state(name, "ready")
        yield running


def ask(gateway: Gateway, model: str, headers: Mapping[str, str] | None = None, /, **fields: Any) -> str:
    """The backend that answered one chat request."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}
    answer = gateway.ask("POST", CHAT, json=body, headers=headers or {})
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-unigate-backend"])


def test_a_session_stays_and_sessions_spread(gateway: Gateway) -> None:
    """Requests of one session go to one replica, by key, user, header or beginning; many sessions use both."""
    told: list[dict[str, Any]] = [{"prompt_cache_key": "k"}, {"user": "u"}, {}]
    for fields in told:
        assert len({ask(gateway, "pair", **fields) for _ in range(5)}) == 1
    assert len({ask(gateway, "pair", {"x-session-id": "s"}) for _ in range(5)}) == 1
    used = Counter(ask(gateway, "pair", user=f"user-{number}") for number in range(40))
    assert set(used) == {"pair#1", "pair#2"}
    assert min(used.values()) >= 8


async def test_a_busy_one_is_passed_over(gateway: Gateway) -> None:
    """Of four requests of one session at once some go to the other replica: none gets more than its share."""
    async with gateway.async_openai() as client:
        answers = await asyncio.gather(
            *(client.completions.with_raw_response.create(model="slow", prompt="hi", user="one") for _ in range(4))
        )
    used = Counter(answer.headers["x-unigate-backend"] for answer in answers)
    assert set(used) == {"slow#1", "slow#2"}
    assert max(used.values()) <= 3


def test_a_model_without_replicas_names_no_backend(gateway: Gateway) -> None:
    """A model's only backend has its name, and no header repeats it."""
    answer = gateway.ask("POST", CHAT, json={"model": "single", "messages": [{"role": "user", "content": "hi"}]})
    assert answer.status_code == 200
    assert "x-unigate-backend" not in answer.headers


def test_a_request_moves_when_its_replica_is_killed(gateway: Gateway) -> None:
    """A replica that is killed while it works on an answer costs its client nothing: another one gives it."""
    serving = ask(gateway, "slow", user="moves")
    with gateway.openai() as client:
        before = gateway.engine_state(serving)["started"]
        pid = gateway.backend(serving)["pid"]

        def kill_when_it_works() -> bool:
            if gateway.engine_state(serving)["started"] > before:
                os.kill(pid, signal.SIGKILL)
                return True
            return False

        asked = asyncio.run(_beside(client, kill_when_it_works))
    assert asked.headers["x-unigate-backend"] != serving
    assert asked.status_code == 200
    # On a kept connection the request is sent again first, and then nobody is there to take it.
    retries = {dict(labels)["reason"] for name, labels in gateway.samples() if name == "unigate_retries_total"}
    assert len(retries) == 1
    assert retries <= {"broke_off", "unreachable"}
    assert gateway.metric("unigate_retries_total", model="slow") == 1
    gateway.until_state(serving, "backoff")
    assert ask(gateway, "slow", user="moves") == asked.headers["x-unigate-backend"]
    assert gateway.ask("GET", "/ready").status_code == 200
    assert gateway.command("restart", serving, "--wait", "20").returncode == 0


async def _beside(client: Any, kill: Any) -> Any:
    asking = asyncio.create_task(
        asyncio.to_thread(client.completions.with_raw_response.create, model="slow", prompt="hi", user="moves")
    )
    await asyncio.to_thread(until, kill)
    return await asking


def test_a_model_on_demand_grows_as_it_is_used(gateway: Gateway) -> None:
    """The first request loads one replica; one that finds it busy has the other loaded, and is not kept waiting."""
    first = ask(gateway, "lazy", user="a")
    states = {status["name"]: status["state"] for status in gateway.ask("GET", "/admin/backends").json()}
    other = "lazy#1" if first == "lazy#2" else "lazy#2"
    assert (states[first], states[other]) == ("ready", "stopped")

    async def two_at_once() -> None:
        async with gateway.async_openai() as client:
            await asyncio.gather(*(client.completions.create(model="lazy", prompt="x") for _ in range(2)))

    asyncio.run(two_at_once())
    gateway.until_state(other, "ready")


def test_steering_all_or_one(gateway: Gateway) -> None:
    """`unigate unload|load|logs MODEL` mean every replica, MODEL#1 means that one."""
    done = gateway.command("unload", "pair#1", "--wait", "20")
    assert (done.returncode, done.stderr) == (0, "")
    assert gateway.backend("pair#1")["state"] == "stopped"
    assert gateway.backend("pair#2")["state"] == "ready"
    done = gateway.command("unload", "pair", "--wait", "20")
    assert done.returncode == 0
    assert done.stdout.count(" stopped ") == 2
    done = gateway.command("load", "pair", "--wait", "20")
    assert done.returncode == 0
    assert done.stdout.count(" ready ") == 2
    shown = gateway.command("logs", "pair").stdout
    assert "pair#1 | " in shown
    assert "pair#2 | " in shown
    assert "pair#1 | " not in gateway.command("logs", "pair#1").stdout
    refused = gateway.ask("GET", "/admin/backends/pair")
    assert refused.status_code == 404
    assert "'pair' has replicas; there are: pair#1, pair#2" in refused.text


def test_a_restart_is_one_at_a_time(gateway: Gateway) -> None:
    """`unigate restart MODEL` starts every replica anew, and never more than one of them is away."""
    before = {name: gateway.backend(name)["pid"] for name in ("pair#1", "pair#2")}
    done = gateway.command("restart", "pair", "--wait", "20")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(" ready ") == 2
    assert all(gateway.backend(name)["pid"] != pid for name, pid in before.items())
    log = gateway.logged()
    stops = [log.rindex(f"pair#{number}: ready -> draining") for number in (1, 2)]
    assert stops[0] < log.rindex("pair#1: starting -> ready") < stops[1]


def test_what_is_shown(gateway: Gateway) -> None:
    """`/v1/models` has the model once, `unigate ps` and the metrics each of its backends."""
    models = {entry["id"]: entry for entry in gateway.ask("GET", "/v1/models").json()["data"]}
    assert models["pair"]["status"]["replicas"] == {"pair#1": "ready", "pair#2": "ready"}
    assert "pair#1" not in models
    names = [backend["name"] for backend in json.loads(gateway.command("ps", "--json").stdout)]
    assert names == ["pair#1", "pair#2", "lazy#1", "lazy#2", "slow#1", "slow#2", "single"]
    assert gateway.metric("unigate_backend_state", model="pair", backend="pair#2", state="ready") == 1
    assert "backend=pair#" in gateway.logged()


def test_an_adapter_is_served_by_all_replicas_of_its_base(tmp_path: Path) -> None:
    """A LoRA adapter's model goes to each of its base's replicas, under its own name."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    models = {"base": fake_model(tmp_path, replicas=2), "tuned": {"base": "base", "adapter": str(adapter)}}
    with running_gateway(tmp_path, models) as gateway:
        for name in ("base#1", "base#2"):
            gateway.until_state(name, "ready")
        used = {ask(gateway, "tuned", user=f"user-{number}") for number in range(20)}
        assert used == {"base#1", "base#2"}
