"""What `unigate doctor` reads of a machine, on a made-up one."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.devices import GIB, Nvml
from backends.settings import EngineSettings, EnvironmentChoice
from gateway.doctor import LOW_DISK_BYTES, Places, examine, without_password
from tests.environments import python_environment
from tests.unit.backends.fake_nvml import FakeGpu, FakeNvml


def test_a_whole_examination(tmp_path: Path) -> None:
    """Every area is reported, an engine on PATH and a conda environment by name and version."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name in ("vllm", "ollama"):
        (binaries / name).touch(mode=0o755)
    python_environment(tmp_path / "miniconda3" / "envs" / "serving", "vllm-0.32.0")
    python_environment(tmp_path / "miniconda3")
    environ = {"HOME": str(tmp_path), "PATH": str(binaries), "HF_ENDPOINT": "https://me:pass@mirror.example"}
    readings = examine(Places("127.0.0.1", 1, {"state": tmp_path / "not" / "yet"}), environ)
    shown = {(reading.area, reading.subject): reading for reading in readings}
    assert shown["engines", "vllm"].shown == str(binaries / "vllm")
    assert shown["engines", "ollama"].shown == str(binaries / "ollama")
    assert shown["engines", "conda serving"].shown == f"vllm 0.32.0 in {tmp_path}/miniconda3/envs/serving"
    assert shown["disk", "state"].shown.startswith(f"{tmp_path}/not/yet: ")
    assert shown["disk", "state"].is_good in (True, False)
    assert shown["environment", "HF_ENDPOINT"].shown == "https://***@mirror.example"
    assert {"python", "gpus", "memory", "address"} <= {area for area, _ in shown}
    assert LOW_DISK_BYTES > 0


def test_gpus(tmp_path: Path) -> None:
    """Each GPU is shown with its memory and who holds it; without NVML the reason is shown."""
    held = Nvml(FakeNvml(FakeGpu(free=4 * GIB, processes=[(17, 20 * GIB)]), FakeGpu()))
    shown = {reading.subject: reading.shown for reading in examine(Places("127.0.0.1", 1, {}), {}, held)}
    assert shown["driver"] == "590.10"
    assert shown["0"] == "NVIDIA Fake, 4.0 of 24.0 GiB free; pid 17 holds 20.0 GiB"
    assert shown["1"] == "NVIDIA Fake, 24.0 of 24.0 GiB free"
    none = Nvml(FakeNvml(init_problem="NVML Shared Library Not Found"))
    shown = {reading.subject: reading.shown for reading in examine(Places("127.0.0.1", 1, {}), {}, none)}
    assert shown["nvidia"] == "none (NVML Shared Library Not Found)"


def test_an_environment_that_is_not_there(tmp_path: Path) -> None:
    """An engine whose configured environment cannot be used is bad, with the reason and the remedy."""
    engines = {"vllm": EngineSettings(environment=EnvironmentChoice("managed", "0.32.0"))}
    places = Places("127.0.0.1", 1, {}, engines, tmp_path)
    readings = {reading.subject: reading for reading in examine(places, {"HOME": str(tmp_path)})}
    assert readings["vllm"].is_good is False
    assert readings["vllm"].shown == (
        f"vllm 0.32.0 is not installed in {tmp_path}; run: unigate engine install vllm==0.32.0"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("https://mirror.example/simple", "https://mirror.example/simple"),
        ("https://me:pass@mirror.example/simple", "https://***@mirror.example/simple"),
        ("http://token@mirror.example:81", "http://***@mirror.example:81"),
        ("localhost,127.0.0.1", "localhost,127.0.0.1"),
        ("0,1", "0,1"),
        ("https://me:p@ss@mirror.example", "https://***@mirror.example"),
        ("http://me:pass@[::1", "set, but not readable as an address"),
    ],
)
def test_passwords_stay_out(value: str, shown: str) -> None:
    """A URL is shown without its user and password; what cannot be read as one is not shown."""
    assert without_password(value) == shown
