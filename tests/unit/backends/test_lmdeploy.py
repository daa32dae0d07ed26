"""LMDeploy's adapter: its settings as a command line, its template as files, what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.adapter import Call, LaunchSpec, Link, LinkedFolder, TokenizeAnswer, TokenizeRequest, Unsupported
from backends.address import Address
from backends.diagnosis import ExitStatus
from backends.engines.lmdeploy import LmDeploy
from backends.environments import Environment
from backends.lifecycle import State
from backends.settings import ArgValue, BackendSettings, EngineSettings, LoraAdapter
from tests.unit.backends.fakes import CALM, living_backend

BACKEND = BackendSettings(name="m", engine="lmdeploy", weights=Path("/models/m"))
PLACE = Address(host="127.0.0.1", port=18000)
FOLDER = Path("/state/runs/m")
TEMPLATE = Path("/t/chat.jinja")
USER: dict[str, Any] = {"role": "user", "content": "Hi"}


def spec_of(backend: BackendSettings = BACKEND, engine: EngineSettings | None = None) -> LaunchSpec:
    return LmDeploy().launch_spec(backend, engine or EngineSettings(), PLACE, FOLDER)


SETTINGS: dict[str, tuple[dict[str, ArgValue], list[str]]] = {
    "engine": ({"backend": "pytorch"}, ["--backend", "pytorch"]),
    "tensor parallel": ({"tp": 2}, ["--tp", "2"]),
    "KV cache in 8 bits": ({"quant-policy": 8}, ["--quant-policy", "8"]),
    "weights in AWQ": ({"model-format": "awq"}, ["--model-format", "awq"]),
    "cache": ({"cache-max-entry-count": 0.5}, ["--cache-max-entry-count", "0.5"]),
    "batch": ({"max_batch_size": 64}, ["--max_batch_size", "64"]),
    "prefix cache": ({"enable-prefix-caching": True}, ["--enable-prefix-caching"]),
    "no metrics": ({"disable-metrics": False}, []),
    "parsers": (
        {"tool-call-parser": "qwen", "reasoning-parser": "default"},
        ["--tool-call-parser", "qwen", "--reasoning-parser", "default"],
    ),
}


@pytest.mark.parametrize(("args", "expected"), SETTINGS.values(), ids=SETTINGS)
def test_each_setting(args: dict[str, ArgValue], expected: list[str]) -> None:
    """What an operator writes under args follows what the gateway writes, as LMDeploy's options."""
    plain = spec_of().argv
    assert list(spec_of(replace(BACKEND, args=args)).argv) == [*plain, *expected]


def test_it_never_listens_to_the_network() -> None:
    """The address is always given: LMDeploy's own default is every interface."""
    argv = spec_of().argv
    assert argv[argv.index("--server-name") + 1] == "127.0.0.1"
    assert LmDeploy().sockets == {"tcp"}


def test_the_template_is_never_left_to_the_path() -> None:
    """Without a template of the operator's, the weights' own is named, and no file is needed."""
    spec = spec_of(replace(BACKEND, weights=Path("/models/mistral-instruct-exp")))
    assert spec.argv[spec.argv.index("--chat-template") + 1] == "hf"
    assert spec.files == {}


def test_a_template_becomes_an_overlay() -> None:
    """The operator's Jinja stands in a folder like the weights' without any other template, and a JSON names it."""
    spec = spec_of(replace(BACKEND, template_file=TEMPLATE))
    named = spec.argv[spec.argv.index("--chat-template") + 1]
    assert named == "/state/runs/m/chat_template.json"
    assert list(spec.files) == ["template", "template/chat_template.jinja", "chat_template.json"]
    overlay = spec.files["template"]
    assert isinstance(overlay, LinkedFolder)
    assert overlay.origin == BACKEND.weights
    assert {"chat_template.jinja", "chat_template.json", "additional_chat_templates"} <= overlay.without
    assert spec.files["template/chat_template.jinja"] == Link(TEMPLATE)
    text = spec.files["chat_template.json"]
    assert isinstance(text, str)
    assert json.loads(text) == {"model_name": "hf", "model_path": "/state/runs/m/template"}


async def test_a_run_has_its_files_while_it_lives(tmp_path: Path) -> None:
    """On a TCP place whatever the default socket; the overlay is there from before the spawn until the run is gone."""
    template, weights, folder = tmp_path / "t.jinja", tmp_path / "weights", tmp_path / "runs" / "Qwen%2FQwen3"
    template.write_text("{{ 1 }}")
    weights.mkdir()
    backend = replace(BACKEND, name="Qwen/Qwen3", weights=weights, template_file=template, timing=CALM)
    async with living_backend(tmp_path, backend) as world:
        run = await world.ready()
        assert run.spec.address.port
        assert (folder / "template" / "chat_template.jinja").read_text() == "{{ 1 }}"
        assert json.loads((folder / "chat_template.json").read_text())["model_path"] == str(folder / "template")
        await world.supervisor.request_stop()
        await world.supervisor.settled(State.STOPPED)
        assert not folder.exists()


async def test_a_template_that_is_gone_fails_the_start(tmp_path: Path) -> None:
    """Nothing is spawned, and the diagnosis names the file, for good."""
    backend = replace(BACKEND, weights=tmp_path, template_file=tmp_path / "gone.jinja", timing=CALM)
    async with living_backend(tmp_path, backend) as world:
        await world.supervisor.request_start()
        await world.supervisor.settled(State.FAILED)
        diagnosis = world.supervisor.status().diagnosis
        assert diagnosis is not None
        assert diagnosis.code == "file_missing"
        assert "gone.jinja" in diagnosis.reason
        assert world.launcher.runs == []


def test_health_is_polled_often_unless_the_operator_says_otherwise() -> None:
    """LMDeploy's /health shows a dead engine process within seconds, its timeout below its pause."""
    env = spec_of().env
    assert float(env["LMDEPLOY_HEALTH_PROBE_TIMEOUT"]) < float(env["LMDEPLOY_HEALTH_POLL_INTERVAL"]) < 3
    set_by_operator = spec_of(replace(BACKEND, env={"LMDEPLOY_HEALTH_POLL_INTERVAL": "30"})).env
    assert set_by_operator["LMDEPLOY_HEALTH_POLL_INTERVAL"] == "30"


AS_MODULE = ("/env/bin/python", "-m", "lmdeploy")


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        ((), ("lmdeploy", "--version")),
        (("/env/bin/lmdeploy", "serve", "api_server"), ("/env/bin/lmdeploy", "--version")),
        ((*AS_MODULE, "serve", "api_server"), (*AS_MODULE, "--version")),
        (("/opt/start-lmdeploy",), ("/opt/start-lmdeploy", "--version")),
    ],
)  # fmt: skip
def test_its_version(command: tuple[str, ...], argv: tuple[str, ...]) -> None:
    """What stands before `serve` is asked."""
    assert LmDeploy().version_argv(EngineSettings(command=command)) == argv


def test_its_command_in_an_environment() -> None:
    """The environment's program, else its module, else nothing."""
    python = Path("/env/bin/python")
    bare = Environment(Path("/env"), python)
    assert LmDeploy().command_in(bare) is None
    module = replace(bare, distributions={"lmdeploy": "0.18.0"})
    assert LmDeploy().command_in(module) == ("/env/bin/python", "-m", "lmdeploy", "serve", "api_server")
    program = replace(module, programs={"lmdeploy": Path("/env/bin/lmdeploy")})
    assert LmDeploy().command_in(program) == ("/env/bin/lmdeploy", "serve", "api_server")


def with_adapters(*names: str, **others: Any) -> BackendSettings:
    """The backend with an adapter of each name."""
    return replace(BACKEND, adapters=tuple(LoraAdapter(name, Path("/l", name)) for name in names), **others)


@pytest.mark.parametrize("name", ["vicuna", "hf", "mistral"])
def test_an_adapter_may_not_be_called_as_a_template(name: str) -> None:
    """LMDeploy would give its requests the template of that name, so the name is refused where it is written."""
    (objection,) = LmDeploy().objections(with_adapters("sql", name))
    assert (objection.model, objection.path) == (name, ())
    assert "template of that name" in objection.message


def test_an_adapter_may_not_have_an_equals_sign() -> None:
    """LMDeploy cuts NAME=PATH at the first one."""
    (objection,) = LmDeploy().objections(with_adapters("a=b"))
    assert objection.model == "a=b"


def test_other_adapters_are_served_by_the_pytorch_engine() -> None:
    """Adapters choose the engine that takes them, unless it has been chosen already."""
    assert list(LmDeploy().objections(with_adapters("sql", "law"))) == []
    added = ["--adapters", "sql=/l/sql", "law=/l/law"]
    assert list(spec_of(with_adapters("sql", "law")).argv[-5:]) == ["--backend", "pytorch", *added]
    assert spec_of(with_adapters("sql", options={"backend": "pytorch"})).argv.count("--backend") == 1
    assert spec_of(with_adapters("sql", args={"backend": "pytorch"})).argv.count("--backend") == 1


@pytest.mark.parametrize("chosen", [{"options": {"backend": "turbomind"}}, {"args": {"backend": "turbomind"}}])
def test_turbomind_takes_no_adapters(chosen: dict[str, Any]) -> None:
    """TurboMind with adapters is refused in words, at the choice; without them it is fine."""
    (objection,) = LmDeploy().objections(with_adapters("sql", **chosen))
    assert objection.path == (next(iter(chosen)), "backend")
    assert "takes no LoRA adapters, and this model has sql" in objection.message
    assert list(LmDeploy().objections(replace(BACKEND, **chosen))) == []


def test_a_file_is_no_model(tmp_path: Path) -> None:
    """A GGUF file, which other engines take, is refused by name."""
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF")
    problem = LmDeploy().weights_problem(gguf)
    assert problem is not None
    assert "takes a model folder" in problem


TOKENIZED = [
    (
        TokenizeRequest("Hi", None, add_special_tokens=False),
        {"input": "Hi", "add_bos": False},
    ),
    (
        TokenizeRequest(None, [USER], add_special_tokens=False),
        {"input": "Hi", "do_preprocess": True, "add_bos": True},
    ),
]


@pytest.mark.parametrize(("request_", "body"), TOKENIZED, ids=["prompt", "one user message"])
def test_tokenize(request_: TokenizeRequest, body: dict[str, Any]) -> None:
    """One call to /v1/encode; a rendered message is encoded as the chat path encodes it."""
    plan = LmDeploy().tokenize(request_)
    assert next(plan) == Call("POST", "/v1/encode", body)
    with pytest.raises(StopIteration) as end:
        plan.send({"input_ids": [26843], "length": 1})
    assert end.value.value == TokenizeAnswer([26843])


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [USER, {"role": "assistant", "content": "Yes?"}, USER],
        [{"role": "system", "content": "Be brief."}],
        [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        [{**USER, "name": "ada"}],
        ["Hi"],
    ],
)
def test_a_conversation_is_not_tokenised(messages: list[Any]) -> None:
    """What /v1/encode would render differently from the chat path is refused before any call, not guessed."""
    with pytest.raises(Unsupported, match="single user message"):
        LmDeploy().tokenize(TokenizeRequest(None, messages, add_special_tokens=True))


def test_no_open_prompt() -> None:
    """Without the generation prompt, nothing is what /v1/encode renders."""
    request = TokenizeRequest(None, [USER], add_special_tokens=True, add_generation_prompt=False)
    with pytest.raises(Unsupported):
        LmDeploy().tokenize(request)


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        ("Loading weights from safetensors:  50%|#####     | 1/2", "loading weights"),
        ("Loading:  12%|#         | 3/24", "loading weights"),
        ("INFO:     Application startup complete.", "starting the server"),
    ],
)
def test_phases(line: str, phase: str) -> None:
    """Known lines of its log name the phase of a start."""
    assert LmDeploy().phase(line) == phase


def test_the_reason_above_a_dead_engine_process_wins() -> None:
    """The engine process's own last words explain the server's end, which only says that the process is gone."""
    tail = [
        "RuntimeError: No enough gpu memory for kv cache.",
        "lmdeploy.pytorch.engine.mp_engine.zmq_rpc.RPCServerDeadError: PyTorch ZMQ engine process is not alive.",
    ]
    found = LmDeploy().diagnose(ExitStatus(code=1), tail)
    assert (found.code, found.permanent) == ("no_cache_memory", True)
