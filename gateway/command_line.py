"""What the command line's modules share: exit codes, options that several commands take, and how a problem is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.markup import escape

from gateway import console
from gateway.config import Config, default_engine_dir, default_models_dir
from gateway.config_file import ConfigError, ConfigFile, load_config_file
from gateway.config_values import Origin

DEFAULT_CONFIG = Path("unigate.yaml")
PROBLEMS = 1
UNUSABLE = 2
INTERRUPTED = 130

OptionalConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="The configuration file. [default: unigate.yaml, if any]"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def fail(message: str, code: int = PROBLEMS) -> NoReturn:
    """Tell *message* as an error, and end with *code*."""
    console.stderr().print(f"[bold red]error:[/] {escape(message)}")
    raise typer.Exit(code)


def say(text: str) -> None:
    """Tell of a step that takes a while."""
    console.stderr().print(f"[bold]-->[/] {escape(text)}")


def load_file(path: Path) -> ConfigFile:
    """The configuration in *path*; one that cannot be used ends the command."""
    try:
        return load_config_file(path, os.environ)
    except ConfigError as problem:
        fail(str(problem), UNUSABLE)


def load_if_any(config: Path | None) -> Config | None:
    """The configuration named, or that in this folder, or none."""
    if config is None and DEFAULT_CONFIG.is_file():
        config = DEFAULT_CONFIG
    return load_file(config).config if config is not None else None


def models_dir(config: Config | None) -> Path:
    """Where models are downloaded to."""
    return config.gateway.models_dir if config else default_models_dir(Origin(Path.cwd(), os.environ))


def engine_dir(config: Config | None) -> Path:
    """Where engines are installed."""
    return config.gateway.engine_dir if config else default_engine_dir(Origin(Path.cwd(), os.environ))
