"""`unigate quickstart`: from nothing to a real model that has answered, with every long step shown."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from backends.lifecycle import State
from backends.records import StateFolderInUse, state_folder_lock
from gateway import app, console
from gateway.config import Config
from gateway.config_file import ConfigError, load_config
from gateway.log_files import GATEWAY_LOG, open_logs
from gateway.reloading import Source
from gateway.starter_model import Progress as ModelProgress
from gateway.starter_model import StarterModelError, default_cache_dir, ensure_starter_model

MODEL = "smollm2-135m"
QUESTION = "What is the capital of France?"
ANSWER_TIMEOUT_S = 120.0

STARTER = """\
# Written by `unigate quickstart`. Edit it as you like: it is not written again while it exists.
# Every option, explained: examples/unigate.yaml
gateway:
  host: 127.0.0.1
  port: 8080
  state_dir: .unigate
models:
  {model}:
    engine: llamacpp
    weights: {weights}
    context_length: 4096
"""


class QuickstartError(Exception):
    """Why there is no running model, in a sentence, remedy included."""


def quickstart(config_path: Path, environ: Mapping[str, str]) -> None:
    """Make what is missing, serve until Ctrl-C. Every step is skipped when its product is there.

    Raises QuickstartError.
    """
    screen = console.stderr()
    weights = _model(screen, environ)
    if not config_path.exists():
        config_path.write_text(starter_config(weights), encoding="utf-8")
        screen.print(f"[green]✓[/] wrote {config_path}")
    try:
        config = load_config(config_path, environ)
    except ConfigError as problem:
        raise QuickstartError(f"{problem}\n(remove {config_path} to have it written anew)") from problem
    if MODEL not in config.models:
        raise QuickstartError(
            f"{config_path} has no model {MODEL}, so it is not the quickstart's; "
            f"run 'unigate serve -c {config_path}', or run the quickstart in another folder"
        )
    _serve(screen, config_path, config)


def starter_config(weights: Path) -> str:
    """The text of a configuration that serves *weights* under MODEL."""
    # A JSON string is a YAML one; and a `$` would begin a variable.
    return STARTER.format(model=MODEL, weights=json.dumps(str(weights).replace("$", "$$"), ensure_ascii=False))


def _model(screen: Console, environ: Mapping[str, str]) -> Path:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[shown]}"),
               TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, console=screen, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def report(step: ModelProgress) -> None:
            if step.step not in tasks:
                tasks[step.step] = progress.add_task(step.step, total=step.total, shown="")
                if not screen.is_terminal:
                    screen.print(f"… {step.step}")
            progress.update(tasks[step.step], completed=step.done, total=step.total, shown=_amount(step))

        try:
            weights = ensure_starter_model(default_cache_dir(environ), report)
        except StarterModelError as problem:
            raise QuickstartError(str(problem)) from problem
    screen.print(f"[green]✓[/] model {weights}")
    return weights


def _amount(step: ModelProgress) -> str:
    if step.unit == "bytes":
        total = f" of {step.total / 1e6:.0f}" if step.total else ""
        return f"{step.done / 1e6:.0f}{total} MB"
    return f"{step.done} of {step.total} {step.unit}" if step.total else f"{step.done} {step.unit}"


def _serve(screen: Console, config_path: Path, config: Config) -> None:
    settings = config.gateway
    try:
        with state_folder_lock(settings.state_dir):
            open_logs(settings.log_dir, rotate_bytes=settings.log_rotate_bytes, keep=settings.log_keep, is_quiet=True)
            with _listen(settings.host, settings.port) as listener:
                guide = _Guide(screen, config_path, config)
                source = Source(config_path.absolute(), dict(os.environ))
                uvloop.run(app.serve(config, listener, source=source, while_running=guide.show))
    except StateFolderInUse as problem:
        raise QuickstartError(f"it runs already: {problem}") from problem
    except OSError as problem:
        raise QuickstartError(f"{problem.filename or settings.state_dir}: {problem.strerror}") from problem
    if guide.failure is not None:
        raise QuickstartError(guide.failure)
    screen.print("[green]✓[/] stopped")


def _listen(host: str, port: int) -> socket.socket:
    try:
        return app.listen(host, port)
    except OSError as problem:
        raise QuickstartError(
            f"cannot listen on port {port} of {host}: {problem.strerror}; "
            "stop what listens there, or write another port into unigate.yaml"
        ) from problem


class _Guide:
    """Waits for the first answer beside the gateway, and says what to do next."""

    def __init__(self, screen: Console, config_path: Path, config: Config) -> None:
        self._screen = screen
        self._config_path = config_path
        self._settings = config.gateway
        self._url = f"http://{self._settings.host}:{self._settings.port}"
        self.failure: str | None = None

    async def show(self, gateway: app.Gateway) -> None:
        with self._screen.status(f"starting {MODEL}"):
            await gateway.fleet.settled(MODEL, State.READY, State.FAILED)
            status = gateway.fleet.status(MODEL)
            if status.state is State.FAILED:
                self._give_up(f"{MODEL} has failed: {status.diagnosis} Its log: {status.log}")
                return
            self._screen.print(f"[green]✓[/] {MODEL} is ready")
        with self._screen.status(f"asking it: {QUESTION}"):
            try:
                answer = await self._ask()
            except (httpx.HTTPError, KeyError, ValueError) as problem:
                self._give_up(f"{MODEL} did not answer: {problem}. Its log: {status.log}")
                return
        self._screen.print(f"[green]✓[/] {QUESTION} [bold]{answer}[/]")
        self._screen.print(self._next_steps(status.log), markup=False)

    def _give_up(self, reason: str) -> None:
        self.failure = reason
        os.kill(os.getpid(), app.STOP_SIGNALS[0])

    async def _ask(self) -> str:
        body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
        async with httpx.AsyncClient(base_url=self._url, timeout=ANSWER_TIMEOUT_S, trust_env=False) as client:
            answer = await client.post("/v1/chat/completions", json=body)
            answer.raise_for_status()
            return str(answer.json()["choices"][0]["message"]["content"])

    def _next_steps(self, log: str) -> str:
        return f"""
Unigate runs at {self._url}/v1 and any API key will do. Ask it with curl:

  curl {self._url}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "{QUESTION}"}}], "temperature": 0}}'

or with the OpenAI SDK for Python (pip install openai):

  from openai import OpenAI
  client = OpenAI(base_url="{self._url}/v1", api_key="x")
  answer = client.chat.completions.create(
      model="{MODEL}", messages=[{{"role": "user", "content": "{QUESTION}"}}], temperature=0)
  print(answer.choices[0].message.content)

See it with: {Path(sys.executable).parent / "unigate"} ps
Configuration: {self._config_path.absolute()}
Gateway log:   {self._settings.log_dir / GATEWAY_LOG}
Engine log:    {log}

Ctrl-C stops everything."""
