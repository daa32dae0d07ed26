"""`/ready`: whether every model that is loaded at startup can answer, by one of its replicas at least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backends.fleet import Fleet
from backends.lifecycle import State
from backends.status import BackendStatus, foremost


class Readiness:
    """Ready while every startup model has a READY backend, and no more once the gateway drains.

    One that has made room for another counts too: its next request brings it back.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.is_draining = False

    def report(self) -> tuple[bool, dict[str, Any]]:
        """Whether it is ready, and the state of each startup model for whoever asks why not."""
        replicas: dict[str, list[BackendStatus]] = {}
        for status in self._fleet.statuses():
            if not status.on_demand and not status.is_retired:
                replicas.setdefault(status.model, []).append(status)
        is_ready = not self.is_draining and all(map(_can_serve, replicas.values()))
        states = {model: foremost(group).state.value for model, group in replicas.items()}
        word = "draining" if self.is_draining else "ready" if is_ready else "not ready"
        return is_ready, {"status": word, "models": states}


def _can_serve(replicas: Sequence[BackendStatus]) -> bool:
    return any(status.state is State.READY or status.has_given_room for status in replicas)
