"""A GGUF file gets another template, and nothing else of it changes."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest

from chat_templates.forms.gguf_file import RewrittenGguf, read_header, rewrite, special_tokens, vocabulary
from chat_templates.refusals import Unwritable


def gguf_file(path: Path, template: Any = "old {{ x }}", alignment: int = 32, **more: int) -> Path:
    """A small file as llama.cpp's own library writes it."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.data_alignment = alignment
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    writer.add_token_list(["<unk>", "<s>", "</s>", "é"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    if template is not None:
        writer.add_chat_template(template)
    writer.add_array("numbers", [1, 2, 3])
    writer.add_float32("half", 0.5)
    for key, value in more.items():
        writer.add_uint16(key.replace("_", "."), value)
    writer.add_tensor("a", numpy.arange(7, dtype=numpy.float32))
    writer.add_tensor("b", numpy.arange(12, dtype=numpy.float16).reshape(3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def contents(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Keys and tensors, by llama.cpp's own library."""
    reader = gguf.GGUFReader(path)
    keys = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    return keys, {tensor.name: tensor.data.tobytes() for tensor in reader.tensors}


@pytest.mark.parametrize("alignment", [32, 256])
@pytest.mark.parametrize(
    "template", [None, "old", [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]]
)
def test_only_the_template_changes(tmp_path: Path, template: Any, alignment: int) -> None:
    """llama.cpp's own library reads the new template, and every other key and every tensor as they were."""
    source = gguf_file(tmp_path / "source.gguf", template, alignment)
    rewrite(source, tmp_path / "target.gguf", {"default": "new 你好\n" * 99})
    (old, old_tensors), (new, new_tensors) = contents(source), contents(tmp_path / "target.gguf")
    assert new.pop("tokenizer.chat_template") == "new 你好\n" * 99
    assert new == {key: value for key, value in old.items() if not key.startswith("tokenizer.chat_template")}
    assert new_tensors == old_tensors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.gguf", "target.gguf"]


def test_named_templates_are_written_as_the_library_does(tmp_path: Path) -> None:
    """Several templates have the keys that llama.cpp's own library gives them."""
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    wanted, _ = contents(gguf_file(tmp_path / "wanted.gguf", named))
    rewrite(gguf_file(tmp_path / "source.gguf"), tmp_path / "target.gguf", {"default": "a", "tool_use": "b"})
    assert contents(tmp_path / "target.gguf")[0] == wanted


def test_it_is_read_as_it_would_be_written(tmp_path: Path) -> None:
    """Without being written it has the same bytes and the same size, from wherever it is read, in whatever pieces."""
    source = gguf_file(tmp_path / "source.gguf")
    rewrite(source, tmp_path / "target.gguf", {"default": "new"})
    wanted = (tmp_path / "target.gguf").read_bytes()
    with RewrittenGguf(source, (("default", "new"),)).open() as file:
        assert file.seek(0, os.SEEK_END) == len(wanted) == file.tell()
        assert file.read(5) == b""
        for begin in (0, 100, len(wanted) - 10):
            file.seek(begin)
            assert b"".join(iter(lambda: file.read(33), b"")) == wanted[begin:]
        assert (file.seek(-10, os.SEEK_END), file.seek(2, os.SEEK_CUR)) == (len(wanted) - 10, len(wanted) - 8)
    with RewrittenGguf(source, (("default", "new"),)).open() as file:
        assert file.read() + file.read() == wanted


def test_numbers_replace_those_that_are_there(tmp_path: Path) -> None:
    """Further keys are read by llama.cpp's own library; one that was there has its new value."""
    source = gguf_file(tmp_path / "source.gguf")
    numbers = (("tokenizer.ggml.eos_token_id", 3), ("tokenizer.ggml.eot_token_id", 2))
    with RewrittenGguf(source, (("default", "new"),), numbers).open() as file:
        (tmp_path / "target.gguf").write_bytes(file.read() + file.read())
    (old, old_tensors), (new, new_tensors) = contents(source), contents(tmp_path / "target.gguf")
    assert new == {**old, "tokenizer.chat_template": "new", **dict(numbers)}
    assert new_tensors == old_tensors


def test_what_the_file_says_of_its_tokenizer_is_read(tmp_path: Path) -> None:
    """BOS and EOS are texts of the vocabulary, and whether a BOS is added is known."""
    path = gguf_file(tmp_path / "m.gguf")
    assert special_tokens(path) == {"bos_token": "<s>", "eos_token": "</s>"}
    assert vocabulary(path) == {"<unk>", "<s>", "</s>", "é"}
    assert read_header(path).values["tokenizer.ggml.add_bos_token"] is True
    assert read_header(path).values["half"] == 0.5


ONE_KEY = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
ONE_TENSOR = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"t"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04" + bytes(40), "does not begin with GGUF"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**60), "longer than the file"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 5), "ends in the middle"),
        (ONE_KEY + struct.pack("<I", 77), "unknown type 77"),
        (ONE_KEY + struct.pack("<IIQ", 9, 4, 2**61), "ends in the middle"),
        (ONE_TENSOR + struct.pack("<I", 2**31), "ends in the middle"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    """What is no whole GGUF file is refused with a sentence, and nothing is written."""
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(Unwritable, match=words):
        rewrite(tmp_path / "m.gguf", tmp_path / "out.gguf", {"default": ""})
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A file that is there stays, the source itself above all."""
    path = gguf_file(tmp_path / "m.gguf")
    before = path.read_bytes()
    with pytest.raises(Unwritable, match="is there already"):
        rewrite(path, path, {"default": ""})
    assert path.read_bytes() == before


def test_one_part_of_several_is_refused(tmp_path: Path) -> None:
    """The parts of a split file find each other by their names, so one alone is not written anew."""
    with pytest.raises(Unwritable, match="llama-gguf-split --merge"):
        rewrite(gguf_file(tmp_path / "m.gguf", split_count=2), tmp_path / "out.gguf", {"default": ""})


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    """A source that is not there is told with its path."""
    with pytest.raises(Unwritable, match="No such file"):
        rewrite(tmp_path / "m.gguf", tmp_path / "out.gguf", {"default": ""})
