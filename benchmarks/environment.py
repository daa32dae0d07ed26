"""Where a run took place: this client, and what the server says of itself."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import socket
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import psutil

from benchmarks.datasets.choosing import Prompts
from benchmarks.datasets.tokenizer import Tokenizer
from benchmarks.plan import Plan

LOOPBACK = ("127.", "localhost", "::1")


def describe(plan: Plan, prompts: Prompts, tokenizer: Tokenizer | None, host: str) -> dict[str, Any]:
    """This client, now: machine, versions, load, what is asked. No environment variables and no arguments of others."""
    is_here = host.startswith(LOOPBACK)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "unigate": _version("unigate"),
        "python": platform.python_version(),
        "argv": sys.argv,
        "client": {
            "host": socket.gethostname(),
            "system": platform.platform(),
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "load_average": list(os.getloadavg()),
        },
        "server_is_on_this_machine": is_here,
        "gpus": gpus() if is_here else [],
        "dataset": {"about": prompts.about, "sha256": prompts.digest, "notes": list(prompts.notes)},
        "tokenizer": {"place": plan.tokenizer, "sha256": tokenizer.digest} if tokenizer is not None else None,
        "seed": plan.seed,
    }


def cpu_model() -> str:
    """The processor's name, as Linux has it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def run_queue_wait_s() -> float | None:
    """Seconds this process's main thread has waited for a CPU since it began; None where Linux does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    return None


def gpus() -> list[dict[str, Any]]:
    """The GPUs of this machine, as NVML tells; none without a driver."""
    import pynvml  # a driver's library: only looked for when a run begins

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        return [{"driver": driver, **_gpu(pynvml, number)} for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as problem:
        return [{"problem": str(problem)}]
    finally:
        pynvml.nvmlShutdown()


def _gpu(nvml: Any, number: int) -> dict[str, Any]:
    handle = nvml.nvmlDeviceGetHandleByIndex(number)

    def asked(question: str, *arguments: Any) -> Any:
        try:
            return getattr(nvml, question)(handle, *arguments)
        except nvml.NVMLError:
            return None

    power = asked("nvmlDeviceGetPowerManagementLimit")
    memory = asked("nvmlDeviceGetMemoryInfo")
    ecc = asked("nvmlDeviceGetEccMode")
    return {
        "name": _text(asked("nvmlDeviceGetName")),
        "memory_bytes": memory.total if memory is not None else None,
        "power_cap_w": power / 1000 if power is not None else None,
        "sm_clock_max_mhz": asked("nvmlDeviceGetMaxClockInfo", 1),
        "sm_clock_mhz": asked("nvmlDeviceGetClockInfo", 1),
        "ecc": bool(ecc[0]) if ecc is not None else None,
    }


def _text(value: Any) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_model(body: bytes, model: str) -> dict[str, Any] | None:
    """What ``/v1/models`` says of *model*, without what changes by itself."""
    with contextlib.suppress(orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
        for entry in orjson.loads(body)["data"]:
            if entry.get("id") == model:
                kept = ("id", "root", "parent", "max_model_len", "owned_by", "meta")
                return {name: entry[name] for name in kept if name in entry}
    return None


def read_version(path: str, body: bytes) -> str | None:
    """The version in an answer: vLLM's /version, Ollama's /api/version, llama.cpp's /props."""
    with contextlib.suppress(orjson.JSONDecodeError):
        said = orjson.loads(body)
        if isinstance(said, Mapping):
            value = said.get("build_info" if path == "/props" else "version")
            return str(value) if value else None
    return None


def read_backends(body: bytes, model: str) -> list[dict[str, Any]] | None:
    """What our own gateway's administration says of the backends of *model*, without what moves while they work."""
    moving = ("since_s", "leases", "waiting", "retry_in_s", "phase", "idle_s")
    with contextlib.suppress(orjson.JSONDecodeError, AttributeError, TypeError):
        own = [one for one in orjson.loads(body) if model in (one.get("model"), one.get("name"))]
        found = [{name: value for name, value in one.items() if name not in moving} for one in own]
        return found or None
    return None
