"""What memory this machine has for engines: its GPUs as NVML tells of them, and its own RAM.

GPUs other than NVIDIA's are not seen: an engine on one is counted against the host's memory, like one on the CPU.
NVML's numbering is the PCI bus order, which is CUDA's own with ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` (CUDA C++ Programming
Guide, "Environment Variables"; NVML API reference, nvmlDeviceGetHandleByIndex_v2).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psutil
import pynvml

HOST = -1
"""The index of the machine's own memory."""

NVML_LIMIT_S = 10.0
"""nvmlInit can hang for ever on a wedged driver; so long is waited for an answer."""

MIB = 1024**2
GIB = 1024**3

CGROUPS = Path("/sys/fs/cgroup")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Device:
    """One place where weights can lie. *index*: as NVML and CUDA number GPUs, HOST for the machine's own memory.

    *processes* are (pid, bytes) of whoever holds its memory; in a container NVML may tell of none, or of pids that
    mean nothing here.
    """

    index: int
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    processes: tuple[tuple[int, int], ...] = ()

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU rather than the machine's own memory."""
        return self.index != HOST

    def __str__(self) -> str:
        return f"GPU {self.index}" if self.is_gpu else "this machine"


class Devices(Protocol):
    """Whoever knows the devices of this machine."""

    def read(self) -> tuple[Device, ...]:
        """All devices as they are now, GPUs by index, the host's memory last. Blocks: for a thread."""


class NvmlSilent(Exception):
    """NVML did not answer in time; it is not asked again."""


class Nvml:
    """The NVIDIA GPUs of this machine. *api* is the module pynvml."""

    def __init__(self, api: Any = pynvml, limit_s: float = NVML_LIMIT_S) -> None:
        self._api = api
        self._limit_s = limit_s
        self._problem: str | None = None
        self._is_open = False
        self._last: tuple[Device, ...] = ()

    @property
    def problem(self) -> str | None:
        """Why there are no GPUs, in NVML's words; None while it answers, or before it was asked."""
        return self._problem

    def read(self) -> tuple[Device, ...]:
        """The GPUs by index; none when NVML is not there or does not answer. Blocks for up to its limit."""
        if self._problem is not None:
            return ()
        try:
            return _bounded(self._read, self._limit_s)
        except NvmlSilent:
            self._problem = f"NVML did not answer within {self._limit_s:g} s"
        except self._api.NVMLError as problem:
            if self._is_open:
                return self._last  # a GPU does not go away because one question failed
            self._problem = str(problem)
        return ()

    def driver(self) -> str:
        """The driver's version, empty when it cannot be told."""
        with contextlib.suppress(self._api.NVMLError):
            return str(self._api.nvmlSystemGetDriverVersion())
        return ""

    def _read(self) -> tuple[Device, ...]:
        if not self._is_open:
            self._api.nvmlInit()
            self._is_open = True
        self._last = tuple(self._devices())
        return self._last

    def _devices(self) -> Iterator[Device]:
        api = self._api
        for index in range(api.nvmlDeviceGetCount()):
            # One GPU that has fallen off the bus must not hide the others.
            with contextlib.suppress(api.NVMLError):
                handle = api.nvmlDeviceGetHandleByIndex(index)
                memory = api.nvmlDeviceGetMemoryInfo(handle)
                yield Device(
                    index,
                    str(api.nvmlDeviceGetUUID(handle)),
                    str(api.nvmlDeviceGetName(handle)),
                    int(memory.total),
                    int(memory.free),
                    self._processes(handle),
                )

    def _processes(self, handle: Any) -> tuple[tuple[int, int], ...]:
        try:
            found = self._api.nvmlDeviceGetComputeRunningProcesses(handle)
        except self._api.NVMLError:
            return ()
        # The bytes are None where the driver does not tell them (WDDM, some containers).
        return tuple((int(process.pid), int(process.usedGpuMemory or 0)) for process in found)


class LocalDevices:
    """The devices of this machine. *budget_bytes* is what engines may take of its RAM, None for nearly all of it.

    GPUs that ``CUDA_VISIBLE_DEVICES`` in *environ* hides from this process stay hidden: NVML itself ignores it.
    """

    def __init__(self, environ: Mapping[str, str], budget_bytes: int | None = None, nvml: Nvml | None = None) -> None:
        self._environ = environ
        self._budget_bytes = budget_bytes
        self._nvml = nvml or Nvml()

    def read(self) -> tuple[Device, ...]:
        """The visible GPUs, then the host's memory."""
        gpus = visible(self._nvml.read(), self._environ.get("CUDA_VISIBLE_DEVICES"))
        return (*gpus, host_memory(self._budget_bytes))


def visible(gpus: Iterable[Device], listed: str | None) -> tuple[Device, ...]:
    """Those of *gpus* that *listed*, a value of ``CUDA_VISIBLE_DEVICES``, names by index or by the start of the UUID.

    As CUDA does, the list ends at the first entry that is no GPU: "-1" hides all.
    """
    every = tuple(gpus)
    if listed is None:
        return every
    named: list[Device] = []
    for entry in listed.split(","):
        word = entry.strip()
        found = [gpu for gpu in every if word and (word == str(gpu.index) or gpu.uuid.startswith(word))]
        if len(found) != 1:
            break
        named += found
    return tuple(sorted(set(named), key=lambda gpu: gpu.index))


def host_memory(budget_bytes: int | None = None, cgroups: Path = CGROUPS) -> Device:
    """This machine's RAM as a device: *budget_bytes* of it, or all that it and its cgroup allow, less a reserve.

    The reserve, a tenth but at most 4 GiB, is for the system, the gateway, and what engines take beside their plan.
    """
    memory = psutil.virtual_memory()
    if budget_bytes is None:
        whole = min([int(memory.total), *cgroup_limits(cgroups)])
        budget_bytes = whole - min(whole // 10, 4 * GIB)
    return Device(HOST, "", "host memory", budget_bytes, min(budget_bytes, int(memory.available)))


def cgroup_limits(root: Path = CGROUPS) -> list[int]:
    """The memory limits in bytes that this process' cgroups set, v2 and v1; none where there are none."""
    found = []
    for path in _limit_files(root):
        with contextlib.suppress(OSError, ValueError):
            limit = int(path.read_text())  # "max" is none
            # v1 writes the largest number of pages for none (kernel Documentation, cgroup-v1/memory.rst).
            if 0 < limit < 2**60:
                found.append(limit)
    return found


def _limit_files(root: Path) -> Iterator[Path]:
    yield root / "memory.max"
    yield root / "memory" / "memory.limit_in_bytes"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, below = line.split(":", 2)
            if not controllers:
                folder = root / below.lstrip("/")
                for parent in (folder, *folder.parents):
                    if parent.is_relative_to(root):
                        yield parent / "memory.max"


def _bounded(call: Callable[[], _T], limit_s: float) -> _T:
    """What *call* returns or raises. Raises NvmlSilent after *limit_s*; its thread is then left to itself."""
    outcome: list[_T] = []
    problems: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=run, name="nvml", daemon=True)
    thread.start()
    thread.join(limit_s)
    if problems:
        raise problems[0]
    if not outcome:
        raise NvmlSilent
    return outcome[0]
