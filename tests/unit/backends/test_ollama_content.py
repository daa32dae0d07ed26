"""What a model for Ollama is made of, read from its files; and the two files that are mended on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backends.engines.ollama_content import (
    SAMPLING,
    Content,
    content_problem,
    read_content,
    with_rope,
)
from backends.residence import ResidenceRefused
from backends.settings import BackendSettings
from backends.sources import OllamaName
from tests.gguf_files import CHATML, write_gguf

GO = "{{ range .Messages }}{{ .Content }}{{ end }}"


def folder_in(path: Path, *, config: dict[str, Any] | None = None, template: str | None = CHATML) -> Path:
    """A safetensors folder as transformers 5 saves one."""
    path.mkdir()
    rope = {"rope_parameters": {"rope_theta": 100000, "rope_type": "default"}}
    (path / "config.json").write_text(json.dumps(rope if config is None else config))
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    (path / "tokenizer.json").write_text("{}")
    (path / "README.md").write_text("not a file of the model")
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    return path


def read(weights: Path, *, go_templates: bool | None = False, **others: Any) -> Content:
    """The content of a model with these weights."""
    return read_content(BackendSettings("m", "ollama", weights=weights, **others), go_templates=go_templates)


def refusal(weights: Path, *, go_templates: bool | None = False, **others: Any) -> str:
    """The code of the diagnosis with which it is refused."""
    with pytest.raises(ResidenceRefused) as caught:
        read(weights, go_templates=go_templates, **others)
    assert caught.value.diagnosis.permanent
    return caught.value.diagnosis.code


# a GGUF file


def test_a_gguf_file_is_itself(tmp_path: Path) -> None:
    """One file, its own template, and OpenAI's sampling where the request says nothing."""
    weights = write_gguf(tmp_path / "a.gguf")
    assert read(weights) == Content(files={"model.gguf": weights}, template=CHATML, parameters=SAMPLING)


def test_the_configuration_becomes_parameters(tmp_path: Path) -> None:
    """context_length and args are the model's parameters, of the kinds Ollama wants."""
    weights = write_gguf(tmp_path / "a.gguf")
    content = read(weights, context_length=512, args={"temperature": 0, "stop": "x", "use_mmap": True})
    expected = {"temperature": 0.0, "top_p": 1.0, "num_ctx": 512, "stop": ["x"], "use_mmap": True}
    assert content.parameters == expected


def test_a_gguf_file_without_a_template(tmp_path: Path) -> None:
    """It is refused, for Ollama would take ChatML; unless the operator says so, or it embeds."""
    weights = write_gguf(tmp_path / "a.gguf", None)
    assert refusal(weights) == "template_missing"
    assert read(weights, template_is_engines=True).template is None
    assert read(weights, readiness="embed").template is None


def test_another_template_than_the_gguf_files(tmp_path: Path) -> None:
    """It cannot be enforced, so it is refused; the same one is fine."""
    weights = write_gguf(tmp_path / "a.gguf")
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    assert refusal(weights, template_file=tmp_path / "t.jinja") == "template_not_kept"
    (tmp_path / "t.jinja").write_text(CHATML)
    assert read(weights, template_file=tmp_path / "t.jinja").template == CHATML


# a safetensors folder


def test_a_folder_keeps_its_rope_and_its_template(tmp_path: Path) -> None:
    """rope_theta is copied to the top level of config.json and chat_template.jinja into tokenizer_config.json, where
    the converter reads them; the folder itself is left as it is."""
    weights = folder_in(tmp_path / "w")
    before = (weights / "config.json").read_text()
    content = read(weights)
    files = content.files
    assert set(files) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert json.loads(str(files["config.json"]))["rope_theta"] == 100000
    tokenizer = json.loads(str(files["tokenizer_config.json"]))
    assert (tokenizer["chat_template"], tokenizer["eos_token"]) == (CHATML, "<|im_end|>")
    assert content.template == CHATML
    assert (weights / "config.json").read_text() == before


def test_a_folder_that_is_as_the_converter_wants_it(tmp_path: Path) -> None:
    """Nothing is written anew where nothing is to be mended."""
    weights = folder_in(tmp_path / "w", config={"rope_theta": 5}, template=None)
    (weights / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    assert all(isinstance(file, Path) for file in read(weights).files.values())


def test_a_folder_with_the_operators_template(tmp_path: Path) -> None:
    """It takes the place of the folder's own."""
    weights = folder_in(tmp_path / "w")
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    content = read(weights, template_file=tmp_path / "t.jinja")
    assert content.template == "{{ messages }}"
    assert json.loads(str(content.files["tokenizer_config.json"]))["chat_template"] == "{{ messages }}"


def test_a_template_among_several(tmp_path: Path) -> None:
    """Of a list of templates the one called default is the folder's."""
    weights = folder_in(tmp_path / "w", template=None)
    listed = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    (weights / "tokenizer_config.json").write_text(json.dumps({"chat_template": listed}))
    assert read(weights).template == "d"


@pytest.mark.parametrize(
    ("config", "added"),
    [
        ({}, {}),
        ({"rope_theta": 1, "rope_parameters": {"rope_theta": 2}}, {}),
        ({"rope_parameters": {"rope_theta": 2, "rope_type": "default"}}, {"rope_theta": 2}),
        (
            {"rope_parameters": {"rope_theta": 2, "rope_type": "llama3", "factor": 8}},
            {"rope_theta": 2, "rope_scaling": {"rope_type": "llama3", "factor": 8}},
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 2}, "sliding_attention": {"rope_theta": 3}}},
            {"rope_theta": 2, "rope_local_base_freq": 3},
        ),
    ],
)
def test_rope(config: dict[str, Any], added: dict[str, Any]) -> None:
    """What transformers 5 keeps in rope_parameters is said where transformers 4 said it, over nothing that is there."""
    assert with_rope(config) == {**config, **added}
    assert with_rope({"text_config": config})["text_config"] == {**config, **added}


@pytest.mark.parametrize(("pattern", "has"), [("\\p{N}", True), ("", False)])
def test_a_tokenizer_that_cuts_by_patterns(tmp_path: Path, pattern: str, has: bool) -> None:
    """It is noted, for the converter knows a few patterns only."""
    weights = folder_in(tmp_path / "w")
    steps = [{"type": "Split", "pattern": {"Regex": pattern}}]
    (weights / "tokenizer.json").write_text(json.dumps({"pre_tokenizer": {"pretokenizers": steps}}))
    assert read(weights).has_split is has


# a Modelfile


def modelfile(folder: Path, text: str) -> Path:
    """A Modelfile in *folder*."""
    path = folder / "Modelfile"
    path.write_text(text)
    return path


def test_a_modelfile_beside_its_weights(tmp_path: Path) -> None:
    """FROM is looked for beside it; system, messages and parameters come along, the configuration's win."""
    weights = write_gguf(tmp_path / "a.gguf")
    text = "FROM ./a.gguf\nSYSTEM Be brief.\nPARAMETER temperature 0.5\nPARAMETER num_ctx 99\nMESSAGE user hi\n"
    content = read(modelfile(tmp_path, text), context_length=512)
    assert content.files == {"model.gguf": weights}
    assert content.extras == {"system": "Be brief.", "messages": [{"role": "user", "content": "hi"}]}
    assert content.parameters == {"temperature": 0.5, "top_p": 1.0, "num_ctx": 512}


def test_a_go_template_needs_its_daemon(tmp_path: Path) -> None:
    """TEMPLATE is refused where it would be passed over without a word, and wanted where it is used."""
    write_gguf(tmp_path / "a.gguf")
    path = modelfile(tmp_path, f'FROM ./a.gguf\nTEMPLATE """{GO}"""\n')
    assert refusal(path, go_templates=False) == "template_not_kept"
    content = read(path, go_templates=True)
    assert (content.template, content.is_go, content.extras["template"]) == (GO, True, GO)
    assert read(path, go_templates=None).is_go


def test_a_modelfile_of_a_published_model(tmp_path: Path) -> None:
    """FROM may be a name, which keeps its own sampling."""
    content = read(modelfile(tmp_path, "FROM qwen2.5:7b\nADAPTER ./a.gguf\n"))
    assert (content.origin, content.parameters, content.adapter) == ("qwen2.5:7b", {}, tmp_path / "./a.gguf")


# what is wrong


def test_a_published_model() -> None:
    """It has no files here, and brings its own sampling and template."""
    backend = BackendSettings("m", "ollama", source=OllamaName("qwen2.5:7b"), context_length=64)
    content = read_content(backend, go_templates=False)
    assert content == Content(origin="qwen2.5:7b", parameters={"num_ctx": 64})


def test_what_can_be_seen_to_be_wrong(tmp_path: Path) -> None:
    """Each fault is told in a sentence that names the file."""
    assert "no such file" in str(content_problem(tmp_path / "nope"))
    (tmp_path / "x.gguf").write_bytes(b"XXXX")
    assert "is not a GGUF file" in str(content_problem(tmp_path / "x.gguf"))
    (tmp_path / "x-00001-of-00002.gguf").write_bytes(b"GGUF")
    assert "one of several parts" in str(content_problem(tmp_path / "x-00001-of-00002.gguf"))
    assert "no FROM" in str(content_problem(modelfile(tmp_path, "SYSTEM x\n")))
    assert "no such file" in str(content_problem(modelfile(tmp_path, "FROM ./gone.gguf\n")))
    weights = folder_in(tmp_path / "w")
    (weights / "model.safetensors").rename(weights / "pytorch_model.bin")
    assert "holds no *.safetensors" in str(content_problem(weights))
    assert refusal(weights) == "weights_unusable"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A damaged header and a damaged config.json are told as such."""
    (tmp_path / "x.gguf").write_bytes(b"GGUF\3\0\0\0")
    assert refusal(tmp_path / "x.gguf") == "weights_unreadable"
    weights = folder_in(tmp_path / "w")
    (weights / "tokenizer_config.json").write_text("{")
    assert refusal(weights) == "weights_unreadable"
