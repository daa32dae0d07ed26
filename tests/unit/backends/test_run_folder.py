"""The files of one run: made as described before it starts, gone after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.adapter import Link, LinkedFolder
from backends.run_folder import TargetMissing, remove_run_folder, write_run_folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    (folder / "nested").mkdir(parents=True)
    for name in ("config.json", "own.jinja", "nested/deep.txt"):
        (folder / name).write_text(f"the weights' {name}")
    return folder


def test_each_kind_of_file(tmp_path: Path, weights: Path) -> None:
    """Text is written, a link points to its target, a folder of links holds all but what it goes without."""
    template = tmp_path / "operators.jinja"
    template.write_text("the operator's")
    folder = tmp_path / "runs" / "Qwen%2FQwen3"
    write_run_folder(
        folder,
        {
            "overlay": LinkedFolder(weights, without=frozenset({"own.jinja"})),
            "overlay/own.jinja": Link(template),
            "deep/er/settings.json": "{}",
        },
    )
    assert sorted(path.name for path in (folder / "overlay").iterdir()) == ["config.json", "nested", "own.jinja"]
    assert (folder / "overlay" / "config.json").read_text() == "the weights' config.json"
    assert (folder / "overlay" / "nested" / "deep.txt").read_text() == "the weights' nested/deep.txt"
    assert (folder / "overlay" / "own.jinja").read_text() == "the operator's"
    assert (folder / "deep" / "er" / "settings.json").read_text() == "{}"


def test_what_a_crash_left_is_gone(tmp_path: Path, weights: Path) -> None:
    """A second run finds exactly its own files, and nothing of what the links pointed to was touched."""
    folder = tmp_path / "run"
    write_run_folder(folder, {"old": LinkedFolder(weights)})
    write_run_folder(folder, {"new": "text"})
    assert [path.name for path in folder.iterdir()] == ["new"]
    remove_run_folder(folder)
    assert not folder.exists()
    assert (weights / "nested" / "deep.txt").read_text() == "the weights' nested/deep.txt"
    remove_run_folder(folder)


@pytest.mark.parametrize("content", [Link(Path("/nope/t.jinja")), LinkedFolder(Path("/nope/t.jinja"))])
def test_a_target_that_is_not_there(tmp_path: Path, content: Link | LinkedFolder) -> None:
    """Nothing dangles: the missing target is named before anything is started."""
    with pytest.raises(TargetMissing, match=r"^/nope/t\.jinja: No such file or directory$"):
        write_run_folder(tmp_path / "run", {"t": content})


def test_an_entry_of_the_weights_that_leads_nowhere(tmp_path: Path, weights: Path) -> None:
    """A broken link among the weights, as an interrupted download leaves, is named."""
    (weights / "model.safetensors").symlink_to(tmp_path / "blobs" / "gone")
    with pytest.raises(TargetMissing, match=r"model\.safetensors: No such file"):
        write_run_folder(tmp_path / "run", {"t": LinkedFolder(weights)})


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """A file where the folder should be is the system's own error: worth a retry, unlike a missing target."""
    (tmp_path / "runs").write_text("")
    with pytest.raises(OSError, match="runs"):
        write_run_folder(tmp_path / "runs" / "m", {"t": "text"})
