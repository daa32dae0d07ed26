"""The folder of one run: the files its LaunchSpec describes, made before the engine starts, removed when it is gone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from backends.adapter import Link, LinkedFolder, RunFile


class TargetMissing(Exception):
    """What a file of a run should point to cannot be found; the message names it and says why."""


def write_run_folder(folder: Path, files: Mapping[str, RunFile]) -> None:
    """Make *folder* hold exactly *files*, written in their order. Blocks for milliseconds.

    What an earlier run left, as a crash does, is removed first. Raises TargetMissing, and OSError when *folder* cannot
    be written to.
    """
    if folder.exists():
        shutil.rmtree(folder)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(path, content)


def remove_run_folder(folder: Path) -> None:
    """Remove *folder* and the links in it, never what they point to. One that is not there is no error."""
    shutil.rmtree(folder, ignore_errors=True)


def _write(path: Path, content: RunFile) -> None:
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif isinstance(content, Link):
        _link(path, content.target)
    else:
        _link_each(path, content)


def _link_each(path: Path, content: LinkedFolder) -> None:
    path.mkdir()
    try:
        entries = list(content.origin.iterdir())
    except OSError as problem:
        raise TargetMissing(f"{content.origin}: {problem.strerror}") from problem
    for entry in entries:
        if entry.name not in content.without:
            _link(path / entry.name, entry)


def _link(path: Path, target: Path) -> None:
    # A dangling link would not fail here but in the engine, or not at all: transformers looks for another template.
    try:
        target.stat()
    except OSError as problem:
        raise TargetMissing(f"{target}: {problem.strerror}") from problem
    path.symlink_to(target.absolute())
