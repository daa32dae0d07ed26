"""What each engine tells of the memory it takes."""

from __future__ import annotations

from typing import Any

import pytest

from backends.adapter import Adapter
from backends.engines import ADAPTERS
from backends.memory_estimate import GIB, WeightFacts
from backends.settings import EngineSettings
from tests.unit.backends.test_engines import backend_of, every_adapter

KNOWN = WeightFacts(10 * GIB, 1024, 4096)


@every_adapter
@pytest.mark.parametrize("on_gpu", [True, False])
def test_every_engine_tells_its_memory(adapter: Adapter, on_gpu: bool) -> None:
    """An engine we start takes at least its weights, on no device less than nothing; another takes nothing of ours."""
    need = adapter.memory(backend_of(adapter), KNOWN, on_gpu=on_gpu)
    assert (need.on_each(1, 24 * GIB) >= KNOWN.weights_bytes) == adapter.launches
    unknown = adapter.memory(backend_of(adapter), WeightFacts(), on_gpu=False)
    assert unknown.on_each(1, 24 * GIB) == 0
    assert adapter.sleep(backend_of(adapter)) is None


@pytest.mark.parametrize(
    ("engine", "said", "command", "count"),
    [
        ("vllm", {}, (), 1),
        ("vllm", {"args": {"tensor_parallel_size": 2, "pipeline-parallel-size": 2}}, (), 4),
        ("vllm", {"options": {"tensor_parallel": 4}}, (), 4),
        ("lmdeploy", {"args": {"tp": 2}}, (), 2),
        ("llamacpp", {}, (), 0),
        ("llamacpp", {"args": {"n-gpu-layers": 99}}, (), None),
        ("llamacpp", {}, ("llama-server",), None),
        ("llamacpp", {"args": {"ngl": 0}}, ("llama-server",), 0),
        ("external", {}, (), 0),
    ],
)
def test_gpus_an_engine_wants(engine: str, said: dict[str, Any], command: tuple[str, ...], count: int | None) -> None:
    """One per rank; none for an engine on the CPU; as many as it takes for one that spreads its layers."""
    backend = backend_of(ADAPTERS[engine], **said)
    assert ADAPTERS[engine].gpu_count(backend, EngineSettings(command=command)) == count


@pytest.mark.parametrize(
    ("engine", "args", "env", "on_gpu", "expected"),
    [
        ("vllm", {}, {}, True, int(24 * GIB * 0.92)),
        ("vllm", {"gpu_memory_utilization": 0.5}, {}, True, 12 * GIB),
        ("vllm", {"kv-cache-memory-bytes": GIB}, {}, True, 13 * GIB),
        ("vllm", {"device_memory_utilization": "0.25"}, {}, True, 6 * GIB),
        ("vllm", {}, {"VLLM_CPU_KVCACHE_SPACE": "4"}, False, 16 * GIB),
        ("vllm", {}, {"VLLM_CPU_KVCACHE_SPACE": "some"}, False, 12 * GIB + 1024 * 4096),
        ("lmdeploy", {"cache-max-entry-count": 0.5}, {}, True, 18 * GIB),
        ("lmdeploy", {"cache-max-entry-count": 100}, {}, True, 12 * GIB + 1024 * 4096),
        ("llamacpp", {"parallel": 4}, {}, False, 10 * GIB + 4 * 1024 * 4096 + 300 * 1024**2),
    ],
)
def test_what_an_engine_takes(
    engine: str, args: dict[str, Any], env: dict[str, str], on_gpu: bool, expected: int
) -> None:
    """The engine's own settings of cache and share are reckoned with."""
    need = ADAPTERS[engine].memory(backend_of(ADAPTERS[engine], args=args, env=env), KNOWN, on_gpu=on_gpu)
    assert need.on_each(1, 24 * GIB) == expected


@pytest.mark.parametrize(
    ("engine", "args", "flags"),
    [
        ("vllm", {}, ["--gpu-memory-utilization", "0.5"]),
        ("vllm", {"gpu-memory-utilization": 0.3}, []),
        ("vllm", {"kv-cache-memory-bytes": 1}, []),
        ("lmdeploy", {}, ["--cache-max-entry-count", "0.01"]),
        ("lmdeploy", {"cache_max_entry_count": 0.3}, []),
        ("llamacpp", {}, []),
        ("external", {}, []),
    ],
)
def test_a_limit_reaches_the_engine(engine: str, args: dict[str, Any], flags: list[str]) -> None:
    """An engine that would take all it finds is told its limit, unless the operator has told it another."""
    backend = backend_of(ADAPTERS[engine], args=args)
    assert ADAPTERS[engine].memory_flags(backend, KNOWN, 12 * GIB, 24 * GIB) == flags
