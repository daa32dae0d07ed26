"""Reloads and replicas in bad company: many at once, under load, engines that are killed, a terminal that is closed."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import random
import signal
import subprocess
import termios
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from tests.gateways import (
    END_S,
    START_S,
    UNIGATE,
    Gateway,
    environment,
    fake_engine_command,
    fake_model,
    free_port,
    processes_of,
    running_gateway,
    until,
)

RELOADS = 20
CLIENTS = 10
SEED = 20_261_124
QUICK_BACKOFF = {"base_s": 0.05, "max_s": 0.2}


def rewrite(gateway: Gateway, models: dict[str, Any]) -> None:
    """Put other models into the file."""
    document = yaml.safe_load(gateway.config.read_text())
    document["models"] = models
    gateway.config.write_text(yaml.safe_dump(document, sort_keys=False))


async def test_a_storm_of_reloads(tmp_path: Path) -> None:
    """Twenty reloads in a row, each of another shape, while ten clients stream: no stream is broken, no request fails,
    the last file is what holds, and nothing of the others is left."""
    chance = random.Random(SEED)
    flags = ("chunk-interval=0.02", "chunks=20")
    whole = "".join(f"word{number} " for number in range(20))

    def shape() -> dict[str, Any]:
        models = {
            "kept": fake_model(tmp_path, *flags),
            "rolled": fake_model(
                tmp_path, *flags, replicas=chance.randint(1, 3), context_length=chance.choice([1024, 2048])
            ),
        }
        if chance.random() < 0.5:
            models["passing"] = fake_model(tmp_path, replicas=chance.randint(1, 2))
        return models

    with running_gateway(tmp_path, shape(), settings={"drain_timeout_s": 20}) as gateway:
        kept_pid = gateway.backend("kept")["pid"]
        is_over = asyncio.Event()
        answers: list[str] = []

        async def client_of(model: str) -> None:
            async with gateway.async_openai() as client:
                while not is_over.is_set():
                    stream = await client.completions.create(model=model, prompt="x", stream=True)
                    answers.append("".join([chunk.choices[0].text async for chunk in stream if chunk.choices]))

        clients = [asyncio.create_task(client_of(("kept", "rolled")[number % 2])) for number in range(CLIENTS)]
        async with httpx.AsyncClient(base_url=gateway.url, timeout=START_S, trust_env=False) as admin:
            for number in range(RELOADS):
                rewrite(gateway, shape())
                waiting = admin.post("/admin/reload", params={"wait_s": chance.choice([0, 0, 0.3])})
                if number % 4 == 3:
                    gateway.signal(signal.SIGHUP)  # and one more at the same time
                assert (await waiting).status_code == 200
            last = shape()
            rewrite(gateway, last)
            done = (await admin.post("/admin/reload", params={"wait_s": START_S}, timeout=START_S + 10)).json()
        assert done["is_complete"], done
        is_over.set()
        await asyncio.gather(*clients)
        assert set(answers) == {whole}
        assert len(answers) >= CLIENTS
        wanted = set()
        for name, model in last.items():
            count = model.get("replicas", 1)
            wanted |= {name} if count == 1 else {f"{name}#{number + 1}" for number in range(count)}
        until(lambda: _there(gateway) == wanted, START_S, f"the backends are {wanted}")
        assert gateway.backend("kept")["pid"] == kept_pid
        assert {marker.partition(":")[0] for marker in gateway.processes().values()} == wanted
        assert gateway.metric("unigate_requests_in_flight") == 0
        assert gateway.metric("unigate_leases") == 0
        records = {path.name for path in (tmp_path / "state" / "processes").iterdir()}
        assert records == {f"{name.replace('#', '%23')}.json" for name in wanted}


def _there(gateway: Gateway) -> set[str]:
    return {status["name"] for status in gateway.ask("GET", "/admin/backends").json()}


async def test_engines_killed_under_load(tmp_path: Path) -> None:
    """While replicas are killed one after the other, requests that had not been answered yet are served by the others:
    clients that do not stream see 200 and nothing else."""
    model = fake_model(tmp_path, "chunk-interval=0.1", "chunks=5", replicas=3, backoff=QUICK_BACKOFF)
    with running_gateway(tmp_path, {"m": model}) as gateway:
        for number in range(3):
            gateway.until_state(f"m#{number + 1}", "ready")
        is_over = asyncio.Event()
        statuses: list[list[int]] = [[] for _ in range(CLIENTS)]

        async def client(seen: list[int]) -> None:
            async with httpx.AsyncClient(base_url=gateway.url, timeout=START_S, trust_env=False) as http:
                while not is_over.is_set():
                    # each of another text, so that no prefix binds them to the same replicas
                    body = {"model": "m", "prompt": f"{random.random()}"}
                    answer = await http.post("/v1/completions", json=body)
                    seen.append(answer.status_code)

        clients = [asyncio.create_task(client(seen)) for seen in statuses]
        for number in (1, 2, 3):
            await asyncio.to_thread(_kill_while_busy, gateway, f"m#{number}")
            # A request moves once: none that has met this kill shall meet the next.
            answered = [len(seen) for seen in statuses]
            await asyncio.to_thread(
                until,
                lambda answered=answered: all(len(seen) > had for seen, had in zip(statuses, answered, strict=True)),
            )
        is_over.set()
        await asyncio.gather(*clients)
        assert {status for seen in statuses for status in seen} == {200}
        assert gateway.metric("unigate_retries_total", model="m") > 0


def _kill_while_busy(gateway: Gateway, name: str) -> None:
    pid = gateway.backend(name)["pid"]
    until(lambda: gateway.engine_state(name)["running"] > 0, what=f"{name} works on something")
    os.kill(pid, signal.SIGKILL)

    def is_back() -> bool:
        status = gateway.backend(name)
        return bool(status["state"] == "ready" and status["pid"] != pid)

    until(is_back, START_S, f"{name} is back")


async def test_a_stream_that_has_begun_does_not_move(tmp_path: Path) -> None:
    """When a replica dies after a token has come, its client is told so: no second engine goes on with the text."""
    model = fake_model(tmp_path, "crash-after-chunks=3", replicas=2, backoff=QUICK_BACKOFF)
    with running_gateway(tmp_path, {"m": model}) as gateway:
        async with gateway.async_openai() as client:
            stream = await client.completions.create(model="m", prompt="x", stream=True)
            first = await anext(stream)
            assert first.choices[0].text == "word0 "
            with pytest.raises(openai.APIError):
                assert not [chunk async for chunk in stream]
        assert gateway.metric("unigate_retries_total", model="m") == 0


def test_a_closed_terminal_ends_the_gateway(tmp_path: Path) -> None:
    """A gateway started in a terminal stops in order when the terminal is closed, though SIGHUP else reloads."""
    config = tmp_path / "unigate.yaml"
    document = {
        "gateway": {"port": free_port(), "state_dir": str(tmp_path / "state")},
        "engines": {"vllm": {"command": fake_engine_command()}},
        "models": {"m": fake_model(tmp_path)},
    }
    config.write_text(yaml.safe_dump(document))
    outer, inner = pty.openpty()
    run = "closed-terminal"
    process = subprocess.Popen(
        [UNIGATE, "serve", "-c", str(config)], stdin=inner, stdout=inner, stderr=inner, cwd=tmp_path,
        env=environment(run, tmp_path, {}), start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    log = tmp_path / "state" / "logs" / "gateway.log"
    try:
        os.close(inner)
        until(lambda: log.exists() and "m: starting -> ready" in log.read_text(), START_S, "the model is ready")
        process.send_signal(signal.SIGHUP)
        until(lambda: "the configuration was reloaded" in log.read_text(), what="a hang-up by hand reloads")
        os.close(outer)
        assert process.wait(END_S) in (0, 120)  # 120: Python could not flush what was meant for the terminal
        assert "the terminal was closed" in log.read_text()
        assert "stopping -> stopped" in log.read_text()
        assert processes_of(run) == {}
    finally:
        process.kill()
        process.wait(END_S)
