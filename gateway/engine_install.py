"""`unigate engine install NAME==VERSION`: an engine in a virtual environment of its own, built by the machine's pip.

The environment is built in place, because a virtual environment knows its own path, and counts as whole when its stamp
is there, which is written last. Whatever interrupts it, the same command goes on: finished downloads lie in a cache
beside it, packages that were written to their end stay. The index, mirrors and proxies are those of the environment
and of pip's own configuration.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from backends.adapter import Adapter, Distribution
from backends.environments import COMPLETE_STAMP, is_complete, managed_folder, normalised, read_environment

GB = 1e9
VENV_STAMP = ".venv-made"
CACHE_SUFFIX = ".downloads"

_REDIRECTING = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_DRY_RUN", "PIP_NO_CACHE_DIR")
"""Variables with which pip would install elsewhere, or forget what it has downloaded."""

Say = Callable[[str], None]


class InstallFailed(Exception):
    """Why an engine could not be installed, in sentences for a person, remedy included."""


@dataclass(frozen=True, slots=True)
class Release:
    """One exact version of a distribution that holds *engine*."""

    engine: str
    distribution: Distribution
    version: str

    def __str__(self) -> str:
        return f"{self.distribution.name}=={self.version}"


def read_release(text: str, adapters: Mapping[str, Adapter]) -> Release:
    """``vllm==0.32.0`` as a Release of one of *adapters*. Raises InstallFailed for anything but NAME==VERSION."""
    known = {
        distribution.name: (engine, distribution)
        for engine, adapter in adapters.items()
        for distribution in adapter.distributions
    }
    found = re.fullmatch(r"\s*([A-Za-z][\w.-]*)\s*(?:==\s*(\d[\w.+]*))?\s*", text)
    if found is None:
        raise InstallFailed(f"{text!r} is not one exact release; write NAME==VERSION, such as {_examples(known)}")
    name = normalised(found[1])
    if name not in known:
        raise InstallFailed(f"{found[1]} is no engine that can be installed; known here: {', '.join(known)}")
    engine, distribution = known[name]
    if found[2] is None:
        example = f"{name}=={distribution.version}"
        raise InstallFailed(f"{name} needs an exact version, such as {example}, which unigate was tested with")
    return Release(engine, distribution, found[2])


def _examples(known: Mapping[str, tuple[str, Distribution]]) -> str:
    return " or ".join(f"{name}=={distribution.version}" for name, (_, distribution) in list(known.items())[:2])


def install(release: Release, engine_dir: Path, python: Path, environ: Mapping[str, str], say: Say) -> Path:
    """The complete environment of *release* below *engine_dir*, built now by *python* unless it is there already.

    Blocks for minutes; pip's output goes to this process's own. A second process waits for the first. Killed or
    interrupted at any moment, the next call goes on from there.

    Raises:
        InstallFailed: no room, pip failed, the folder cannot be written to.
    """
    folder = managed_folder(engine_dir, release.distribution.name, release.version)
    if is_complete(folder):
        say(f"{release} is installed already")
        return folder
    try:
        engine_dir.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(f".{folder.name}.lock"), release, say) as lock:
            if not is_complete(folder):
                _Build(release, folder, environ, lock, say).run(python)
    except OSError as problem:
        what = f"{problem.filename or folder}: {problem.strerror or problem}"
        raise InstallFailed(f"{what}; free or grant what is missing, or name another folder with --into") from problem
    return folder


@contextmanager
def _lock(path: Path, release: Release, say: Say) -> Iterator[IO[bytes]]:
    with path.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that is installing {release}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


class _Build:
    """One build of one environment, by the holder of its lock."""

    def __init__(self, release: Release, folder: Path, environ: Mapping[str, str], lock: IO[bytes], say: Say) -> None:
        self._release = release
        self._folder = folder
        self._cache = folder.with_name(f".{folder.name}{CACHE_SUFFIX}")
        self._lock = lock
        self._say = say
        kept = {name: value for name, value in environ.items() if name not in _REDIRECTING}
        # pip's downloads and working copies lie where the environment will: the home and the /tmp of a rented machine
        # are on its small system disk. A cache of the operator's own stays.
        self._work = self._cache / "work"
        self._environ = {
            "PIP_CACHE_DIR": str(self._cache / "pip"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            **kept,
            "TMPDIR": str(self._work),
        }

    def run(self, python: Path) -> None:
        """Everything up to the stamp."""
        self._check_room()
        if self._folder.exists():
            self._say(f"going on with {self._folder}, which was left incomplete")
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True)
        if not (self._folder / VENV_STAMP).exists():
            self._make_venv(python)
        forget_half_installed(self._folder)
        self._install()
        (self._folder / COMPLETE_STAMP).touch()
        shutil.rmtree(self._cache, ignore_errors=True)

    def _check_room(self) -> None:
        free = shutil.disk_usage(self._folder.parent).free
        needed = self._release.distribution.build_bytes - _size_bytes(self._folder) - _size_bytes(self._cache)
        if free < needed:
            raise InstallFailed(
                f"the disk of {self._folder.parent} has {free / GB:.1f} GB free, and {self._release} needs about"
                f" {needed / GB:.1f} GB while it is installed; free some, or name a folder on a larger disk with --into"
                " (or as gateway.engine_dir)"
            )

    def _make_venv(self, python: Path) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._say(f"making a virtual environment in {self._folder}")
        status = self._status([str(python), "-I", "-m", "venv", str(self._folder)])
        if status != 0 or read_environment(self._folder) is None:
            raise InstallFailed(
                f"{python} could not make a virtual environment (its output is above); on Debian or Ubuntu run: apt"
                " install python3-venv; or name another Python with --python"
            )
        (self._folder / VENV_STAMP).touch()

    def _install(self) -> None:
        self._say(f"installing {self._release}")
        if self._pip("install", "--no-input", str(self._release)) != 0:
            raise InstallFailed(
                f"pip could not install {self._release} (its output is above); run the same command again to go on."
                " Where the index cannot be reached or lacks something, set PIP_INDEX_URL or PIP_EXTRA_INDEX_URL to a"
                " mirror that has it"
            )
        name, unwanted = self._release.distribution.name, self._release.distribution.unwanted
        environment = read_environment(self._folder)
        if environment is None or name not in environment.distributions:
            raise InstallFailed(f"pip ended well, but {name} is not in {self._folder}; see pip's own configuration")
        surplus = environment.held(unwanted)
        if surplus and self._pip("uninstall", "--yes", *surplus) != 0:
            raise InstallFailed(f"pip could not remove {', '.join(surplus)}, with which {name} does not run")

    def _pip(self, *words: str) -> int:
        # -I: what PYTHONPATH leads to is not installed here
        return self._status([str(self._folder / "bin" / "python"), "-I", "-m", "pip", *words])

    def _status(self, argv: list[str]) -> int:
        # The child holds the lock too: should this process be killed, nobody else may write where pip still does.
        return subprocess.run(  # noqa: S603 - no shell; every word is ours or the operator's own
            argv, env=self._environ, stdin=subprocess.DEVNULL, pass_fds=(self._lock.fileno(),), check=False
        ).returncode


def forget_half_installed(folder: Path) -> None:
    """Remove the metadata of distributions that pip had not written to their end, so that it writes them again.

    pip writes INSTALLER after the last file and then RECORD anew, which names it (pip 23.2 to 25.3,
    _internal/operations/install/wheel.py): where RECORD does not, pip would take a torso for an installed distribution.
    """
    for metadata in folder.glob("lib/python3*/site-packages/*.dist-info"):
        record = metadata / "RECORD"
        if not record.is_file() or f"{metadata.name}/INSTALLER" not in record.read_text(encoding="utf-8"):
            shutil.rmtree(metadata)


def _size_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)  # noqa: PTH118 - some 100,000 files
            try:
                total += os.lstat(path).st_size
            except FileNotFoundError:
                continue
    return total
