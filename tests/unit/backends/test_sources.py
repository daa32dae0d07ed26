"""Words that say where weights come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.sources import HubSource, OllamaName, SourceRefused, kind_of, parse_source, split_parts

MODELS = Path("/data/models")


@pytest.mark.parametrize(
    ("word", "source"),
    [
        ("hf:Qwen/Qwen2.5-7B-Instruct", HubSource("hf", "Qwen/Qwen2.5-7B-Instruct")),
        ("hf:Qwen/Qwen3@v1.0", HubSource("hf", "Qwen/Qwen3", "v1.0")),
        ("hf:a/b@refs/pr/12", HubSource("hf", "a/b", "refs/pr/12")),
        ("hf:Qwen/Qwen3-GGUF:q4_k_m.gguf", HubSource("hf", "Qwen/Qwen3-GGUF", "", "q4_k_m.gguf")),
        ("hf:a/b@main:sub/q@8:x.gguf", HubSource("hf", "a/b", "main", "sub/q@8:x.gguf")),
        ("modelscope:Qwen/Qwen3", HubSource("modelscope", "Qwen/Qwen3")),
        ("modelscope:a_b/c.d@master:x/y.gguf", HubSource("modelscope", "a_b/c.d", "master", "x/y.gguf")),
        ("ollama:qwen3:0.6b", OllamaName("qwen3:0.6b")),
        ("ollama:registry.lan:5000/team/qwen3:latest", OllamaName("registry.lan:5000/team/qwen3:latest")),
    ],
)
def test_sources(word: str, source: HubSource | OllamaName) -> None:
    """Each word means its source, and is written back as it was."""
    assert parse_source(word) == source
    assert str(source) == word


@pytest.mark.parametrize(
    "path", ["model", "/data/a:b", "./a:b", "./hf:a/b", "~/m", "a/hf:b", "Qwen/Qwen3", "1:2", ":x"]
)
def test_paths(path: str) -> None:
    """Whatever has no word before a colon at its beginning is a path."""
    assert parse_source(path) is None


@pytest.mark.parametrize(
    ("word", "message", "remedy"),
    [
        ("hf:", "names no model", "hf:ORG/NAME"),
        ("hf:gpt2", "both an organisation and a name", "hf:ORG/NAME"),
        ("hf:/gpt2", "both an organisation and a name", "hf:ORG/NAME"),
        ("modelscope:Qwen/", "both an organisation and a name", "modelscope:ORG/NAME"),
        ("hf://Qwen/Qwen3", "must not have //", "hf:ORG/NAME"),
        ("hf:../etc", "no name on Hugging Face", "letters and digits"),
        ("hf:a/..", "no name on Hugging Face", "letters and digits"),
        ("hf:a/b..c", "no name on Hugging Face", "letters and digits"),
        ("hf:a/b/c", "no name on Hugging Face", "letters and digits"),
        ("modelscope:千问/a", "no name on ModelScope", "letters and digits"),
        ("hf:a/" + "b" * 97, "no name on Hugging Face", "at most 96"),
        ("hf:a/b@", "no revision after @", "leave @ out"),
        ("hf:a/b@../x", "no branch, tag or commit", "leave @ out"),
        ("hf:a/b@-x", "no branch, tag or commit", "leave @ out"),
        ("hf:a/b:", "no file after its last colon", "leave the colon out"),
        ("hf:a/b:../x", "cannot be a file", "as the hub lists it"),
        ("hf:a/b:/x", "cannot be a file", "as the hub lists it"),
        ("hf:a/b:x//y", "cannot be a file", "as the hub lists it"),
        ("hf:a/b:x\\y", "cannot be a file", "as the hub lists it"),
        ("hf:a/b:m-00002-of-00003.gguf", "not its first", "00001-of-"),
        ("hf:a/b\n", "cannot be printed", "line break"),
        ("ollama:", "names no model", "ollama:qwen3:0.6b"),
        ("ollama:../x", "no name of a model", "ollama:qwen3:0.6b"),
        ("ollama:a b", "no name of a model", "ollama:qwen3:0.6b"),
        ("HF:a/b", "no source", "did you mean hf:"),
        ("huggingface:a/b", "no source", "did you mean hf:"),
        ("ms:a/b", "no source", "did you mean modelscope:"),
        ("modelscop:a/b", "no source", "did you mean modelscope:"),
        ("olama:x", "no source", "did you mean ollama:"),
        ("s3:a/b", "no source", "hf:, modelscope:, ollama:"),
        ("https://example.org/a/b", "not an address", "hf:ORG/NAME or modelscope:ORG/NAME"),
    ],
)
def test_refusals(word: str, message: str, remedy: str) -> None:
    """A word that means nothing is refused with what is wrong and what to write, and never repeated."""
    with pytest.raises(SourceRefused, match=message) as refusal:
        parse_source(word)
    assert remedy in refusal.value.remedy
    rest = word.partition(":")[2]
    assert len(rest) < 5 or rest not in f"{refusal.value} {refusal.value.remedy}"


def test_places() -> None:
    """A repository has one folder, a named revision another, one file of it lies inside; none is outside."""
    assert HubSource("hf", "a/b").weights(MODELS) == MODELS / "hf/a/b"
    assert HubSource("hf", "a/b", "refs/pr/1").weights(MODELS) == MODELS / "hf/a/b@refs%2Fpr%2F1"
    assert HubSource("modelscope", "a/b", "", "x/y.gguf").weights(MODELS) == MODELS / "modelscope/a/b/x/y.gguf"


def test_kinds() -> None:
    """The kind of a source is the word that adapters say they take."""
    words = ("hf:a/b", "modelscope:a/b", "ollama:a")
    assert [kind_of(source) for word in words if (source := parse_source(word))] == ["hf", "modelscope", "ollama"]
    assert kind_of(Path("a")) == "path"


def test_parts_of_a_split_file() -> None:
    """A GGUF that is split is all its parts, anything else itself."""
    assert split_parts("q/m-00001-of-00003.gguf") == tuple(f"q/m-0000{part}-of-00003.gguf" for part in (1, 2, 3))
    assert split_parts("m-00001-of-00003.safetensors") == ("m-00001-of-00003.safetensors",)
