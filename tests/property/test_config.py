"""What is true of every configuration file, however it is mangled."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Config
from gateway.config_file import ConfigError, json_schema, load_config

SECRET = "s3cret-v4lue"
VALIDATOR = jsonschema.Draft202012Validator(json_schema())
JARGON = (
    "Input should",
    "pydantic",
    "type=",
    "[key]",
    "Value error",
    "Traceback",
    "is not a value that this key takes",
)

KEYS = {key for section in (json_schema(), *json_schema()["$defs"].values()) for key in section.get("properties", {})}
WORDS = st.sampled_from(
    ["vllm", "external", "startup", "generate", "unix", "~/w", "http://h/v1", "0.0.0.0", "5m", "*", ""]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 70_000)
    | st.floats(-2, 1e9)
    | st.dates()
    | WORDS
    | st.sampled_from(["${PORT}", "${UNSET}", "${KEY}", "${", "$$"])
    # no digits and no y or n: "8080" in quotes is a number to the loader, and not to the schema
    | st.text("abcdeä€🙂\x7f\u2028:#'\"-_. \n", max_size=5)
)
NAMES = st.sampled_from([*sorted(KEYS), "qwen", "vllm", "x-y"]) | SCALARS.filter(lambda value: value is not None)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


SOUND = {
    "gateway": {"port": 8080},
    "engines": {"vllm": {"socket": "tcp"}},
    "models": {"q": {"engine": "vllm", "weights": "w"}},
}


@st.composite
def sound_but_for_a_few(draw: st.DrawFn) -> dict[str, Any]:
    """A sound configuration in which a few keys of any section were set to anything at all."""
    document: dict[str, Any] = copy.deepcopy(SOUND)
    sections = [document["gateway"], document["engines"]["vllm"], document["models"]["q"], document["models"], document]
    for section in draw(st.lists(st.sampled_from(sections), min_size=1, max_size=3)):
        section[draw(NAMES)] = draw(DOCUMENTS)
    return document


def read(text: str) -> Config | str:
    """The configuration in *text*, or what the refusal of it prints."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "unigate.yaml")
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            return load_config(path, {"PORT": "8080", "KEY": SECRET, "HOME": "/home/ada"})
        except ConfigError as error:
            return str(error)


def check(text: str) -> None:
    """Either a configuration, or printable lines without jargon and without the secret."""
    outcome = read(text)
    if isinstance(outcome, Config):
        assert VALIDATOR.is_valid(json.loads(json.dumps(yaml.safe_load(text), default=str)))
        assert outcome.backend_settings()
        return
    assert outcome
    assert all(line.isprintable() for line in outcome.split("\n"))
    assert SECRET not in outcome
    assert not [word for word in JARGON if word in outcome]


@given(st.text())
def test_any_text(text: str) -> None:
    """Any text at all is a configuration or a plain refusal, never another exception."""
    check(text)


@given(st.text(st.sampled_from("ab:-[]{}&*!|>'\"%@`#,? \n\t<${}0.~\\\r"), max_size=60))
def test_any_yaml_punctuation(text: str) -> None:
    """Any heap of YAML's own characters is a configuration or a plain refusal."""
    check(text)


@given(DOCUMENTS)
def test_any_document(document: object) -> None:
    """Any YAML document is a configuration or a plain refusal."""
    check(yaml.safe_dump(document, allow_unicode=True))


@given(sound_but_for_a_few())
def test_anything_at_known_places(document: object) -> None:
    """Anything in the place of any known value is accepted by loader and schema both, or refused plainly."""
    check(yaml.safe_dump(document, allow_unicode=True))


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"])))
def test_doubled_dollars_are_literal(text: str) -> None:
    """Any text whose dollars are doubled arrives as it was: there is a way to write everything."""
    model = {"engine": "vllm", "weights": "w", "args": {"a": text.replace("$", "$$")}}
    config = read(yaml.safe_dump({"models": {"q": model}}))
    assert isinstance(config, Config)
    assert config.models["q"].args["a"] == text
