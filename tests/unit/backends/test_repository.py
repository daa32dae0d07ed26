"""Which files of a repository an engine needs."""

from __future__ import annotations

import pytest

from backends.repository import NothingWanted, RemoteFile, Repository, listing_digest, wanted_files
from backends.sources import HubSource, parse_source


def repository(*paths: str) -> Repository:
    """A repository with these files, of one byte each."""
    return Repository("c0ffee", tuple(RemoteFile(path, 1, sha256="ab") for path in paths))


def wanted(word: str, *paths: str) -> list[str]:
    """What *word* takes of a repository with *paths*."""
    source = parse_source(word)
    assert isinstance(source, HubSource)
    return [file.path for file in wanted_files(source, repository(*paths))]


SAFE = ("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "tokenizer.json")


def test_a_whole_repository() -> None:
    """Weights, configuration, tokenizer, templates and remote code are taken, in the order of their paths."""
    paths = (*SAFE, "model.safetensors.index.json", "chat_template.jinja", "modeling_x.py", "README.md", "vocab.txt")
    assert wanted("hf:a/b", *paths) == sorted(paths)


@pytest.mark.parametrize(
    "path",
    ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "original/consolidated.00.pth", "consolidated.00.pth",
     "consolidated.safetensors", "onnx/model.onnx", "model.onnx", "flax_model.msgpack", "tf_model.h5", "q/m-q4.gguf",
     ".gitattributes", ".cache/x", "training_args.bin", "checkpoint-500/model.safetensors",
     "runs/events", "assets/figure.PNG", "openvino/openvino_model.bin"],
)  # fmt: skip
def test_what_no_engine_reads(path: str) -> None:
    """Beside safetensors, second copies of the weights, other runtimes' exports and training states stay away."""
    assert wanted("modelscope:a/b", *SAFE, path) == sorted(SAFE)


def test_pickled_weights_are_taken_where_there_are_no_others() -> None:
    """Without safetensors in their own folder, *.bin files are the weights; GGUF files stay away."""
    assert wanted("hf:a/b", "config.json", "pytorch_model.bin", "m.gguf") == ["config.json", "pytorch_model.bin"]
    sentence = ("1_Dense/pytorch_model.bin", "config.json", "model.safetensors")
    assert wanted("hf:a/b", *sentence) == sorted(sentence)


def test_one_file() -> None:
    """A named file comes alone; a split one with all its parts."""
    split = [f"q8/m-0000{part}-of-00003.gguf" for part in (1, 2, 3)]
    assert wanted("hf:a/b:m.gguf", *SAFE, "m.gguf", "n.gguf") == ["m.gguf"]
    assert wanted(f"hf:a/b:{split[0]}", "m.gguf", *split) == split


@pytest.mark.parametrize(
    ("word", "paths", "message", "remedy"),
    [
        ("hf:a/b:m-q4.gguf", ("m-q4_0.gguf", "x"), "hf:a/b has no file m-q4.gguf", "hf:a/b:m-q4_0.gguf?"),
        ("hf:a/b@v1:zzz", ("x.json",), "hf:a/b@v1 has no file zzz", "it holds: x.json"),
        ("hf:a/b:m-00001-of-00002.gguf", ("m-00001-of-00002.gguf",), "no file m-00002-of-00002", "m-00001-of-00002"),
        ("hf:a/b", ("q4.gguf", "q8.gguf", "config.json"), "takes one: q4.gguf, q8.gguf", "a/b:q4.gguf"),
        ("hf:a/b", ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf"), "one: m-00001-of-00002.gguf", "m-00001"),
        ("hf:a/b", ("consolidated.safetensors", "params.json"), "Hugging Face format", "converted copy"),
        ("hf:a/b", ("config.json", "training_args.bin"), "holds no weights", "*.safetensors"),
        ("hf:a/b", (), "holds no weights", "*.safetensors"),
    ],
)  # fmt: skip
def test_nothing_wanted(word: str, paths: tuple[str, ...], message: str, remedy: str) -> None:
    """A repository without what was named is refused with what it has instead."""
    with pytest.raises(NothingWanted) as refusal:
        wanted(word, *paths)
    assert message in str(refusal.value)
    assert remedy in refusal.value.remedy


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "/etc/passwd", "a/../../b.safetensors", "a\\b.safetensors", "a//b", ".unigate/lock"]
)
def test_paths_that_climb_are_not_taken(path: str) -> None:
    """A hub cannot make us write outside the repository's folder, whatever it lists."""
    assert wanted("hf:a/b", *SAFE, path) == sorted(SAFE)


def test_a_listing_has_a_digest() -> None:
    """The digest of a listing tells other content apart and does not depend on the order."""
    one, two = RemoteFile("a", 1, sha256="x"), RemoteFile("b", 2, sha256="y")
    assert listing_digest([one, two]) == listing_digest([two, one])
    assert listing_digest([one, two]) != listing_digest([one, RemoteFile("b", 2, sha256="z")])
