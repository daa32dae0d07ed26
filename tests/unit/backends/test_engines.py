"""One suite for every adapter: what the supervisor may rely on, whichever engine it is."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import backends.engines
from backends.adapter import Adapter, Call, LaunchSpec, Probe, TokenizeAnswer, TokenizeRequest, Unsupported
from backends.address import Address
from backends.diagnosis import ExitStatus
from backends.engines import ADAPTERS
from backends.engines import llamacpp as llamacpp_module
from backends.engines import lmdeploy as lmdeploy_module
from backends.engines import vllm as vllm_module
from backends.engines.llamacpp import SHORT
from backends.engines.llamacpp_server import parser
from backends.options import Option
from backends.settings import ArgValue, BackendSettings, EngineSettings, Timing
from tests.goldens.argv import EXAMPLES, FOLDER, path_of, text_of

UDS = Address(uds="/run/m.sock")
TCP = Address(host="127.0.0.1", port=18000)
WEIGHTS = Path("/models/m")
RUN_FOLDER = Path("/state/runs/m")
ENGINE_ENV = {"A": "engine", "B": "engine"}

every_adapter = pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
# Ollama's models are no processes, and their probe is known only once they are in their daemon: test_ollama_*.py.
launched = [adapter for adapter in ADAPTERS.values() if adapter.launches and not adapter.daemon_name]
every_launched = pytest.mark.parametrize("adapter", launched, ids=lambda adapter: adapter.engine)
every_probed = pytest.mark.parametrize("adapter", [*launched, ADAPTERS["external"]], ids=lambda adapter: adapter.engine)
WITHOUT_TOKENISATION = {"external", "ollama"}


def backend_of(adapter: Adapter, **others: Any) -> BackendSettings:
    """A backend as the configuration would give it to *adapter*."""
    if adapter.launches:
        return replace(BackendSettings(name="m", engine=adapter.engine, weights=WEIGHTS), **others)
    return replace(BackendSettings(name="m", engine=adapter.engine, url="http://127.0.0.1:9/v1"), **others)


def places_of(adapter: Adapter) -> list[Address]:
    """A place of each kind that *adapter* can listen at."""
    return [place for place in (UDS, TCP) if ("unix" if place.uds else "tcp") in adapter.sockets]


def spec_of(adapter: Adapter, backend: BackendSettings, engine: EngineSettings, place: Address) -> LaunchSpec:
    """The run of *backend* at *place*, its files in RUN_FOLDER."""
    return adapter.launch_spec(backend, engine, place, RUN_FOLDER)


# --- every adapter ---


def test_each_module_is_registered() -> None:
    """Each engine's module has its adapter in ADAPTERS under its own word."""
    folder = Path(backends.engines.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    parts = {name for name in modules if name.partition("_")[0] in ADAPTERS and "_" in name}
    assert modules - parts == set(ADAPTERS)
    assert all(adapter.engine == word for word, adapter in ADAPTERS.items())


@every_adapter
def test_endpoints_are_paths_without_a_slash(adapter: Adapter) -> None:
    """Endpoints stand below the base path and name at least chat."""
    assert "chat/completions" in adapter.endpoints
    assert not any(path.startswith(("/", "v1")) for path in adapter.endpoints)


@every_probed
@pytest.mark.parametrize("readiness", ["generate", "embed"])
def test_the_probe_asks_for_health_and_for_one_result(adapter: Adapter, readiness: str) -> None:
    """The health call is a GET without a body, the proof a small POST that names the model, its pointer not empty.

    An engine without embeddings refuses to be proved by one.
    """
    backend = backend_of(adapter, readiness=readiness)
    if readiness == "embed" and "embeddings" not in adapter.endpoints:
        assert [objection.path for objection in adapter.objections(backend)] == [("readiness",)]
        return
    probe = spec_of(adapter, backend, EngineSettings(), UDS).probe
    assert (probe.health.method, probe.health.body) == ("GET", None)
    assert probe.health.target.startswith("/")
    assert probe.proof.method == "POST"
    assert probe.proof.body is not None
    assert probe.proof.body["model"] == "m"
    assert probe.proof_pointer
    if readiness == "generate":
        assert probe.proof.body["max_tokens"] == 1
    else:
        assert probe.proof.target.endswith("/embeddings")


@every_adapter
def test_the_grace_is_positive(adapter: Adapter) -> None:
    """Every engine gets some time between TERM and KILL."""
    assert spec_of(adapter, backend_of(adapter), EngineSettings(), UDS).stop_grace_s > 0


@every_adapter
@pytest.mark.parametrize("tail", [[], [""], ["no such text anywhere", "\x1b[31mred\x1b[0m"], ["\udcff"]])
def test_diagnose_always_says_something(adapter: Adapter, tail: list[str]) -> None:
    """An end nobody knows the reason of still has a code, a reason and an advice, and is worth a retry."""
    found = adapter.diagnose(ExitStatus(code=1), tail)
    assert found.code
    assert found.reason.endswith(".")
    assert found.advice.endswith(".")
    assert not found.permanent


@every_adapter
def test_an_unknown_line_names_no_phase(adapter: Adapter) -> None:
    """Phases come from known lines only."""
    assert adapter.phase("nothing of that kind") is None


@every_adapter
def test_timing_keeps_what_it_has_no_reason_to_change(adapter: Adapter) -> None:
    """Back-off, drain and probe clocks are the operator's."""
    given = Timing(backoff_base_s=1, backoff_max_s=2, drain_timeout_s=3, probe_timeout_s=4, start_timeout_s=5)
    kept = adapter.timing(given)
    for clock in ("backoff_base_s", "backoff_max_s", "drain_timeout_s", "probe_timeout_s", "start_timeout_s"):
        assert getattr(kept, clock) == getattr(given, clock)


@every_adapter
def test_tokenize_drives_or_says_that_it_cannot(adapter: Adapter) -> None:
    """A tokenize plan makes calls and ends in an answer; else Unsupported says so, for the client."""
    for prompt, messages in (("a b", None), (None, [{"role": "user", "content": "a b"}])):
        request = TokenizeRequest(prompt, messages, add_special_tokens=True)
        if adapter.engine in WITHOUT_TOKENISATION:
            with pytest.raises(Unsupported, match="no tokenisation"):
                adapter.tokenize(request)
            continue
        plan = adapter.tokenize(request)
        called = next(plan)
        answer = None
        for _ in range(5):
            assert called.method == "POST"
            try:
                called = plan.send({"prompt": "a b", "tokens": [1, 2], "input_ids": [1, 2], "max_model_len": 10})
            except StopIteration as end:
                answer = end.value
                break
        assert isinstance(answer, TokenizeAnswer)
        assert answer.tokens == [1, 2]


@every_adapter
def test_every_engine_can_listen_on_tcp(adapter: Adapter) -> None:
    """TCP is what a backend falls back to when its engine has no Unix sockets."""
    assert "tcp" in adapter.sockets


@every_adapter
def test_good_settings_have_no_problem(adapter: Adapter) -> None:
    """A plain backend is accepted."""
    assert list(adapter.objections(backend_of(adapter))) == []


# --- those we start ---


@every_launched
def test_argv_begins_with_the_command(adapter: Adapter) -> None:
    """The configured command, else the adapter's own, begins argv; the place and the weights are named in it."""
    backend = backend_of(adapter)
    named = {UDS: {UDS.uds}, TCP: {"127.0.0.1", "18000"}}
    for place in places_of(adapter):
        own = spec_of(adapter, backend, EngineSettings(), place).argv
        assert own[: len(adapter.default_command())] == adapter.default_command()
        given = spec_of(adapter, backend, EngineSettings(command=("/env/bin/python", "-m", "engine")), place).argv
        assert given[:3] == ("/env/bin/python", "-m", "engine")
        for argv in (own, given):
            assert {*named[place], str(WEIGHTS)} <= set(argv)


@every_launched
def test_the_models_environment_wins(adapter: Adapter) -> None:
    """The engine's env and the model's are joined, the model's over the engine's, both over the adapter's own."""
    own = spec_of(adapter, backend_of(adapter), EngineSettings(), TCP).env
    engine = EngineSettings(env={**ENGINE_ENV, **dict.fromkeys(own, "engine")})
    spec = spec_of(adapter, backend_of(adapter, env={"B": "model", "C": "model"}), engine, TCP)
    assert spec.env == {**dict.fromkeys(own, "engine"), "A": "engine", "B": "model", "C": "model"}


@every_launched
def test_the_operators_grace_wins(adapter: Adapter) -> None:
    """stop_grace_s of the configuration replaces the adapter's own figure."""
    backend = backend_of(adapter, timing=Timing(stop_grace_s=1.5))
    assert spec_of(adapter, backend, EngineSettings(), UDS).stop_grace_s == 1.5


@every_launched
def test_the_place_is_the_specs_address(adapter: Adapter) -> None:
    """What is probed and leased is where the engine was told to listen."""
    for place in places_of(adapter):
        assert spec_of(adapter, backend_of(adapter), EngineSettings(), place).address == place


OWNED = [
    (ADAPTERS[engine], name)
    for engine, module in {"vllm": vllm_module, "lmdeploy": lmdeploy_module, "llamacpp": llamacpp_module}.items()
    for name in module.OWNED
]


@pytest.mark.parametrize(("adapter", "name"), OWNED, ids=lambda value: value if isinstance(value, str) else "")
def test_owned_options_are_refused(adapter: Adapter, name: str) -> None:
    """An option the gateway sets itself is a problem in each spelling, and says what to write instead."""
    for spelling in (name, name.replace("-", "_")):
        (objection,) = adapter.objections(backend_of(adapter, args={spelling: "x"}))
        assert objection.path == ("args", spelling)
        assert objection.remedy


@every_launched
def test_the_gateways_own_options_are_owned(adapter: Adapter) -> None:
    """Every flag the adapter writes by itself is refused among args, or is one an operator may repeat."""
    backend = backend_of(adapter, template_file=Path("/t.jinja"))
    written = {
        part.removeprefix("--")
        for place in places_of(adapter)
        for part in spec_of(adapter, backend, EngineSettings(command=("engine",)), place).argv
        if part.startswith("--")
    }
    harmless = {"jinja", "metrics", "no-webui"}
    for name in written - harmless:
        assert adapter.objections(backend_of(adapter, args={name: "x"})), name


@every_launched
def test_weights_that_are_not_there_are_a_problem(adapter: Adapter, tmp_path: Path) -> None:
    """A path without anything is told before any start."""
    problem = adapter.weights_problem(tmp_path / "nope")
    assert problem is not None
    assert "there is no such file or folder" in problem


# --- command lines ---


@pytest.mark.parametrize("engine", EXAMPLES)
def test_command_lines(engine: str) -> None:
    """The examples give exactly the command lines in the golden file of the version that the adapter names."""
    assert text_of(engine) == path_of(engine).read_text(), "see that it is meant, then run python -m tests.goldens.argv"


def test_every_launched_engine_has_command_lines() -> None:
    """No adapter is without a golden file, and no file is without an adapter of that version."""
    assert set(EXAMPLES) == {adapter.engine for adapter in launched}
    assert set(FOLDER.glob("argv-*")) == {path_of(engine) for engine in EXAMPLES}


@every_launched
def test_every_option_is_in_an_example(adapter: Adapter) -> None:
    """The golden file shows each option of the table, in the table's own order."""
    options = EXAMPLES[adapter.engine]["every option"].settings["options"]
    assert list(options) == [option.name for option in adapter.options]


@every_launched
def test_an_option_that_is_not_given_adds_nothing(adapter: Adapter) -> None:
    """Without options the command line is what it was, and each option adds its own flags and no other's."""
    (place, *_) = places_of(adapter)
    plain = spec_of(adapter, backend_of(adapter), EngineSettings(), place).argv
    for option in adapter.options:
        value = EXAMPLES[adapter.engine]["every option"].settings["options"][option.name]
        spec = spec_of(adapter, backend_of(adapter, options={option.name: value}), EngineSettings(), place)
        added = [word for word in spec.argv if word not in plain]
        flags = [f"--{flag}" for flag in (option.flag, *option.brings) if flag]
        assert [word for word in added if word.startswith("--")] == flags


@every_launched
def test_options_and_gateway_do_not_meet(adapter: Adapter) -> None:
    """No option is a flag that the gateway writes itself, and no two options are one flag."""
    spellings = [flag for option in adapter.options for flag in (option.flag, *option.also) if flag]
    assert len(spellings) == len(set(spellings))
    assert not {flag for flag in spellings if adapter.objections(backend_of(adapter, args={flag: "x"}))}


# --- vLLM ---


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        ((), ("vllm", "--version")),
        (("/env/bin/vllm", "serve"), ("/env/bin/vllm", "--version")),
        (
            ("/env/bin/python", "-m", "vllm.entrypoints.openai.api_server"),
            ("/env/bin/python", "-c", "from vllm.version import __version__; print(__version__)"),
        ),
    ],
)
def test_vllm_is_asked_for_its_version(command: tuple[str, ...], argv: tuple[str, ...]) -> None:
    """The command line that prints the version belongs to the configured command."""
    assert ADAPTERS["vllm"].version_argv(EngineSettings(command=command)) == argv


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        ("Loading safetensors checkpoint shards:  50% Completed | 1/2", "loading weights"),
        ("INFO 11-24 04:30:00 [default_loader.py:268] Loading weights took 0.35 seconds", "weights loaded"),
        ("INFO 11-24 04:30:09 [api_server.py:1912] Starting vLLM API server 0", "starting the server"),
    ],
)
def test_vllm_tells_what_it_does(line: str, phase: str) -> None:
    """Known lines of vLLM's log name the phase of a start."""
    assert ADAPTERS["vllm"].phase(line) == phase


def test_vllm_tokenizes_in_one_call() -> None:
    """A prompt or messages go to vLLM's own /tokenize; its context length comes back."""
    adapter = ADAPTERS["vllm"]
    plan = adapter.tokenize(TokenizeRequest("Hi", None, add_special_tokens=False))
    assert next(plan) == Call("POST", "/tokenize", {"prompt": "Hi", "add_special_tokens": False})
    with pytest.raises(StopIteration) as end:
        plan.send({"tokens": [7], "max_model_len": 4096})
    assert end.value.value == TokenizeAnswer([7], 4096)
    messages = [{"role": "user", "content": "Hi"}]
    called = next(adapter.tokenize(TokenizeRequest(None, messages, add_special_tokens=True)))
    assert called.body == {"messages": messages, "add_generation_prompt": True, "add_special_tokens": True}


# --- llama.cpp ---


def test_llamacpp_renders_messages_first() -> None:
    """Messages go through /apply-template, and what comes back is tokenised with special tokens parsed."""
    messages = [{"role": "user", "content": "Hi"}]
    request = TokenizeRequest(None, messages, add_special_tokens=True, add_generation_prompt=False)
    plan = ADAPTERS["llamacpp"].tokenize(request)
    expected: dict[str, Any] = {"messages": messages, "add_generation_prompt": False}
    assert next(plan) == Call("POST", "/apply-template", expected)
    body = {"content": "<|im_start|>", "add_special": True, "parse_special": True}
    assert plan.send({"prompt": "<|im_start|>"}) == Call("POST", "/tokenize", body)


def test_the_embedded_server_takes_what_the_adapter_writes() -> None:
    """The adapter's command line is one the embedded server's parser knows."""
    args: dict[str, ArgValue] = {"parallel": 2, "threads": 2, "n-gpu-layers": 0, "seed": 1}
    backend = backend_of(
        ADAPTERS["llamacpp"], context_length=512, template_file=Path("/t.jinja"), args=args
    )  # fmt: skip
    argv = spec_of(ADAPTERS["llamacpp"], backend, EngineSettings(), UDS).argv
    read = vars(parser().parse_args(argv[4:]))
    assert read["model.path"] == str(WEIGHTS)
    assert (read["alias"], read["host"], read["n_ctx"], read["n_parallel"]) == ("m", "/run/m.sock", 1024, 2)
    assert read["chat_template_file"] == Path("/t.jinja")
    assert (read["use_jinja"], read["endpoint_metrics"], read["ui"]) == (True, True, False)


@pytest.mark.parametrize(
    ("settings", "slots"),
    [
        ({}, 1),
        ({"options": {"parallel": 3}}, 3),
        ({"args": {"parallel": 4}}, 4),
        ({"args": {"parallel": 0}}, 1),
        ({"args": {"parallel": "many"}}, 1),
    ],
)
def test_llamacpp_multiplies_the_context_by_its_slots(settings: dict[str, Any], slots: int) -> None:
    """context_length is per request; the flag's figure is shared by all slots."""
    backend = backend_of(ADAPTERS["llamacpp"], context_length=1000, **settings)
    argv = spec_of(ADAPTERS["llamacpp"], backend, EngineSettings(), UDS).argv
    assert argv[argv.index("--ctx-size") + 1] == str(1000 * slots)


@pytest.mark.parametrize("name", EXAMPLES["llamacpp"])
def test_the_embedded_server_knows_every_flag_of_the_examples(name: str) -> None:
    """Every command line of the golden file is one its parser takes whole."""
    argv = EXAMPLES["llamacpp"][name].argv()
    read = vars(parser().parse_args(argv[argv.index("--model") :]))
    assert read["model.path"] == str(WEIGHTS)


@pytest.mark.parametrize("option", ADAPTERS["llamacpp"].options, ids=lambda option: option.name)
def test_the_embedded_server_takes_every_choice(option: Option) -> None:
    """Each word that an option may hold is one its parser takes, under each of the flag's spellings."""
    for choice in option.choices or ("1",):
        for flag in (f"--{option.flag}", *(f"-{also}" if also in SHORT else f"--{also}" for also in option.also)):
            words = [flag] if option.kind == "switch" and not option.words else [flag, str(choice)]
            if option.words:
                words = [flag, option.words[0]]
            parser().parse_args(words)


# --- external ---


def test_an_external_key_goes_with_every_request_and_is_not_shown() -> None:
    """The key becomes the authorization of the spec, which no repr shows."""
    spec = spec_of(ADAPTERS["external"], backend_of(ADAPTERS["external"], api_key="sk-1"), EngineSettings(), UDS)
    assert spec.authorization == "Bearer sk-1"
    assert "sk-1" not in repr(spec)


def test_an_external_backend_may_be_proved_by_its_model_list() -> None:
    """readiness: models asks for nothing that costs."""
    backend = backend_of(ADAPTERS["external"], readiness="models")
    models = Call("GET", "/v1/models")
    assert spec_of(ADAPTERS["external"], backend, EngineSettings(), UDS).probe == Probe(models, models, ("data",))


def test_an_external_backend_is_asked_under_its_own_name() -> None:
    """The model's name on the other side goes into the proof."""
    backend = backend_of(ADAPTERS["external"], served_name="theirs")
    body = spec_of(ADAPTERS["external"], backend, EngineSettings(), UDS).probe.proof.body
    assert body is not None
    assert body["model"] == "theirs"


def test_an_external_backend_is_looked_for_for_ever() -> None:
    """Since it cannot be started, it is never given up, and its silence shows within seconds."""
    timing = ADAPTERS["external"].timing(Timing())
    assert timing.max_failed_starts == sys.maxsize
    assert timing.start_stall_timeout_s == 10
    assert ADAPTERS["external"].timing(Timing(start_stall_timeout_s=2)).start_stall_timeout_s == 2


@pytest.mark.parametrize(
    ("others", "name"),
    [
        ({"options": {"a": 1}}, "options"),
        ({"args": {"a": 1}}, "args"),
        ({"env": {"A": "1"}}, "env"),
        ({"template_file": Path("/t")}, "template"),
    ],
)
def test_settings_of_a_process_are_refused_for_an_address(others: dict[str, Any], name: str) -> None:
    """What only a process of ours could obey has no place on an external backend."""
    (objection,) = ADAPTERS["external"].objections(backend_of(ADAPTERS["external"], **others))
    assert objection.path == (name,)
    assert objection.message.startswith("has no effect")
