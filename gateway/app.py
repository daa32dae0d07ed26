"""The composition root: one configuration in, one running gateway out. Only this module constructs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from backends.devices import GIB, LocalDevices
from backends.downloader import LocalDownloader
from backends.engines import ADAPTERS
from backends.fleet import Fleet
from backends.learnt import Learnt
from backends.lifecycle import State
from backends.places import Places, socket_folder
from backends.probing import HttpProber
from backends.process import LocalLauncher
from backends.proof_records import ProofRecords
from backends.proving import LocalProver
from backends.records import ProcessRecords
from backends.render_pool import RenderPool
from backends.resolving import Environments
from backends.room import MeasuredRoom
from backends.settings import BackendSettings
from backends.start import Host
from backends.status import Transition
from gateway.admin import AdminGuard, admin_app, parity_as_json
from gateway.config import Config, GatewaySettings
from gateway.front_door import FrontDoor
from gateway.keys import Caller, Keyring
from gateway.metrics import Metrics
from gateway.model_list import ModelList
from gateway.prompts import Prompts
from gateway.readiness import Readiness
from gateway.reloading import Reloading, Source, with_contents
from gateway.routing import Route, Routes
from gateway.serving import Limits, Serving
from gateway.upstream import UpstreamPool, UpstreamTimeouts
from gateway.watching import watch

KEEP_ALIVE_S = 75
"""Of idle client connections; nginx's figure. uvicorn's own 5 s meets the pools of clients in mid-use."""
CONNECTIONS_END_S = 5
"""After the last answer, open connections get this long to be closed."""
BACKLOG = 2048
RENDER_CHILDREN = 2
"""So that one template which has to be stopped keeps nobody else's waiting."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
RELOAD_SIGNAL = signal.SIGHUP

_log = logging.getLogger("unigate.gateway")


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts of one gateway that have a beginning and an end."""

    fleet: Fleet
    pool: UpstreamPool
    serving: Serving
    readiness: Readiness
    door: FrontDoor
    reloading: Reloading
    renders: RenderPool


def build(config: Config, source: Source | None = None) -> Gateway:
    """Construct every part. To be called on the loop; nothing is started, opened or listened to yet.

    *source*: where a reload finds the configuration; without one there is none.
    """
    settings = config.gateway
    keyring = _keyring(config)
    launcher = LocalLauncher(secrets_of(config))
    budget_bytes = None if settings.memory_gib is None else int(settings.memory_gib * GIB)
    devices = LocalDevices(os.environ, budget_bytes)
    renders = RenderPool(RENDER_CHILDREN)
    host = Host(
        launcher=launcher,
        prober=HttpProber(),
        places=Places(socket_folder(settings.state_dir)),
        records=ProcessRecords(settings.state_dir / "processes"),
        start_gate=asyncio.Semaphore(1),
        run_folders=settings.state_dir / "runs",
        environments=Environments(os.environ, settings.engine_dir),
        downloader=LocalDownloader(settings.models_dir, secrets_of(config)),
        room=MeasuredRoom(
            devices,
            Learnt(settings.state_dir / "memory"),
        ),
        prover=LocalProver(renders, ProofRecords(settings.state_dir / "proofs")),
    )
    backends = with_contents(config.backend_settings())
    fleet = Fleet(
        backends,
        {engine: config.engine_settings(engine) for engine in ADAPTERS},
        ADAPTERS,
        host,
        settings.log_dir,
        log_rotate_bytes=settings.log_rotate_bytes,
        log_keep=settings.log_keep,
        max_waiting=settings.queue.max_waiting,
    )
    routes = Routes(_routes(config, backends))
    metrics = Metrics(fleet.statuses)
    metrics.keep_only(config.models.keys())
    metrics.contracts(routes.contracts())
    fleet.subscribe(metrics.transition)
    pool = UpstreamPool(_timeouts(settings))
    fleet.subscribe(partial(_break_off, pool))
    serving = Serving(
        keyring, routes, fleet, pool, metrics, Prompts(renders), _limits(settings), access_log=settings.access_log
    )

    def adopt(new: Config, backends: Iterable[BackendSettings]) -> None:
        keyring.adopt(_keyring(new))
        routes.adopt(Routes(_routes(new, backends)))
        serving.limits, serving.access_log = _limits(new.gateway), new.gateway.access_log
        pool.keep_to(_timeouts(new.gateway))
        fleet.allow_waiting(new.gateway.queue.max_waiting)
        metrics.keep_only(new.models.keys())
        metrics.contracts(routes.contracts())

    def withhold(new: Config) -> None:
        launcher.withhold(secrets_of(new))

    reloading = Reloading(config, source, fleet, withhold, adopt, metrics.reloaded)
    readiness = Readiness(fleet)
    models = ModelList(routes, fleet, created=int(time.time()))
    admin = AdminGuard(admin_app(fleet, reloading), keyring)
    door = FrontDoor(serving, models, readiness, metrics, keyring, admin, devices)
    return Gateway(fleet, pool, serving, readiness, door, reloading, renders)


def _keyring(config: Config) -> Keyring:
    keys = config.gateway.keys
    return Keyring((key.key.get_secret_value(), Caller(key.name, tuple(key.models), key.admin)) for key in keys)


def _limits(settings: GatewaySettings) -> Limits:
    return Limits(settings.body_limit_bytes, settings.queue.max_wait_s, settings.timeouts.send_s)


def _timeouts(settings: GatewaySettings) -> UpstreamTimeouts:
    timeouts = settings.timeouts
    return UpstreamTimeouts(timeouts.connect_s, timeouts.first_byte_s, timeouts.idle_s)


def _routes(config: Config, backends: Iterable[BackendSettings]) -> Iterator[Route]:
    first: dict[str, BackendSettings] = {}
    for one in backends:
        first.setdefault(one.model, one)
    for name, model in config.models.items():
        backend = first[model.base or name]
        adapter = ADAPTERS[backend.engine]
        yield Route(
            name,
            tuple(model.aliases),
            backend,
            adapter,
            adapter.served(backend, name),
            parent=model.base,
            ignores_unsupported=model.unsupported_parameters == "ignore",
        )


def _break_off(pool: UpstreamPool, change: Transition) -> None:
    """Whoever is still on a backend that is being ended gets an error now: no engine may wait for its clients."""
    if change.after in (State.STOPPING, State.RECYCLING) and change.address is not None:
        pool.break_off(change.address)


def secrets_of(config: Config) -> frozenset[str]:
    """Every secret of the configuration: none may reach an engine's environment by inheritance."""
    keys = {key.key.get_secret_value() for key in config.gateway.keys}
    return frozenset(keys | {model.api_key.get_secret_value() for model in config.models.values() if model.api_key})


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError when the port is taken: before any engine is started."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


class _Server(uvicorn.Server):
    """uvicorn without its signal handling: ours drains the backends first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    config: Config,
    listener: socket.socket,
    *,
    source: Source | None = None,
    while_running: Callable[[Gateway], Coroutine[Any, Any, None]] | None = None,
) -> None:
    """Run a gateway on *listener* until SIGINT or SIGTERM, then drain, stop the engines, and return.

    A second signal kills the engines and returns at once. SIGHUP reloads the configuration from its *source*.
    *while_running* is run beside it, for those who want to know how the start goes.
    """
    gateway = build(config, source)
    server = _Server(uvicorn_config(gateway.door))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, _on_signal, number, stop, gateway, server)
    reloads = _Reloads(gateway.reloading)
    hangup_ends = has_terminal() and signal.getsignal(RELOAD_SIGNAL) is not signal.SIG_IGN  # ignored by nohup
    loop.add_signal_handler(RELOAD_SIGNAL, _on_hangup, hangup_ends, reloads, stop)
    http = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    beside = asyncio.create_task(while_running(gateway)) if while_running is not None else None
    try:
        await gateway.fleet.open()
        gateway.reloading.open()
        if source is not None:
            reloads.watch(source.path)
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([stopping, http], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        gateway.serving.is_draining = gateway.readiness.is_draining = True
    finally:
        if beside is not None:
            beside.cancel()
        reloads.end()
        await gateway.reloading.close()
        await gateway.fleet.close(gateway.reloading.config.gateway.drain_timeout_s)
        server.should_exit = True
        await asyncio.wait([http])
        await gateway.pool.aclose()
        await gateway.serving.close()
        await gateway.renders.close()
        for number in (*STOP_SIGNALS, RELOAD_SIGNAL):
            loop.remove_signal_handler(number)
    if beside is not None and beside.done() and not beside.cancelled():
        beside.result()
    http.result()


async def prove(config: Config, names: Sequence[str], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Start the backends of the models *names*, one after the other, and end each once it is READY or has failed.

    What was proven of the prompts of each, in the administration's form. Nobody is served meanwhile; a model is proven
    whatever its policy, and each step is told to *say*.
    """
    gateway = build(_only_to_prove(config, names))
    entries = []
    try:
        await gateway.fleet.open()
        for name in names:
            for status in gateway.fleet.replicas(name)[:1]:  # they are all alike
                say(f"{name}: starting {status.engine}")
                await gateway.fleet.load(status.name)
                await gateway.fleet.settled(status.name, State.READY, State.FAILED)
                after = gateway.fleet.status(status.name)
                if after.state is State.FAILED:
                    say(f"{name} has failed: {after.diagnosis}")
                entries.append(parity_as_json(gateway.fleet, status.name))
                await gateway.fleet.unload(status.name)
                await gateway.fleet.settled(status.name, State.STOPPED, State.FAILED)
    finally:
        await gateway.fleet.close()
        await gateway.pool.aclose()
        await gateway.renders.close()
    return entries


def _only_to_prove(config: Config, names: Sequence[str]) -> Config:
    """*config* with the models *names* and their adapters alone: started when they are told to be, and never ended for
    what is seen of them."""
    models = {}
    for name, model in config.models.items():
        if name in names and model.template is not None:
            template = model.template.model_copy(update={"parity": "warn"})
            models[name] = model.model_copy(update={"load": "on_demand", "template": template})
        elif model.base in names:
            models[name] = model
    return config.model_copy(update={"models": models})


class _Reloads:
    """The reloads that nobody waits for: asked for by a signal, or by a change of the file."""

    def __init__(self, reloading: Reloading) -> None:
        self._reloading = reloading
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self) -> None:
        """Reload once."""
        self._keep(asyncio.create_task(self._reloading.try_reload(), name="reload"))

    def watch(self, path: Path) -> None:
        """Reload whenever the file at *path* changes while the configuration has it so."""
        reloading = self._reloading
        watching = watch(path, lambda: reloading.config.gateway.watch, reloading.try_reload)
        self._keep(asyncio.create_task(watching, name="watch the configuration"))

    def end(self) -> None:
        """Begin no more; what is under way ends where it is."""
        for task in self._tasks:
            task.cancel()

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (mistake := task.exception()) is not None:
            _log.error("%s broke", task.get_name(), exc_info=mistake)


def has_terminal() -> bool:
    """Whether this process has a controlling terminal that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _on_hangup(hangup_ends: bool, reloads: _Reloads, stop: asyncio.Event) -> None:
    """Reload, unless what was closed is the terminal that the gateway was started in: then stop, as Ctrl-C does."""
    if hangup_ends and not has_terminal():
        _log.info("the terminal was closed: letting running requests finish, then stopping the engines")
        stop.set()
    else:
        reloads.begin()


def _on_signal(number: int, stop: asyncio.Event, gateway: Gateway, server: uvicorn.Server) -> None:
    if stop.is_set():
        _log.warning("%s again: killing the engines", signal.Signals(number).name)
        gateway.fleet.kill()
        server.force_exit = True
    else:
        _log.info("%s: letting running requests finish, then stopping the engines", signal.Signals(number).name)
    stop.set()


def uvicorn_config(door: FrontDoor) -> uvicorn.Config:
    """uvicorn's settings, each different from its default for a reason."""
    return uvicorn.Config(
        door,
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,  # ours says more
        log_config=None,
        server_header=False,
        proxy_headers=False,  # who is local is decided by the connection, not by a header
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=CONNECTIONS_END_S,
        backlog=BACKLOG,
    )
