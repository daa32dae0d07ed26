"""What is found in a folder, each file as a source of its own, and what a person is told of those that say nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chat_templates.sources.collecting import collect
from chat_templates.sources.found import SourceUnreadable
from tests.gguf_files import write_gguf


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A folder as transformers 5 saves it: the template is a file, and the configuration has none."""
    (tmp_path / "chat_template.jinja").write_text("file")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    return tmp_path


def test_each_file_is_a_source_of_its_own(export: Path) -> None:
    """The template's file and the configuration's template are two sources, though transformers reads one."""
    (export / "tokenizer_config.json").write_text(json.dumps({"chat_template": "configured"}))
    (export / "additional_chat_templates").mkdir()
    (export / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    write_gguf(export / "m.gguf", "weights")
    assert {found.name: found.templates for found in collect([str(export)])} == {
        "jinja": {"default": "file", "tool_use": "tools"},
        "tokenizer_config": {"default": "configured"},
        "gguf": {"default": "weights"},
    }


def test_an_export_of_which_ollama_loses_the_template_is_told(export: Path) -> None:
    """Ollama's converter reads tokenizer_config.json alone: where the template is only a file, a person hears of it."""
    (found,) = collect([str(export)])
    assert "Ollama's own import of this folder would lose the template" in found.notes[0]
    (export / "tokenizer_config.json").write_text(json.dumps({"chat_template": "file"}))
    assert not any(found.notes for found in collect([str(export)]))


def test_weights_that_have_lost_the_template_are_told(export: Path) -> None:
    """A GGUF file without a template beside a template is no source, and is named."""
    write_gguf(export / "m.gguf", None)
    (found,) = collect([str(export)])
    assert f"{export / 'm.gguf'} has no template" in found.notes[-1]


def test_sources_of_one_kind_are_told_apart(export: Path) -> None:
    """Two Jinja files have two names, so that --from can name either."""
    (export / "other.jinja").write_text("other")
    found = collect([str(export), str(export / "other.jinja")])
    assert [(one.name, one.templates["default"]) for one in found] == [("jinja", "file"), ("jinja-2", "other")]


def test_the_catalog_is_a_source() -> None:
    """A name of the catalog stands for its template."""
    (found,) = collect(["catalog:chatml"])
    assert (found.name, found.stop_strings) == ("catalog:chatml", ("<|im_end|>",))
    with pytest.raises(SourceUnreadable, match="did you mean chatml"):
        collect(["catalog:chatlm"])


def test_what_says_nothing_is_told(tmp_path: Path) -> None:
    """A folder without a template, and a path that is not there, are refused by name."""
    with pytest.raises(SourceUnreadable, match="has no chat template; name the file it was trained with"):
        collect([str(tmp_path)])
    with pytest.raises(SourceUnreadable, match="there is no such file or folder"):
        collect([str(tmp_path / "nowhere")])
