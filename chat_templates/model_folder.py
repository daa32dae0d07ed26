"""A model's folder as transformers reads it: which chat template counts, and what the special tokens are.

Several files may say several things. The order here is that of transformers 5.23.0
(src/transformers/tokenization_utils_base.py, `_from_pretrained`); converters to GGUF read it otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chat_templates.parsing import TEMPLATE_LIMIT_BYTES

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
LEGACY_TOKENS_FILE = "special_tokens_map.json"

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that every model may have; others are named by its configuration."""

DEFAULT = "default"


class ModelFolderUnreadable(Exception):
    """Something in the folder cannot be used; the message says which file, and why."""


def read_templates(folder: Path) -> dict[str, str]:
    """The chat templates of *folder* by name, not parsed; a single one is called ``default``, none is an empty dict.

    ``chat_template.jinja`` and ``additional_chat_templates/*.jinja`` come before, and instead of, everything
    ``tokenizer_config.json`` says. Raises ModelFolderUnreadable.
    """
    return read_template_files(folder) or configured_templates(folder / CONFIG_FILE)


def read_template_files(folder: Path) -> dict[str, str]:
    """Those that are files of their own, by name. Raises ModelFolderUnreadable."""
    templates = {}
    if (folder / TEMPLATE_FILE).is_file():
        templates[DEFAULT] = _read_text(folder / TEMPLATE_FILE)
    for path in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja")):
        templates[path.name.removesuffix(".jinja")] = _read_text(path)
    return templates


def configured_templates(path: Path) -> dict[str, str]:
    """Those in the ``tokenizer_config.json`` at *path*, by name. Raises ModelFolderUnreadable."""
    found = read_config(path).get("chat_template")
    if found is None:
        return {}
    if isinstance(found, str):
        return {DEFAULT: found}
    if isinstance(found, list) and all(isinstance(entry, dict) for entry in found):
        found = {entry.get("name"): entry.get("template") for entry in found}
    if isinstance(found, dict) and all(isinstance(text, str) for entry in found.items() for text in entry):
        return found
    raise ModelFolderUnreadable(
        f'{path}: chat_template: is neither a text nor a list of {{"name": …, "template": …}}, so no template is in it'
    )


def read_special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens of *folder* as templates see them: ``bos_token`` and so on, the model's own ones too.

    What a tokenizer class of transformers adds where the files are silent is not in it. Raises ModelFolderUnreadable.
    """
    config = dict(read_config(folder / CONFIG_FILE))
    if "added_tokens_decoder" not in config:
        config.update(read_config(folder / LEGACY_TOKENS_FILE))
    tokens = dict(_named_tokens(config))
    extra = config.get("extra_special_tokens")
    if isinstance(extra, dict):
        tokens.update(_named_tokens(extra, suffix=""))
    return tokens


def extra_special_tokens(config: Mapping[str, Any]) -> list[str]:
    """The special tokens of a ``tokenizer_config.json`` that have no name of their own."""
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if not isinstance(extra, list):
        return []
    return [token for entry in extra if (token := _content(entry)) is not None]


def _named_tokens(config: Mapping[str, Any], suffix: str = "_token") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        token = _content(value)
        if token is not None and name.endswith(suffix):
            yield name, token


def _content(value: Any) -> str | None:
    """A token's text: written as a text, or as an object with its ``content``."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in *path*; empty where there is no such file. Raises ModelFolderUnreadable."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as problem:
        raise ModelFolderUnreadable(f"{path}: {problem.strerror}") from problem
    except (ValueError, RecursionError) as problem:
        raise ModelFolderUnreadable(f"{path}: is no JSON: {problem}") from problem
    if not isinstance(value, dict):
        raise ModelFolderUnreadable(f"{path}: is no JSON object")
    return value


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > TEMPLATE_LIMIT_BYTES:
            raise ModelFolderUnreadable(f"{path}: is longer than {TEMPLATE_LIMIT_BYTES} bytes, so it is no template")
        return path.read_text(encoding="utf-8")
    except OSError as problem:
        raise ModelFolderUnreadable(f"{path}: {problem.strerror}") from problem
    except UnicodeDecodeError as problem:
        raise ModelFolderUnreadable(f"{path}: is not UTF-8 text (byte {problem.start})") from problem
