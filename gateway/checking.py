"""`unigate check`: everything that can be known of a configuration without starting an engine."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.util
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from backends.adapter import Adapter
from backends.completion import read_completion
from backends.contracts import ContractUnusable, read_prompting
from backends.demand import Wish, demand_of
from backends.devices import GIB, Devices, LocalDevices
from backends.engines import ADAPTERS
from backends.hub import LIBRARIES, SOURCES_EXTRA
from backends.lora import base_doubt
from backends.placement import Ground, Impossible, Placed, Resident, decide
from backends.ports import probe_address
from backends.prompting import ContractChoice
from backends.resolving import Environments, EnvironmentUnusable
from backends.settings import BackendSettings, EngineSettings, LoraAdapter
from backends.sizes import size_text
from backends.sources import HubSource
from backends.weight_facts import weight_facts
from chat_templates.parsing import TemplateUnreadable, read_template
from gateway.config import Config
from gateway.config_values import Loc

MODELS_DIR_REMEDY = "write another gateway.models_dir"

VERSION_TIMEOUT_S = 120.0
"""`vllm --version` imports torch, which takes tens of seconds from a cold disk."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. *loc* is its place in the configuration; *remedy* is empty when all is well."""

    loc: Loc
    subject: str
    is_good: bool
    message: str
    remedy: str = ""
    is_doubtful: bool = False
    """Good as far as can be told, and worth a look all the same."""


def static_findings(config: Config, environ: Mapping[str, str]) -> list[Finding]:
    """What the files and the machine tell at once: commands, weights, templates, options, the port. Blocks briefly."""
    return [*_gateway(config), *_engines(config, environ), *_models(config), *_placements(config, environ)]


def _gateway(config: Config) -> Iterator[Finding]:
    host, port = config.gateway.host, config.gateway.port
    try:
        probe_address(host, port)
    except OSError as problem:
        yield address_finding(host, port, problem)
    else:
        yield Finding(("gateway", "port"), "gateway", True, f"{host}:{port} is free")
    folders = {"state_dir": config.gateway.state_dir}
    if not config.gateway.log_dir.is_relative_to(config.gateway.state_dir):
        folders["log_dir"] = config.gateway.log_dir
    for key, folder in folders.items():
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            what = "cannot be written to" if existing.is_dir() else "is not a folder"
            yield Finding(("gateway", key), "gateway", False, f"{existing}: {what}", f"write another gateway.{key}")


def address_finding(host: str, port: int, problem: OSError) -> Finding:
    """Why the gateway cannot listen on *port* of *host*, and what to do about it."""
    if isinstance(problem, socket.gaierror) or problem.errno == errno.EADDRNOTAVAIL:
        message, remedy = f"{host} is no address of this machine", "write 127.0.0.1, or 0.0.0.0 for every network"
        return Finding(("gateway", "host"), "gateway", False, message, remedy)
    if problem.errno == errno.EADDRINUSE:
        message, remedy = f"port {port} of {host} is in use", "stop what listens there, or write another gateway.port"
    else:
        reason = problem.strerror or type(problem).__name__
        message, remedy = f"port {port} of {host} cannot be opened: {reason}", "write another gateway.port"
    return Finding(("gateway", "port"), "gateway", False, message, remedy)


def _engines(config: Config, environ: Mapping[str, str]) -> Iterator[Finding]:
    for engine in used_engines(config):
        key = config.engines[engine].way() if engine in config.engines else None
        loc: Loc = ("engines", engine, key or "command") if engine in config.engines else ("models",)
        try:
            command = command_of(settled(config, engine, environ), engine)
        except EnvironmentUnusable as problem:
            yield Finding(loc, engine, False, str(problem), problem.remedy)
            continue
        if not command:
            url = config.engine_settings(engine).url
            if url:
                yield Finding(("engines", engine, "url"), engine, True, f"runs elsewhere, at {url}; it is not asked")
            continue
        found = shutil.which(command[0], path=environ.get("PATH"))
        if found is None:
            how = ADAPTERS[engine].obtaining or f"install {engine}"
            remedy = f"{how}, or write its command as engines.{engine}.command"
            yield Finding(loc, engine, False, f"the command {command[0]} was not found", remedy)
        else:
            yield Finding(loc, engine, True, f"the command is {found}")


def _models(config: Config) -> Iterator[Finding]:
    # The replicas of a model differ in nothing but their names.
    for backend in {backend.model: backend for backend in config.backend_settings()}.values():
        adapter = ADAPTERS[backend.engine]
        if backend.contract is not None:
            backend, findings = _contract(backend, backend.contract, adapter)
            yield from findings
        objections = adapter.objections(backend)
        if isinstance(backend.source, HubSource):
            # What is wrong with it as it is written, is told below.
            if not any(objection.path == ("weights",) for objection in objections):
                yield _source(backend, backend.source, config.gateway.models_dir, adapter)
        elif backend.source is not None:
            shown = f"{backend.source}, which {backend.engine} gets itself at the first start"
            yield Finding(("models", backend.name, "weights"), backend.name, True, shown)
        elif backend.weights is not None:
            yield _weights(backend, backend.weights, adapter)
        if backend.template_file is not None:
            yield _template(backend, backend.template_file)
        for objection in objections:
            name = objection.model or backend.model
            message = " ".join(part for part in (".".join(objection.path), objection.message) if part)
            yield Finding(("models", name, *objection.path), name, False, message, objection.remedy)
        for lora in backend.adapters:
            yield _lora(lora, backend.weights, adapter)


def _placements(config: Config, environ: Mapping[str, str], devices: Devices | None = None) -> Iterator[Finding]:
    """The models that could not run on this machine if they had it to themselves, and those loaded at startup that
    do not fit beside the ones before them."""
    budget_bytes = None if config.gateway.memory_gib is None else int(config.gateway.memory_gib * GIB)
    read = (devices or LocalDevices(environ, budget_bytes)).read()
    # What somebody else holds now may be free then.
    found = {device.index: replace(device, free_bytes=device.total_bytes) for device in read}
    loaded: list[Resident] = []
    for backend in config.backend_settings():
        adapter = ADAPTERS[backend.engine]
        if not adapter.launches:
            continue
        wish = Wish(backend, config.engine_settings(backend.engine), adapter, weight_facts(backend.weights))
        demand = demand_of(wish, list(found.values()))
        decision = decide(demand, Ground(found, (), now=0.0))
        if isinstance(decision, Impossible):
            key = "gpus" if backend.gpus else "memory_gib" if backend.memory_bytes else "weights"
            remedy = f"correct models.{backend.name}.{key}; `unigate doctor` shows what is here"
            yield Finding(("models", backend.name, key), backend.name, False, decision.reason, remedy)
        elif not backend.on_demand:
            beside = decide(demand, Ground(found, tuple(loaded), now=0.0))
            if isinstance(beside, Placed):
                loaded.append(Resident(backend.name, beside.claims, can_leave=False))
            else:
                names = ", ".join(resident.backend for resident in loaded)
                message = f"does not fit beside {names}, also loaded at startup: they will take turns"
                loc = ("models", backend.name, "load")
                yield Finding(loc, backend.name, True, message, "write load: on_demand", is_doubtful=True)


def _weights(backend: BackendSettings, weights: Path, adapter: Adapter) -> Finding:
    loc: Loc = ("models", backend.model, "weights")
    problem = adapter.weights_problem(weights)
    if problem is not None:
        return Finding(loc, backend.model, False, problem, f"correct models.{backend.model}.weights")
    return Finding(loc, backend.model, True, f"weights {weights}")


def _lora(lora: LoraAdapter, weights: Path | None, adapter: Adapter) -> Finding:
    loc: Loc = ("models", lora.name, "adapter")
    problem = adapter.adapter_problem(lora.path)
    if problem is not None:
        return Finding(loc, lora.name, False, problem, f"correct models.{lora.name}.adapter")
    doubt = base_doubt(lora.path, weights) if weights is not None else None
    return Finding(loc, lora.name, True, doubt or f"LoRA adapter {lora.path}", is_doubtful=doubt is not None)


def _source(backend: BackendSettings, source: HubSource, models_dir: Path, adapter: Adapter) -> Finding:
    """Whether *source* is there, and what can be known without the network of getting it."""
    loc: Loc = ("models", backend.model, "weights")
    folder = source.folder(models_dir)
    whole = read_completion(source, models_dir)
    if whole is not None:
        problem = adapter.weights_problem(source.weights(models_dir))
        if problem is not None:
            return Finding(loc, backend.model, False, problem, "use another engine for it, or another model")
        return Finding(loc, backend.model, True, f"{source} is complete: {size_text(whole.size)} in {folder}")
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        what = "cannot be written to" if existing.is_dir() else "is not a folder"
        return Finding(
            loc, backend.model, False, f"{source} cannot be downloaded: {existing} {what}", MODELS_DIR_REMEDY
        )
    library = LIBRARIES[source.hub]
    if importlib.util.find_spec(library) is None:
        message = f"{source} is not here yet, and {library}, which downloads it, is not installed"
        return Finding(loc, backend.model, False, message, f"run: {SOURCES_EXTRA}")
    free = size_text(shutil.disk_usage(existing).free)
    message = (
        f"{source} will be downloaded into {folder} ({free} free) before the first start, or by `unigate pull` now"
    )
    return Finding(loc, backend.model, True, message)


def _template(backend: BackendSettings, path: Path) -> Finding:
    loc: Loc = ("models", backend.model, "template", "from")
    try:
        read_template(path)
    except TemplateUnreadable as problem:
        return Finding(loc, backend.model, False, f"chat template {problem}", "correct the template or its path")
    return Finding(loc, backend.model, True, f"chat template {path} parses")


def _contract(
    backend: BackendSettings, choice: ContractChoice, adapter: Adapter
) -> tuple[BackendSettings, Sequence[Finding]]:
    """*backend* with its contract, where that can be read, and what is found of it."""
    loc: Loc = ("models", backend.model, "template", "contract")
    try:
        prompting = read_prompting(choice, backend.weights)
    except ContractUnusable as problem:
        remedy = "correct the contract or its path; `unigate template import` makes one"
        return backend, [Finding(loc, backend.model, False, f"contract {line}", remedy) for line in problem.problems]
    backend = replace(backend, prompting=prompting)
    fault = adapter.contract_problem(backend)
    if fault is not None:
        return backend, [Finding(loc, backend.model, False, f"contract {fault}", "use another engine for the model")]
    tokenizer = f"tokenizer {prompting.tokenizer}" if prompting.tokenizer else "no tokenizer, so prompts are texts only"
    message = f"contract {prompting.contract.hash[:12]} of {choice.file}; {tokenizer}"
    return backend, [Finding(loc, backend.model, True, message)]


def used_engines(config: Config) -> list[str]:
    """The engines that some model uses, in the order of the file."""
    return list(dict.fromkeys(backend.engine for backend in config.backend_settings()))


def settled(config: Config, engine: str, environ: Mapping[str, str]) -> EngineSettings:
    """How *engine* is started here, its environment looked up. Reads files. Raises EnvironmentUnusable."""
    environments = Environments(environ, config.gateway.engine_dir)
    return environments.settle(config.engine_settings(engine), ADAPTERS[engine])


def command_of(settings: EngineSettings, engine: str) -> tuple[str, ...]:
    """The command that settled *settings* start *engine* with; empty for one we do not start."""
    if settings.url:
        return ()
    return settings.command or ADAPTERS[engine].default_command()


async def version_findings(config: Config, environ: Mapping[str, str]) -> list[Finding]:
    """What the engines say of their version, asked all at once. Takes as long as the slowest needs to import itself."""
    asked = dict(_runnable(config, environ))
    found = await asyncio.gather(*(asyncio.to_thread(engine_version, *item) for item in asked.items()))
    return [
        Finding(("engines", engine), engine, is_good, message, "" if is_good else "see that its command runs")
        for engine, (is_good, message) in zip(asked, found, strict=True)
    ]


def _runnable(config: Config, environ: Mapping[str, str]) -> Iterator[tuple[str, EngineSettings]]:
    for engine in used_engines(config):
        # One that is not there has been told of already.
        with contextlib.suppress(EnvironmentUnusable):
            settings = settled(config, engine, environ)
            command = command_of(settings, engine)
            if command and shutil.which(command[0], path=environ.get("PATH")):
                yield engine, settings


def engine_version(engine: str, settings: EngineSettings) -> tuple[bool, str]:
    """Whether *engine* could be asked, and its version or the reason why not. Blocks, for at most VERSION_TIMEOUT_S."""
    argv = ADAPTERS[engine].version_argv(settings)
    if argv is None:
        return True, "nothing to ask"
    try:
        done = subprocess.run(  # noqa: S603 - the operator's own command
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=VERSION_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **settings.env},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"{argv[0]} did not tell its version within {VERSION_TIMEOUT_S:g} s"
    except OSError as problem:
        return False, f"{argv[0]}: {problem.strerror}"
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    last = lines[-1].strip() if lines else f"exit code {done.returncode}"
    if done.returncode != 0:
        return False, f"{argv[0]} did not tell its version: {last}"
    # Engines log on their way; the version is the last line of what they print to stdout.
    printed = [line for line in done.stdout.splitlines() if line.strip()]
    return True, (printed[-1].strip() if printed else last)
