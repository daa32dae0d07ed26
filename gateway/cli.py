"""The command `unigate`. Thin: each command reads its options, calls one module, and shows what came of it.

Exit codes: 0 done; 1 something is wrong with what was asked for; 2 the configuration file or the command line cannot be
used at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeVar

import typer
import uvloop
from rich.markup import escape

from backends.records import StateFolderInUse, state_folder_lock
from benchmarks.cli import cli as bench_cli
from gateway import __version__, app, checking, console, doctor
from gateway.admin_client import AdminClient, AdminError, find_gateway
from gateway.command_line import (
    DEFAULT_CONFIG,
    INTERRUPTED,
    PROBLEMS,
    UNUSABLE,
    JsonOption,
    OptionalConfigOption,
    engine_dir,
    fail,
    load_file,
    load_if_any,
    models_dir,
)
from gateway.config_file import ConfigError, ConfigFile, schema_text
from gateway.engine_cli import engine_cli
from gateway.log_files import open_logs
from gateway.pull import PullFailed, pull, read_sources, sources_of
from gateway.quickstart import QuickstartError, quickstart
from gateway.reloading import Source
from gateway.starter_model import default_cache_dir
from gateway.template_cli import template_cli
from gateway.template_export import export
from gateway.template_import import diff, import_, list_, show
from gateway.template_verify import verify

Answer = TypeVar("Answer")

cli = typer.Typer(
    name="unigate",
    help="One OpenAI-compatible address in front of vLLM, LMDeploy, Ollama and llama.cpp.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_cli = typer.Typer(help="About the configuration file.", no_args_is_help=True)
cli.add_typer(config_cli, name="config")
cli.add_typer(engine_cli, name="engine")
template_cli.command("import", short_help="Make a contract of what a fine-tune left behind.")(import_)
template_cli.command(short_help="Print a contract.")(show)
template_cli.command("list", short_help="List contracts.")(list_)
template_cli.command(short_help="Compare two contracts or templates.")(diff)
template_cli.command(short_help="Write a template in an engine's own form.")(export)
template_cli.command(short_help="Prove that engines make a contract's prompts.")(verify)
cli.add_typer(template_cli, name="template")
cli.add_typer(bench_cli, name="bench")

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", metavar="FILE", help="The configuration file.", show_default=True)
]
GatewayConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help="Find the gateway by its configuration. [default: unigate.yaml]"
    ),
]
UrlOption = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="The gateway's address, instead of a configuration.")
]
NameArgument = Annotated[str, typer.Argument(metavar="MODEL", help="The model's name, or one replica's: MODEL#1.")]
WaitOption = Annotated[float, typer.Option("--wait", metavar="SECONDS", min=0, help="Wait this long for the outcome.")]


def main() -> None:
    """The console script."""
    cli()


def _print_version(wanted: bool) -> None:
    if wanted:
        console.stdout().print(f"unigate {__version__}")
        raise typer.Exit


@cli.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """One OpenAI-compatible address in front of vLLM, LMDeploy, Ollama and llama.cpp."""


@cli.command()
def serve(
    config: ConfigOption = DEFAULT_CONFIG,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Serve what can be served; the rest is FAILED with its reason.")
    ] = False,
) -> None:
    """Run the gateway and its engines until Ctrl-C or TERM."""
    file = load_file(config)
    problems = [finding for finding in checking.static_findings(file.config, os.environ) if not finding.is_good]
    fatal = [finding for finding in problems if not keep_going or finding.loc[0] == "gateway"]
    if fatal:
        fail("\n".join(_complaints(file, fatal)))
    for line in _complaints(file, problems):
        console.stderr().print(f"[yellow]warning:[/] {escape(line)}")
    _serve(file, Source(config.absolute(), dict(os.environ), keep_going))


def _serve(file: ConfigFile, source: Source) -> None:
    settings = file.config.gateway
    with contextlib.ExitStack() as held:
        _hold_state_folder(file, held)
        _open_logs(file)
        listener = held.enter_context(_listen(file))
        console.stderr().print(f"unigate {__version__} at http://{settings.host}:{settings.port}/v1")
        uvloop.run(app.serve(file.config, listener, source=source))


def _hold_state_folder(file: ConfigFile, held: contextlib.ExitStack) -> None:
    loc, folder = ("gateway", "state_dir"), file.config.gateway.state_dir
    try:
        held.enter_context(state_folder_lock(folder))
    except StateFolderInUse as problem:
        fail(file.complaint(loc, str(problem)))
    except OSError as problem:
        message = f"{problem.filename or folder}: {problem.strerror or problem}"
        fail(file.complaint(loc, message, "write another gateway.state_dir"))


def _open_logs(file: ConfigFile) -> None:
    settings = file.config.gateway
    try:
        open_logs(settings.log_dir, rotate_bytes=settings.log_rotate_bytes, keep=settings.log_keep)
    except OSError as problem:
        message = f"{problem.filename or settings.log_dir}: {problem.strerror or problem}"
        fail(file.complaint(("gateway", "log_dir"), message, "write another gateway.log_dir"))


def _listen(file: ConfigFile) -> socket.socket:
    settings = file.config.gateway
    try:
        return app.listen(settings.host, settings.port)
    except OSError as problem:
        fail("\n".join(_complaints(file, [checking.address_finding(settings.host, settings.port, problem)])))


def _complaints(file: ConfigFile, findings: list[checking.Finding]) -> list[str]:
    return [file.complaint(finding.loc, finding.message, finding.remedy) for finding in findings]


@cli.command(short_help="Check a configuration without starting it.")
def check(
    config: ConfigOption = DEFAULT_CONFIG,
    versions: Annotated[
        bool, typer.Option(help="Also ask each engine for its version, which can take a minute.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Say everything that can be known of a configuration without starting an engine."""
    file = load_file(config)
    findings = checking.static_findings(file.config, os.environ)
    if versions:
        findings += asyncio.run(checking.version_findings(file.config, os.environ))
    if as_json:
        console.stdout().print_json(json.dumps([asdict(finding) for finding in findings]))
    else:
        console.stdout().print(console.findings_table(findings))
    problems = [finding for finding in findings if not finding.is_good]
    if problems:
        fail("\n".join(_complaints(file, problems)))


@cli.command()
def ps(config: GatewayConfigOption = None, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show the backends of a running gateway."""
    with _admin(config, url) as admin:
        backends = _asked(admin.backends)
    if as_json:
        console.stdout().print_json(json.dumps(backends))
    else:
        console.stdout().print(console.backends_table(backends))


@cli.command()
def logs(
    name: NameArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines as they come.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")] = 100,
    config: GatewayConfigOption = None,
    url: UrlOption = None,
) -> None:
    """Print the log of a backend."""
    with _admin(config, url) as admin:
        try:
            for line in admin.log_lines(name, lines, follow=follow):
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
        except AdminError as problem:
            fail(str(problem))
        except KeyboardInterrupt:
            raise typer.Exit from None


@cli.command()
def load(name: NameArgument, wait: WaitOption = 0, config: GatewayConfigOption = None, url: UrlOption = None) -> None:
    """Start a backend, a failed one too."""
    _steer("load", name, wait, config, url)


@cli.command(short_help="Stop a backend until it is asked for.")
def unload(name: NameArgument, wait: WaitOption = 0, config: GatewayConfigOption = None, url: UrlOption = None) -> None:
    """Let running requests finish, then stop a backend. The next request for it starts it again."""
    _steer("unload", name, wait, config, url)


@cli.command(short_help="Stop a backend and start it again.")
def restart(
    name: NameArgument, wait: WaitOption = 0, config: GatewayConfigOption = None, url: UrlOption = None
) -> None:
    """Let running requests finish, stop a backend and start it again."""
    _steer("restart", name, wait, config, url)


def _steer(action: str, name: str, wait_s: float, config: Path | None, url: str | None) -> None:
    with _admin(config, url) as admin:
        backends = _asked(lambda: admin.ask_for(action, name, wait_s))
    console.stdout().print(console.backends_table(backends))
    wanted = "stopped" if action == "unload" else "ready"
    if wait_s > 0 and any(backend["state"] != wanted for backend in backends):
        raise typer.Exit(PROBLEMS)


@cli.command(short_help="Apply a changed configuration to a running gateway.")
def reload(
    wait: WaitOption = 0, config: GatewayConfigOption = None, url: UrlOption = None, as_json: JsonOption = False
) -> None:
    """Have a running gateway read its configuration again. Only what changed is started anew; streams finish."""
    with _admin(config, url) as admin:
        report = _asked(lambda: admin.reload(wait))
    if as_json:
        console.stdout().print_json(json.dumps(report))
    else:
        console.stdout().print(console.reload_text(report))
    if wait > 0 and (not report["is_complete"] or set(report["states"].values()) - {"ready", "stopped", "sleeping"}):
        raise typer.Exit(PROBLEMS)


def _admin(config: Path | None, url: str | None) -> AdminClient:
    if config is None and DEFAULT_CONFIG.is_file():
        config = DEFAULT_CONFIG
    try:
        return AdminClient(find_gateway(url, config, os.environ))
    except ConfigError as problem:
        fail(str(problem), UNUSABLE)
    except AdminError as problem:
        fail(str(problem))


def _asked(question: Callable[[], Answer]) -> Answer:
    try:
        return question()
    except AdminError as problem:
        fail(str(problem))


@cli.command(name="doctor", short_help="Report what this machine has.")
def doctor_command(config: GatewayConfigOption = None, as_json: JsonOption = False) -> None:
    """Report what this machine has: Python, engines, GPUs, memory, disks, ports, mirrors."""
    if config is None and DEFAULT_CONFIG.is_file():
        config = DEFAULT_CONFIG
    readings = doctor.examine(_places(config), os.environ)
    if as_json:
        console.stdout().print_json(json.dumps([asdict(reading) for reading in readings]))
    else:
        console.stdout().print(console.readings_table(readings))


def _places(config: Path | None) -> doctor.Places:
    cache = default_cache_dir(os.environ).parent
    if config is None:
        folders = {"cache": cache, "home": Path.home(), "models": models_dir(None)}
        return doctor.Places("127.0.0.1", 8080, folders, engine_dir=engine_dir(None))
    loaded = load_file(config).config
    settings = loaded.gateway
    folders = {
        "cache": cache, "state": settings.state_dir, "logs": settings.log_dir, "engines": settings.engine_dir,
        "models": settings.models_dir,
    }  # fmt: skip
    engines = {engine: section.settings() for engine, section in loaded.engines.items()}
    return doctor.Places(settings.host, settings.port, folders, engines, settings.engine_dir)


@cli.command(name="quickstart", short_help="Get a small model and serve it.")
def quickstart_command() -> None:
    """Get a small real model, write a configuration for it, and serve it."""
    try:
        quickstart(DEFAULT_CONFIG, os.environ)
    except QuickstartError as problem:
        fail(str(problem))


@cli.command(name="pull", short_help="Download models now.")
def pull_command(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE", help="hf:ORG/NAME[@REVISION][:FILE], or the same with modelscope:"),
    ] = None,
    config: OptionalConfigOption = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="Folder for models, instead of the configuration's models_dir."),
    ] = None,
) -> None:
    """Download models from Hugging Face or ModelScope; without SOURCE, all that the configuration names.

    What is there already is not fetched again, and what was interrupted is gone on with.
    """
    loaded = None if sources and to else load_if_any(config)
    try:
        wanted = read_sources(sources) if sources else sources_of(loaded)
    except PullFailed as problem:
        fail(str(problem), UNUSABLE)
    try:
        pull(wanted, to.absolute() if to else models_dir(loaded), console.stderr(), sys.stdout.write)
    except PullFailed as problem:
        fail(str(problem))
    except KeyboardInterrupt:
        console.stderr().print("\ninterrupted; run the same command again to go on")
        raise typer.Exit(INTERRUPTED) from None


@config_cli.command()
def schema() -> None:
    """Print the JSON schema of the configuration file."""
    sys.stdout.write(schema_text())
