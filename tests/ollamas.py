"""A gateway before the fake Ollama: its configuration, and a look into the daemon."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import httpx

from tests.gateways import ROOT, Gateway
from tests.gguf_files import write_gguf

COMMAND = [sys.executable, "-m", "tests.fake_ollama", "serve"]
QUICK: dict[str, Any] = {
    "backoff": {"base_s": 0.05, "max_s": 0.2},
    "health": {"interval_s": 0.2, "timeout_s": 2},
    "drain_timeout_s": 5,
}
"""A model's clocks for a test: short pauses, and limits that a busy machine does not reach."""


def ollama_engine(folder: Path, faults: str = "", **settings: Any) -> dict[str, Any]:
    """The ``engines`` section: the fake Ollama with its models in *folder*, and its *faults*."""
    env = {"PYTHONPATH": str(ROOT), **({"FAKE_OLLAMA": faults} if faults else {}), **settings.pop("env", {})}
    return {"ollama": {"command": COMMAND, "models_dir": str(folder / "models"), "env": env, **settings}}


def ollama_model(folder: Path, name: str, **settings: Any) -> dict[str, Any]:
    """A model's section, its weights a GGUF file of its own."""
    weights = folder / f"{name}.gguf"
    if "weights" not in settings and not weights.exists():
        write_gguf(weights, name=name)
    return {"engine": "ollama", "weights": str(weights), **QUICK, **settings}


def ask_daemon(gateway: Gateway, method: str, path: str, **options: Any) -> Any:
    """One question to the daemon behind *gateway*, by its own address."""
    address = gateway.backend("ollama")["address"]
    with httpx.Client(base_url=address, timeout=10, trust_env=False) as client:
        answer = client.request(method, path, **options)
    answer.raise_for_status()
    return answer.json()


def daemon_state(gateway: Gateway) -> dict[str, Any]:
    """What the fake counts: what it was ``asked``, its ``children`` by the name that loaded them, its ``loads``."""
    found: dict[str, Any] = ask_daemon(gateway, "GET", "/__state")
    return found


def loaded(gateway: Gateway) -> list[str]:
    """The names in /api/ps."""
    return [entry["name"] for entry in ask_daemon(gateway, "GET", "/api/ps")["models"]]
