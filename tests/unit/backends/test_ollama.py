"""The Ollama adapter: its daemon's command and environment, and what it says of a model's settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.adapter import Daemon, LaunchSpec
from backends.address import Address
from backends.diagnosis import ExitStatus
from backends.engines.ollama import Ollama, OllamaDaemon
from backends.environments import Environment
from backends.settings import BackendSettings, EngineSettings, Timing
from backends.sources import OllamaName

PLACE = Address(host="127.0.0.1", port=18000)
OLLAMA = Ollama()


def models(*names: str, **others: Any) -> list[BackendSettings]:
    """Models on Ollama."""
    return [BackendSettings(name, "ollama", weights=Path(f"/m/{name}.gguf"), **others) for name in names]


def daemon(engine: EngineSettings, first: BackendSettings | None = None) -> Daemon:
    """The daemon of these models."""
    found = OLLAMA.daemon(first or models("a")[0], engine)
    assert found is not None
    return found


def daemon_spec(engine: EngineSettings) -> LaunchSpec:
    """Its run."""
    found = daemon(engine)
    return found.adapter.launch_spec(found.backend, engine, PLACE, Path("/runs/ollama"))


def test_the_daemon() -> None:
    """One `ollama serve`, on loopback, that unloads and evicts nothing by itself and talks to no cloud."""
    spec = daemon_spec(EngineSettings())
    assert spec.argv == ("ollama", "serve")
    assert spec.address == PLACE
    assert spec.env == {
        "OLLAMA_HOST": "127.0.0.1:18000",
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_MAX_LOADED_MODELS": "1000",
        "OLLAMA_GO_TEMPLATE": "0",
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_NOHISTORY": "1",
    }
    assert {"OLLAMA_DEBUG_LOG_REQUESTS", "LLAMA_ARG_CHAT_TEMPLATE_FILE", "OLLAMA_MODELS"} <= set(spec.env_removed)


def test_the_daemon_with_everything() -> None:
    """Typed settings become variables; those that the operator writes himself win."""
    engine = EngineSettings(
        command=("/opt/ollama/bin/ollama", "serve"),
        env={"OLLAMA_CONTEXT_LENGTH": "8192", "OLLAMA_KEEP_ALIVE": "1h"},
        models_dir=Path("/data/ollama"),
        num_parallel=4,
        go_templates=True,
    )
    spec = daemon_spec(engine)
    assert spec.argv == ("/opt/ollama/bin/ollama", "serve")
    assert spec.env == {
        "OLLAMA_HOST": "127.0.0.1:18000",
        "OLLAMA_KEEP_ALIVE": "1h",
        "OLLAMA_MAX_LOADED_MODELS": "1000",
        "OLLAMA_GO_TEMPLATE": "1",
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_NOHISTORY": "1",
        "OLLAMA_MODELS": "/data/ollama",
        "OLLAMA_NUM_PARALLEL": "4",
        "OLLAMA_CONTEXT_LENGTH": "8192",
    }


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:11434", Address(host="127.0.0.1", port=11434, base_path="")),
        ("http://box", Address(host="box", port=11434, base_path="")),
        ("https://box", Address(host="box", port=443, tls=True, base_path="")),
    ],
)
def test_a_daemon_that_runs_already(url: str, address: Address) -> None:
    """Nothing is started, and nothing can be asked for its version."""
    spec = daemon_spec(EngineSettings(url=url))
    assert (spec.argv, spec.address) == ((), address)
    assert OLLAMA.version_argv(EngineSettings(url=url)) is None


def test_the_daemons_clocks_and_life() -> None:
    """It starts with its first model, and its drain outlasts those of its residents."""
    found = daemon(EngineSettings(), *models("a", timing=Timing(drain_timeout_s=40, backoff_base_s=3)))
    assert found.backend.on_demand
    assert found.backend.name == OLLAMA.daemon_name == "ollama"
    assert found.backend.timing.drain_timeout_s > 40
    assert found.backend.timing.backoff_base_s == 3
    assert found.adapter.daemon(found.backend, EngineSettings()) is None


def test_a_model_is_a_resident() -> None:
    """Its run has no process: a residence at the daemon's address, with a grace of its own."""
    (backend,) = models("a")
    spec = OLLAMA.launch_spec(backend, EngineSettings(), PLACE, Path("/runs/a"))
    assert (spec.argv, spec.address) == ((), PLACE)
    assert spec.residence is not None
    assert spec.stop_grace_s > 0
    timed = models("a", timing=Timing(stop_grace_s=1.5))[0]
    assert OLLAMA.launch_spec(timed, EngineSettings(), PLACE, Path("/r")).stop_grace_s == 1.5


@pytest.mark.parametrize("name", ["num_ctx", "template", "temprature", "top_k"])
def test_parameters_are_checked(name: str) -> None:
    """What the gateway sets, what Ollama would pass over, and a wrong kind are refused by name."""
    (objection,) = OLLAMA.objections(models("a", args={name: "x"})[0])
    assert objection.path == ("args", name)
    assert objection.remedy


def test_settings_without_effect() -> None:
    """A model's own environment, and a template for a published model."""
    (objection,) = OLLAMA.objections(models("a", env={"A": "1"})[0])
    assert objection.path == ("env",)
    backend = BackendSettings("a", "ollama", source=OllamaName("qwen:1b"), template_file=Path("/t"))
    (objection,) = OLLAMA.objections(backend)
    assert objection.path == ("template",)
    for others in ({"replica_of": "x"}, {"gpus": (0,)}):
        (objection,) = OLLAMA.objections(models("a", **others)[0])
        assert "has no effect" in objection.message
    assert OLLAMA.objections(models("a", args={"temperature": 0.5, "stop": ("a", "b")})[0]) == []


def test_phases_are_the_daemons_words() -> None:
    """Marked lines name what is done for a model; others of its log do not."""
    assert OLLAMA.phase("[daemon] downloading 43% of 1.0 GB") == "downloading 43% of 1.0 GB"
    assert OLLAMA.phase("[unigate 2026] run 1") is None


def test_versions() -> None:
    """Of the program before ``serve``."""
    assert OLLAMA.version_argv(EngineSettings()) == ("ollama", "--version")
    assert OLLAMA.version_argv(EngineSettings(command=("/o/ollama", "serve"))) == ("/o/ollama", "--version")


def test_a_conda_package_has_the_program() -> None:
    """``ollama`` of an environment; none where it is missing."""
    bare = Environment(Path("/env"), Path("/env/bin/python"), is_conda=True)
    assert OLLAMA.command_in(bare) is None
    environment = replace(bare, programs={"ollama": Path("/env/bin/ollama")})
    assert OLLAMA.command_in(environment) == ("/env/bin/ollama", "serve")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("Error: listen tcp 127.0.0.1:18000: bind: address already in use", "port_in_use"),
        ("Error: mkdir /data/ollama: permission denied", "models_dir_unusable"),
        ("Error: $HOME is not defined", "home_missing"),
        ("Error: something new", "crashed"),
    ],
)
def test_why_the_daemon_ended(line: str, code: str) -> None:
    """From its last words."""
    assert OllamaDaemon().diagnose(ExitStatus(code=1), ["noise", line]).code == code
