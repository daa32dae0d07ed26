"""Reloading the configuration of a running gateway: only what changed is started anew, and running streams finish.

Theory of operation
-------------------
A reload reads the file, all of it, and refuses it as `unigate check` would; a refused file changes nothing. What is to
be done is decided by `reload_plan`. Then, in this order: models that are new are started; models with one backend that
must be exchanged are asked to drain and start again (who asks meanwhile waits); routes, keys and limits are exchanged
between two requests; what is gone is drained and stopped. Models with replicas are rolled: one replica at a time, the
others serve.

Rolling takes as long as engines take to load, so it goes on behind the answer. The next reload ends it where it is and
plans anew from what it finds, so two reloads never work against each other. A roll stops at the first replica that does
not come up with its new settings: the others keep serving with the old ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backends.contracts import with_contracts
from backends.fleet import Fleet
from backends.lifecycle import RESTING, State
from backends.settings import BackendSettings
from gateway.checking import static_findings
from gateway.config import Config, GatewaySettings
from gateway.config_file import ConfigError, load_config_file
from gateway.reload_plan import ModelPlan, ReloadPlan, Wanted, as_started, is_left_open, plan_reload

_log = logging.getLogger("unigate.gateway")

SHOWN = ("unchanged", "adjusted", "restarted", "added", "removed")


class ReloadRefused(Exception):
    """Nothing was changed; the message has a line for each problem, as `unigate check` writes it."""


class ReloadUnavailable(Exception):
    """There is nothing to reload, or no gateway to do so any more."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a configuration comes from. *keep_going*: what cannot be served is FAILED, and the rest is served."""

    path: Path
    environ: Mapping[str, str]
    keep_going: bool = False

    def read(self) -> Config:
        """The configuration as it is now. Reads files, and blocks for some time. Raises ReloadRefused."""
        try:
            file = load_config_file(self.path, self.environ)
        except ConfigError as problem:
            raise ReloadRefused(str(problem)) from None
        # The gateway's own places are its own already: the port is in use, by us.
        bad = [
            finding
            for finding in static_findings(file.config, self.environ)
            if not finding.is_good and finding.loc[0] != "gateway"
        ]
        if bad and not self.keep_going:
            raise ReloadRefused("\n".join(file.complaint(one.loc, one.message, one.remedy) for one in bad))
        return file.config


def with_contents(backends: Iterable[BackendSettings]) -> tuple[BackendSettings, ...]:
    """The *backends* with what is in their contracts, and the digests of their template files, now. Reads files."""
    return tuple(
        replace(backend, template_digest=_digest(backend.template_file)) if backend.template_file else backend
        for backend in with_contracts(backends)
    )


def _digest(path: Path) -> str:
    with contextlib.suppress(OSError):  # a file that is not there is told of by the engine's start
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return ""


class Reloading:
    """The one who exchanges the configuration of a gateway while it runs.

    *withhold* is given each new configuration before anything of it is started, *adopt* is given it and its backends
    when it is to hold for requests; neither waits. The owner calls `open` when the fleet is open, and `close` before it
    closes the fleet.
    """

    def __init__(
        self,
        config: Config,
        source: Source | None,
        fleet: Fleet,
        withhold: Callable[[Config], None],
        adopt: Callable[[Config, Iterable[BackendSettings]], None],
        count: Callable[[str], None],
    ) -> None:
        self.config = config
        """The configuration that holds, save that the keys which cannot change are as they were at the start."""
        self._source = source
        self._fleet = fleet
        self._withhold = withhold
        self._adopt = adopt
        self._count = count
        self._reading = asyncio.Lock()
        self._applying = asyncio.Lock()
        self._rolls: list[asyncio.Task[None]] = []
        self._is_open = asyncio.Event()
        self._is_closed = False

    def open(self) -> None:
        """Let reloads begin: the fleet is open."""
        self._is_open.set()

    async def reload(self) -> ReloadPlan:
        """Read the file and do what it asks for; returns what that is as soon as it is under way.

        One reload at a time: another one waits for its turn. Raises ReloadRefused, ReloadUnavailable.
        """
        if self._source is None:
            raise ReloadUnavailable("this gateway was not started from a file")
        async with self._reading:
            await self._is_open.wait()
            try:
                config, held, wanted = await asyncio.to_thread(_read, self._source, self.config.gateway)
                if is_left_open(self.config.gateway.host, config.gateway):
                    raise ReloadRefused(
                        f"{self._source.path}: gateway.keys: the gateway goes on listening on "
                        f"{self.config.gateway.host} until it is restarted, and no key would be configured; "
                        "keep a key, or restart it"
                    )
            except ReloadRefused as problem:
                self._count("refused")
                _log.error("the configuration was not reloaded, nothing is changed:\n%s", problem)
                raise
            async with self._applying:
                if self._is_closed:
                    raise ReloadUnavailable("the gateway is shutting down")
                plan = await self._apply(config, held, wanted)
        self._count("applied")
        _log.info("the configuration was reloaded: %s", _sentence(plan))
        return plan

    async def try_reload(self) -> None:
        """`reload` for those who cannot be answered: what went wrong is in the log."""
        with contextlib.suppress(ReloadRefused, ReloadUnavailable):
            await self.reload()

    async def restart(self, names: Sequence[str]) -> asyncio.Task[None]:
        """Stop and start the backends of one model again, one at a time so that the others serve; the task that does.

        It ends early when one does not come up, and with the next reload.
        """
        async with self._applying:
            if self._is_closed:
                raise ReloadUnavailable("the gateway is shutting down")
            return self._begin_roll(self._restart_each(names), f"restart {', '.join(names)}")

    async def _restart_each(self, names: Sequence[str]) -> None:
        for name in names:
            with contextlib.suppress(KeyError):  # a reload has taken it out
                await self._fleet.unload(name)
                await self._fleet.load(name)
                if not await self._has_come_up(name):
                    return

    def _begin_roll(self, roll: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(roll, name=name)
        task.add_done_callback(_look_for_mistake)
        self._rolls = [*(other for other in self._rolls if not other.done()), task]
        return task

    async def outcome(self, plan: ReloadPlan) -> None:
        """Until every backend that *plan* touches has come to rest, or is gone."""
        if self._rolls:
            await asyncio.wait(self._rolls)
        for name in (*plan.backends("restarted"), *plan.backends("added")):
            with contextlib.suppress(KeyError):  # a later reload has taken it out
                await self._fleet.brought_up(name)
        await self._fleet.seen_off(plan.backends("removed"))

    def report(self, plan: ReloadPlan) -> dict[str, Any]:
        """What *plan* does, and how far it has come: JSON for people and scripts."""
        states = {status.name: status.state for status in self._fleet.statuses()}
        touched = [*plan.backends("restarted"), *plan.backends("added")]
        is_rolling = any(not roll.done() for roll in self._rolls)
        on_the_way = [name for name in touched if states.get(name) not in (State.READY, *RESTING)]
        leaving = [name for name in plan.backends("removed") if name in states and name not in touched]
        return {
            **{what: plan.backends(what) for what in SHOWN},
            "gateway": {"applied": list(plan.applied), "needs_restart": list(plan.deferred)},
            "is_complete": not (is_rolling or on_the_way or leaving),
            "states": {name: states[name].value for name in touched if name in states},
        }

    async def close(self) -> None:
        """No reload from now on, and none under way when this returns."""
        self._is_closed = True
        async with self._applying:
            await self._end_rolls()

    async def _apply(self, config: Config, held: Config, wanted: Mapping[str, Wanted]) -> ReloadPlan:
        await self._end_rolls()
        there = {name: Wanted(setup.backend, setup.engine) for name, setup in self._fleet.setups().items()}
        plan = plan_reload(there, wanted, self.config.gateway, config.gateway)
        self._withhold(held)
        for model in plan.models:
            if model.is_new:
                for name in model.added:
                    await self._fleet.add(wanted[name].backend, wanted[name].engine)
            for name in (*model.adjusted, *(model.restarted if model.is_at_once else ())):
                await self._fleet.change(wanted[name].backend, wanted[name].engine)
        self._adopt(held, [one.backend for one in wanted.values()])
        self.config = held
        self._fleet.expect(one.backend.model for one in wanted.values())
        self._fleet.order(wanted)
        for model in plan.models:
            if model.is_gone:
                for name in model.removed:
                    self._fleet.retire(name)
            elif not model.is_new and (model.added or model.replaced or model.removed or model.restarted):
                self._begin_roll(self._roll(model, wanted), f"roll {model.model}")
        return plan

    async def _roll(self, model: ModelPlan, wanted: Mapping[str, Wanted]) -> None:
        """Exchange the backends of a model that serves, so that it goes on serving."""
        fleet = self._fleet
        for name in model.added:
            await fleet.add(wanted[name].backend, wanted[name].engine)
        fleet.order(wanted)
        if model.restarted or model.replaced:
            for name in model.added:
                if not await self._has_come_up(name):
                    return
        for name in () if model.is_at_once else model.restarted:
            await fleet.change(wanted[name].backend, wanted[name].engine)
            if not await self._has_come_up(name):
                return
        for old, new in model.replaced:
            fleet.retire(old)
            await fleet.seen_off([old])
            await fleet.add(wanted[new].backend, wanted[new].engine)
            fleet.order(wanted)
            if not await self._has_come_up(new):
                return
        for name in model.removed:
            fleet.retire(name)

    async def _has_come_up(self, name: str) -> bool:
        state = await self._fleet.brought_up(name)
        if state in (State.FAILED, State.BACKOFF):
            _log.error("%s did not come up; the other backends of its model are left as they are", name)
            return False
        return True

    async def _end_rolls(self) -> None:
        rolls, self._rolls = self._rolls, []
        for roll in rolls:
            roll.cancel()
        if rolls:
            await asyncio.wait(rolls)


def _look_for_mistake(roll: asyncio.Task[None]) -> None:
    if not roll.cancelled() and (mistake := roll.exception()) is not None:
        _log.error("%s broke", roll.get_name(), exc_info=mistake)


def _read(source: Source, running: GatewaySettings) -> tuple[Config, Config, dict[str, Wanted]]:
    """The configuration as it is written, as it can be held while the gateway is *running*, and its backends."""
    config = source.read()
    held = config.model_copy(update={"gateway": as_started(running, config.gateway)})
    backends = with_contents(held.backend_settings())
    return config, held, {one.name: Wanted(one, held.engine_settings(one.engine)) for one in backends}


def _sentence(plan: ReloadPlan) -> str:
    parts = [f"{what} {', '.join(plan.backends(what))}" for what in SHOWN[1:] if plan.backends(what)]
    if plan.applied:
        parts.append(f"applied {', '.join(f'gateway.{key}' for key in plan.applied)}")
    if plan.deferred:
        parts.append(f"left for the next start: {', '.join(f'gateway.{key}' for key in plan.deferred)}")
    return "; ".join(parts) or "no backend and no key of the gateway has changed"
