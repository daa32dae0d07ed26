"""`/v1/models`: what is configured, cold models included, at once and without asking any engine.

Open WebUI gives the list 10 s (backend/open_webui/env.py AIOHTTP_CLIENT_TIMEOUT_MODEL_LIST, 0.12.4) and shows
``status.value`` as a badge, in llama.cpp's words: loaded, loading, unloaded, failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backends.fleet import Fleet
from backends.lifecycle import State
from backends.status import BackendStatus, foremost
from gateway.keys import Caller
from gateway.routing import Route, Routes

_SHOWN = {
    State.READY: "loaded",
    State.STARTING: "loading",
    State.RECYCLING: "loading",
    State.BACKOFF: "loading",
    State.FAILED: "failed",
    State.STOPPED: "unloaded",
    State.YIELDING: "unloaded",
    State.SLEEPING: "unloaded",
    State.DRAINING: "unloaded",
    State.STOPPING: "unloaded",
}


class ModelList:
    """The models as clients are shown them. *created*: seconds since the epoch, one value for all."""

    def __init__(self, routes: Routes, fleet: Fleet, created: int) -> None:
        self._routes = routes
        self._fleet = fleet
        self._created = created

    def all(self, caller: Caller) -> dict[str, Any]:
        """The list the caller may see."""
        return {"object": "list", "data": [self._entry(route) for route in self._routes.visible(caller)]}

    def one(self, name: str, caller: Caller) -> dict[str, Any]:
        """One model by name or alias. Raises UnknownModel, NotAllowed."""
        return self._entry(self._routes.resolve(name, caller))

    def _entry(self, route: Route) -> dict[str, Any]:
        replicas = self._fleet.replicas(route.backend.model)
        return {
            "id": route.model,
            "object": "model",
            "created": self._created,
            "owned_by": "unigate",
            "engine": route.backend.engine,
            "parent": route.parent,
            "aliases": list(route.aliases),
            "max_model_len": route.backend.context_length,
            "status": _shown(replicas),
            **_contract(route, replicas),
        }


def _contract(route: Route, replicas: Sequence[BackendStatus]) -> dict[str, Any]:
    """The contract, and in which ways each feature is proven; null before a proof, and without one."""
    prompting = route.backend.prompting
    if prompting is None:
        return {}
    digest = prompting.contract.hash
    parity = foremost(replicas).parity if replicas else None
    if parity is not None and parity.contract != digest:
        parity = None  # a reload is just exchanging the contract
    return {
        "contract": {
            "hash": digest,
            "name": prompting.contract.name,
            "policy": prompting.policy,
            "parity": {name: list(modes) for name, modes in sorted(parity.modes.items())} if parity else None,
        }
    }


def _shown(replicas: Sequence[BackendStatus]) -> dict[str, Any]:
    if not replicas:  # a reload is just exchanging the last one
        return {"value": "loading", "state": State.STOPPED.value}
    status = foremost(replicas)
    shown: dict[str, Any] = {"value": _SHOWN[status.state], "state": status.state.value}
    if status.phase:
        shown["phase"] = status.phase
    if status.diagnosis is not None:
        shown["reason"] = status.diagnosis.reason
        shown["advice"] = status.diagnosis.advice
    if len(replicas) > 1:
        shown["replicas"] = {replica.name: replica.state.value for replica in replicas}
    return shown
