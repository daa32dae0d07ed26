"""Of several files that say something, the one transformers believes is the one that counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chat_templates.model_folder import ModelFolderUnreadable, read_special_tokens, read_templates


def folder(path: Path, files: dict[str, Any]) -> Path:
    """A model's folder with *files*: texts as they are, everything else as JSON."""
    for name, content in files.items():
        target = path / name
        target.parent.mkdir(exist_ok=True)
        target.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


CONFIG = "tokenizer_config.json"
FILE = "chat_template.jinja"
NAMED = "additional_chat_templates/tool_use.jinja"
LIST = {"chat_template": [{"name": "default", "template": "c"}, {"name": "rag", "template": "r"}]}


@pytest.mark.parametrize(
    ("files", "templates"),
    [
        ({}, {}),
        ({CONFIG: {}}, {}),
        ({CONFIG: {"chat_template": None}}, {}),
        ({CONFIG: {"chat_template": "c"}}, {"default": "c"}),
        ({CONFIG: LIST}, {"default": "c", "rag": "r"}),
        ({CONFIG: {"chat_template": {"default": "c"}}}, {"default": "c"}),
        ({FILE: "f"}, {"default": "f"}),
        ({FILE: "f", CONFIG: {"chat_template": "c"}}, {"default": "f"}),
        ({FILE: "f", CONFIG: LIST}, {"default": "f"}),
        ({FILE: "f", NAMED: "t", CONFIG: LIST}, {"default": "f", "tool_use": "t"}),
        ({NAMED: "t", CONFIG: {"chat_template": "c"}}, {"tool_use": "t"}),
    ],
)
def test_files_come_before_the_configuration(tmp_path: Path, files: dict[str, Any], templates: dict[str, str]) -> None:
    """A template in a file of its own replaces everything that the tokenizer's configuration says."""
    assert read_templates(folder(tmp_path, files)) == templates


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({CONFIG: "{"}, f"{CONFIG}: is no JSON"),
        ({CONFIG: "[]"}, f"{CONFIG}: is no JSON object"),
        ({CONFIG: {"chat_template": 1}}, f"{CONFIG}: chat_template: is neither a text nor a list"),
        ({CONFIG: {"chat_template": [{"name": "default"}]}}, f"{CONFIG}: chat_template: is neither"),
        ({FILE: "x" * (1024 * 1024 + 1)}, f"{FILE}: is longer than"),
    ],
)
def test_what_cannot_be_used_is_told_by_its_file(tmp_path: Path, files: dict[str, Any], complaint: str) -> None:
    """A file that says nothing usable is named, and nothing is used in its stead."""
    with pytest.raises(ModelFolderUnreadable) as problem:
        read_templates(folder(tmp_path, files))
    assert complaint in str(problem.value)


def test_a_template_that_is_no_text_is_told(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are no template."""
    (tmp_path / FILE).write_bytes(b"a\xff")
    with pytest.raises(ModelFolderUnreadable, match=r"is not UTF-8 text \(byte 1\)"):
        read_templates(tmp_path)


TOKEN = {"__type": "AddedToken", "content": "<b>", "lstrip": False}


@pytest.mark.parametrize(
    ("files", "tokens"),
    [
        ({}, {}),
        ({CONFIG: {"bos_token": "<s>", "eos_token": None, "add_bos_token": True}}, {"bos_token": "<s>"}),
        ({CONFIG: {"bos_token": TOKEN}}, {"bos_token": "<b>"}),
        ({CONFIG: {"image_token": "<image>"}}, {"image_token": "<image>"}),
        ({CONFIG: {"extra_special_tokens": {"image_start": "<i>"}}}, {"image_start": "<i>"}),
        ({CONFIG: {"extra_special_tokens": ["<i>"]}}, {}),
        ({CONFIG: {"bos_token": "<s>"}, "special_tokens_map.json": {"bos_token": "<b>"}}, {"bos_token": "<b>"}),
        (
            {CONFIG: {"bos_token": "<s>", "added_tokens_decoder": {}}, "special_tokens_map.json": {"bos_token": "<b>"}},
            {"bos_token": "<s>"},
        ),
    ],
)
def test_special_tokens(tmp_path: Path, files: dict[str, Any], tokens: dict[str, str]) -> None:
    """Templates see every named token; the older file counts only where the newer configuration has no list."""
    assert read_special_tokens(folder(tmp_path, files)) == tokens
