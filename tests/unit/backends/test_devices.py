"""What the machine is found to have, with NVML replaced at its module and cgroups in a folder."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from backends.devices import GIB, HOST, Device, LocalDevices, Nvml, cgroup_limits, host_memory, visible
from tests.unit.backends.fake_nvml import FakeGpu, FakeNvml

TWO = (Device(0, "GPU-aaa", "A", 1, 1), Device(1, "GPU-abb", "B", 1, 1))


def test_gpus_are_read() -> None:
    """Every GPU comes with its memory in bytes, its name, its UUID, and who holds how much."""
    nvml = Nvml(FakeNvml(FakeGpu(free=4 * GIB, processes=[(17, 20 * GIB), (18, None)]), FakeGpu(name="Other")))
    first, second = nvml.read()
    assert (first.index, first.uuid, first.name) == (0, "GPU-00000000", "NVIDIA Fake")
    assert (first.total_bytes, first.free_bytes) == (24 * GIB, 4 * GIB)
    assert first.processes == ((17, 20 * GIB), (18, 0))
    assert (second.index, second.name, second.processes) == (1, "Other", ())
    assert str(first) == "GPU 0"
    assert nvml.driver() == "590.10"


def test_a_machine_without_nvml_has_no_gpu() -> None:
    """Without the driver there is no GPU, the reason is kept, and NVML is not asked again."""
    api = FakeNvml(init_problem="NVML Shared Library Not Found")
    nvml = Nvml(api)
    assert nvml.read() == nvml.read() == ()
    assert nvml.problem == "NVML Shared Library Not Found"
    assert api.inits == 1


def test_an_nvml_that_hangs_is_given_up() -> None:
    """An nvmlInit that never returns costs its limit once, and counts as no GPU."""
    api = FakeNvml(FakeGpu())
    api.may_answer.clear()
    nvml = Nvml(api, limit_s=0.01)
    assert nvml.read() == nvml.read() == ()
    assert nvml.problem == "NVML did not answer within 0.01 s"
    assert api.inits == 1
    api.may_answer.set()


def test_a_question_that_fails_takes_no_gpu_away() -> None:
    """When NVML fails once after it has answered, its last answer holds."""
    api = FakeNvml(FakeGpu())
    nvml = Nvml(api)
    before = nvml.read()
    api.count_problem = "Unknown Error"
    assert nvml.read() == before != ()
    assert nvml.problem is None


def test_a_lost_gpu_hides_no_other() -> None:
    """A GPU that NVML cannot reach is left out; the others keep their numbers."""
    assert [gpu.index for gpu in Nvml(FakeNvml(FakeGpu(is_lost=True), FakeGpu())).read()] == [1]


def test_processes_that_cannot_be_told() -> None:
    """Where NVML does not tell of processes, as in some containers, there are none."""
    assert Nvml(FakeNvml(FakeGpu(hides_processes=True))).read()[0].processes == ()


@pytest.mark.parametrize(
    ("listed", "indices"),
    [
        (None, [0, 1]),
        ("1", [1]),
        ("1,0", [0, 1]),
        ("GPU-ab", [1]),
        ("GPU-a", []),
        ("", []),
        ("-1", []),
        ("0,-1,1", [0]),
    ],
)
def test_the_environment_hides_gpus(listed: str | None, indices: list[int]) -> None:
    """CUDA_VISIBLE_DEVICES names GPUs by index or by the start of their UUID, up to the first that is none."""
    assert [gpu.index for gpu in visible(TWO, listed)] == indices


def test_devices_end_with_the_host() -> None:
    """The machine's own memory is the last device, and the only one without a GPU."""
    both = LocalDevices({"CUDA_VISIBLE_DEVICES": "0"}, 8 * GIB, Nvml(FakeNvml(FakeGpu(), FakeGpu()))).read()
    assert [device.index for device in both] == [0, HOST]
    assert both[-1].total_bytes == 8 * GIB
    assert str(both[-1]) == "this machine"
    assert not both[-1].is_gpu
    alone = LocalDevices({}, 8 * GIB, Nvml(FakeNvml(init_problem="none")))
    assert [device.index for device in alone.read()] == [HOST]


def test_the_host_keeps_a_reserve(tmp_path: Path) -> None:
    """Without a configured budget, engines may take all RAM but a tenth, and of that at most 4 GiB."""
    total = psutil.virtual_memory().total
    assert host_memory(cgroups=tmp_path).total_bytes == total - min(total // 10, 4 * GIB)


def test_the_host_respects_its_cgroup(tmp_path: Path) -> None:
    """A container's limit is the machine's memory."""
    (tmp_path / "memory.max").write_text(f"{GIB}\n")
    assert host_memory(cgroups=tmp_path).total_bytes == GIB - GIB // 10


@pytest.mark.parametrize(("text", "limits"), [("max", []), ("9223372036854771712", []), ("1048576", [1048576])])
def test_cgroup_limits(tmp_path: Path, text: str, limits: list[int]) -> None:
    """The word max and cgroup v1's largest number are no limit."""
    folder = tmp_path / "memory"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text(f"{text}\n")
    assert cgroup_limits(tmp_path) == limits
