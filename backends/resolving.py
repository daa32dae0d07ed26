"""From the environment an operator chose for an engine to the command that starts the engine there."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from backends.adapter import Adapter
from backends.environments import (
    Environment,
    conda_places,
    is_complete,
    managed_folder,
    read_environment,
)
from backends.settings import EngineSettings, EnvironmentChoice


class EnvironmentUnusable(Exception):
    """An engine cannot be started where the configuration says; the message is why, *remedy* what to do about it."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Environments:
    """Where a choice is looked up: *environ* gives HOME, PATH and conda's variables, *engine_dir* holds what
    `unigate engine install` built."""

    environ: Mapping[str, str]
    engine_dir: Path

    def settle(self, engine: EngineSettings, adapter: Adapter) -> EngineSettings:
        """*engine* with its command and what its processes need of the environment; the operator's own env wins.

        Unchanged when no environment was chosen. Reads files, for some milliseconds. Raises EnvironmentUnusable.
        """
        if engine.environment is None:
            return engine
        environment = self.chosen(engine.environment, adapter)
        command = adapter.command_in(environment)
        if command is None:
            raise _not_installed(environment, adapter)
        env = {**environment.variables(self.environ.get("PATH", "")), **engine.env}
        return replace(engine, command=command, env=env, environment=None)

    def chosen(self, choice: EnvironmentChoice, adapter: Adapter) -> Environment:
        """The environment that *choice* means. Raises EnvironmentUnusable when it is not there."""
        if choice.kind == "conda":
            folder = Path(choice.name) if "/" in choice.name else self._conda(choice.name)
            return _read(folder, "conda environment")
        if choice.kind == "managed":
            return _read(self._managed(choice.name, adapter), "environment")
        return _read(Path(choice.name), "Python environment")

    def _conda(self, name: str) -> Path:
        places = conda_places(self.environ)
        folder = places.named(name)
        if folder is None:
            found = [places.name_of(path) for path in places.folders()]
            raise EnvironmentUnusable(f'there is no conda environment "{name}"', _conda_remedy(name, found))
        return folder

    def _managed(self, version: str, adapter: Adapter) -> Path:
        folders = {
            distribution.name: managed_folder(self.engine_dir, distribution.name, version)
            for distribution in adapter.distributions
        }
        for folder in folders.values():
            if is_complete(folder):
                return folder
        begun = next((name for name, folder in folders.items() if folder.exists()), None)
        name = begun or next(iter(folders), adapter.engine)
        what = "was not installed to its end" if begun else f"is not installed in {self.engine_dir}"
        raise EnvironmentUnusable(f"{name} {version} {what}", f"run: unigate engine install {name}=={version}")


NOWHERE = Environments({}, Path("/nonexistent"))
"""For a host whose engines are all named by their command."""


def _read(folder: Path, kind: str) -> Environment:
    environment = read_environment(folder)
    if environment is not None:
        return environment
    if not folder.exists():
        raise EnvironmentUnusable(f"{folder}: there is no such {kind}", "correct the path; see unigate engine list")
    what = "has no Python that can be run" if folder.is_dir() else "is not a Python that can be run"
    raise EnvironmentUnusable(f"{folder}: {what}", "name a folder with bin/python, or make it anew")


def _conda_remedy(name: str, found: list[str]) -> str:
    if not found:
        return "no conda environment was found on this machine: write its path instead of its name"
    near = difflib.get_close_matches(name, found, n=1)
    meant = f'did you mean "{near[0]}"? ' if near else ""
    return f"{meant}found here: {', '.join(found)}; another one by its path"


def _not_installed(environment: Environment, adapter: Adapter) -> EnvironmentUnusable:
    name = adapter.distributions[0].name if adapter.distributions else adapter.engine
    remedy = adapter.obtaining or f"run: {environment.python} -m pip install {name}"
    remedy = f"{remedy}; or write the engine's command instead"
    return EnvironmentUnusable(f"{environment.folder}: {adapter.engine} is not installed there", remedy)
