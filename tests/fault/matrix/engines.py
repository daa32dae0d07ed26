"""The engines of the matrix: how each is configured, how its processes are told apart, how its work is seen."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.engines.environment import (
    gguf_model,
    hf_model,
    lmdeploy_command,
    lmdeploy_python,
    vllm_python,
)
from tests.fake_ollama.runners import CHILD
from tests.gateways import Gateway, fake_engine_command, weights_in
from tests.ollamas import COMMAND, daemon_state, ollama_engine, ollama_model

RUNNING_SHARE = 0.2
"""Of one core: an engine that uses less does nothing, where it has no gauge that says so."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """How long things take with this engine, or may: seconds, with room for a busy machine.

    The first four go into the configuration and are the same for every fault; *patience_s* is the limit of the tests.
    """

    start_stall_s: float
    health_timeout_s: float
    first_byte_s: float
    idle_s: float
    patience_s: float


@dataclass(frozen=True, slots=True)
class Engine:
    """One row. *command* and *model* are as the configuration has them; *model* gets the row's folder.

    *busy* says how much the backend of a model does: 0 when it is idle. *child* is part of the name or command line of
    the process of an engine that is not its main one and without which it cannot answer; *child_args* makes the model
    have it. *daemon* is the backend whose process the engine is, where that is not the model's own; *section* are
    further keys of its configuration. *asks* are parameters of requests that are to go on.
    """

    key: str
    title: str
    engine: str
    command: Callable[[], list[str]]
    model: Callable[[Path], dict[str, Any]]
    version: Callable[[], str]
    busy: Callable[[Gateway, str], float]
    clocks: Clocks
    daemon: str = ""
    asks: Mapping[str, Any] = field(default_factory=lambda: {"ignore_eos": True})
    section: Callable[[Path], dict[str, Any]] = lambda folder: {}
    child: str = ""
    child_args: Mapping[str, Any] = field(default_factory=dict)
    no_child: str = ""


def _gauge(name: str, gateway: Gateway, model: str) -> float:
    """A gauge of the engine's own /metrics."""
    text = _ask_engine(gateway, model, "/metrics").text
    families = text_string_to_metric_families(text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def _ask_engine(gateway: Gateway, model: str, path: str) -> httpx.Response:
    address = gateway.backend(model)["address"]
    uds = address.removeprefix("unix:") if address.startswith("unix:") else None
    base_url = "http://localhost" if uds else address
    with httpx.Client(transport=httpx.HTTPTransport(uds=uds), base_url=base_url, timeout=30) as client:
        return client.get(path)


def _cpu_share(gateway: Gateway, model: str) -> float:
    """How much of one core the model's processes use, over half a second; 0 for next to nothing."""
    pids = [pid for pid, marker in gateway.processes().items() if marker.startswith(f"{model}:")]

    def used_s() -> float:
        times = [psutil.Process(pid).cpu_times() for pid in pids]
        return sum(spent.user + spent.system for spent in times)

    before = used_s()
    psutil.cpu_percent(0.5)  # waits that long
    share = (used_s() - before) / 0.5
    return share if share > RUNNING_SHARE else 0.0


def _said_by(python: Path, module: str) -> str:
    code = f"from importlib.metadata import version; print(version({module!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def _fake_model(folder: Path) -> dict[str, Any]:
    return {"weights": str(weights_in(folder)), "args": {"chunks": 400, "chunk-interval": 0.02}}


def _vllm_model(folder: Path) -> dict[str, Any]:
    return {
        "weights": str(hf_model()),
        "context_length": 2048,
        "args": {"enforce-eager": True},
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"},
    }


def _llamacpp_model(folder: Path) -> dict[str, Any]:
    # Two slots: with one, who comes while somebody is served waits for that one's end, which is no fault. One thread:
    # its threads wait for each other by spinning, and a busy neighbour makes two ten times as slow as one.
    return {"weights": str(gguf_model()), "context_length": 2048, "args": {"parallel": 2, "threads": 1}}


def _lmdeploy_model(folder: Path) -> dict[str, Any]:
    env = {"HF_HUB_OFFLINE": "1", "LMDEPLOY_CPU_DELAY": "0.02"}
    return {"weights": str(hf_model()), "context_length": 2048, "env": env}


def _ollama_model(folder: Path) -> dict[str, Any]:
    return ollama_model(folder, "smol", context_length=4096)


def _ollama_section(folder: Path) -> dict[str, Any]:
    (section,) = ollama_engine(folder, "chunk-s=0.02").values()
    own = {key: value for key, value in section.items() if key != "command"}
    return {**own, "num_parallel": 2}  # with one, who comes while somebody is served waits for that one's end


REFERENCE = Engine(
    "reference",
    "fake engine",
    "vllm",
    fake_engine_command,
    _fake_model,
    lambda: "of this repository",
    lambda gateway, model: float(_ask_engine(gateway, model, "/__state").json()["running"]),
    Clocks(start_stall_s=2, health_timeout_s=1, first_byte_s=2, idle_s=15, patience_s=30),
    no_child="is one process",
)
LLAMACPP = Engine(
    "llamacpp",
    "llama.cpp",
    "llamacpp",
    lambda: [sys.executable, "-P", "-m", "backends.engines.llamacpp_server"],
    _llamacpp_model,
    lambda: f"xllamacpp {version('xllamacpp')}",
    partial(_gauge, "llamacpp:requests_processing"),
    Clocks(start_stall_s=5, health_timeout_s=2, first_byte_s=5, idle_s=20, patience_s=60),
    no_child="is one process",
)
VLLM = Engine(
    "vllm",
    "vLLM (CPU)",
    "vllm",
    lambda: [str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server"],
    _vllm_model,
    lambda: f"vllm-cpu {_said_by(vllm_python(), 'vllm-cpu')}",
    partial(_gauge, "vllm:num_requests_running"),
    Clocks(start_stall_s=45, health_timeout_s=3, first_byte_s=15, idle_s=30, patience_s=300),
    child="VLLM::EngineCor",  # comm(5) holds 15 characters
)
LMDEPLOY = Engine(
    "lmdeploy",
    "LMDeploy (its server, engines for the CPU)",
    "lmdeploy",
    lmdeploy_command,
    _lmdeploy_model,
    lambda: f"lmdeploy {_said_by(lmdeploy_python(), 'lmdeploy')}",
    _cpu_share,
    Clocks(start_stall_s=30, health_timeout_s=3, first_byte_s=15, idle_s=30, patience_s=180),
    child="ZMQMPEngine",
    child_args={"backend": "pytorch"},
)

OLLAMA = Engine(
    "ollama",
    "Ollama (a fake that speaks its recordings)",
    "ollama",
    lambda: COMMAND,
    _ollama_model,
    lambda: "of this repository",
    lambda gateway, model: float(daemon_state(gateway)["running"]),
    Clocks(start_stall_s=5, health_timeout_s=2, first_byte_s=4, idle_s=20, patience_s=60),
    daemon="ollama",
    asks={},
    section=_ollama_section,
    child=CHILD,
)

ENGINES = {engine.key: engine for engine in (REFERENCE, LLAMACPP, VLLM, LMDEPLOY, OLLAMA)}


def machine() -> str:
    """What kind of machine this is: no names, no addresses."""
    memory_gb = psutil.virtual_memory().total / 2**30
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{psutil.cpu_count()} CPU cores, {memory_gb:.0f} GB of memory, no GPU, {system}"
