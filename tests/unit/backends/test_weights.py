"""What a look at the files can tell about weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backends.weights import gguf_problem, hf_folder_problem, missing_problem


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a whole model."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["X"]}')
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def problem(found: str | None) -> str:
    """The sentence there must be."""
    assert found is not None
    return found


def test_missing_names_the_deepest_folder_there_is(tmp_path: Path) -> None:
    """Of a path that is not there, the sentence says how far it exists."""
    assert problem(missing_problem(tmp_path / "a" / "b")) == (
        f"{tmp_path / 'a' / 'b'}: there is no such file or folder ({tmp_path} exists)"
    )
    assert missing_problem(tmp_path) is None


def test_a_gguf_file_passes_everywhere(tmp_path: Path) -> None:
    """A file that begins with GGUF is fine for llama.cpp and for vLLM."""
    weights = tmp_path / "m.gguf"
    weights.write_bytes(b"GGUF\x03\x00")
    assert gguf_problem(weights) is None
    assert hf_folder_problem(weights) is None


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04"])
def test_another_file_is_no_gguf(tmp_path: Path, content: bytes) -> None:
    """A file that begins otherwise, or not at all, is named."""
    weights = tmp_path / "m.gguf"
    weights.write_bytes(content)
    assert "is not a GGUF file" in problem(gguf_problem(weights))
    assert "is not a GGUF file" in problem(hf_folder_problem(weights))


def test_a_folder_is_no_gguf_but_its_file_is_proposed(tmp_path: Path) -> None:
    """A folder in place of the file: the first .gguf in it is proposed."""
    assert "is a folder; this engine takes one .gguf file" in problem(gguf_problem(tmp_path))
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    assert f"did you mean {tmp_path / 'a.gguf'}?" in problem(gguf_problem(tmp_path))


def test_a_missing_path_is_missing_for_each(tmp_path: Path) -> None:
    """Both looks begin with whether there is anything."""
    for look in (gguf_problem, hf_folder_problem):
        assert "there is no such file or folder" in problem(look(tmp_path / "nope"))


def test_a_whole_folder_passes(model: Path) -> None:
    """config.json and weights are enough."""
    assert hf_folder_problem(model) is None


def test_a_folder_without_config(model: Path) -> None:
    """Without config.json it is no model."""
    (model / "config.json").unlink()
    assert "has no config.json" in problem(hf_folder_problem(model))


def test_an_adapter_is_told_apart(model: Path) -> None:
    """A LoRA adapter, as LLaMA-Factory leaves it, is named as such with what to do."""
    (model / "config.json").unlink()
    (model / "adapter_config.json").write_text("{}")
    assert "LoRA adapter, not a whole model; merge it" in problem(hf_folder_problem(model))


@pytest.mark.parametrize("text", ["{", "", "\udcff"])
def test_a_config_that_is_not_json(model: Path, text: str) -> None:
    """A broken config.json is named, bytes that are no UTF-8 included."""
    (model / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "is not JSON" in problem(hf_folder_problem(model))


def test_a_folder_without_weights(model: Path) -> None:
    """No weights: the download may be unfinished."""
    (model / "model.safetensors").unlink()
    assert "holds no weights" in problem(hf_folder_problem(model))


def test_missing_shards_are_counted(model: Path) -> None:
    """Of an index's files those that are not there are counted, the first by name."""
    (model / "model-1.safetensors").write_bytes(b"")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "2 of 3 weight files are missing, model-2.safetensors first" in problem(hf_folder_problem(model))
    for number in (2, 3):
        (model / f"model-{number}.safetensors").write_bytes(b"")
    assert hf_folder_problem(model) is None


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": 1}', '{"weight_map": {"a": []}}', "null"])
def test_an_index_that_is_none(model: Path, text: str) -> None:
    """An index of another shape is named, never a traceback."""
    (model / "model.safetensors.index.json").write_text(text)
    assert "is not a weight index" in problem(hf_folder_problem(model))


def safetensors(header: object, *, tensors: int) -> bytes:
    """A file with that header, and so many bytes of tensors."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(tensors)


TENSOR = {"__metadata__": {"format": "pt"}, "a": {"data_offsets": [0, 60]}, "b": {"data_offsets": [60, 100]}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (safetensors(TENSOR, tensors=100), ""),
        (safetensors({}, tensors=0), ""),
        (b"", ""),
        (b"short", ""),
        (b"\xff" * 20, ""),
        (safetensors(b"no JSON", tensors=0), ""),
        (safetensors([1], tensors=0), ""),
        (safetensors({"a": {}}, tensors=0), ""),
        (safetensors(TENSOR, tensors=99), "bytes; finish the download"),
        (safetensors(TENSOR, tensors=0), "bytes; finish the download"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS pointer"),
    ],
)
def test_weights_that_are_not_whole(model: Path, content: bytes, said: str) -> None:
    """A pointer and a file that ends too early are told; what cannot be read so is left to the engine."""
    (model / "model.safetensors").write_bytes(content)
    problem = hf_folder_problem(model)
    assert problem is None if not said else said in (problem or "")
