"""Engines that give their GPU memory back without ending: how they are asked, and where they may be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from backends.adapter import Adapter, Call
from backends.address import Address
from backends.engines import ADAPTERS
from backends.settings import BackendSettings, EngineSettings

UDS = Address(uds="/run/m.sock")
TCP = Address(host="127.0.0.1", port=18000)
SLEEPERS = [adapter for adapter in ADAPTERS.values() if any(option.name == "sleep" for option in adapter.options)]
every_sleeper = pytest.mark.parametrize("adapter", SLEEPERS, ids=lambda adapter: adapter.engine)


def backend_of(adapter: Adapter, **options: bool) -> BackendSettings:
    return BackendSettings(name="m", engine=adapter.engine, weights=Path("/models/m"), options=options)


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
def test_nobody_sleeps_unasked(adapter: Adapter) -> None:
    """Without the option, or with false, there are no calls; an engine that cannot sleep has no such option."""
    assert adapter.sleep(backend_of(adapter)) is None
    assert adapter.sleep(backend_of(adapter, sleep=False)) is None


@every_sleeper
def test_how_it_is_asked(adapter: Adapter) -> None:
    """To sleep and to wake are posts with a JSON body, whether it sleeps is a get; none is what clients may ask for."""
    sleep = adapter.sleep(backend_of(adapter, sleep=True))
    assert sleep is not None
    for call in (sleep.sleep, *sleep.wake):
        assert (call.method, call.body) == ("POST", {})
    assert sleep.is_sleeping == Call("GET", "/is_sleeping")
    assert sleep.sockets & adapter.sockets
    for call in (sleep.sleep, *sleep.wake, sleep.is_sleeping):
        assert not any(endpoint in call.target for endpoint in adapter.endpoints)


def test_vllm_opens_its_development_endpoints_to_nobody_else() -> None:
    """They exist on a Unix socket of a backend that may sleep; never on a port, never without being asked for."""
    vllm = ADAPTERS["vllm"]
    for place, backend, is_open in (
        (UDS, backend_of(vllm, sleep=True), True),
        (TCP, backend_of(vllm, sleep=True), False),
        (UDS, backend_of(vllm), False),
    ):
        spec = vllm.launch_spec(backend, EngineSettings(), place, Path("/state/runs/m"))
        assert ("VLLM_SERVER_DEV_MODE" in spec.env) is is_open
        assert "VLLM_SERVER_DEV_MODE" in spec.env_removed, "the gateway's own environment may hold it"
    by_hand = EngineSettings(env={"VLLM_SERVER_DEV_MODE": "1"})
    assert vllm.launch_spec(backend_of(vllm), by_hand, TCP, Path("/state/runs/m")).env == {}
    sleep = vllm.sleep(backend_of(vllm, sleep=True))
    assert sleep is not None
    assert sleep.sockets == {"unix"}


def test_vllm_is_not_opened_by_hand() -> None:
    """The variable that opens them is refused among a model's own, with what to write instead."""
    backend = replace(backend_of(ADAPTERS["vllm"]), env={"VLLM_SERVER_DEV_MODE": "1"})
    (objection,) = ADAPTERS["vllm"].objections(backend)
    assert objection.path == ("env", "VLLM_SERVER_DEV_MODE")
    assert "options.sleep" in objection.remedy
