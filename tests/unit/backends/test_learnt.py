"""Peaks kept on disk, for exactly the settings they were seen with."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.learnt import Learnt, Peak, fingerprint
from backends.settings import BackendSettings, EngineSettings

BACKEND = BackendSettings(name="Qwen/a", engine="vllm", weights=Path("/w"), env={"TOKEN": "s3cret"})
ENGINE = EngineSettings()


def test_a_peak_is_kept(tmp_path: Path) -> None:
    """What was written is read again, whatever is in the backend's name."""
    learnt = Learnt(tmp_path / "memory")
    assert learnt.read(BACKEND, ENGINE) is None
    peak = Peak(fingerprint(BACKEND, ENGINE), on_gpu=True, devices=2, bytes_on_each=7)
    learnt.write(BACKEND.name, peak)
    assert learnt.read(BACKEND, ENGINE) == peak
    assert "s3cret" not in (tmp_path / "memory" / "Qwen%2Fa.json").read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"context_length": 1}, {"args": {"a": 1}}, {"env": {"A": "b"}}, {"weights": Path("/x")}, {"gpus": (0,)},
        {"engine": "lmdeploy"},
    ],
)  # fmt: skip
def test_other_settings_have_no_peak(tmp_path: Path, change: dict[str, Any]) -> None:
    """Whatever changes a run's memory makes what was learnt worthless."""
    learnt = Learnt(tmp_path)
    learnt.write(BACKEND.name, Peak(fingerprint(BACKEND, ENGINE), on_gpu=False, devices=1, bytes_on_each=7))
    assert learnt.read(replace(BACKEND, **change), ENGINE) is None


def test_weights_that_changed(tmp_path: Path) -> None:
    """Weights written anew are other weights."""
    weights = tmp_path / "m.gguf"
    weights.write_bytes(b"")
    backend = replace(BACKEND, weights=weights)
    before = fingerprint(backend, ENGINE)
    assert fingerprint(backend, ENGINE) == before
    os.utime(weights, (1, 1))
    assert fingerprint(backend, ENGINE) != before


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"fingerprint": "x", "on_gpu": 1, "devices": 1, "bytes_on_each": 0}']
)
def test_what_cannot_be_read_is_not_known(tmp_path: Path, text: str) -> None:
    """A broken file is no error: nothing was learnt."""
    (tmp_path / "Qwen%2Fa.json").write_text(text)
    assert Learnt(tmp_path).read(BACKEND, ENGINE) is None


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Nothing is learnt where nothing can be written, and nothing fails."""
    (tmp_path / "file").write_text("")
    learnt = Learnt(tmp_path / "file" / "below")
    learnt.write("a", Peak("x", on_gpu=False, devices=1, bytes_on_each=1))
    assert learnt.read(BACKEND, ENGINE) is None
