"""Models that do not fit together, on real processes: who makes room, what clients notice, what is left."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.devices import GIB, LocalDevices, Nvml
from backends.lifecycle import State
from backends.room import MeasuredRoom
from tests.fault.alternation import Account, Witness, alternate
from tests.fault.fleet_host import backend_settings, make_fleet
from tests.gateways import Gateway, fake_model, running_gateway, until
from tests.unit.backends.fake_nvml import FakeGpu, FakeNvml
from tests.unit.backends.processes import bearing

LIMIT_S = 40.0
CHAT = "/v1/chat/completions"


def ask(gateway: Gateway, model: str, *, stream: bool = False) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "stream": stream}
    return gateway.ask("POST", CHAT, json=body, timeout=40)


def swapping(folder: Path, *flags: str, settings: dict[str, Any] | None = None, **models: dict[str, Any]) -> Any:
    """A gateway with room for one of the models."""
    usual: dict[str, Any] = {"load": "on_demand", "memory_gib": 8}
    made = {name: fake_model(folder, *flags, **{**usual, **keys}) for name, keys in models.items()}
    return running_gateway(folder, made, settings={"memory_gib": 10, "min_residency_s": 0.2, **(settings or {})})


def test_alternation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four clients alternate: every request is answered, never do both engines live, swaps keep to the residency."""
    account = alternate(tmp_path, seconds=15, residency_s=1.5)
    with capsys.disabled():
        print(f"\n{account}")
    account.check()
    assert account.swaps >= 3


def test_a_stream_is_not_cut_for_another_model(tmp_path: Path) -> None:
    """Traffic that never pauses has to yield, but every stream of it ends whole, and the other model is answered."""
    with swapping(tmp_path, "chunks=20", "chunk-interval=0.05", a={}, b={}) as gateway:
        over = threading.Event()
        answers: list[str] = []

        def stream_on() -> None:
            while not over.is_set():
                answers.append(ask(gateway, "a", stream=True).text)

        streams = [threading.Thread(target=stream_on) for _ in range(2)]
        for stream in streams:
            stream.start()
        gateway.until_state("a", "ready")
        account = Account(0, 0, 0)
        with Witness(gateway, account):
            for _ in range(2):
                assert ask(gateway, "b").status_code == 200
        over.set()
        for stream in streams:
            stream.join()
        assert len(answers) >= 4
        assert all(text.endswith("data: [DONE]\n\n") and '"error"' not in text for text in answers)
        assert account.looks > 0
        assert account.together == 0


def test_a_pinned_model_is_not_unloaded(tmp_path: Path) -> None:
    """A request that would need the room of a pinned model gets 503 at once, naming it and saying not to retry."""
    with swapping(tmp_path, a={"load": "startup", "pinned": True}, b={}) as gateway:
        answer = ask(gateway, "b")
        assert answer.status_code == 503
        assert answer.headers["x-should-retry"] == "false"
        assert "of which a keeps 8.0" in answer.json()["error"]["message"]
        assert ask(gateway, "a").status_code == 200
        assert gateway.backend("b")["diagnosis"]["code"] == "does_not_fit"


def test_a_model_that_never_fits_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """`unigate check` says that a model cannot fit on this machine, with its line."""
    with swapping(tmp_path, a={}) as gateway:
        text = gateway.config.read_text().replace("memory_gib: 8", "memory_gib: 80000")
        (tmp_path / "big.yaml").write_text(text)
        checked = gateway.command("check", "-c", "big.yaml")
        assert checked.returncode != 0
        assert "It needs 80000.0 GiB, and this machine has 10.0." in checked.stdout + checked.stderr


def test_what_is_shown_while_a_model_waits(tmp_path: Path) -> None:
    """While a request waits for another model's residency, ps and the model list say what is waited for."""
    with swapping(tmp_path, a={"min_residency_s": 4}, b={}) as gateway:
        assert ask(gateway, "a").status_code == 200
        asking = threading.Thread(target=ask, args=(gateway, "b"))
        asking.start()
        phase = until(lambda: gateway.backend("b")["phase"].startswith("waiting for memory") and gateway.backend("b"))
        assert phase["phase"] == "waiting for memory: 8.0 GiB needed, 2.0 free; a may stay a little longer"
        printed = gateway.command("ps").stdout
        assert "8.0G" in printed
        assert "a may stay a little longer" in printed
        asking.join()
        assert gateway.metric("unigate_swaps_total", model="a", how="stop") == 1
        assert gateway.metric("unigate_memory_claimed_bytes", model="b") == 8 * 1024**3
        assert gateway.ask("GET", "/ready").status_code == 200


def test_a_killed_engine_gives_its_room_back(tmp_path: Path) -> None:
    """An engine killed while another start waits for its room makes that room."""
    with swapping(tmp_path, a={"min_residency_s": 600, "backoff": {"base_s": 30}}, b={}) as gateway:
        assert ask(gateway, "a").status_code == 200
        asking = threading.Thread(target=ask, args=(gateway, "b"))
        asking.start()
        until(lambda: gateway.backend("b")["phase"].startswith("waiting for memory"))
        before = time.monotonic()
        os.kill(gateway.backend("a")["pid"], signal.SIGKILL)
        gateway.until_state("b", "ready")
        assert time.monotonic() - before < 20
        asking.join()


@pytest.mark.parametrize("flag", ["", "sleepless"])
async def test_engines_sleep_on_a_gpu(tmp_path: Path, flag: str) -> None:
    """On a GPU two engines that can sleep change places and keep their processes; one that stays awake is stopped."""
    names = [f"test-{secrets.token_hex(6)}" for _ in range(2)]
    room = MeasuredRoom(LocalDevices({}, 64 * GIB, Nvml(FakeNvml(FakeGpu()))))
    backends = [
        replace(
            backend_settings(name, *([flag] if flag else [])),
            on_demand=True, options={"sleep": True}, memory_bytes=20 * GIB, min_residency_s=0.0,
        )
        for name in names
    ]  # fmt: skip
    fleet = make_fleet(tmp_path, *backends, room=room)
    pids: list[int | None] = []
    async with asyncio.timeout(LIMIT_S):
        await fleet.open()
        try:
            for name in (*names, *names):
                async with fleet.lease(name, LIMIT_S):
                    pids.append(fleet.status(name).pid)
                    awake = [one for one in names if fleet.status(one).state is not State.SLEEPING]
                    assert [one for one in awake if fleet.status(one).memory_bytes] == [name]
            assert (pids[:2] == pids[2:]) == (not flag)
        finally:
            await fleet.close()
    assert [pid for name in names for pid in bearing(f"{name}:")] == []
