"""The gateways that the contract tests share: one open to any key, one with keys of its own."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.gateways import Gateway, environment, fake_engine_command, fake_model, free_port, running_gateway, until

REFUSED_START = "error: unrecognized arguments: --no-such-option\n"
"""What makes vLLM's adapter give up at once."""

BODY_LIMIT_BYTES = 64 * 1024


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway without keys: *chat* is ready, *cold* loads on demand, *failed* never starts, others answer errors."""
    folder = tmp_path_factory.mktemp("open")
    last_words = folder / "last-words.txt"
    last_words.write_text(REFUSED_START)
    models = {
        "chat": fake_model(folder, "chunk-interval=0.005", aliases=["default", "Org/Chat-7B"], context_length=4096),
        "cold": fake_model(folder, load="on_demand"),
        "odd%20name": fake_model(folder, load="on_demand"),
        "failed": fake_model(folder, f"stderr={last_words}", "exit-during-start=2", load="on_demand"),
        "elsewhere": {"engine": "external", "url": f"http://127.0.0.1:{free_port()}/v1", "load": "on_demand"},
        "refusing": fake_model(folder, "status=400", load="on_demand"),
        "unprocessable": fake_model(folder, "status=422", "error-shape=lmdeploy", load="on_demand"),
        "busy": fake_model(folder, "status=429", load="on_demand"),
        "locked": fake_model(folder, "status=401", "error-shape=string", load="on_demand"),
        "broken": fake_model(folder, "status=500", "error-shape=text", load="on_demand"),
        "odd-status": fake_model(folder, "status=799", load="on_demand"),
    }
    with running_gateway(folder, models, settings={"body_limit_bytes": BODY_LIMIT_BYTES}) as running:
        yield running


@pytest.fixture
def client(gateway: Gateway) -> Iterator[OpenAI]:
    with gateway.openai() as client:
        yield client


@pytest.fixture
async def async_client(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    async with gateway.async_openai() as client:
        yield client


@dataclass(frozen=True)
class Secrets:
    """Every secret that the keyed gateway knows."""

    owner: str = "sk-owner-1f6b0e7c"
    """Opens everything, /admin too."""
    guest: str = "sk-guest-93ad4c51"
    """Opens *chat* by its alias, and nothing else."""
    external: str = "sk-elsewhere-77c2d0aa"
    """What the external server asks of the gateway."""

    def all(self) -> tuple[str, ...]:
        return self.owner, self.guest, self.external


@pytest.fixture(scope="session")
def keys() -> Secrets:
    return Secrets()


@pytest.fixture(scope="session")
def external_port(tmp_path_factory: pytest.TempPathFactory, keys: Secrets) -> Iterator[int]:
    """A server that we do not run, which takes one key only."""
    port = free_port()
    folder = tmp_path_factory.mktemp("external")
    argv = [*fake_engine_command(), "--port", str(port), "--require-key", keys.external, "--served-model-name", "big"]
    process = subprocess.Popen(argv, env=environment("", folder, {}), stderr=subprocess.DEVNULL)

    def listens() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).is_success
        return False

    try:
        until(listens, what="the external server listens")
        yield port
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session")
def keyed(tmp_path_factory: pytest.TempPathFactory, keys: Secrets, external_port: int) -> Iterator[Gateway]:
    """A gateway with two keys; *chat* is ours, *private* too, *elsewhere* is somebody else's."""
    folder: Path = tmp_path_factory.mktemp("keyed")
    models = {
        "chat": fake_model(folder, aliases=["public-chat"]),
        "private": fake_model(folder),
        "elsewhere": {
            "engine": "external",
            "url": f"http://127.0.0.1:{external_port}/v1",
            "api_key": "${ELSEWHERE_KEY}",
            "served_name": "big",
        },
    }
    settings = {
        "keys": [
            {"name": "owner", "key": "${OWNER_KEY}", "admin": True},
            {"name": "guest", "key": "${GUEST_KEY}", "models": ["public-*"]},
        ]
    }
    environ = {"OWNER_KEY": keys.owner, "GUEST_KEY": keys.guest, "ELSEWHERE_KEY": keys.external}
    with running_gateway(folder, models, settings=settings, environ=environ) as running:
        yield running
