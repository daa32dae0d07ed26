"""From the file to a configuration, or to one plain line for each problem in it."""

from __future__ import annotations

import errno
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path

import jsonschema
import pytest
import yaml

from gateway.config import ENGINES, Config
from gateway.config_file import (
    FILE_LIMIT_BYTES,
    ConfigError,
    json_schema,
    load_config,
    schema_text,
)
from gateway.yaml_document import Problem

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "unigate.yaml"
SCHEMA = ROOT / "gateway" / "config_schema.json"
MODEL = "models: {q: {engine: vllm, weights: w}}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str | bytes, environ: Mapping[str, str] | None = None) -> Config:
    path = Path("unigate.yaml")
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(path, environ or {})


def refusal(text: str | bytes, environ: Mapping[str, str] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(text, environ)
    return caught.value


def lines(text: str | bytes, environ: Mapping[str, str] | None = None) -> list[str]:
    return str(refusal(text, environ)).splitlines()


pytestmark = pytest.mark.usefixtures("folder")


# -- the example and the schema


def test_example_loads() -> None:
    """The published example is a valid configuration once its key is in the environment."""
    config = load_config(EXAMPLE, {"UNIGATE_KEY": "sk-1", "UNIGATE_PORT": "9090", "HOME": "/home/ada"})
    names = ["qwen-base", "qwen-lora", "qwen-sql", "qwen-awq", "Qwen/Qwen2.5-0.5B-GGUF"]
    names += ["qwen-ollama", "elsewhere"]
    assert list(config.models) == names
    assert {backend.engine for backend in config.backend_settings()} == set(ENGINES)
    assert config.gateway.port == 9090
    assert config.gateway.keys[0].key.get_secret_value() == "sk-1"
    assert config.models["qwen-lora"].options["gpu_memory_utilization"] == 0.45
    assert config.engine_settings("vllm").env["HF_HUB_OFFLINE"] == "1"


def test_example_without_its_key() -> None:
    """The example without its key in the environment says which variable to set, and where it is used."""
    with pytest.raises(ConfigError) as caught:
        load_config(EXAMPLE, {})
    line = EXAMPLE.read_text().partition("key: ${UNIGATE_KEY}")[0].count("\n") + 1
    assert str(caught.value).startswith(f"{EXAMPLE}:{line}: gateway.keys[0].key: needs the environment variable")


def test_example_shows_every_option() -> None:
    """Each key of the schema stands in the example, set or in a comment; of the engines' own options a few will do."""
    text = EXAMPLE.read_text()
    schema = json_schema()
    sections = [schema, *(one for name, one in schema["$defs"].items() if not name.endswith("Options"))]
    keys = {key for section in sections for key in section.get("properties", {})}
    assert [key for key in sorted(keys) if not re.search(rf"(^|[\s{{#]){key}:", text)] == []


def test_example_shows_true_defaults() -> None:
    """A default that the example shows in a comment is the default in the schema."""
    schema = json_schema()
    defaults: dict[str, set[str]] = {}
    for section in schema["$defs"].values():
        for key, value in section.get("properties", {}).items():
            if "default" in value and not isinstance(value["default"], list | None):
                defaults.setdefault(key, set()).add(json.dumps(value["default"]).strip('"').removesuffix(".0"))
    shown = re.findall(r"^ *# (\w+): (\S+)", EXAMPLE.read_text(), re.MULTILINE)
    wrong = [(key, value) for key, value in shown if key in defaults and value not in defaults[key]]
    assert len(shown) > 20
    assert wrong == []


def test_schema_is_current() -> None:
    """The schema in the repository is the one this code makes."""
    assert SCHEMA.read_text() == schema_text(), "write gateway.config_file.schema_text() to gateway/config_schema.json"


def test_schema_accepts_the_example() -> None:
    """The published schema is a valid schema, and the example, as it is written, satisfies it."""
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    validator.check_schema(validator.schema)
    validator.validate(yaml.safe_load(EXAMPLE.read_text()))


@pytest.mark.parametrize(
    "text",
    [
        "models: {q: {engine: sglang, weights: w}}",
        "models: {q: {engine: vllm, weigths: w}}",
        "models: {q: {engine: vllm, weights: w, idle_unload_s: 0}}",
        "models: {}",
        "engines: {vlm: {}}\n" + MODEL,
        "engines: {vllm: {env: {SPT_NOENV: 1}}}\n" + MODEL,
        "gateway: {port: 0}\n" + MODEL,
        "gateway: {keys: [{name: me}]}\n" + MODEL,
        "modles: {}\n" + MODEL,
    ],
)
def test_schema_refuses_what_the_loader_refuses(text: str) -> None:
    """What an editor can know from the schema, it is told: names, engines and bounds."""
    refusal(text)
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(yaml.safe_load(text))


def test_every_key_is_described() -> None:
    """Each key in the schema has a sentence about it."""
    schema = json_schema()
    sections = {"Config": schema, **schema["$defs"]}
    keys = [(name, key, value) for name, one in sections.items() for key, value in one.get("properties", {}).items()]
    assert len(keys) > 50
    assert [(name, key) for name, key, value in keys if not value.get("description")] == []


# -- the shape of a refusal


def test_refusal_reads_like_a_compiler() -> None:
    """A problem is one line: file, line, place, what is wrong, what to do."""
    text = "models:\n  qwen:\n    engine: vllm\n    weigths: w\n"
    error = refusal(text)
    assert str(error) == 'unigate.yaml:4: models.qwen.weigths: unknown key; did you mean "weights"?'
    assert error.problems == (Problem(4, 5, "models.qwen.weigths", "unknown key", 'did you mean "weights"?'),)


def test_problems_in_the_order_of_the_file() -> None:
    """All problems come at once, those of variables, of keys and of values, sorted by line."""
    text = """\
gateway:
  port: abc
  host: ${HOST}
  kees: []
models:
  q:
    engine: vllm
    load: now
  q: {}
engine: {}
"""
    assert [problem.line for problem in refusal(text).problems] == [2, 3, 4, 6, 8, 9, 10]


def test_raises_without_a_chain() -> None:
    """The error drags no other exception along, whose text could hold what this one keeps back."""
    for text in ("a: [", "models: {q: 5}", ""):
        error = refusal(text)
        assert error.__cause__ is None
        assert error.__suppress_context__ or error.__context__ is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gateway: {port: abc}", 'gateway.port: must be a whole number, not "abc"'),
        ("gateway: {port: 70000}", "gateway.port: must be at most 65,535, not 70000"),
        ("gateway: {port: yes}", "gateway.port: must be a whole number, not yes (to YAML true)"),
        ("gateway: {port: 1.5}", "gateway.port: must be a whole number, not 1.5"),
        ("gateway: {port: [1]}", "gateway.port: must be a whole number, not a list"),
        ("gateway: {queue: 5}", 'gateway.queue: must be a mapping of "key: value" lines, not 5'),
        ("gateway: {access_log: maybe}", 'gateway.access_log: must be true or false, not "maybe"'),
        (
            "gateway: {body_limit_bytes: 5m}",
            'gateway.body_limit_bytes: must be a whole number, not "5m"; it is in bytes',
        ),
        ("gateway: {drain_timeout_s: 5m}", 'gateway.drain_timeout_s: must be a number, not "5m"; it is in seconds'),
        ("gateway: {drain_timeout_s: .inf}", "gateway.drain_timeout_s: must be a finite number, not .inf"),
        ("gateway: {timeouts: {idle_s: 0}}", "gateway.timeouts.idle_s: must be more than 0, not 0"),
        ("gateway: {log_dir: 5}", 'gateway.log_dir: must be text, not 5; quote it: "5"'),
        ("engines: {vllm: {socket: udp}}", 'engines.vllm.socket: must be "unix" or "tcp", not "udp"'),
        (
            "engines: {lmdeploy: {socket: unix}}",
            "engines.lmdeploy.socket: lmdeploy cannot listen on a Unix socket, only on a port; remove it, or write tcp",
        ),
        ("engines: {vlm: {}}", 'engines.vlm: unknown engine; did you mean "vllm"?'),
        (
            "engines: {sglang: {}}",
            "engines.sglang: unknown engine; known here: vllm, lmdeploy, ollama, llamacpp, external",
        ),
        ("engines: 5", 'engines: must be a mapping of "key: value" lines, not 5'),
    ],
)
def test_plain_sentences(text: str, expected: str) -> None:
    """Each kind of wrong value is told in a sentence that names what is wanted and what is there."""
    assert lines(f"{text}\n{MODEL}") == [f"unigate.yaml:1: {expected}"]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("engine: sglang", 'q.engine: must be "vllm", "lmdeploy", "ollama", "llamacpp" or "external", not "sglang"'),
        ("load: on-demand", 'q.load: must be "startup" or "on_demand", not "on-demand"; did you mean "on_demand"?'),
        ("load: on", 'q.load: must be "startup" or "on_demand", not on (to YAML true)'),
        ("aliases: x", "q.aliases: must be a list, not text; write it as a list: [one, two]"),
        ("aliases: [1.5]", 'q.aliases[0]: must be text, not 1.5; quote it: "1.5"'),
        ("template: x", 'q.template: must be a mapping of "key: value" lines, not text'),
        ("context_length: 0", "q.context_length: must be at least 1, not 0"),
    ],
)
def test_plain_sentences_in_a_model(keys: str, expected: str) -> None:
    """A model's wrong values are told in the same way, with the nearest known word where there is one."""
    model = {"engine": "vllm", "weights": "w", **yaml.safe_load(keys)}
    body = "".join(f"    {key}: {value}\n" for key, value in model.items() if key != keys.partition(":")[0])
    assert lines(f"models:\n  q:\n{body}    {keys}\n") == [f"unigate.yaml:{3 + body.count(chr(10))}: models.{expected}"]


def test_taken_names_name_both_lines() -> None:
    """Two models with one alias are told with the places and lines of both."""
    text = """\
models:
  a:
    {engine: vllm, weights: w, aliases: [default]}
  b:
    {engine: vllm, weights: w, aliases: [default]}
"""
    assert lines(text) == [
        'unigate.yaml:5: models.b.aliases[0]: "default" is already taken by models.a.aliases[0] (line 3); '
        "give each model and alias its own name"
    ]


def test_duplicate_keys_name_both_lines() -> None:
    """Two models with one name are a key set twice, told with both lines."""
    text = "models:\n  q: {engine: vllm, weights: w}\n\n  q: {engine: vllm, weights: w}\n"
    assert lines(text) == ["unigate.yaml:4: models.q: is set twice, first on line 2; remove or rename one of them"]


def test_missing_key_stands_at_its_section() -> None:
    """A missing key is told at the line of the section that lacks it."""
    assert lines("models:\n\n  q:\n    weights: w\n") == [
        "unigate.yaml:3: models.q.engine: is missing; "
        "add it (the engine that serves the model: vllm, lmdeploy, ollama, llamacpp, external)"
    ]


# -- files that cannot be read


def test_missing_file() -> None:
    """A file that is not there is one line without a number."""
    with pytest.raises(ConfigError) as caught:
        load_config(Path("nowhere.yaml"), {})
    assert str(caught.value) == "nowhere.yaml: no such file; copy examples/unigate.yaml, or name another file with -c"


def test_folder_in_place_of_the_file(folder: Path) -> None:
    """A folder is told to be one."""
    with pytest.raises(ConfigError, match="is a folder; name the configuration file in it"):
        load_config(folder, {})


def test_unreadable_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file this user may not read is told so."""

    def refuse(*_: object) -> None:
        # root may read everything, so that a mode of 000 would prove nothing there
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match="may not be read by this user"):
        load_config(Path("unigate.yaml"), {})


def test_path_through_a_file(folder: Path) -> None:
    """Any other trouble of the system is told in its own words, without a traceback."""
    (folder / "file").touch()
    with pytest.raises(ConfigError, match="cannot be read: Not a directory"):
        load_config(folder / "file" / "unigate.yaml", {})


def test_file_limit() -> None:
    """A file of one byte more than 1 MiB is refused before it is parsed; one of 1 MiB is not."""
    padding = "#" * (FILE_LIMIT_BYTES - len(MODEL))
    assert load(MODEL + padding).models
    assert lines(MODEL + padding + "#") == [
        "unigate.yaml: the file is larger than 1 MiB; name the configuration file, not weights"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "unigate.yaml: the file is empty"),
        (b"# nothing\n", "unigate.yaml: the file is empty"),
        (b"- a\n", 'unigate.yaml:1: must be a mapping of "key: value" lines'),
        (b"text\n", 'unigate.yaml:1: must be a mapping of "key: value" lines'),
        (b"a: 1\nb: \xff\n", "unigate.yaml:2: is not UTF-8 text"),
        ("a: 1".encode("utf-16"), "unigate.yaml:1: is not UTF-8 text"),
        (b"a: 1\nb: \x01\n", "unigate.yaml:2: holds the control character U+0001"),
        (b"models:\n\tq: 1\n", "unigate.yaml:2: a tab stands where YAML wants spaces"),
        (b"a: 1\nb: 'x\nc: 2\n", "unigate.yaml:2: a quote is opened here and never closed"),
        (b"a: b: c\n", 'unigate.yaml:1: a ":" is not expected here'),
        (b"a:\n  b: 1\n c: 2\n", "unigate.yaml:3: the indentation does not fit"),
        (b"a: 1\nb: [1, 2\nc: 3\n", "unigate.yaml:2: a [ or { is opened here and not closed properly"),
        (b"a: 1\nb\nc: 2\n", 'unigate.yaml:2: this line is no "key: value"'),
        (b"a: @b\n", "unigate.yaml:1: a value may not begin with this character"),
        (b"a: *\n", "unigate.yaml:1: * and & begin a YAML alias or anchor; put it in quotes"),
        (b"a: *b\n", "unigate.yaml:1: *name refers to an anchor that does not exist"),
        (b"a: 1\n---\nb: 2\n", "unigate.yaml:2: a second document begins here"),
        (b'a: "\\q"\n', "unigate.yaml:1: a backslash in double quotes begins an unknown escape"),
        (b'a: "\\UFFFFFFFF"\n', "unigate.yaml: is not valid YAML"),
        (b"a: {b: ${C}}\n", "unigate.yaml:1: a [ or { is opened here and not closed properly; inside { } and [ ]"),
        (b"a: 1\n- b\n", "unigate.yaml:2: "),
    ],
)
def test_broken_files(text: bytes, expected: str) -> None:
    """Each way a file can be no YAML mapping is one plain line with its number."""
    (line,) = lines(text)
    assert line.startswith(expected)


def test_byte_order_mark() -> None:
    """A byte order mark, as some editors write it, does no harm."""
    assert load(b"\xef\xbb\xbf" + MODEL.encode()).models


def bomb(first: str, link: str) -> str:
    """Ten anchors, each of which refers ten times to the one before: ten billion values."""
    names = "abcdefghij"
    links = (
        f"{name}: &{name} {link.format(', '.join([f'*{before}'] * 10))}\n" for before, name in itertools.pairwise(names)
    )
    return f"a: &a {first}\n" + "".join(links)


BOMBS = {
    "deep": "a: " + "[" * 5000,
    "cyclic list": "a: &a [*a]",
    "cyclic mapping": "a: &a {b: *a}",
    "cyclic merge": "a: &a {<<: *a}",
    "aliases": bomb("[1, 1]", "[{}]"),
    "merges": bomb("{x: 1}", "{{<<: [{}]}}"),
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_bombs(text: str) -> None:
    """Nesting without end and a few lines that stand for billions of values are refused in bounded time."""
    (line,) = lines(text)
    assert "levels deep" in line or "stands for more than" in line


# -- YAML as people mean it


@pytest.mark.parametrize(
    ("key", "kind"),
    [("1.5", "a number"), ("7", "a number"), ("2024-01-01", "a date"), ("on", "true or false"), ("null", "nothing")],
)
def test_keys_that_yaml_reads_otherwise(key: str, kind: str) -> None:
    """A model whose name YAML takes for something else is refused with the quotes it needs, and works with them."""
    (line,) = lines(f"models:\n  {key}: {{engine: vllm, weights: w}}\n")
    assert line.endswith(f'YAML reads this key as {kind}; quote it: "{key}"')
    assert list(load(f'models:\n  "{key}": {{engine: vllm, weights: w}}\n').models) == [key]


def test_wrong_key_does_not_hide_the_rest() -> None:
    """What stands below a key that needs quotes is checked all the same."""
    assert [problem.where for problem in refusal("models:\n  1.5: {engine: vllm, weigths: w}\n").problems] == [
        'models."1.5"',
        'models."1.5".weigths',
    ]


def test_list_as_key() -> None:
    """A key that is a list is refused."""
    assert "a key that is a list or a mapping" in lines(f"? [a]\n: 1\n{MODEL}")[0]


def test_env_and_command_are_taken_as_typed() -> None:
    """Environment variables and command words need no quotes: they are the text that was typed."""
    config = load(
        f"engines: {{vllm: {{command: [vllm, 1.10], env: {{A: 1, B: 010, C: on, D: 1.10, E: ''}}}}}}\n{MODEL}"
    )
    assert config.engine_settings("vllm").command == ("vllm", "1.10")
    assert config.engine_settings("vllm").env == {"A": "1", "B": "010", "C": "on", "D": "1.10", "E": ""}


@pytest.mark.parametrize("text", ["12:30", "010", "2024-01-01", "1e3"])
def test_text_that_yaml_1_1_would_bend(text: str) -> None:
    """Times, numbers with a leading zero and dates stay the text that people see."""
    args = load(f"models: {{q: {{engine: vllm, weights: w, args: {{a: {text}}}}}}}").models["q"].args
    assert args["a"] == text


@pytest.mark.parametrize("word", ["on", "off", "yes", "No"])
def test_ambiguous_words_in_args(word: str) -> None:
    """``flash-attn: on`` is refused: YAML would make it a bare flag, while the engine takes the word."""
    model = "models: {{q: {{engine: llamacpp, weights: w, args: {{flash-attn: {}}}}}}}"
    (line,) = lines(model.format(word))
    assert line == (
        f"unigate.yaml:1: models.q.args.flash-attn: YAML reads {word} as true or false, "
        "and some engines take the word; "
        f'write true or false for a flag without a value, "{word}" in quotes for that word'
    )
    assert load(model.format(f'"{word}"')).models["q"].args == {"flash-attn": word}


def test_anchors_and_merges() -> None:
    """Anchors may stand under x-, a merge brings keys in, and the section's own keys win over it."""
    text = """\
x-common: &common {engine: vllm, weights: w, load: on_demand}
models:
  a: *common
  b: {<<: *common, load: startup}
  c: {load: startup, <<: [{load: on_demand, weights: v}, *common]}
"""
    models = load(text).models
    assert [model.load for model in models.values()] == ["on_demand", "startup", "startup"]
    assert models["c"].weights == Path.cwd() / "v"


@pytest.mark.parametrize("text", ["<<: 5", "<<: [5]"])
def test_merge_of_no_mapping(text: str) -> None:
    """A merge of something that is no mapping is refused."""
    assert '"<<" must refer to a mapping' in str(refusal(f"models: {{q: {{{text}, engine: vllm, weights: w}}}}"))


@pytest.mark.parametrize("value", ["!!python/object:os.system x", "!mine x", "!!binary aGk="])
def test_tags(value: str) -> None:
    """A YAML tag is refused and makes nothing happen."""
    assert "has a YAML tag" in lines(f"models: {{q: {{engine: vllm, weights: {value} }}}}")[0]


@pytest.mark.parametrize("value", ["!!int abc", "!!float abc", "!!bool 5", "9" * 5000])
def test_numbers_that_are_none(value: str) -> None:
    """A number that Python cannot read is refused."""
    assert lines(f"gateway: {{port: {value}}}\n{MODEL}") == [
        "unigate.yaml:1: gateway.port: is not the number that its notation promises; put the value in quotes"
    ]


def test_paths_start_at_the_file(folder: Path) -> None:
    """Relative paths are relative to the folder of the file, wherever the gateway is started."""
    (folder / "conf").mkdir()
    path = folder / "conf" / "unigate.yaml"
    path.write_text(MODEL)
    assert load_config(path, {}).models["q"].weights == folder / "conf" / "w"
    assert load_config(Path("conf/unigate.yaml"), {}).models["q"].weights == folder / "conf" / "w"


# -- variables


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${A}", "1"),
        ("x${A}y${B}", "x1y2"),
        ("${C:-3}", "3"),
        ("${EMPTY:-3}", "3"),
        ("${A:-3}", "1"),
        ("${C:-}x", "x"),
        ("${C:-a:-b}", "a:-b"),
        ("$$", "$"),
        ("$${A}", "${A}"),
        ("$A $", "$A $"),
        ("${YAML}", "{a: [1]} #"),
        ("${SELF}", "${A}"),
    ],
)
def test_expansion(text: str, expected: str) -> None:
    """Variables are replaced once, defaults stand in for what is unset or empty, $$ is a dollar, the rest is text."""
    environ = {"A": "1", "B": "2", "EMPTY": "", "YAML": "{a: [1]} #", "SELF": "${A}"}
    config = load(f"models: {{q: {{engine: vllm, weights: w, args: {{a: '{text}'}}}}}}", environ)
    assert config.models["q"].args["a"] == expected


def test_variables_everywhere() -> None:
    """Variables work in numbers, booleans, choices, keys and plain text."""
    text = "gateway:\n  port: ${PORT}\n  access_log: ${LOG}\nmodels:\n  ${NAME}: {engine: '${ENGINE}', weights: w}\n"
    config = load(text, {"PORT": "8081", "LOG": "false", "NAME": "qwen", "ENGINE": "vllm"})
    assert (config.gateway.port, config.gateway.access_log) == (8081, False)
    assert config.models["qwen"].engine == "vllm"


def test_unset_variable() -> None:
    """An unset variable is named with its line and the remedy, and told once."""
    assert lines(f"gateway:\n  port: ${{UNIGATE_PORT}}\n{MODEL}") == [
        "unigate.yaml:2: gateway.port: needs the environment variable UNIGATE_PORT, which is not set; "
        "export UNIGATE_PORT, or write ${UNIGATE_PORT:-a default}"
    ]


def test_unset_variable_in_a_key() -> None:
    """An unset variable in a key is told at that key."""
    (line,) = lines("models:\n  ${NAME}: {engine: vllm, weights: w}\n")
    assert line.startswith('unigate.yaml:2: models."${NAME}": as a key needs the environment variable NAME')


@pytest.mark.parametrize("text", ["${}", "${A", "${A-b}", "${1}", "${A:-${B}}", "${ A }"])
def test_no_variable(text: str) -> None:
    """What looks like a variable and is none is refused rather than passed on."""
    (line,) = lines(f"gateway: {{log_dir: '{text}'}}\n{MODEL}", {"A": "1", "B": "2"})
    assert "has a ${...} that is not a variable; write ${NAME} or ${NAME:-default}, and $${ for a literal ${" in line


# -- secrets

SECRET = "s3cret-v4lue"


@pytest.mark.parametrize(
    "text",
    [
        f"gateway: {{keys: {SECRET}}}",
        f"gateway: {{keys: [{SECRET}]}}",
        f"gateway: {{keys: {{me: {SECRET}}}}}",
        f"gateway: {{keys: [{{name: me, kee: {SECRET}}}]}}",
        f"gateway: {{keys: [{{name: me, key: '{SECRET} x'}}]}}",
        f"gateway: {{keys: [{{name: me, key: [{SECRET}]}}]}}",
        f"gateway: {{keys: [{{name: me, key: !{SECRET} x}}]}}",
        f"gateway: {{keys: [{{name: me, key: *{SECRET}}}]}}",
        f"gateway: {{keys: [{{name: me, key: {SECRET}}}, {{name: you, key: {SECRET}}}]}}",
        "gateway: {port: '${KEY}'}",
        "gateway: {access_log: '${KEY}'}",
        "gateway: {keys: ['${KEY}'], queue: '${KEY}'}",
        "gateway: {'${KEY}': 1}",
        "gateway: {'a-${KEY}': 1}",
        "gateway: {host: 'http://${KEY}'}",
        "gateway: {state_dir: 'x:${KEY}'}",
        f"gateway: {{log_dir: '${{KEY:-{SECRET}${{X}}}}'}}",
        "engines: {vllm: {socket: '${KEY}'}}",
        f'engines: {{vllm: {{command: "vllm --api-key \'{SECRET}"}}}}',
        f"engines: {{vllm: {{command: {{a: {SECRET}}}}}}}",
        f"engines: {{vllm: {{env: {SECRET}}}}}",
        f"engines: {{vllm: {{env: [TOKEN={SECRET}]}}}}",
        f"engines: {{vllm: {{env: {{TOKEN={SECRET}: }}}}}}",
        f"engines: {{vllm: {{env: {{UNIGATE_BACKEND_ID: {SECRET}}}}}}}",
    ],
)
def test_secrets_stay_secret(text: str) -> None:
    """No refusal shows a key, an environment value or what a variable expands to, however wrong it is written."""
    assert SECRET not in str(refusal(f"{text}\n{MODEL}", {"KEY": SECRET}))


@pytest.mark.parametrize(
    "keys",
    [
        f"engine: external, url: 'http://me:{SECRET}@far/v1'",
        f"engine: external, url: 'far:{SECRET}'",
        f"engine: external, url: 'http://far/v1?key={SECRET}'",
        f"engine: external, url: 'http://far', api_key: [{SECRET}]",
        f"engine: external, url: 'http://far', api_key: '{SECRET} x'",
        f"engine: vllm, weights: w, args: --api-key {SECRET}",
        f"engine: vllm, weights: w, args: [--api-key, {SECRET}]",
        f"engine: vllm, weights: w, args: {{--api-key={SECRET}: }}",
        f"engine: vllm, weights: w, args: {{--api-key {SECRET}: 1}}",
        f"engine: vllm, weights: w, args: {{api-key: {{a: {SECRET}}}}}",
        f"engine: vllm, weights: w, env: {{A: [{SECRET}]}}",
        "engine: '${KEY}', weights: w",
        "engine: vllm, weights: w, aliases: '${KEY}'",
        "engine: vllm, weights: 'hf:${KEY}'",
    ],
)
def test_secrets_of_a_model_stay_secret(keys: str) -> None:
    """The same holds for what models carry: server keys, passwords in addresses, options and environment."""
    assert SECRET not in str(refusal(f"models: {{q: {{{keys}}}}}", {"KEY": SECRET}))


def test_value_of_a_variable_is_named_by_the_variable() -> None:
    """Where a variable's value is wrong, the variable is named in its place."""
    assert lines(f"gateway: {{port: '${{PORT}}'}}\n{MODEL}", {"PORT": "http"}) == [
        "unigate.yaml:1: gateway.port: must be a whole number, not the value of ${PORT}"
    ]
