"""What can be known of a configuration before anything is started."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import socket
import sys
from pathlib import Path

import pytest

from backends.completion import write_completion
from backends.repository import RemoteFile
from backends.settings import EngineSettings
from backends.sources import HubSource
from chat_templates.contract import Contract
from chat_templates.contract_file import write_contract
from gateway.checking import (
    Finding,
    address_finding,
    command_of,
    engine_version,
    settled,
    static_findings,
    used_engines,
)
from gateway.config import Config


def config(folder: Path, **gateway: object) -> Config:
    """Two models of vLLM, whose command is this Python, and one external."""
    (folder / "weights").mkdir()
    (folder / "weights" / "config.json").write_text("{}")
    (folder / "weights" / "model.safetensors").touch()
    weights = str(folder / "weights")
    return Config.model_validate(
        {
            "gateway": {"state_dir": str(folder / "state"), **gateway},
            "engines": {"vllm": {"command": [sys.executable, "-m", "vllm"]}},
            "models": {
                "a": {"engine": "vllm", "weights": weights},
                "b": {"engine": "vllm", "weights": weights},
                "c": {"engine": "external", "url": "http://127.0.0.1:1/v1"},
            },
        }
    )


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_good_configuration(tmp_path: Path) -> None:
    """Port, command and weights are each found good, an engine once however many models use it."""
    findings = static_findings(config(tmp_path, port=free_port()), os.environ)
    assert [(finding.subject, finding.is_good) for finding in findings] == [
        ("gateway", True), ("vllm", True), ("a", True), ("b", True),
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == [tmp_path / "weights"]


def test_engines_and_their_commands(tmp_path: Path) -> None:
    """The engines in use are named once; an external server has no command, an unmentioned engine its default."""
    found = config(tmp_path)
    assert used_engines(found) == ["vllm", "external"]
    commands = {engine: command_of(settled(found, engine, {}), engine) for engine in ("vllm", "external", "llamacpp")}
    assert commands["vllm"] == (sys.executable, "-m", "vllm")
    assert commands["external"] == ()
    assert commands["llamacpp"]


@pytest.mark.parametrize(
    ("problem", "loc", "message"),
    [
        (OSError(errno.EADDRINUSE, "x"), "port", "port 80 of h is in use"),
        (OSError(errno.EACCES, "Permission denied"), "port", "port 80 of h cannot be opened: Permission denied"),
        (OSError(errno.EADDRNOTAVAIL, "x"), "host", "h is no address of this machine"),
        (socket.gaierror(-2, "x"), "host", "h is no address of this machine"),
    ],
)
def test_why_it_cannot_listen(problem: OSError, loc: str, message: str) -> None:
    """A taken port, a forbidden one and a foreign host are told apart, each with a remedy."""
    finding = address_finding("h", 80, problem)
    assert (finding.loc, finding.message, finding.is_good) == (("gateway", loc), message, False)
    assert finding.remedy


@pytest.mark.parametrize(
    ("script", "is_good", "message"),
    [
        ("echo log >&2; echo; echo 1.2.3", True, "1.2.3"),
        ("echo 1.2.3 >&2", True, "1.2.3"),
        ("echo broken >&2; exit 3", False, "COMMAND did not tell its version: broken"),
        ("exit 3", False, "COMMAND did not tell its version: exit code 3"),
        (None, False, "COMMAND: No such file or directory"),
    ],
)
def test_an_engines_version(tmp_path: Path, script: str | None, is_good: bool, message: str) -> None:
    """The version is the last line of what the engine prints; a failure comes with its last words."""
    command = tmp_path / "engine"
    if script is not None:
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)
    found = engine_version("vllm", EngineSettings(command=(str(command), "serve")))
    assert found == (is_good, message.replace("COMMAND", str(command)))


def test_an_external_server_is_not_asked() -> None:
    """There is nothing to run for a server that is not ours."""
    assert engine_version("external", EngineSettings()) == (True, "nothing to ask")


@pytest.mark.parametrize(
    ("keys", "loc", "words"),
    [
        ({"memory_gib": 90_000}, "memory_gib", "It needs 90000.0 GiB, and this machine has"),
        ({"gpus": [63]}, "gpus", "It is to run on GPU 63, and there"),
    ],
)
def test_a_model_that_never_fits(tmp_path: Path, keys: dict[str, object], loc: str, words: str) -> None:
    """A model that could not run here if it had the machine to itself is a problem, with the figures."""
    models = {"a": {"engine": "llamacpp", "weights": str(tmp_path / "m.gguf"), **keys}}
    findings = static_findings(Config.model_validate({"gateway": {"port": free_port()}, "models": models}), {})
    (found,) = [finding for finding in findings if finding.loc == ("models", "a", loc)]
    assert not found.is_good
    assert found.message.startswith(words)


def test_startup_models_that_take_turns(tmp_path: Path) -> None:
    """Models to be loaded at startup that do not fit together are worth a look, and no problem."""
    model = {"engine": "llamacpp", "weights": str(tmp_path / "m.gguf"), "memory_gib": 6}
    document = {
        "gateway": {"port": free_port(), "memory_gib": 10},
        "models": {"a": model, "b": model, "c": {**model, "load": "on_demand"}},
    }
    found = [finding for finding in static_findings(Config.model_validate(document), {}) if finding.is_doubtful]
    assert [(finding.loc, finding.is_good) for finding in found] == [(("models", "b", "load"), True)]
    assert found[0].message == "does not fit beside a, also loaded at startup: they will take turns"


def lora_config(folder: Path, base_model: str) -> Config:
    """The model `a` with two adapters: one in order, trained on *base_model*, and one that is not there."""
    adapter = folder / "sql"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 8, "base_model_name_or_path": base_model}))
    (adapter / "adapter_model.safetensors").touch()
    document = config(folder, port=free_port()).model_dump(include={"gateway": {"port"}})
    models = {
        "a": {"engine": "vllm", "weights": str(folder / "weights")},
        "sql": {"base": "a", "adapter": str(adapter)},
        "law": {"base": "a", "adapter": str(folder / "law")},
    }
    return Config.model_validate({**document, "engines": {"vllm": {"command": [sys.executable]}}, "models": models})


@pytest.mark.parametrize(("base_model", "is_doubtful"), [("org/Weights", False), ("org/other", True)])
def test_adapters(tmp_path: Path, base_model: str, is_doubtful: bool) -> None:
    """Each adapter is looked at under its own name; one trained on another model is good, and worth a look."""
    found = {finding.subject: finding for finding in static_findings(lora_config(tmp_path, base_model), os.environ)}
    assert (found["sql"].is_good, found["sql"].is_doubtful) == (True, is_doubtful)
    assert ("was trained on org/other" in found["sql"].message) is is_doubtful
    assert not found["law"].is_good
    assert found["law"].loc == ("models", "law", "adapter")


def on_hub(folder: Path, **gateway: object) -> Config:
    """A model on a hub, downloaded below *folder* or not."""
    return Config.model_validate(
        {
            "gateway": {"state_dir": str(folder / "state"), "models_dir": str(folder / "models"), **gateway},
            "engines": {"vllm": {"command": [sys.executable, "-m", "vllm"]}},
            "models": {"m": {"engine": "vllm", "weights": "hf:org/m"}},
        }
    )


def finding_of(config: Config) -> Finding:
    """What is found of the model's weights."""
    (finding,) = [one for one in static_findings(config, os.environ) if one.loc == ("models", "m", "weights")]
    return finding


def test_a_model_that_will_be_downloaded(tmp_path: Path) -> None:
    """Weights on a hub that are not here yet are no problem: what will happen is told, and where."""
    finding = finding_of(on_hub(tmp_path))
    assert finding.is_good
    assert f"hf:org/m will be downloaded into {tmp_path}/models/hf/org/m (" in finding.message
    assert "unigate pull" in finding.message
    assert not (tmp_path / "models").exists()


def test_a_model_that_was_downloaded(tmp_path: Path) -> None:
    """A complete source is told with its size; one that the engine cannot load is a problem."""
    folder = tmp_path / "models" / "hf" / "org" / "m"
    (folder / ".unigate").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(2000))
    files = [RemoteFile("config.json", 2), RemoteFile("model.safetensors", 2000)]
    write_completion(HubSource("hf", "org/m"), tmp_path / "models", "c0ffee", files)
    finding = finding_of(on_hub(tmp_path))
    assert (finding.is_good, finding.message) == (True, f"hf:org/m is complete: 2.0 kB in {folder}")
    (folder / "config.json").write_text("{x")
    assert not finding_of(on_hub(tmp_path)).is_good


def test_a_model_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is a file, and a library that is missing, are problems with their remedies."""
    (tmp_path / "file").touch()
    finding = finding_of(on_hub(tmp_path, models_dir=str(tmp_path / "file" / "models")))
    assert (finding.is_good, finding.remedy) == (False, "write another gateway.models_dir")
    assert f"{tmp_path}/file is not a folder" in finding.message
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    finding = finding_of(on_hub(tmp_path))
    assert (finding.is_good, finding.remedy) == (False, f"run: {sys.executable} -m pip install 'unigate[sources]'")


def test_an_ollama_that_runs_elsewhere(tmp_path: Path) -> None:
    """It is not looked for on the PATH; a published model is left to it."""
    read = Config.model_validate(
        {
            "gateway": {"state_dir": str(tmp_path), "port": free_port()},
            "engines": {"ollama": {"url": "http://127.0.0.1:11434"}},
            "models": {"a": {"engine": "ollama", "weights": "ollama:qwen2.5:7b"}},
        }
    )
    findings = static_findings(read, {})
    assert all(finding.is_good for finding in findings)
    shown = [finding.message for finding in findings]
    assert "runs elsewhere, at http://127.0.0.1:11434; it is not asked" in shown
    assert "ollama:qwen2.5:7b, which ollama gets itself at the first start" in shown


def test_an_ollama_that_is_missing(tmp_path: Path) -> None:
    """The remedy says where it comes from."""
    read = Config.model_validate(
        {
            "gateway": {"state_dir": str(tmp_path), "port": free_port()},
            "models": {"a": {"engine": "ollama", "weights": "ollama:qwen2.5:7b"}},
        }
    )
    (finding,) = [finding for finding in static_findings(read, {"PATH": ""}) if not finding.is_good]
    assert finding.message == "the command ollama was not found"
    assert finding.remedy.startswith("install it as https://ollama.com/download says")


def test_a_contract_is_read_with_the_rest(tmp_path: Path) -> None:
    """A good contract is told by its hash, a bad one by each of its problems with file and line."""
    document = {"engine": "vllm", "weights": str(tmp_path)}
    contract = Contract("tuned", {"default": "{{ messages[0].content }}"}, "here")
    file = write_contract(contract, tmp_path)

    def found() -> list[Finding]:
        models = {"m": {**document, "template": {"contract": str(file)}}}
        findings = static_findings(Config.model_validate({"models": models}), os.environ)
        return [one for one in findings if one.loc == ("models", "m", "template", "contract")]

    (finding,) = found()
    assert (finding.is_good, contract.hash[:12] in finding.message) == (True, True)
    file.write_text(file.read_text().replace("tokenizer:", "tokeniser:").replace("messages:", "mesages:"))
    assert [one.is_good for one in found()] == [False, False]
    assert all(one.message.startswith(f"contract {file}:") and one.remedy for one in found())
