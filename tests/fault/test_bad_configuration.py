"""Configurations that cannot work: one plain message with line and remedy, and nothing started or written."""

from __future__ import annotations

import contextlib
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from chat_templates.contract import sha256_of
from gateway.config import ModelConfig
from tests.gateways import (
    START_S,
    UNIGATE,
    environment,
    fake_model,
    free_port,
    processes_of,
    running_gateway,
    weights_in,
)

PROBLEMS, UNUSABLE = 1, 2
ENGINE = f"engines: {{vllm: {{command: [{sys.executable}, -m, tests.fake_engine]}}}}\n"
"""A line that makes vLLM the fake engine."""
BAD_CONTRACT = f"""\
unigate_contract: 1
name: bad
source: here
renderer: {{rules: transformers-5.23}}
variables: {{pinned: {{}}, free: 1}}
template: {{default: {{file: good.jinja, sha256: {sha256_of("x")}}}}}
"""
BROKEN_TEMPLATE = "{% for message in messages %}{{ message.content }}\n"


@dataclass(frozen=True)
class Case:
    """A file, and what is said of it: exit code and the whole of stderr, where FOLDER is the file's folder."""

    text: str
    code: int
    said: str
    environ: dict[str, str] = field(default_factory=dict)


CASES = {
    "unknown key": Case(
        "gateway:\n  prot: 8080\nmodels:\n  chat: {engine: vllm, weights: weights}\n",
        UNUSABLE,
        'unigate.yaml:2: gateway.prot: unknown key; did you mean "port"?',
    ),
    "unknown key of a model": Case(
        "models:\n  chat:\n    engine: vllm\n    weights: weights\n    max_model_len: 4096\n",
        UNUSABLE,
        "unigate.yaml:5: models.chat.max_model_len: unknown key; known here: " + ", ".join(ModelConfig.known_keys()),
    ),
    "missing weights": Case(
        ENGINE + "models:\n  chat:\n    engine: vllm\n    weights: models/qwen\n",
        PROBLEMS,
        "unigate.yaml:5: models.chat.weights: FOLDER/models/qwen: there is no such file or folder (FOLDER exists); "
        "correct models.chat.weights",
    ),
    "engine command not found": Case(
        "engines:\n  vllm:\n    command: envs/vllm/bin/vllm serve\nmodels:\n  chat: {engine: vllm, weights: weights}\n",
        PROBLEMS,
        "unigate.yaml:3: engines.vllm.command: the command FOLDER/envs/vllm/bin/vllm was not found; "
        "install vllm, or write its command as engines.vllm.command",
    ),
    "default command not found": Case(
        "models:\n  chat: {engine: vllm, weights: weights}\n",
        PROBLEMS,
        "unigate.yaml:1: models: the command vllm was not found; "
        "install vllm, or write its command as engines.vllm.command",
        {"PATH": "/nonexistent"},
    ),
    "two models with one name": Case(
        "models:\n  chat: {engine: vllm, weights: weights}\n  chat: {engine: vllm, weights: other}\n",
        UNUSABLE,
        "unigate.yaml:3: models.chat: is set twice, first on line 2; remove or rename one of them",
    ),
    "an alias that is a model": Case(
        "models:\n  chat: {engine: vllm, weights: weights}\n  other:\n    engine: vllm\n    weights: weights\n"
        "    aliases:\n      - chat\n",
        UNUSABLE,
        'unigate.yaml:7: models.other.aliases[0]: "chat" is already taken by models.chat (line 2); '
        "give each model and alias its own name",
    ),
    "bad YAML": Case(
        "models:\n  chat:\n    engine: vllm\n   weights: weights\n",
        UNUSABLE,
        "unigate.yaml:4: the indentation does not fit the lines above; "
        "check the indentation of this line and those above",
    ),
    "a tab": Case(
        "models:\n\tchat: {}\n",
        UNUSABLE,
        "unigate.yaml:2: a tab stands where YAML wants spaces; indent with spaces",
    ),
    "an empty file": Case("", UNUSABLE, "unigate.yaml: the file is empty; start from examples/unigate.yaml"),
    "no models": Case(
        "models: {}\n",
        UNUSABLE,
        "unigate.yaml:1: models: is empty; add at least one model",
    ),
    "missing variable": Case(
        "gateway:\n  keys:\n    - name: me\n      key: ${UNIGATE_KEY}\n"
        "models:\n  chat: {engine: vllm, weights: weights}\n",
        UNUSABLE,
        "unigate.yaml:4: gateway.keys[0].key: needs the environment variable UNIGATE_KEY, which is not set; "
        "export UNIGATE_KEY, or write ${UNIGATE_KEY:-a default}",
    ),
    "broken template": Case(
        ENGINE + "models:\n  chat:\n    engine: vllm\n    weights: weights\n    template:\n      from: broken.jinja\n",
        PROBLEMS,
        "unigate.yaml:7: models.chat.template.from: chat template FOLDER/broken.jinja:1: Unexpected end of template. "
        "Jinja was looking for the following tags: 'endfor' or 'else'. "
        "The innermost block that needs to be closed is 'for'.; correct the template or its path",
    ),
    "no template": Case(
        ENGINE + "models:\n  chat:\n    engine: vllm\n    weights: weights\n    template: {from: gone.jinja}\n",
        PROBLEMS,
        "unigate.yaml:6: models.chat.template.from: chat template FOLDER/gone.jinja: No such file or directory; "
        "correct the template or its path",
    ),
    "no contract": Case(
        ENGINE + "models:\n  chat:\n    engine: vllm\n    weights: weights\n"
        "    template: {contract: gone.contract.yaml}\n",
        PROBLEMS,
        "unigate.yaml:6: models.chat.template.contract: contract FOLDER/gone.contract.yaml: No such file or directory; "
        "correct the contract or its path; `unigate template import` makes one",
    ),
    "a contract that two hands have changed": Case(
        ENGINE + "models:\n  chat:\n    engine: vllm\n    weights: weights\n    template:\n"
        "      contract: bad.contract.yaml\n",
        PROBLEMS,
        "unigate.yaml:7: models.chat.template.contract: contract FOLDER/bad.contract.yaml:4: renderer: lacks jinja2; "
        "correct the contract or its path; `unigate template import` makes one\n"
        "unigate.yaml:7: models.chat.template.contract: contract FOLDER/bad.contract.yaml:5: variables.free: "
        "is no list; correct the contract or its path; `unigate template import` makes one",
    ),
    "a host that is not here": Case(
        "gateway: {host: 203.0.113.7, allow_unauthenticated: true}\n" + ENGINE
        + "models:\n  chat: {engine: vllm, weights: weights}\n",
        PROBLEMS,
        "unigate.yaml:1: gateway.host: 203.0.113.7 is no address of this machine; "
        "write 127.0.0.1, or 0.0.0.0 for every network",
    ),
    "an open door": Case(
        "gateway:\n  host: 0.0.0.0\nmodels:\n  chat: {engine: vllm, weights: weights}\n",
        UNUSABLE,
        "unigate.yaml:2: gateway.host: 0.0.0.0 can be reached from other machines, and no key is configured; "
        "add gateway.keys, listen on 127.0.0.1, or set gateway.allow_unauthenticated: true",
    ),
    "a state folder that is a file": Case(
        "gateway:\n  state_dir: broken.jinja/state\n" + ENGINE + "models:\n  chat: {engine: vllm, weights: weights}\n",
        PROBLEMS,
        "unigate.yaml:2: gateway.state_dir: FOLDER/broken.jinja: is not a folder; write another gateway.state_dir",
    ),
    "a log folder that is a file": Case(
        "gateway:\n  log_dir: broken.jinja/logs\n" + ENGINE + "models:\n  chat: {engine: vllm, weights: weights}\n",
        PROBLEMS,
        "unigate.yaml:2: gateway.log_dir: FOLDER/broken.jinja: is not a folder; write another gateway.log_dir",
    ),
    "two things at once": Case(
        "gateway: {prot: 1}\nmodels:\n  chat: {engine: vlm, weights: weights}\n",
        UNUSABLE,
        'unigate.yaml:1: gateway.prot: unknown key; did you mean "port"?\n'
        'unigate.yaml:3: models.chat.engine: must be "vllm", "lmdeploy", "ollama", "llamacpp" or "external", not "vlm";'
        ' did you mean "vllm"?',
    ),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weights_in(tmp_path)
    (tmp_path / "broken.jinja").write_text(BROKEN_TEMPLATE)
    (tmp_path / "good.jinja").write_text("x")
    (tmp_path / "bad.contract.yaml").write_text(BAD_CONTRACT)
    return tmp_path


def run(folder: Path, *words: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`unigate WORDS` in *folder*, after which nothing has been written there and nothing runs."""
    identity = secrets.token_hex(8)
    variables = environment(identity, folder, {"COLUMNS": "1000", **(environ or {})})
    before = sorted(folder.rglob("*"))
    done = subprocess.run(
        [UNIGATE, *words], cwd=folder, env=variables, capture_output=True, text=True, timeout=START_S, check=False
    )
    assert sorted(folder.rglob("*")) == before
    assert processes_of(identity) == {}
    assert "Traceback" not in done.stdout + done.stderr
    return done


@pytest.mark.parametrize("command", [("serve",), ("check", "--no-versions")], ids=["serve", "check"])
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_one_message(folder: Path, case: Case, command: tuple[str, ...]) -> None:
    """A bad file gives this message and this exit code, from serve and from check, and nothing else happens."""
    (folder / "unigate.yaml").write_text(case.text)
    done = run(folder, *command, "-c", "unigate.yaml", environ=case.environ)
    assert done.stderr == f"error: {case.said}\n".replace("FOLDER", str(folder))
    assert done.returncode == case.code


def test_check_shows_a_table_too(folder: Path) -> None:
    """`unigate check` prints what it looked at, good and bad, before it tells the problem."""
    (folder / "unigate.yaml").write_text(CASES["missing weights"].text)
    done = run(folder, "check", "--no-versions")
    verdicts = [line.split()[:2] for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert verdicts == [["what", "verdict"], ["gateway", "ok"], ["vllm", "ok"], ["chat", "problem"]]


def test_check_of_a_good_file(folder: Path) -> None:
    """`unigate check` of a file without a fault exits 0, with the version each engine tells."""
    vllm = folder / "vllm"
    vllm.write_text("#!/bin/sh\necho noise >&2\necho 0.32.0\n")
    vllm.chmod(0o755)
    (folder / "unigate.yaml").write_text(
        f"gateway: {{port: {free_port()}}}\nengines: {{vllm: {{command: ./vllm serve}}}}\n"
        "models:\n  chat: {engine: vllm, weights: weights}\n"
    )
    done = run(folder, "check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].split() == ["vllm", "ok", "0.32.0"]


def test_check_of_an_engine_that_cannot_run(folder: Path) -> None:
    """An engine that cannot even tell its version is a problem, with its last words."""
    vllm = folder / "vllm"
    vllm.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'torch'\" >&2\nexit 1\n")
    vllm.chmod(0o755)
    (folder / "unigate.yaml").write_text(
        f"gateway: {{port: {free_port()}}}\nengines:\n  vllm: {{command: ./vllm serve}}\n"
        "models:\n  chat: {engine: vllm, weights: weights}\n"
    )
    done = run(folder, "check")
    assert done.returncode == PROBLEMS
    assert done.stderr == (
        f"error: unigate.yaml:3: engines.vllm: {folder}/vllm did not tell its version: "
        "ModuleNotFoundError: No module named 'torch'; see that its command runs\n"
    )


@pytest.mark.parametrize("command", [("serve",), ("check", "--no-versions")], ids=["serve", "check"])
def test_a_port_in_use(folder: Path, command: tuple[str, ...]) -> None:
    """A port somebody listens on is told with its line, before any engine is started."""
    with listening() as port:
        (folder / "unigate.yaml").write_text(
            f"gateway:\n  port: {port}\n{ENGINE}models:\n  chat: {{engine: vllm, weights: weights}}\n"
        )
        done = run(folder, *command)
    assert done.stderr == (
        f"error: unigate.yaml:2: gateway.port: port {port} of 127.0.0.1 is in use; "
        "stop what listens there, or write another gateway.port\n"
    )
    assert done.returncode == PROBLEMS


@contextlib.contextmanager
def listening() -> Iterator[int]:
    """A port of 127.0.0.1 that is taken."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_state_folder_in_use(tmp_path: Path) -> None:
    """A second gateway on the same state folder is refused, naming the first by its process; the first goes on."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with running_gateway(first, {"chat": fake_model(first)}) as gateway:
        weights_in(second)
        (second / "unigate.yaml").write_text(
            f"gateway:\n  port: {free_port()}\n  state_dir: {first}/state\n{ENGINE}"
            "models:\n  chat: {engine: vllm, weights: weights}\n"
        )
        done = run(second, "serve")
        assert done.stderr == (
            f"error: unigate.yaml:3: gateway.state_dir: {first}/state: in use by another gateway "
            f"(process {gateway.process.pid}); stop it, or set another gateway.state_dir\n"
        )
        assert done.returncode == PROBLEMS
        assert gateway.ask("POST", "/v1/completions", json={"model": "chat", "prompt": "x"}).status_code == 200


@pytest.mark.parametrize("command", ["serve", "check"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "unigate.yaml: no such file; copy examples/unigate.yaml, or name another file with -c"),
        (["-c", "weights"], "weights: is a folder; name the configuration file in it"),
        (["-c", "gone/x.yaml"], "gone/x.yaml: no such file; copy examples/unigate.yaml, or name another file with -c"),
    ],
)
def test_no_file(folder: Path, command: str, words: list[str], said: str) -> None:
    """A configuration that is not there exits 2 and says where to get one."""
    done = run(folder, command, *words)
    assert (done.returncode, done.stderr) == (UNUSABLE, f"error: {said}\n")


@pytest.mark.parametrize("words", [["srve"], ["serve", "--prot", "1"], ["load"], ["logs", "chat", "-n", "-1"]])
def test_a_wrong_command_line(folder: Path, words: list[str]) -> None:
    """A command line that cannot be read exits 2 with the usage."""
    done = run(folder, *words)
    assert done.returncode == UNUSABLE
    assert done.stderr.startswith("Usage: unigate ")


def test_keep_going(tmp_path: Path) -> None:
    """--keep-going warns of what is wrong with a model, with its line, and serves the others."""
    models = {"chat": fake_model(tmp_path), "gone": {**fake_model(tmp_path), "weights": "gone"}}
    with running_gateway(tmp_path, models, words=["--keep-going"], is_ready=False) as gateway:
        assert "warning: unigate.yaml:" in gateway.printed.read_text().replace(f"{tmp_path}/", "")
        gateway.until_state("chat", "ready")
        assert gateway.ask("POST", "/v1/completions", json={"model": "chat", "prompt": "x"}).status_code == 200
