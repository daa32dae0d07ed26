"""A stand-in for the module pynvml: as many GPUs as a test wants, with whatever memory and processes it says."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

GIB = 1024**3


class NVMLError(Exception):
    """As pynvml's."""


@dataclass
class FakeGpu:
    """One GPU; a test changes it at will."""

    total: int = 24 * GIB
    free: int = 24 * GIB
    name: str = "NVIDIA Fake"
    uuid: str = ""
    processes: list[tuple[int, int | None]] = field(default_factory=list)
    is_lost: bool = False
    hides_processes: bool = False


class FakeNvml:
    """The functions of pynvml that are used. *init_problem* is raised by nvmlInit; *hangs* keeps it from returning."""

    NVMLError = NVMLError

    def __init__(self, *gpus: FakeGpu, init_problem: str | None = None) -> None:
        self.gpus = list(gpus)
        self.init_problem = init_problem
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.inits = 0
        self.count_problem: str | None = None

    def nvmlInit(self) -> None:  # noqa: N802
        self.inits += 1
        self.may_answer.wait()
        if self.init_problem is not None:
            raise NVMLError(self.init_problem)

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "590.10"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        if self.count_problem is not None:
            raise NVMLError(self.count_problem)
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[int, FakeGpu]:  # noqa: N802
        if self.gpus[index].is_lost:
            raise NVMLError("GPU is lost")
        return index, self.gpus[index]

    def nvmlDeviceGetMemoryInfo(self, handle: tuple[int, FakeGpu]) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(total=handle[1].total, free=handle[1].free, used=handle[1].total - handle[1].free)

    def nvmlDeviceGetUUID(self, handle: tuple[int, FakeGpu]) -> str:  # noqa: N802
        return handle[1].uuid or f"GPU-{handle[0]}0000000"

    def nvmlDeviceGetName(self, handle: tuple[int, FakeGpu]) -> str:  # noqa: N802
        return handle[1].name

    def nvmlDeviceGetComputeRunningProcesses(self, handle: tuple[int, FakeGpu]) -> list[SimpleNamespace]:  # noqa: N802
        if handle[1].hides_processes:
            raise NVMLError("Not Supported")
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in handle[1].processes]
