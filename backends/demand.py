"""What one start asks of the machine's devices, from the settings, the engine and the weights. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from backends.adapter import Adapter, Sleep
from backends.devices import HOST, Device, visible
from backends.learnt import Peak
from backends.memory_estimate import NOTHING_KNOWN, MemoryNeed, WeightFacts, as_learnt, exactly
from backends.placement import Claims, Demand
from backends.settings import BackendSettings, EngineSettings


@dataclass(frozen=True, slots=True)
class Wish:
    """A backend that wants to start. *learnt*: the most that earlier runs of it took."""

    backend: BackendSettings
    engine: EngineSettings
    adapter: Adapter
    facts: WeightFacts = NOTHING_KNOWN
    learnt: Peak | None = None


def demand_of(wish: Wish, devices: Sequence[Device]) -> Demand:
    """What *wish* asks of *devices*: GPUs where there are any and the engine wants some, else the host's memory.

    ``gpus`` names them, else ``CUDA_VISIBLE_DEVICES`` in the model's or engine's own environment. ``memory_gib`` wins
    over what was learnt, and that over what is reckoned, unless the engine takes its share whatever the model.
    """
    backend, adapter = wish.backend, wish.adapter
    gpus = tuple(device.index for device in devices if device.is_gpu)
    named = named_gpus(wish, devices)
    count = adapter.gpu_count(backend, wish.engine)
    on_gpu = bool(named) if named is not None else bool(gpus) and count != 0
    need = _need(wish, on_gpu)
    if not on_gpu:
        return Demand(backend.name, need, (HOST,))
    # An engine that spreads over all it sees: as few of them as will do.
    return Demand(backend.name, need, gpus if named is None else named, count or None)


def _need(wish: Wish, on_gpu: bool) -> MemoryNeed:
    if wish.backend.memory_bytes is not None:
        return exactly(wish.backend.memory_bytes)
    settings = wish.backend
    if not on_gpu and wish.engine.env:
        settings = replace(settings, env={**wish.engine.env, **settings.env})
    need = wish.adapter.memory(settings, wish.facts, on_gpu=on_gpu)
    takes_a_share = need.fraction is not None or need.free_share is not None
    if wish.learnt is not None and wish.learnt.on_gpu == on_gpu and not takes_a_share:
        return as_learnt(wish.learnt.bytes_on_each * wish.learnt.devices)
    return need


def named_gpus(wish: Wish, devices: Sequence[Device]) -> tuple[int, ...] | None:
    """The GPUs that the operator has named for it; none means the CPU, None that nothing was said."""
    if wish.backend.gpus is not None:
        return wish.backend.gpus
    listed = {**wish.engine.env, **wish.backend.env}.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return None
    return tuple(device.index for device in visible((one for one in devices if one.is_gpu), listed))


def gpu_environment(wish: Wish, claims: Claims) -> Mapping[str, str]:
    """The variables that keep a run to the GPUs it was granted; none for a run on the host.

    By index, in NVML's order: of UUIDs vLLM understands some on CUDA and none elsewhere (vllm/platforms/interface.py
    device_control_id_to_physical_device_id, 0.32.0). Only where the operator wants no GPU are all of them hidden.
    """
    indices = sorted(index for index in claims if index != HOST)
    if not indices and wish.backend.gpus != ():
        return {}
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, indices))}


def limit_flags(wish: Wish, claims: Claims, devices: Mapping[int, Device]) -> list[str]:
    """The engine's flags that keep a run on GPUs to a stated ``memory_gib``."""
    totals = [devices[index].total_bytes for index in claims if index != HOST and index in devices]
    if wish.backend.memory_bytes is None or not totals:
        return []
    return wish.adapter.memory_flags(wish.backend, wish.facts, wish.backend.memory_bytes, min(totals))


def asleep_claims(wish: Wish, claims: Claims, kept_bytes: int) -> Claims | None:
    """What a run keeps when it sleeps: *kept_bytes* of each GPU, its weights in the host's memory. None: it cannot."""
    gpus = [index for index in claims if index != HOST]
    if not gpus or sleep_of(wish) is None:
        return None
    return {**{index: min(kept_bytes, claims[index]) for index in gpus}, HOST: wish.facts.weights_bytes}


def sleep_of(wish: Wish) -> Sleep | None:
    """How a run of *wish* is put to sleep; None when not asked for, or without the calls where it listens."""
    sleep = wish.adapter.sleep(wish.backend)
    kind = wish.engine.socket if wish.engine.socket in wish.adapter.sockets else "tcp"
    return sleep if sleep is not None and kind in sleep.sockets else None
