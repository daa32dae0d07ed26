"""What a new configuration changes of a running gateway."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.prompting import Prompting
from backends.settings import BackendSettings, EngineSettings, Timing
from chat_templates.contract import Contract
from gateway.config import Config
from gateway.config_values import Origin
from gateway.reload_plan import LIVE, ModelPlan, Wanted, as_started, is_left_open, plan_reload

ENGINE = EngineSettings(("vllm", "serve"))


def backends(model: str, replicas: int = 1, engine: EngineSettings = ENGINE, **settings: Any) -> dict[str, Wanted]:
    """The backends of a model, as a configuration has them."""
    names = [model] if replicas == 1 else [f"{model}#{number + 1}" for number in range(replicas)]
    fields = {"engine": "vllm", "weights": Path("/w"), **settings}
    return {
        name: Wanted(BackendSettings(name, replica_of=model if name != model else "", **fields), engine)
        for name in names
    }


def gateway(**keys: Any) -> Any:
    """A gateway's section."""
    document = {"gateway": keys, "models": {"m": {"engine": "vllm", "weights": "/w"}}}
    return Config.model_validate(document, context=Origin(Path("/"), {})).gateway


def plan(before: dict[str, Wanted], after: dict[str, Wanted]) -> dict[str, ModelPlan]:
    """The plans of the models."""
    return {one.model: one for one in plan_reload(before, after, gateway(), gateway()).models}


def test_nothing_changes() -> None:
    """Equal settings are unchanged, whatever object they are."""
    assert plan(backends("m", 2), backends("m", 2)) == {"m": ModelPlan("m", unchanged=("m#1", "m#2"))}


@pytest.mark.parametrize(
    "change",
    [
        {"weights": Path("/other")},
        {"args": {"max-model-len": 5}},
        {"env": {"A": "b"}},
        {"context_length": 5},
        {"template_file": Path("/t")},
        {"template_digest": "abc"},
        {"prompting": Prompting(Contract("c", {"default": "x"}, "here"), Path("/c"))},
        {"engine": EngineSettings(("other",))},
    ],
)
def test_what_its_engine_would_notice_restarts_it(change: dict[str, Any]) -> None:
    """Another command line, environment or template content is a restart."""
    engine = change.pop("engine", ENGINE)
    found = plan(backends("m"), backends("m", engine=engine, **change))
    assert found["m"].restarted == ("m",)
    assert found["m"].is_at_once


@pytest.mark.parametrize(
    "change",
    [{"on_demand": True}, {"idle_unload_s": 5.0}, {"timing": Timing(drain_timeout_s=1)}, {"readiness": "embed"}],
)
def test_what_only_the_gateway_reads_restarts_nothing(change: dict[str, Any]) -> None:
    """Clocks, and when it is loaded, are changed while it runs."""
    assert plan(backends("m"), backends("m", **change)) == {"m": ModelPlan("m", adjusted=("m",), is_at_once=True)}


def test_models_come_and_go() -> None:
    """A model that is not wanted any more is gone, one that was not there is new."""
    found = plan(backends("old"), backends("new", 2))
    assert found["new"] == ModelPlan("new", added=("new#1", "new#2"))
    assert found["new"].is_new
    assert found["old"].removed == ("old",)
    assert found["old"].is_gone


def test_more_and_fewer_replicas() -> None:
    """Replicas are added and removed at the end, and the others are not touched."""
    more = plan(backends("m", 2), backends("m", 4))["m"]
    assert (more.unchanged, more.added, more.restarted) == (("m#1", "m#2"), ("m#3", "m#4"), ())
    fewer = plan(backends("m", 3), backends("m", 2))["m"]
    assert (fewer.unchanged, fewer.removed) == (("m#1", "m#2"), ("m#3",))


def test_one_becomes_several_and_several_one() -> None:
    """One backend hands over to the first of several, after the others have been added; and the other way round."""
    more = plan(backends("m"), backends("m", 3))["m"]
    assert (more.replaced, more.added, more.removed) == ((("m", "m#1"),), ("m#2", "m#3"), ())
    fewer = plan(backends("m", 3), backends("m"))["m"]
    assert (fewer.replaced, fewer.added, fewer.removed) == ((("m#1", "m"),), (), ("m#2", "m#3"))
    assert not fewer.is_gone
    assert not more.is_new


def test_replicas_are_rolled_unless_they_get_another_engine() -> None:
    """Changed replicas are restarted one at a time; all at once when requests must be prepared for another engine."""
    assert not plan(backends("m", 2), backends("m", 2, context_length=5))["m"].is_at_once
    other = {
        name: replace(one, backend=replace(one.backend, engine="llamacpp")) for name, one in backends("m", 2).items()
    }
    assert plan(backends("m", 2), other)["m"].is_at_once


def test_the_gateways_own_keys() -> None:
    """Changed keys are applied, or left for the next start; the backends do not notice."""
    was, will_be = gateway(port=1000), gateway(port=1001, access_log=False, keys=[{"name": "me", "key": "sk-1"}])
    found = plan_reload(backends("m"), backends("m"), was, will_be)
    assert set(found.applied) == {"access_log", "keys"}
    assert set(found.deferred) == {"port", "state_dir", "log_dir"}
    assert found.backends("unchanged") == ["m"]
    held = as_started(was, will_be)
    assert (held.port, held.state_dir, held.access_log, held.keys) == (1000, was.state_dir, False, will_be.keys)


def test_every_live_key_is_a_key() -> None:
    """What is said to be applied at once is there."""
    assert set(type(gateway()).model_fields) >= LIVE


def test_a_replaced_pair_is_one_removed_and_one_added() -> None:
    """People are told of names: those that go and those that come."""
    found = plan_reload(backends("m"), backends("m", 2), gateway(), gateway())
    assert (found.backends("added"), found.backends("removed")) == (["m#2", "m#1"], ["m"])


@pytest.mark.parametrize(
    ("host", "keys", "is_open"),
    [
        ("0.0.0.0", {}, True),
        ("127.0.0.1", {}, False),
        ("0.0.0.0", {"keys": [{"name": "me", "key": "sk-1"}]}, False),
        ("0.0.0.0", {"allow_unauthenticated": True}, False),
    ],
)
def test_the_last_key_is_not_taken_away_from_an_open_address(host: str, keys: dict[str, Any], is_open: bool) -> None:
    """A gateway that goes on listening beyond this machine needs a key, whatever host the new file names."""
    assert is_left_open(host, gateway(**keys)) is is_open
