"""A model's options: each checked by its engine's table, and told of in the words of the configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from backends.engines import ADAPTERS
from backends.options import Option
from gateway.config import Config
from gateway.config_file import ConfigError, json_schema, load_config_file
from gateway.console import takes

LAUNCHED = [engine for engine, adapter in ADAPTERS.items() if adapter.options]
OPTIONS = [(engine, option) for engine in LAUNCHED for option in ADAPTERS[engine].options]
every_option = pytest.mark.parametrize(("engine", "option"), OPTIONS, ids=lambda value: getattr(value, "name", value))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "unigate.yaml"


def load(file: Path, engine: str, options: str, args: str = "{}", environ: dict[str, str] | None = None) -> Config:
    """The configuration of one model with *options* and *args*, both as they are typed."""
    file.write_text(f"models:\n  q:\n    engine: {engine}\n    weights: w\n    options: {options}\n    args: {args}\n")
    return load_config_file(file, environ or {}).config


def refusal(file: Path, engine: str, options: str, args: str = "{}", environ: dict[str, str] | None = None) -> str:
    """What is told of them, without the file and the line."""
    with pytest.raises(ConfigError) as caught:
        load(file, engine, options, args, environ)
    return "\n".join(line.partition(" models.q.")[2] for line in str(caught.value).splitlines())


def good_value(option: Option) -> Any:
    """A value that *option* takes."""
    if option.kind == "whole":
        return int(option.least or 0) + 1
    return {"switch": True, "number": 0.5, "text": "word"}[option.kind]


@every_option
def test_every_option_takes_its_own_kind(file: Path, engine: str, option: Option) -> None:
    """A value of the option's kind gets to the backend as it is, and from a variable as well."""
    for value in option.choices or (good_value(option),):
        config = load(file, engine, yaml.safe_dump({option.name: value}, default_flow_style=True))
        assert config.backend_settings()[0].options == {option.name: value}
        typed = "true" if value is True else str(value)
        config = load(file, engine, f'{{{option.name}: "${{VALUE}}"}}', environ={"VALUE": typed})
        assert config.backend_settings()[0].options == {option.name: value}


@every_option
def test_every_option_refuses_another_kind(file: Path, engine: str, option: Option) -> None:
    """A list, and a word or a number where it takes none, are refused in a sentence at its own place."""
    wrong = {"switch": "7", "whole": "two", "number": "half", "text": "7", "choice": "never"}[option.kind]
    for typed in (wrong, "[1]"):
        told = refusal(file, engine, f"{{{option.name}: {typed}}}")
        assert told.startswith(f"options.{option.name}: must be ")
        assert "Input should" not in told
    if option.kind != "switch":
        assert refusal(file, engine, f"{{{option.name}: yes}}").startswith(f"options.{option.name}: must be ")


@every_option
def test_every_option_keeps_its_bounds(file: Path, engine: str, option: Option) -> None:
    """The bounds of a number are inclusive or not, as the table says."""
    name = option.name
    if option.least is not None:
        load(file, engine, f"{{{name}: {option.least:g}}}")
        told = refusal(file, engine, f"{{{name}: {option.least - 1:g}}}")
        assert told == f"options.{name}: must be at least {option.least:g}, not {option.least - 1:g}"
    if option.above is not None:
        told = refusal(file, engine, f"{{{name}: {option.above:g}}}")
        assert told == f"options.{name}: must be more than {option.above:g}, not {option.above:g}"
    if option.most is not None:
        load(file, engine, f"{{{name}: {option.most:g}}}")
        told = refusal(file, engine, f"{{{name}: {option.most + 1:g}}}")
        assert told == f"options.{name}: must be at most {option.most:g}, not {option.most + 1:g}"


@pytest.mark.parametrize(
    ("engine", "options", "expected"),
    [
        (
            "vllm", "{tensor_paralel: 2}",
            'options.tensor_paralel: is no option of vllm that unigate knows; did you mean "tensor_parallel"?; '
            "what the engine alone knows goes below args",
        ),
        (
            "vllm", "{tensor-parallel-size: 2}",
            'options.tensor-parallel-size: is no option of vllm that unigate knows; did you mean "tensor_parallel"?',
        ),
        (
            "lmdeploy", "{tp: 2}",
            'options.tp: is no option of lmdeploy that unigate knows; did you mean "tensor_parallel"?',
        ),
        (
            "lmdeploy", "{quant_policy: 5}",
            "options.quant_policy: must be 0, 4, 8, 16, 17 or 42, not 5",
        ),
        (
            "lmdeploy", "{backend: turbo}",
            'options.backend: must be "pytorch" or "turbomind", not "turbo"; did you mean "turbomind"?',
        ),
        (
            "llamacpp", "{flash_attention: auto}",
            'options.flash_attention: must be true or false, not "auto"',
        ),
        (
            "vllm", "{quantization: --api-key=x}",
            "options.quantization: must not begin with a dash or hold control characters; write the value alone",
        ),
        (
            "vllm", '{quantization: ""}',
            "options.quantization: must not be empty; remove the key for the engine's default",
        ),
        ("vllm", "[a]", 'options: must be a mapping of "key: value" lines, not a list'),
        ("lmdeploy", "{quant_policy: true}", "options.quant_policy: must be 0, 4, 8, 16, 17 or 42, not true"),
    ],
)  # fmt: skip
def test_what_is_told(file: Path, engine: str, options: str, expected: str) -> None:
    """What is wrong, where, and what to do: the nearest name, also from the engine's own flag."""
    assert refusal(file, engine, options).startswith(expected)


def test_all_of_them_at_once(file: Path) -> None:
    """Every option that is wrong is told of, not only the first."""
    told = refusal(file, "vllm", "{tensor_parallel: 0, dtype: int4, nope: 1, seed: 3}")
    assert [line.partition(":")[0] for line in told.splitlines()] == [
        "options.tensor_parallel", "options.dtype", "options.nope",
    ]  # fmt: skip


@pytest.mark.parametrize("arg", ["tensor-parallel-size", "--tensor_parallel_size", "tp"])
def test_the_same_thing_in_both_places(file: Path, arg: str) -> None:
    """A flag below args that is an option's as well is a contradiction, and both are named."""
    told = refusal(file, "vllm", "{tensor_parallel: 2}", f"{{{arg}: 2}}")
    assert told == f"args.{arg}: says the same as options.tensor_parallel; keep one of them"


def test_an_option_without_a_value_is_not_given(file: Path) -> None:
    """As with every key of the file."""
    assert load(file, "vllm", "{seed: }").backend_settings()[0].options == {}
    assert load(file, "vllm", "").backend_settings()[0].options == {}


def test_external_servers_have_none(tmp_path: Path) -> None:
    """An address we do not start takes no options of a process."""
    path = tmp_path / "unigate.yaml"
    path.write_text("models:\n  q:\n    engine: external\n    url: http://h/v1\n    options: {seed: 1}\n")
    with pytest.raises(ConfigError, match=r"q\.options: has no effect on an external server"):
        load_config_file(path, {})


def test_sleep_needs_a_unix_socket(tmp_path: Path) -> None:
    """vLLM on a port with sleep is refused, naming the engine's socket; LMDeploy, which knows only ports, is not."""
    path = tmp_path / "unigate.yaml"
    model = "models:\n  q:\n    engine: {}\n    weights: w\n    options: {{sleep: {}}}\n"
    tcp = "engines: {{{}: {{socket: tcp}}}}\n"
    path.write_text(tcp.format("vllm") + model.format("vllm", "true"))
    with pytest.raises(ConfigError, match=r":6: models\.q\.options\.sleep: needs a Unix socket") as caught:
        load_config_file(path, {})
    assert "write engines.vllm.socket: unix" in str(caught.value)
    for text in (
        model.format("vllm", "true"),
        tcp.format("vllm") + model.format("vllm", "false"),
        model.format("lmdeploy", "true"),
    ):
        path.write_text(text)
        load_config_file(path, {})


@pytest.mark.parametrize(
    ("options", "is_good"),
    [
        ({"tensor_parallel": 2, "dtype": "auto", "seed": None}, True),
        ({"tensor_parallel": "${TP}"}, True),
        (None, True),
        ({"tensor_parallel": 0}, False),
        ({"tensor_parallel": "two"}, False),
        ({"gpu_layers": 1}, False),
    ],
)
def test_the_schema_knows_each_engines_options(options: object, is_good: bool) -> None:
    """An editor is told of names, kinds and bounds, by the engine of the model."""
    validator = jsonschema.Draft202012Validator(json_schema())
    assert validator.is_valid({"models": {"q": {"engine": "vllm", "weights": "w", "options": options}}}) is is_good


def test_what_an_option_takes_is_said_in_words() -> None:
    """`unigate engine options` shows kinds, bounds and choices."""
    table = {option.name: takes(option) for option in ADAPTERS["vllm"].options}
    assert table["tensor_parallel"] == "a whole number, at least 1"
    assert table["gpu_memory_utilization"] == "a number, more than 0, at most 1"
    assert table["enforce_eager"] == "true or false"
    assert table["quantization"] == "a word"
    assert table["runner"] == "auto, draft, generate, pooling"


@every_option
def test_every_option_says_what_it_is(engine: str, option: Option) -> None:
    """A sentence, a source, a name that is a plain word, and no bound on what is no number."""
    assert option.description.endswith(".")
    assert option.source
    assert option.name.isidentifier()
    assert (option.kind == "choice") == bool(option.choices)
    if option.kind not in ("whole", "number"):
        assert (option.least, option.above, option.most) == (None, None, None)
