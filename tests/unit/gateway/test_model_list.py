"""`/v1/models` and `/ready` over a made-up fleet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from backends.adapter import Served
from backends.diagnosis import Diagnosis
from backends.engines import ADAPTERS
from backends.fleet import Fleet
from backends.lifecycle import State
from backends.settings import BackendSettings
from backends.status import BackendStatus
from gateway.errors import NotAllowed, UnknownModel
from gateway.keys import ANYBODY, Caller
from gateway.model_list import ModelList
from gateway.readiness import Readiness
from gateway.routing import Route, Routes


@dataclass
class Statuses:
    """As much of a fleet as is looked at."""

    states: dict[str, State]
    on_demand: set[str] = field(default_factory=set)
    diagnosis: Diagnosis | None = None
    phase: str = ""
    gave_room: set[str] = field(default_factory=set)

    def status(self, name: str) -> BackendStatus:
        """One backend."""
        return BackendStatus(
            name, "vllm", self.states[name], self.phase, None, "", 0.0, 0, 0, 0, None, name in self.on_demand, "",
            self.diagnosis, has_given_room=name in self.gave_room, model=name.partition("#")[0],
        )  # fmt: skip

    def statuses(self) -> list[BackendStatus]:
        """All backends."""
        return [self.status(name) for name in self.states]

    def replicas(self, model: str) -> list[BackendStatus]:
        """Those of a model."""
        return [status for status in self.statuses() if status.model == model]


ROUTES = Routes(
    Route(name, aliases, BackendSettings(name, "vllm", context_length=length), ADAPTERS["vllm"], Served(name))
    for name, aliases, length in (("a", ("default",), 4096), ("b", (), None))
)


def listed(fleet: Statuses, caller: Caller = ANYBODY) -> list[dict[str, Any]]:
    """The entries of the list."""
    answer = ModelList(ROUTES, cast("Fleet", fleet), created=5).all(caller)
    assert answer["object"] == "list"
    entries: list[dict[str, Any]] = answer["data"]
    return entries


def test_an_entry() -> None:
    """A model shows OpenAI's fields and ours."""
    assert listed(Statuses({"a": State.READY, "b": State.STOPPED})) == [
        {
            "id": "a", "object": "model", "created": 5, "owned_by": "unigate", "engine": "vllm",
            "parent": None, "aliases": ["default"],
            "max_model_len": 4096, "status": {"value": "loaded", "state": "ready"},
        },
        {
            "id": "b", "object": "model", "created": 5, "owned_by": "unigate", "engine": "vllm",
            "parent": None, "aliases": [],
            "max_model_len": None, "status": {"value": "unloaded", "state": "stopped"},
        },
    ]  # fmt: skip


@pytest.mark.parametrize("state", State)
def test_every_state_has_a_word(state: State) -> None:
    """Whatever a backend does, the list has one of llama.cpp's words for it."""
    status = listed(Statuses({"a": state, "b": state}))[0]["status"]
    assert status["value"] in ("loaded", "loading", "unloaded", "failed")
    assert status["state"] == state.value


def test_what_else_a_status_says() -> None:
    """A start shows its phase, a failure its reason and what to do about it."""
    fleet = Statuses({"a": State.FAILED, "b": State.STARTING}, diagnosis=Diagnosis("x", "It broke.", "Mend it."))
    assert listed(fleet)[0]["status"] == {
        "value": "failed", "state": "failed", "reason": "It broke.", "advice": "Mend it.",
    }  # fmt: skip
    fleet = Statuses({"a": State.STARTING, "b": State.STARTING}, phase="loading weights")
    assert listed(fleet)[0]["status"]["phase"] == "loading weights"


def test_a_model_stands_as_its_foremost_replica() -> None:
    """A model with one READY replica is loaded, and the state of each is shown."""
    status = listed(Statuses({"a#1": State.FAILED, "a#2": State.READY, "b": State.READY}))[0]["status"]
    assert status == {"value": "loaded", "state": "ready", "replicas": {"a#1": "failed", "a#2": "ready"}}


def test_a_key_sees_its_own() -> None:
    """A key is shown the models it opens; one it does not open is refused, one that is not there is unknown."""
    fleet = Statuses({"a": State.READY, "b": State.READY})
    guest = Caller("guest", ("default",))
    assert [entry["id"] for entry in listed(fleet, guest)] == ["a"]
    models = ModelList(ROUTES, cast("Fleet", fleet), created=5)
    assert models.one("default", guest)["id"] == "a"
    with pytest.raises(NotAllowed):
        models.one("b", guest)
    with pytest.raises(UnknownModel):
        models.one("c", guest)


@pytest.mark.parametrize(
    ("states", "on_demand", "is_ready"),
    [
        ({"a": State.READY, "b": State.READY}, set(), True),
        ({"a": State.READY, "b": State.STARTING}, set(), False),
        ({"a": State.READY, "b": State.STOPPED}, {"b"}, True),
        ({"a": State.READY, "b": State.FAILED}, set(), False),
        ({"a": State.STOPPED}, {"a"}, True),
        ({}, set(), True),
        ({"a#1": State.STARTING, "a#2": State.READY}, set(), True),
        ({"a#1": State.STARTING, "a#2": State.FAILED}, set(), False),
    ],
)
def test_readiness(states: dict[str, State], on_demand: set[str], is_ready: bool) -> None:
    """A gateway is ready when a replica of every startup model is; those on demand do not count."""
    found, shown = Readiness(cast("Fleet", Statuses(states, on_demand))).report()
    assert found is is_ready
    assert shown["status"] == ("ready" if is_ready else "not ready")
    assert set(shown["models"]) == {name.partition("#")[0] for name in set(states) - on_demand}


def test_a_model_that_made_room_is_no_obstacle() -> None:
    """A startup model that left for another, and comes back when asked for, keeps the gateway ready."""
    fleet = Statuses({"a": State.STOPPED}, gave_room={"a"})
    assert Readiness(cast("Fleet", fleet)).report()[0]


def test_a_draining_gateway_is_not_ready() -> None:
    """Whatever its models, a gateway that drains is not ready and says why."""
    readiness = Readiness(cast("Fleet", Statuses({"a": State.READY})))
    readiness.is_draining = True
    assert readiness.report() == (False, {"status": "draining", "models": {"a": "ready"}})
