"""`unigate engine …`: the engines on this machine, and how one gets there."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from backends.engines import ADAPTERS
from backends.environments import managed_folder
from backends.resolving import Environments
from gateway import checking, console
from gateway.command_line import (
    INTERRUPTED,
    UNUSABLE,
    JsonOption,
    OptionalConfigOption,
    engine_dir,
    fail,
    load_if_any,
    say,
)
from gateway.config_values import suggest
from gateway.engine_install import InstallFailed, install, read_release
from gateway.engine_list import list_engines

engine_cli = typer.Typer(help="About the engines on this machine.", no_args_is_help=True)


@engine_cli.command(name="list", short_help="List the engines found here.")
def engine_list(config: OptionalConfigOption = None, as_json: JsonOption = False) -> None:
    """List every engine found here, its version, which one is used, and what is missing."""
    loaded = load_if_any(config)
    engines = {engine: section.settings() for engine, section in loaded.engines.items()} if loaded else {}
    wanted = {*engines, *(checking.used_engines(loaded) if loaded else ())}
    found = list_engines(engines, wanted, Environments(os.environ, engine_dir(loaded)))
    if as_json:
        console.stdout().print_json(json.dumps([asdict(engine) for engine in found]))
    else:
        console.stdout().print(console.engines_table(found))


@engine_cli.command(name="options", short_help="List what a model may set below options.")
def engine_options(
    name: Annotated[str, typer.Argument(metavar="ENGINE", help="vllm, lmdeploy or another engine.")],
    as_json: JsonOption = False,
) -> None:
    """List what a model of ENGINE may set below its options: each with the values it takes and its flag."""
    if name not in ADAPTERS:
        fail(f"{name}: unknown engine; {suggest(name, ADAPTERS)}", UNUSABLE)
    table = ADAPTERS[name].options
    if as_json:
        console.stdout().print_json(json.dumps([asdict(option) for option in table]))
    else:
        console.stdout().print(console.options_table(table))


@engine_cli.command(name="install", short_help="Install an engine into an environment of its own.")
def engine_install(
    requirement: Annotated[str, typer.Argument(metavar="NAME==VERSION", help="What pip calls it: vllm==0.32.0.")],
    into: Annotated[
        Path | None,
        typer.Option("--into", metavar="DIR", help="Folder for the environment, such as one on a data disk."),
    ] = None,
    python: Annotated[
        str, typer.Option("--python", metavar="PYTHON", help="The Python to build it with; default unigate's own.")
    ] = "",
    config: OptionalConfigOption = None,
) -> None:
    """Install an engine into an environment of its own, with pip's own index and mirror settings. Minutes."""
    found = shutil.which(python or sys.executable)
    if found is None:
        fail(f"{python}: no such Python; name one with --python")
    usual = engine_dir(None if into else load_if_any(config))
    folder = into.absolute() if into else usual
    try:
        release = read_release(requirement, ADAPTERS)
        install(release, folder, Path(found), os.environ, say)
    except InstallFailed as problem:
        fail(str(problem))
    except KeyboardInterrupt:
        console.stderr().print("\ninterrupted; run the same command again to go on")
        raise typer.Exit(INTERRUPTED) from None
    environment = managed_folder(folder, release.distribution.name, release.version)
    way = f"python: {environment}" if into else f'venv: managed\n    version: "{release.version}"'
    sys.stdout.write(f"{environment}\n\nUse it with:\n\nengines:\n  {release.engine}:\n    {way}\n")
