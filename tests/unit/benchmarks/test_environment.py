"""Where a run took place."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.environment import gpus, read_backends, read_model, read_version, run_queue_wait_s


class NVMLError(Exception):
    """As pynvml's."""


def fake_nvml(**changes: Any) -> SimpleNamespace:
    """A driver with one GPU, as far as we ask."""

    def refuse(*_: Any) -> Any:
        raise NVMLError("not supported")

    answers: dict[str, Callable[..., Any]] = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "570.1",
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda number: number,
        "nvmlDeviceGetName": lambda _: b"RTX",
        "nvmlDeviceGetPowerManagementLimit": lambda _: 450_000,
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=24),
        "nvmlDeviceGetEccMode": refuse,
        "nvmlDeviceGetMaxClockInfo": lambda _, clock: 2520,
        "nvmlDeviceGetClockInfo": lambda _, clock: 210,
    }
    return SimpleNamespace(NVMLError=NVMLError, **{**answers, **changes})


def test_a_gpu_is_described_as_far_as_it_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, memory, power cap, clocks; what a card does not support is not known."""
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    assert gpus() == [{
        "driver": "570.1", "name": "RTX", "memory_bytes": 24, "power_cap_w": 450.0, "sm_clock_max_mhz": 2520,
        "sm_clock_mhz": 210, "ecc": None,
    }]  # fmt: skip


def test_a_machine_without_a_driver_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No driver is no GPU and no error; a driver that fails later says so."""

    def fail(*_: Any) -> Any:
        raise NVMLError("lost")

    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(nvmlInit=fail))
    assert gpus() == []
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(nvmlDeviceGetCount=fail))
    assert gpus() == [{"problem": "lost"}]


@pytest.mark.parametrize(
    ("path", "body", "version"),
    [
        ("/version", b'{"version":"0.32.0"}', "0.32.0"),
        ("/api/version", b'{"version":"0.20.0"}', "0.20.0"),
        ("/props", b'{"build_info":"b11549"}', "b11549"),
        ("/version", b"[]", None),
        ("/version", b"<html>", None),
    ],
)
def test_a_version_is_where_each_server_has_it(path: str, body: bytes, version: str | None) -> None:
    """vLLM, Ollama and llama.cpp tell their version each in its own place."""
    assert read_version(path, body) == version


def test_a_model_is_described_without_what_changes_by_itself() -> None:
    """vLLM's ``created`` is the time of the question, so it says nothing of the model."""
    body = b'{"data":[{"id":"a","created":3,"root":"/w","max_model_len":9},{"id":"b"}]}'
    assert read_model(body, "a") == {"id": "a", "root": "/w", "max_model_len": 9}
    assert read_model(body, "c") is None
    assert read_model(b"{}", "a") is None
    assert read_model(b"<", "a") is None


def test_backends_are_described_without_what_moves() -> None:
    """Leases and seconds change all the time; engine, pid and restarts have to stay. Replicas are each described."""
    body = b'[{"name":"a-0","model":"a","pid":3,"leases":2,"since_s":1.0},{"name":"a","pid":4},{"name":"b"}]'
    assert read_backends(body, "a") == [{"name": "a-0", "model": "a", "pid": 3}, {"name": "a", "pid": 4}]
    for nothing in (b"[]", b'{"detail":"x"}', b"<", b"3"):
        assert read_backends(nothing, "a") is None


def test_the_wait_for_a_cpu_only_grows() -> None:
    """Linux tells how long this process waited for a CPU."""
    first = run_queue_wait_s()
    second = run_queue_wait_s()
    assert first is not None
    assert second is not None
    assert 0 <= first <= second
