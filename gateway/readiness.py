"""`/ready`: whether every model that is loaded at startup can answer."""

from __future__ import annotations

from typing import Any

from backends.fleet import Fleet
from backends.lifecycle import State


class Readiness:
    """Ready once every startup model is READY, and no more once the gateway drains.

    One that has made room for another counts too: its next request brings it back.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.is_draining = False

    def report(self) -> tuple[bool, dict[str, Any]]:
        """Whether it is ready, and the state of each startup model for whoever asks why not."""
        startup = [status for status in self._fleet.statuses() if not status.on_demand]
        are_there = all(status.state is State.READY or status.has_given_room for status in startup)
        is_ready = are_there and not self.is_draining
        states = {status.name: status.state.value for status in startup}
        word = "draining" if self.is_draining else "ready" if is_ready else "not ready"
        return is_ready, {"status": word, "models": states}
