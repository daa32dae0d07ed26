"""What a start asks for, and what its engine is told of the answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backends.demand import Wish, asleep_claims, demand_of, gpu_environment, limit_flags, sleep_of
from backends.devices import GIB, HOST, Device
from backends.engines import ADAPTERS
from backends.learnt import Peak
from backends.memory_estimate import MemoryNeed, WeightFacts, as_learnt, exactly
from backends.placement import Demand
from backends.settings import BackendSettings, EngineSettings

HOST_24 = Device(HOST, "", "host memory", 24 * GIB, 24 * GIB)
GPUS = tuple(Device(index, f"GPU-{index}a", "Fake", 24 * GIB, 24 * GIB) for index in range(2))
FACTS = WeightFacts(10 * GIB, 1024, 4096)


def wish(engine: str = "vllm", *, settings: EngineSettings | None = None, **others: Any) -> Wish:
    backend = BackendSettings("m", engine, **others)
    return Wish(backend, settings or EngineSettings(), ADAPTERS[engine], FACTS)


def test_without_a_gpu_everything_is_asked_of_the_host() -> None:
    """Without a GPU an engine that would use some asks for the host's memory."""
    demand = demand_of(wish(), [HOST_24])
    assert (demand.among, demand.count, demand.need.fraction) == ((HOST,), 1, None)


def test_an_engine_for_the_cpu_leaves_gpus_alone() -> None:
    """The embedded llama.cpp asks for the host's memory on a machine with GPUs too, unless GPUs are named for it."""
    assert demand_of(wish("llamacpp"), [*GPUS, HOST_24]).among == (HOST,)
    named = demand_of(wish("llamacpp", gpus=(1,)), [*GPUS, HOST_24])
    assert (named.among, named.count) == ((1,), None)


def test_gpus_of_an_engine_with_ranks() -> None:
    """An engine with two ranks asks for two GPUs, among all or among those that are named."""
    two = wish(options={"tensor_parallel": 2})
    assert demand_of(two, [*GPUS, HOST_24]) == Demand("m", MemoryNeed(10 * GIB, fraction=0.92, is_firm=True), (0, 1), 2)


@pytest.mark.parametrize(("listed", "among"), [("1", (1,)), ("GPU-0", (0,)), ("", (HOST,))])
def test_the_environment_names_gpus(listed: str, among: tuple[int, ...]) -> None:
    """CUDA_VISIBLE_DEVICES of the model or of its engine names GPUs, as CUDA reads it."""
    variable = {"CUDA_VISIBLE_DEVICES": listed}
    assert demand_of(wish(env=variable), [*GPUS, HOST_24]).among == among
    assert demand_of(wish(settings=EngineSettings(env=variable)), [*GPUS, HOST_24]).among == among


def test_what_is_stated_wins_over_what_was_learnt() -> None:
    """memory_gib wins over an earlier run, that over the weights; a run elsewhere has taught nothing."""
    peak = Peak("x", on_gpu=False, devices=1, bytes_on_each=GIB)
    seen = replace(wish("llamacpp"), learnt=peak)
    assert demand_of(seen, [HOST_24]).need == as_learnt(GIB)
    stated = replace(seen, backend=replace(seen.backend, memory_bytes=7))
    assert demand_of(stated, [HOST_24]).need == exactly(7)
    elsewhere = replace(seen, learnt=replace(peak, on_gpu=True))
    assert demand_of(elsewhere, [HOST_24]).need.weights_bytes == 10 * GIB


def test_a_share_is_taken_whatever_was_learnt() -> None:
    """An engine that takes its share of a GPU takes it again: what it was seen to take changes nothing."""
    seen = replace(wish(), learnt=Peak("x", on_gpu=True, devices=1, bytes_on_each=GIB))
    assert demand_of(seen, [*GPUS, HOST_24]).need.fraction == 0.92


def test_the_engine_s_own_environment_counts() -> None:
    """A size of the cache in the engine's environment is reckoned with; the model's own wins."""
    settings = EngineSettings(env={"VLLM_CPU_KVCACHE_SPACE": "4"})
    assert demand_of(wish(settings=settings), [HOST_24]).need.cache_bytes == 4 * GIB
    own = wish(settings=settings, env={"VLLM_CPU_KVCACHE_SPACE": "1"})
    assert demand_of(own, [HOST_24]).need.cache_bytes == GIB


def test_what_the_engine_is_told() -> None:
    """A run on GPUs sees these; one on the host sees all, unless the operator wants none; a limit becomes a flag."""
    assert gpu_environment(wish(), {1: 1, 0: 1})["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert gpu_environment(wish(), {HOST: 1}) == {}
    assert gpu_environment(wish(gpus=()), {HOST: 1})["CUDA_VISIBLE_DEVICES"] == ""
    devices = {device.index: device for device in (*GPUS, HOST_24)}
    assert limit_flags(wish(memory_bytes=12 * GIB), {0: 12 * GIB}, devices) == ["--gpu-memory-utilization", "0.5"]
    assert limit_flags(wish(memory_bytes=12 * GIB), {HOST: 12 * GIB}, devices) == []
    assert limit_flags(wish(), {0: 12 * GIB}, devices) == []


def test_sleep_needs_its_socket() -> None:
    """An engine whose calls to sleep exist on a Unix socket only does not sleep on a port; none does on the host."""
    sleepy = wish(options={"sleep": True})
    assert sleep_of(sleepy) is not None
    assert sleep_of(replace(sleepy, engine=EngineSettings(socket="tcp"))) is None
    assert sleep_of(wish()) is None
    assert asleep_claims(sleepy, {0: 20 * GIB}, 2 * GIB) == {0: 2 * GIB, HOST: 10 * GIB}
    assert asleep_claims(sleepy, {HOST: 20 * GIB}, 2 * GIB) is None
    assert sleep_of(wish("lmdeploy", options={"sleep": True})) is not None
