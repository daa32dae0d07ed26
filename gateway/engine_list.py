"""`unigate engine list`: every engine of this machine, where it was found, in which version, and what it lacks."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from backends.adapter import Adapter
from backends.engines import ADAPTERS
from backends.environments import (
    Environment,
    conda_places,
    environment_of,
    is_complete,
    managed_folders,
    read_environment,
)
from backends.resolving import Environments, EnvironmentUnusable
from backends.settings import EngineSettings, EnvironmentChoice


@dataclass(frozen=True, slots=True)
class FoundEngine:
    """One engine in one place, or nowhere.

    *is_used*: the gateway starts this one, if any. *is_wanted*: the configuration names the engine. *source* says how
    it was found (``conda vllm``, ``PATH``), *place* the folder or program. *version* is empty where the files do not
    tell it. *note* is, for one that is not usable, why and what to do; for one that is not used, how to use it.
    """

    engine: str
    is_used: bool
    is_wanted: bool
    source: str
    place: str
    version: str
    is_usable: bool
    note: str


def list_engines(
    engines: Mapping[str, EngineSettings], wanted: Collection[str], environments: Environments
) -> list[FoundEngine]:
    """For each engine the one that is used, with *engines* as configured, then those found elsewhere.

    *wanted* are the engines that the configuration names, in its engines or in a model. Reads files, for some
    milliseconds an environment; runs and imports nothing.
    """
    elsewhere = list(_environments(environments))
    found = []
    for engine, adapter in ADAPTERS.items():
        if adapter.launches:
            used, environment = _used(adapter, engines.get(engine, EngineSettings()), environments)
            found += [used, *_unused(adapter, elsewhere, environment)]
    return [replace(engine, is_wanted=engine.engine in wanted) for engine in found]


# -- the one that is used ---------------------------------------------------------------------------------------------


def _used(
    adapter: Adapter, settings: EngineSettings, environments: Environments
) -> tuple[FoundEngine, Environment | None]:
    if settings.url:
        return FoundEngine(adapter.engine, True, False, "url", settings.url, "", True, "runs elsewhere"), None
    if settings.environment is not None:
        return _chosen(adapter, settings, settings.environment, environments)
    command = settings.command or adapter.default_command()
    is_embedded = not settings.command and command[0] == sys.executable
    source = "command" if settings.command else "unigate's own Python" if is_embedded else "PATH"
    program = shutil.which(command[0], path=environments.environ.get("PATH"))
    environment = environment_of(Path(program)) if program else None
    version = _version(adapter, environment)
    note = ""
    if program is None:
        note = f"{command[0]} was not found; {'correct the command' if settings.command else _how_to_get(adapter)}"
    elif is_embedded and not version:
        name = adapter.distributions[0].name
        note = f"{name} is not installed; run: {sys.executable} -m pip install {name}"
    return _found(adapter, source, program or "", version, note), environment


def _chosen(
    adapter: Adapter, settings: EngineSettings, choice: EnvironmentChoice, environments: Environments
) -> tuple[FoundEngine, Environment | None]:
    source = f"{choice.kind} {choice.name}" if choice.kind != "python" and "/" not in choice.name else choice.kind
    try:
        environments.settle(settings, adapter)
        environment = environments.chosen(choice, adapter)
    except EnvironmentUnusable as problem:
        place = choice.name if "/" in choice.name else ""
        return _found(adapter, source, place, "", f"{problem}; {problem.remedy}"), None
    return _found(adapter, source, str(environment.folder), _version(adapter, environment)), environment


def _found(adapter: Adapter, source: str, place: str, version: str, trouble: str = "") -> FoundEngine:
    return FoundEngine(adapter.engine, True, False, source, place, version, not trouble, trouble)


def _version(adapter: Adapter, environment: Environment | None) -> str:
    held = environment.held(distribution.name for distribution in adapter.distributions) if environment else {}
    return next(iter(held.values()), "")


def _how_to_get(adapter: Adapter) -> str:
    name = f"engines.{adapter.engine}"
    if not adapter.distributions:
        where = f"say where it is: {name}.command"
        return f"{adapter.obtaining}, or {where}" if adapter.obtaining else where
    where = f"say where it is: {name}.conda, {name}.python or {name}.command"
    usual = adapter.distributions[0]
    return f"run: unigate engine install {usual.name}=={usual.version}, or {where}"


# -- those found elsewhere --------------------------------------------------------------------------------------------

_ENGINE = "<engine>"


@dataclass(frozen=True, slots=True)
class _Place:
    """An environment that might hold engines; *note* says how to use one of it, _ENGINE standing for its name."""

    source: str
    environment: Environment
    note: str
    is_whole: bool = True


def _unused(adapter: Adapter, places: list[_Place], used: Environment | None) -> Iterator[FoundEngine]:
    for place in places:
        environment = place.environment
        if adapter.command_in(environment) is None or (used and environment.folder.samefile(used.folder)):
            continue
        note = place.note.replace(_ENGINE, adapter.engine)
        folder, version = str(environment.folder), _version(adapter, environment)
        yield FoundEngine(adapter.engine, False, False, place.source, folder, version, place.is_whole, note)


def _environments(environments: Environments) -> Iterator[_Place]:
    yield from _on_path(environments.environ)
    conda = conda_places(environments.environ)
    for folder in conda.folders():
        environment = read_environment(folder)
        if environment is not None:
            name = conda.name_of(folder)
            source = "conda" if "/" in name else f"conda {name}"
            yield _Place(source, environment, f"to use it: engines.{_ENGINE}.conda: {name}")
    for folder in managed_folders(environments.engine_dir):
        environment = read_environment(folder)
        if environment is not None:
            yield _managed(folder, environment)


def _on_path(environ: Mapping[str, str]) -> Iterator[_Place]:
    seen = set()
    for adapter in ADAPTERS.values():
        for name in adapter.programs:
            program = shutil.which(name, path=environ.get("PATH"))
            environment = environment_of(Path(program)) if program else None
            if environment is not None and environment.folder not in seen:
                seen.add(environment.folder)
                yield _Place("PATH", environment, f"to use it: engines.{_ENGINE}.python: {environment.folder}")


def _managed(folder: Path, environment: Environment) -> _Place:
    name, _, version = folder.name.rpartition("-")
    if not is_complete(folder):
        note = f"was not installed to its end; run: unigate engine install {name}=={version}"
        return _Place("managed", environment, note, is_whole=False)
    note = f'to use it: engines.{_ENGINE}: {{venv: managed, version: "{version}"}}'
    return _Place("managed", environment, note)
