"""What a configuration may say, what it defaults to, and what the backends package gets to see of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from backends.prompting import ContractChoice
from backends.settings import BackendSettings, EngineSettings, EnvironmentChoice, LoraAdapter, Timing
from backends.sources import HubSource
from gateway.config import ENGINES, Config
from gateway.config_values import Loc, Origin, is_loopback, place

ORIGIN = Origin(Path("/srv/unigate"), {"HOME": "/home/ada"})
VLLM: Mapping[str, Any] = {"engine": "vllm", "weights": "llm/qwen"}
EXTERNAL: Mapping[str, Any] = {"engine": "external", "url": "http://127.0.0.1:9000/v1"}


def read(document: Mapping[str, Any], origin: Origin = ORIGIN) -> Config:
    return Config.model_validate(document, context=origin)


def with_model(**keys: object) -> Config:
    return read({"models": {"qwen": {**VLLM, **keys}}})


def with_gateway(origin: Origin = ORIGIN, **keys: object) -> Config:
    return read({"gateway": keys, "models": {"qwen": VLLM}}, origin)


def complaints(document: Mapping[str, Any]) -> dict[Loc, str]:
    with pytest.raises(ValidationError) as caught:
        read(document)
    return {error["loc"]: error["msg"] for error in caught.value.errors()}


def model_complaints(**keys: object) -> dict[Loc, str]:
    found = complaints({"models": {"qwen": {**VLLM, **keys}}})
    assert all(loc[:2] == ("models", "qwen") for loc in found)
    return {loc[2:]: message for loc, message in found.items()}


def test_defaults() -> None:
    """One model is a whole configuration; everything else has the documented default."""
    gateway = with_model().gateway
    assert (gateway.host, gateway.port, gateway.keys, gateway.access_log) == ("127.0.0.1", 8080, (), True)
    assert (gateway.body_limit_bytes, gateway.drain_timeout_s) == (32 * 1024 * 1024, 30)
    assert (gateway.queue.max_waiting, gateway.queue.max_wait_s) == (256, 300)
    timeouts = gateway.timeouts
    assert (timeouts.connect_s, timeouts.first_byte_s, timeouts.idle_s, timeouts.send_s) == (5, 600, 300, 60)
    assert (gateway.log_rotate_bytes, gateway.log_keep) == (50 * 1024 * 1024, 5)


def test_model_defaults_are_those_of_the_backends() -> None:
    """A model that says only what it must becomes BackendSettings whose every other field is that class's default."""
    (settings,) = with_model().backend_settings()
    assert settings == BackendSettings("qwen", "vllm", weights=Path("/srv/unigate/llm/qwen"), served_name="qwen")


def test_every_key_of_a_model_reaches_its_backend() -> None:
    """Each key of a launched model arrives in the matching field of BackendSettings."""
    config = with_model(
        weights="~/qwen",
        load="on_demand",
        idle_unload_s=900,
        gpus=[0, 1],
        memory_gib=1.5,
        pinned=True,
        min_residency_s=13,
        context_length=4096,
        template={"from": "chat.jinja"},
        args={"--max-model-len": 4096, "eager": True, "swap": False, "names": ["a", 2]},
        env={"CUDA_VISIBLE_DEVICES": "0"},
        readiness="embed",
        probe_timeout_s=1,
        start_timeout_s=2,
        start_stall_timeout_s=3,
        download_stall_timeout_s=3.5,
        stop_grace_s=4,
        drain_timeout_s=5,
        backoff={"base_s": 6, "max_s": 7, "reset_s": 8, "max_failed_starts": 9},
        health={"interval_s": 10, "timeout_s": 11, "failures": 12},
    )
    timing = Timing(
        start_stall_timeout_s=3,
        download_stall_timeout_s=3.5,
        start_timeout_s=2,
        stop_grace_s=4,
        drain_timeout_s=5,
        backoff_base_s=6,
        backoff_max_s=7,
        backoff_reset_s=8,
        max_failed_starts=9,
        health_interval_s=10,
        health_timeout_s=11,
        health_failures=12,
        probe_timeout_s=1,
    )
    assert config.backend_settings() == (
        BackendSettings(
            name="qwen",
            engine="vllm",
            weights=Path("/home/ada/qwen"),
            served_name="qwen",
            args={"max-model-len": 4096, "eager": True, "swap": False, "names": ("a", 2)},
            env={"CUDA_VISIBLE_DEVICES": "0"},
            context_length=4096,
            template_file=Path("/srv/unigate/chat.jinja"),
            on_demand=True,
            idle_unload_s=900,
            readiness="embed",
            timing=timing,
            gpus=(0, 1),
            memory_bytes=1536 * 1024**2,
            is_pinned=True,
            min_residency_s=13,
        ),
    )


@pytest.mark.parametrize(
    ("written", "expected"), [("auto", None), ([], ()), (1, (1,)), ("1", (1,)), ([2, "0"], (2, 0))]
)
def test_gpus(written: object, expected: tuple[int, ...] | None) -> None:
    """GPUs are auto, one number, or a list; an empty list is the CPU."""
    assert with_model(gpus=written).backend_settings()[0].gpus == expected


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ([0, 0], "names a GPU twice"),
        ("all", "must be auto, or a list of GPUs by their numbers"),
        ([-1], "must be auto, or a list of GPUs by their numbers"),
        ([True], "must be auto, or a list of GPUs by their numbers"),
        ([0.5], "must be auto, or a list of GPUs by their numbers"),
    ],
)
def test_gpus_that_cannot_be(written: object, message: str) -> None:
    """What is no GPU, and one named twice, is refused with a word on how to write it."""
    assert message in model_complaints(gpus=written)["gpus",]


def test_residency_is_the_gateway_s_unless_the_model_has_its_own() -> None:
    """A model that names no residency has the gateway's."""
    models = {"a": {"engine": "vllm", "weights": "w"}, "b": {"engine": "vllm", "weights": "w", "min_residency_s": 1}}
    config = read({"gateway": {"min_residency_s": 7, "memory_gib": 2}, "models": models})
    assert [backend.min_residency_s for backend in config.backend_settings()] == [7, 1]
    assert config.gateway.memory_gib == 2


def test_args_keep_the_type_they_are_written_with() -> None:
    """An option's value is not bent into another type: true is no 1 and "1" is no number."""
    args = with_model(args={"a": True, "b": 1, "c": 1.0, "d": "1"}).models["qwen"].args
    assert [type(value) for value in args.values()] == [bool, int, float, str]


def test_external_model() -> None:
    """An external model carries its address without the last slash, its key, and its name there."""
    document = {"models": {"far": {**EXTERNAL, "url": "https://far:9/v1/", "api_key": "sk-1", "served_name": "Q"}}}
    (settings,) = read(document).backend_settings()
    assert (settings.url, settings.api_key, settings.served_name) == ("https://far:9/v1", "sk-1", "Q")


def test_engine_settings() -> None:
    """A command is a list or a line as a shell reads it; its program may lie beside the file or in the home."""
    words = {"command": "~/envs/vllm/bin/vllm serve --x 'a b'", "env": {"A": "1"}, "socket": "tcp"}
    config = read({"engines": {"vllm": words, "llamacpp": {"command": ["./llama-server"]}}, "models": {"q": VLLM}})
    program = ("/home/ada/envs/vllm/bin/vllm", "serve", "--x", "a b")
    assert config.engine_settings("vllm") == EngineSettings(program, {"A": "1"}, "tcp")
    assert config.engine_settings("llamacpp").command == ("/srv/unigate/llama-server",)
    assert config.engine_settings("external") == EngineSettings()


@pytest.mark.parametrize(
    ("keys", "choice"),
    [
        ({"conda": "vllm"}, EnvironmentChoice("conda", "vllm")),
        ({"conda": "~/envs/vllm"}, EnvironmentChoice("conda", "/home/ada/envs/vllm")),
        ({"conda": "./envs/vllm"}, EnvironmentChoice("conda", "/srv/unigate/envs/vllm")),
        ({"python": "~/vllm/bin/python"}, EnvironmentChoice("python", "/home/ada/vllm/bin/python")),
        ({"venv": "managed", "version": "0.32.0+cu129"}, EnvironmentChoice("managed", "0.32.0+cu129")),
    ],
)
def test_engine_in_an_environment(keys: dict[str, str], choice: EnvironmentChoice) -> None:
    """A chosen environment reaches the backends package as it is named, looked up nowhere."""
    config = read({"engines": {"vllm": {**keys, "env": {"A": "1"}}}, "models": {"q": VLLM}})
    assert config.engine_settings("vllm") == EngineSettings((), {"A": "1"}, "unix", choice)
    assert config.engines["vllm"].way() == next(iter(keys))


@pytest.mark.parametrize(
    ("keys", "loc", "message"),
    [
        ({"command": "vllm", "conda": "vllm"}, "conda", "says how the engine is started, and so does command"),
        ({"python": "/p", "conda": "vllm"}, "python", "says how the engine is started, and so does conda"),
        ({"venv": "managed", "version": "1", "python": "/p"}, "venv", "says how the engine is started, and so"),
        ({"venv": "managed"}, "venv", "needs a version"),
        ({"version": "0.32.0"}, "version", "has no effect without venv: managed"),
        ({"venv": "mine", "version": "1"}, "venv", "Input should be 'managed'"),
        ({"venv": "managed", "version": "0.32.*"}, "version", "must be one exact version"),
        ({"venv": "managed", "version": ">=0.32"}, "version", "must be one exact version"),
        ({"venv": "managed", "version": 0.32}, "version", "Input should be a valid string"),
        ({"conda": ""}, "conda", "must be the name or the path of a conda environment"),
        ({"conda": "two words"}, "conda", "must be the name or the path of a conda environment"),
        ({"conda": 3.11}, "conda", "Input should be a valid string"),
    ],
)
def test_engine_in_no_environment(keys: dict[str, object], loc: str, message: str) -> None:
    """Two ways to start one engine, half a managed one, and what cannot be meant are refused where they stand."""
    found = complaints({"engines": {"vllm": keys}, "models": {"q": VLLM}})
    assert list(found) == [("engines", "vllm", loc)]
    assert found["engines", "vllm", loc].startswith(message)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HOME": "/home/ada"}, "/home/ada/.local/share/unigate/engines"),
        ({"HOME": "/home/ada", "XDG_DATA_HOME": "/data"}, "/data/unigate/engines"),
        ({"HOME": "/home/ada", "XDG_DATA_HOME": "data"}, "/home/ada/.local/share/unigate/engines"),
    ],
)
def test_default_engine_dir(environ: dict[str, str], expected: str) -> None:
    """Managed environments lie in the XDG data folder, which a relative XDG_DATA_HOME does not name."""
    assert with_gateway(Origin(Path("/srv"), environ)).gateway.engine_dir == Path(expected)
    assert with_gateway(engine_dir="~/engines").gateway.engine_dir == Path("/home/ada/engines")


def test_bare_program_is_left_to_path() -> None:
    """A program without a slash is left as it is, to be looked up on PATH."""
    config = read({"engines": {"vllm": {"command": "vllm serve"}}, "models": {"q": VLLM}})
    assert config.engine_settings("vllm").command == ("vllm", "serve")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HOME": "/home/ada"}, "/home/ada/.local/state/unigate/8081"),
        ({"HOME": "/home/ada", "XDG_STATE_HOME": "/data/state"}, "/data/state/unigate/8081"),
        ({"HOME": "/home/ada", "XDG_STATE_HOME": "state"}, "/home/ada/.local/state/unigate/8081"),
    ],
)
def test_default_state_dir(environ: dict[str, str], expected: str) -> None:
    """The state folder is one per port, in XDG_STATE_HOME if that is absolute, and the logs lie in it."""
    gateway = with_gateway(Origin(Path("/srv"), environ), port=8081).gateway
    assert (gateway.state_dir, gateway.log_dir) == (Path(expected), Path(expected, "logs"))


def test_state_dir_relative_to_the_file() -> None:
    """A relative state folder is relative to the folder of the file; logs follow it unless they have their own."""
    assert with_gateway(state_dir="state").gateway.log_dir == Path("/srv/unigate/state/logs")
    assert with_gateway(state_dir="state", log_dir="~/logs").gateway.log_dir == Path("/home/ada/logs")


def test_frozen() -> None:
    """Neither a field nor a mapping of a validated configuration can be changed."""
    config = with_model(args={"a": 1}, env={"A": "1"})
    with pytest.raises(ValidationError):
        config.gateway.port = 1  # type: ignore[misc]
    for mapping in (config.models, config.engines, config.models["qwen"].args, config.models["qwen"].env):
        with pytest.raises(TypeError):
            mapping["new"] = None  # type: ignore[index]


def test_repr_holds_no_secret() -> None:
    """Neither keys nor environment values nor engine options appear in what a log would print of a configuration."""
    document = {
        "gateway": {"keys": [{"name": "me", "key": "s3cret"}]},
        "engines": {"vllm": {"env": {"HF_TOKEN": "s3cret"}}},
        "models": {"q": {**VLLM, "args": {"api-key": "s3cret"}}, "far": {**EXTERNAL, "api_key": "s3cret"}},
    }
    config = read(document)
    assert config.models["far"].api_key is not None
    assert "s3cret" not in repr(config) + str(config)


def test_validation_error_holds_no_secret() -> None:
    """Even the raw pydantic error prints no value that it refused."""
    with pytest.raises(ValidationError) as caught:
        with_gateway(keys=[{"name": "me", "key": "s3cret with space"}], port="s3cret")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    """A gateway that only this machine reaches may be without a key."""
    assert is_loopback(host)
    assert with_gateway(host=host).gateway.host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "gpu-box"])
def test_open_host_needs_a_key(host: str) -> None:
    """A gateway that others can reach is refused without a key, unless told that this is meant."""
    assert "no key" in complaints({"gateway": {"host": host}, "models": {"q": VLLM}})["gateway", "host"]
    assert with_gateway(host=host, keys=[{"name": "me", "key": "k"}]).gateway.host == host
    assert with_gateway(host=host, allow_unauthenticated="true").gateway.allow_unauthenticated


@pytest.mark.parametrize("host", ["", "0.0.0.0:8080", "http://0.0.0.0", "a b"])
def test_host_is_an_address_alone(host: str) -> None:
    """A host with a port, a scheme or nothing in it is refused."""
    assert ("gateway", "host") in complaints({"gateway": {"host": host}, "models": {"q": VLLM}})


def test_bracketed_ipv6_host() -> None:
    """An IPv6 host may be written in brackets; it is kept without them, as sockets take it."""
    assert with_gateway(host="[::1]").gateway.host == "::1"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("port", 0),
        ("port", 65_536),
        ("port", True),
        ("port", 80.5),
        ("body_limit_bytes", 0),
        ("log_keep", -1),
        ("drain_timeout_s", -1),
        ("drain_timeout_s", float("inf")),
        ("drain_timeout_s", True),
        ("access_log", 1),
        ("queue", {"max_waiting": -1}),
        ("timeouts", {"connect_s": 0}),
        ("timeouts", {"idle_s": "nan"}),
    ],
)
def test_gateway_bounds(key: str, value: object) -> None:
    """A number out of its bounds, or a boolean in its place, is refused."""
    (loc,) = complaints({"gateway": {key: value}, "models": {"q": VLLM}})
    assert loc[:2] == ("gateway", key)


def test_numbers_may_come_as_text() -> None:
    """A number taken from the environment arrives as text and is read as a number."""
    gateway = with_gateway(port="8081", queue={"max_wait_s": "1.5"}, access_log="off").gateway
    assert (gateway.port, gateway.queue.max_wait_s, gateway.access_log) == (8081, 1.5, False)


@pytest.mark.parametrize("secret", ["", "two words", "line\n", "schlüssel"])
def test_keys_that_no_client_could_send(secret: str) -> None:
    """A key that could not travel in an Authorization header is refused, the gateway's and an external server's."""
    found = complaints({"gateway": {"keys": [{"name": "me", "key": secret}]}, "models": {"q": VLLM}})
    assert list(found) == [("gateway", "keys", 0, "key")]
    found = complaints({"models": {"far": {**EXTERNAL, "api_key": secret}}})
    assert list(found) == [("models", "far", "api_key")]


def test_keys_are_told_apart() -> None:
    """Two keys with one name, or with one secret, are refused at the second."""
    keys = [{"name": "me", "key": "a"}, {"name": "me", "key": "b"}, {"name": "you", "key": "a"}]
    found = complaints({"gateway": {"keys": keys}, "models": {"q": VLLM}})
    assert list(found) == [("gateway", "keys", 1, "name"), ("gateway", "keys", 2, "key")]


def test_unknown_keys() -> None:
    """An unknown key at any level is refused with the nearest known one, or with all of them."""
    with pytest.raises(ValidationError) as caught:
        read({"modles": {}, "gateway": {"queue": {"zzz": 1}}, "models": {"q": {**VLLM, "alias": ["a"]}}})
    remedies = {error["loc"]: error["ctx"]["remedy"] for error in caught.value.errors()}
    assert remedies == {
        ("modles",): 'did you mean "models"?',
        ("gateway", "queue", "zzz"): "known here: max_waiting, max_wait_s",
        ("models", "q", "alias"): 'did you mean "aliases"?',
    }


def test_unknown_key_left_blank() -> None:
    """An unknown key is refused even where nothing is written behind it."""
    assert list(model_complaints(alias=None)) == [("alias",)]


def test_misspelt_key_is_told_once() -> None:
    """A misspelt required key is an unknown key, and not missing as well."""
    assert complaints({"models": {"q": {"engine": "vllm", "weigths": "x"}}}) == {
        ("models", "q", "weigths"): "unknown key"
    }


def test_all_problems_at_once() -> None:
    """Wrong keys, wrong values, contradictions and taken names are reported together."""
    document = {
        "gateway": {"port": "x", "kees": []},
        "engines": {"vlm": {}},
        "models": {"a": {**VLLM, "aliases": ["b"], "load": "now"}, "b": {"engine": "external", "args": {}}},
    }
    assert set(complaints(document)) == {
        ("gateway", "port"),
        ("gateway", "kees"),
        ("engines", "vlm"),
        ("models", "a", "load"),
        ("models", "a", "aliases", 0),
        ("models", "b", "url"),
        ("models", "b", "args"),
    }


@pytest.mark.parametrize("engine", ["sglang", "Ollama", "VLLM", "", 5])
def test_unknown_engine(engine: object) -> None:
    """A model's engine is one of those known, to the letter."""
    assert list(model_complaints(engine=engine)) == [("engine",)]


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_need_their_source(engine: str) -> None:
    """A launched engine needs weights, an external one an address."""
    wanted = "url" if engine == "external" else "weights"
    assert list(complaints({"models": {"q": {"engine": engine}}})) == [("models", "q", wanted)]


TUNED: Mapping[str, Any] = {"base": "qwen", "adapter": "saves/lora", "aliases": ["mine"]}


def test_an_adapter_is_served_by_the_backend_of_its_base() -> None:
    """A model that is a LoRA adapter of another brings no backend of its own; its base's is told of it."""
    config = read({"models": {"tuned": TUNED, "qwen": VLLM}})
    (backend,) = config.backend_settings()
    assert backend.name == "qwen"
    assert backend.adapters == (LoraAdapter("tuned", Path("/srv/unigate/saves/lora")),)


@pytest.mark.parametrize(
    ("models", "loc", "message"),
    [
        ({"tuned": TUNED}, ("tuned", "base"), '"qwen" is no model of this file'),
        (
            {"tuned": TUNED, "qwen": {**TUNED, "base": "tuned", "aliases": []}},
            ("tuned", "base"),
            "is an adapter itself",
        ),
        ({"tuned": TUNED, "qwen": EXTERNAL}, ("tuned", "base"), "runs on external, which serves no adapters"),
        ({"tuned": {**TUNED, "adapter": None}, "qwen": VLLM}, ("tuned", "adapter"), "is missing"),
        ({"tuned": {**TUNED, "engine": "vllm"}, "qwen": VLLM}, ("tuned", "engine"), "is said by the base"),
        ({"tuned": {**TUNED, "context_length": 5}, "qwen": VLLM}, ("tuned", "context_length"), "is said by the base"),
        ({"qwen": {**VLLM, "adapter": "saves/lora"}}, ("qwen", "adapter"), "has no effect without base"),
        ({"qwen": {"weights": "llm/qwen"}}, ("qwen", "engine"), "is missing"),
    ],
)
def test_what_an_adapter_may_not_be(models: dict[str, Any], loc: Loc, message: str) -> None:
    """An adapter names a model that can take it, and says nothing that is its base's to say."""
    assert message in complaints({"models": models})["models", *loc]


def test_replicas_are_backends_of_their_own() -> None:
    """A model with replicas has so many backends, alike in all but their names, and its adapters are on each."""
    models = {"qwen": {**VLLM, "replicas": 2}, "sql": {"base": "qwen", "adapter": "lora"}, "other": VLLM}
    one, two, other = read({"models": models}).backend_settings()
    assert (one.name, two.name, other.name) == ("qwen#1", "qwen#2", "other")
    assert (one.model, one.model_name, one.replica_of, other.replica_of) == ("qwen", "qwen", "qwen", "")
    assert replace(two, name=one.name) == one
    assert [adapter.name for adapter in two.adapters] == ["sql"]


def test_a_model_may_not_be_called_like_a_replica() -> None:
    """The name of a replica is taken when there is such a replica, and free otherwise."""
    clash = {"qwen": {**VLLM, "replicas": 2}, "qwen#2": VLLM}
    assert complaints({"models": clash})["models", "qwen#2"].startswith('is what a replica of "qwen" is called')
    names = [backend.name for backend in read({"models": {"qwen": VLLM, "qwen#2": VLLM}}).backend_settings()]
    assert names == ["qwen", "qwen#2"]


@pytest.mark.parametrize("replicas", [0, 65, 1.5, "many"])
def test_how_many_replicas(replicas: object) -> None:
    """A model has from 1 to 64 replicas; an external one has none to be started."""
    assert ("replicas",) in model_complaints(replicas=replicas)
    found = complaints({"models": {"far": {**EXTERNAL, "replicas": 2}}})
    assert "has no effect on an external server" in found["models", "far", "replicas"]


@pytest.mark.parametrize("key", ["url", "api_key", "served_name"])
def test_external_keys_elsewhere(key: str) -> None:
    """What only an external model can use is refused in a launched one, however it is written."""
    assert model_complaints(**{key: 5}) == {(key,): "is for engine: external only"}


@pytest.mark.parametrize("key", ["weights", "template", "args", "env", "idle_unload_s", "stop_grace_s"])
def test_launch_keys_on_external(key: str) -> None:
    """What would silently do nothing on an external server is refused there."""
    (message,) = complaints({"models": {"far": {**EXTERNAL, key: 5}}}).values()
    assert "no effect" in message


def test_external_engine_takes_no_settings() -> None:
    """The section of the external engine may stand there, but only empty."""
    assert read({"engines": {"external": None}, "models": {"q": VLLM}}).engine_settings("external") == EngineSettings()
    assert ("engines", "external") in complaints({"engines": {"external": {"socket": "tcp"}}, "models": {"q": VLLM}})


def test_readiness_by_model_list_is_for_external() -> None:
    """A list of models proves an external server, never a launched engine."""
    assert list(model_complaints(readiness="models")) == [("readiness",)]
    assert read({"models": {"far": {**EXTERNAL, "readiness": "models"}}}).backend_settings()[0].readiness == "models"


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:9000", "ftp://h/v1", "http://", "http://h:99999", "http://h:0", "http://h /v1", "http://h/?a=1"],
)
def test_bad_urls(url: str) -> None:
    """An address is http or https with a host, and nothing behind its path."""
    assert ("models", "far", "url") in complaints({"models": {"far": {"engine": "external", "url": url}}})


def test_url_holds_no_password() -> None:
    """An address with a password in it is refused without printing it."""
    (message,) = complaints({"models": {"far": {"engine": "external", "url": "http://me:s3cret@h/v1"}}}).values()
    assert "password" in message
    assert "s3cret" not in message


@pytest.mark.parametrize("path", ["", "modelscope:Qwen", "ms:Qwen/Qwen2.5", "https://h/x.gguf", "a\nb", 5])
def test_bad_paths(path: object) -> None:
    """Weights are a path on this machine or a model on a hub: not an address, not a number, not empty."""
    assert list(model_complaints(weights=path)) == [("weights",)]


def test_weights_on_a_hub() -> None:
    """A source on a hub is kept, and its weights are where it will lie below models_dir, one file or a folder."""
    models = {"whole": "hf:Qwen/Qwen3@v1", "file": "modelscope:Qwen/Qwen3-GGUF:q4.gguf", "path": "./hf:Qwen/Qwen3"}
    config = read(
        {
            "gateway": {"models_dir": "/data/models"},
            "models": {name: {"engine": "vllm", "weights": word} for name, word in models.items()},
        }
    )
    found = {backend.name: (backend.source, backend.weights) for backend in config.backend_settings()}
    assert found == {
        "whole": (HubSource("hf", "Qwen/Qwen3", "v1"), Path("/data/models/hf/Qwen/Qwen3@v1")),
        "file": (HubSource("modelscope", "Qwen/Qwen3-GGUF", "", "q4.gguf"),
                 Path("/data/models/modelscope/Qwen/Qwen3-GGUF/q4.gguf")),
        "path": (None, Path("/srv/unigate/hf:Qwen/Qwen3")),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HOME": "/home/ada"}, "/home/ada/.local/share/unigate/models"),
        ({"HOME": "/home/ada", "XDG_DATA_HOME": "/data"}, "/data/unigate/models"),
    ],
)
def test_default_models_dir(environ: dict[str, str], expected: str) -> None:
    """Models are downloaded into the data folder unless the configuration names another."""
    assert with_gateway(Origin(Path("/srv"), environ)).gateway.models_dir == Path(expected)
    assert with_gateway(models_dir="~/models").gateway.models_dir == Path("/home/ada/models")


def test_weights_that_the_engine_cannot_have() -> None:
    """A source that its engine does not take is refused with those it does; the value is not repeated."""
    (loc, message) = next(iter(model_complaints(weights="ollama:s3cret").items()))
    assert loc == ("weights",)
    assert "vllm cannot load what ollama: names" in message
    assert "s3cret" not in message


@pytest.mark.parametrize("name", ["", " q", "q ", "a\tb", "a\x7fb", "q" * 201])
def test_bad_names(name: str) -> None:
    """Names and aliases are printable, at most 200 characters, and have no space at their ends."""
    assert list(complaints({"models": {name: VLLM}})) == [("models", name)]
    assert list(model_complaints(aliases=[name])) == [("aliases", 0)]


def test_names_with_a_slash() -> None:
    """The names of model hubs are good names."""
    assert list(read({"models": {"Qwen/Qwen2.5-7B": VLLM}}).models) == ["Qwen/Qwen2.5-7B"]


def test_no_model_is_no_gateway() -> None:
    """A configuration without a model is refused, missing or empty."""
    assert list(complaints({})) == [("models",)]
    assert list(complaints({"models": {}})) == [("models",)]


def test_taken_names() -> None:
    """A name means one model: an alias may be neither a model's name nor another's alias, and the error says whose."""
    models = {"a": {**VLLM, "aliases": ["x", "b"]}, "b": {**VLLM, "aliases": ["x", "b"]}}
    assert complaints({"models": models}) == {
        ("models", "a", "aliases", 1): '"b" is already taken by models.b',
        ("models", "b", "aliases", 0): '"x" is already taken by models.a.aliases[0]',
        ("models", "b", "aliases", 1): '"b" is already taken by models.b',
    }


@pytest.mark.parametrize("name", ["UNIGATE_BACKEND_ID", "SPT_NOENV", "", "A=B"])
def test_env_names(name: str) -> None:
    """What the gateway sets itself, and what no environment can hold, is refused in both places."""
    assert list(model_complaints(env={name: "x"})) == [("env", name)]
    found = complaints({"engines": {"vllm": {"env": {name: "x"}}}, "models": {"q": VLLM}})
    assert list(found) == [("engines", "vllm", "env", name)]


@pytest.mark.parametrize("name", ["", "--", "a b", "--a=b"])
def test_args_names(name: str) -> None:
    """An option's key is its name and nothing else."""
    assert list(model_complaints(args={name: 1})) == [("args", name)]


def test_args_once() -> None:
    """One option written with and without dashes is refused, as one of the two would be lost."""
    assert list(model_complaints(args={"a": 1, "--a": 2})) == [("args", "--a")]


@pytest.mark.parametrize("value", [None, {"a": 1}, [[1]], [True], [None], float("nan"), [float("inf")]])
def test_args_values(value: object) -> None:
    """An option's value is a boolean, a finite number, text, or a flat list of numbers and texts."""
    assert list(model_complaints(args={"a": value})) == [("args", "a")]


@pytest.mark.parametrize("command", ["", [], [""], "vllm 'serve", 5, {"a": 1}, ["vllm", 5]])
def test_bad_commands(command: object) -> None:
    """A command that is empty, unreadable or no list of words is refused."""
    found = complaints({"engines": {"vllm": {"command": command}}, "models": {"q": VLLM}})
    assert [loc[:3] for loc in found] == [("engines", "vllm", "command")]


def test_backoff_grows() -> None:
    """The longest pause is not shorter than the first."""
    assert list(model_complaints(backoff={"base_s": 10, "max_s": 5})) == [("backoff", "max_s")]


def test_blank_sections_are_not_given() -> None:
    """A key whose value was left blank counts as absent, as when all below it is commented out."""
    blank = {"gateway": None, "engines": {"vllm": None}, "models": {"q": {**VLLM, "args": None, "backoff": None}}}
    assert read(blank) == read({"engines": {"vllm": {}}, "models": {"q": VLLM}})


def test_places() -> None:
    """A place reads like a path through the file, with quotes around keys that would blur it."""
    assert place(("models", "Qwen/Qwen2.5", "aliases", 0)) == 'models."Qwen/Qwen2.5".aliases[0]'
    assert place(("models", "Qwen/Qwen2", "env")) == "models.Qwen/Qwen2.env"
    assert place(("models", "a\x1bb")) == 'models."a\\u001bb"'


OLLAMA: Mapping[str, Any] = {"engine": "ollama", "weights": "ollama:qwen2.5:7b"}


def ollama_complaints(engine: Mapping[str, Any], **models: Mapping[str, Any]) -> dict[Loc, str]:
    """What is wrong with a model on Ollama so configured."""
    return complaints({"engines": {"ollama": engine}, "models": models or {"m": OLLAMA}})


def test_ollamas_own_keys() -> None:
    """They reach the backends package; other engines have none of them."""
    engine = {"models_dir": "/data", "num_parallel": 4, "go_templates": True}
    settings = read({"engines": {"ollama": engine}, "models": {"m": OLLAMA}}).engine_settings("ollama")
    assert (settings.models_dir, settings.num_parallel, settings.go_templates) == (Path("/data"), 4, True)
    for key, value in engine.items():
        found = complaints({"engines": {"vllm": {key: value}}, "models": {"qwen": VLLM}})
        assert list(found) == [("engines", "vllm", key)]


def test_a_daemon_that_runs_elsewhere_takes_no_settings() -> None:
    """What only a daemon of ours could be told is refused beside url, and so is a second way to start it."""
    url = "http://127.0.0.1:11434"
    assert read({"engines": {"ollama": {"url": url}}, "models": {"m": OLLAMA}}).engine_settings("ollama").url == url
    assert list(ollama_complaints({"url": url, "models_dir": "/d"})) == [("engines", "ollama", "models_dir")]
    assert list(ollama_complaints({"url": url, "env": {"A": "b"}})) == [("engines", "ollama", "env")]
    assert list(ollama_complaints({"url": url, "command": "ollama serve"})) == [("engines", "ollama", "url")]


def test_the_daemons_name_is_taken() -> None:
    """No model may be called as the daemon's own backend is, where there is one."""
    assert list(ollama_complaints({}, ollama=OLLAMA)) == [("models", "ollama")]
    assert read({"models": {"ollama": VLLM}}).models["ollama"].engine == "vllm"


def test_a_template_of_the_engines_own() -> None:
    """Either a file, or whatever the engine has; not both, not neither."""
    (backend,) = read({"models": {"m": {**OLLAMA, "template": {"engine": True}}}}).backend_settings()
    assert (backend.template_is_engines, backend.template_file) == (True, None)
    assert list(model_complaints(template={"from": "t", "engine": True})) == [("template", "engine")]
    assert list(model_complaints(template={"engine": True})) == [("template", "engine")]
    assert list(model_complaints(template={})) == [("template", "contract")]


def test_a_contract_by_name() -> None:
    """A contract is named with how it is kept: enforced, in whichever mode is proven, unless something else is said."""
    (backend,) = read({"models": {"m": {**VLLM, "template": {"contract": "c.contract.yaml"}}}}).backend_settings()
    assert backend.contract == ContractChoice(Path("/srv/unigate/c.contract.yaml"), None, "enforce", "auto")
    said = {"contract": "/c", "tokenizer": "/t", "parity": "warn", "mode": "strict"}
    (backend,) = read({"models": {"m": {**VLLM, "template": said}}}).backend_settings()
    assert backend.contract == ContractChoice(Path("/c"), Path("/t"), "warn", "strict")


@pytest.mark.parametrize(
    ("template", "key", "says"),
    [
        ({"contract": "c", "from": "t"}, "contract", "names a template, and so does from"),
        ({"contract": "c", "engine": True}, "engine", "names a template, and so does contract"),
        ({"from": "t", "parity": "warn"}, "parity", "has no effect without contract"),
        ({"from": "t", "mode": "strict"}, "mode", "has no effect without contract"),
        ({"from": "t", "tokenizer": "t"}, "tokenizer", "has no effect without contract"),
        ({"contract": "c", "parity": "maybe"}, "parity", ""),
        ({"contract": "c", "mode": "tokens"}, "mode", ""),
    ],
)
def test_a_contract_that_is_named_badly(template: Any, key: str, says: str) -> None:
    """One template, one way to name it, and nothing that would have no effect."""
    ((loc, message),) = model_complaints(template=template).items()
    assert loc == ("template", key)
    assert says in message


def test_where_no_contract_belongs() -> None:
    """Embeddings have no conversations, and an adapter's prompts are its base's: one engine has one template."""
    assert list(model_complaints(readiness="embed", template={"contract": "c"})) == [("template", "contract")]
    models = {"qwen": VLLM, "tuned": {"base": "qwen", "adapter": "/a", "template": {"contract": "c"}}}
    ((loc, message),) = complaints({"models": models}).items()
    assert loc == ("models", "tuned", "template")
    assert "is the base's" in message
