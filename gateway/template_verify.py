"""`unigate template verify`: the proof of the prompts of a configuration's models, from a running gateway or anew."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from backends.records import StateFolderInUse, state_folder_lock
from gateway import app, console
from gateway.admin_client import AdminClient, AdminError, GatewayUnreachable, find_gateway
from gateway.command_line import DEFAULT_CONFIG, PROBLEMS, UNUSABLE, JsonOption, fail, load_file, say
from gateway.config import Config
from gateway.config_file import ConfigFile
from gateway.config_values import suggest
from gateway.log_files import open_logs
from gateway.parity_report import is_all_exact, report_text

LOAD_WAIT_S = 3600.0

Entry = dict[str, Any]


def verify(
    config: Annotated[
        Path, typer.Option("--config", "-c", metavar="FILE", help="The configuration file.", show_default=True)
    ] = DEFAULT_CONFIG,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME", help="Only this model. Repeatable. [default: all with a contract]"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether each model's engine makes exactly the prompts of its contract, and where and why it does not.

    A running gateway is asked; one that does not run has its engines started for it, one after the other. The exit code
    is 1 when anything differs.
    """
    file = load_file(config)
    names = _chosen(file.config, model or [])
    try:
        entries = _of_running_gateway(config, names)
    except GatewayUnreachable:
        say("no gateway runs: starting the engines for it")
        entries = _anew(file, names)
    except AdminError as problem:
        fail(str(problem))
    if as_json:
        console.stdout().print_json(json.dumps(entries))
    else:
        for entry in entries:
            console.stdout().print(report_text(entry))
    if not all(is_all_exact(entry) for entry in entries):
        raise typer.Exit(PROBLEMS)


def _chosen(config: Config, wanted: Sequence[str]) -> list[str]:
    known = [name for name, model in config.models.items() if model.template is not None and model.template.contract]
    for name in wanted:
        if name not in config.models:
            fail(f"there is no model {name}; {suggest(name, tuple(config.models))}", UNUSABLE)
        if name not in known:
            fail(f"{name} has no contract: name one in models.{name}.template.contract", UNUSABLE)
    if not known:
        fail("no model has a contract: name one in models.NAME.template.contract", UNUSABLE)
    return list(wanted) or known


def _of_running_gateway(config: Path, names: Sequence[str]) -> list[Entry]:
    """Models that are not loaded are loaded. Raises AdminError."""
    entries: list[Entry] = []
    with AdminClient(find_gateway(None, config, os.environ)) as admin:
        for name in names:
            found = admin.parity(name)
            if any(one["proof"] is None and one["state"] != "failed" for one in found):
                admin.ask_for("load", name, LOAD_WAIT_S)
                found = admin.parity(name)
            entries += found
    return entries


def _anew(file: ConfigFile, names: Sequence[str]) -> list[Entry]:
    settings = file.config.gateway
    try:
        with contextlib.ExitStack() as held:
            held.enter_context(state_folder_lock(settings.state_dir))
            open_logs(settings.log_dir, rotate_bytes=settings.log_rotate_bytes, keep=settings.log_keep, is_quiet=True)
            return asyncio.run(app.prove(file.config, names, say))
    except StateFolderInUse as problem:
        fail(str(problem))
    except OSError as problem:
        fail(f"{problem.filename or settings.state_dir}: {problem.strerror or problem}")
