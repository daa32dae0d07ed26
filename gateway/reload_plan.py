"""What a new configuration changes of a running gateway, decided before anything is touched.

Backends are compared by all that their runs are made from: settings, engine, the content of the template file. Equal
ones go on untouched. Those that differ in what only the gateway reads (on demand or not, clocks) go on too, under the
new settings. All others are exchanged, model by model, so that a model with replicas never stands without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from backends.settings import BackendSettings, EngineSettings, is_adjustable
from gateway.config import GatewaySettings
from gateway.config_values import is_loopback

LIVE = frozenset(
    {
        "keys", "allow_unauthenticated", "body_limit_bytes", "queue", "timeouts", "drain_timeout_s", "access_log",
        "watch", "min_residency_s",
    }
)  # fmt: skip
"""Keys of the gateway's own section that are applied at once; a change of any other waits for the next start."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One backend as the new configuration, or the running gateway, has it."""

    backend: BackendSettings
    engine: EngineSettings


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """What becomes of the backends of one model, by name.

    Carried out in this order, so that the others serve meanwhile: *adjusted* at once; *added*; *restarted*, one at a
    time; *replaced*, one at a time, each pair being a backend and the one that comes in its place; *removed*.
    """

    model: str
    unchanged: tuple[str, ...] = ()
    adjusted: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    replaced: tuple[tuple[str, str], ...] = ()
    removed: tuple[str, ...] = ()
    is_at_once: bool = False
    """Whether *restarted* ones are so together: there is one only, or they get another engine, and a request is
    prepared for one."""

    @property
    def is_new(self) -> bool:
        """Whether nothing serves this model yet."""
        return not (self.unchanged or self.adjusted or self.restarted or self.replaced or self.removed)

    @property
    def is_gone(self) -> bool:
        """Whether nothing of this model is wanted any more."""
        return bool(self.removed) and not (
            self.unchanged or self.adjusted or self.restarted or self.replaced or self.added
        )


@dataclass(frozen=True, slots=True)
class ReloadPlan:
    """What a reload does: to the *models*, and to the gateway's own keys. *deferred* keys wait for the next start."""

    models: tuple[ModelPlan, ...]
    applied: tuple[str, ...] = ()
    deferred: tuple[str, ...] = ()

    def backends(self, what: str) -> list[str]:
        """The names of the ``unchanged``, ``adjusted``, ``added``, ``restarted`` or ``removed`` backends of all models.

        A replaced pair is one that is removed and one that is added.
        """
        position = {"removed": 0, "added": 1}.get(what)
        names = [name for model in self.models for name in getattr(model, what)]
        if position is not None:
            names += [pair[position] for model in self.models for pair in model.replaced]
        return names


@dataclass(slots=True)
class _Sides:
    before: dict[str, Wanted] = field(default_factory=dict)
    after: dict[str, Wanted] = field(default_factory=dict)


def plan_reload(
    before: Mapping[str, Wanted], after: Mapping[str, Wanted], was: GatewaySettings, will_be: GatewaySettings
) -> ReloadPlan:
    """The way from the backends that are there, *before*, to those wanted *after*; both by name."""
    sides: dict[str, _Sides] = {}
    for name, wanted in after.items():
        sides.setdefault(wanted.backend.model, _Sides()).after[name] = wanted
    for name, wanted in before.items():
        sides.setdefault(wanted.backend.model, _Sides()).before[name] = wanted
    changed = [key for key in GatewaySettings.model_fields if getattr(was, key) != getattr(will_be, key)]
    return ReloadPlan(
        tuple(_plan_model(model, side.before, side.after) for model, side in sides.items()),
        tuple(key for key in changed if key in LIVE),
        tuple(key for key in changed if key not in LIVE),
    )


def as_started(was: GatewaySettings, will_be: GatewaySettings) -> GatewaySettings:
    """*will_be*, save the keys that are not applied while the gateway runs: those are as they were."""
    kept = {key: getattr(was, key) for key in GatewaySettings.model_fields if key not in LIVE}
    return will_be.model_copy(update=kept)


def _plan_model(model: str, before: Mapping[str, Wanted], after: Mapping[str, Wanted]) -> ModelPlan:
    kept = [name for name in after if name in before]
    unchanged = [name for name in kept if before[name] == after[name]]
    adjusted = [name for name in kept if name not in unchanged and _is_adjustable(before[name], after[name])]
    restarted = [name for name in kept if name not in unchanged and name not in adjusted]
    leaving = [name for name in before if name not in after]
    coming = [name for name in after if name not in before]
    # One backend that becomes several, or the other way round, is called otherwise: it hands over to one of them.
    replaced = tuple(zip(leaving, coming, strict=False))
    is_other_engine = any(before[name].backend.engine != after[name].backend.engine for name in restarted)
    return ModelPlan(
        model,
        unchanged=tuple(unchanged),
        adjusted=tuple(adjusted),
        added=tuple(coming[len(replaced) :]),
        restarted=tuple(restarted),
        replaced=replaced,
        removed=tuple(leaving[len(replaced) :]),
        is_at_once=len(before) == 1 or is_other_engine,
    )


def _is_adjustable(before: Wanted, after: Wanted) -> bool:
    return before.engine == after.engine and is_adjustable(before.backend, after.backend)


def is_left_open(host: str, will_be: GatewaySettings) -> bool:
    """Whether a gateway that listens on *host*, as it goes on doing, would let anybody in from other machines.

    A file that also names another address is safe at the next start, and not so now.
    """
    return not (is_loopback(host) or will_be.keys or will_be.allow_unauthenticated)
