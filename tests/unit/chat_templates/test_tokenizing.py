"""A tokenizer is read from its folder, or told why not; that its ids are the reference's is the oracle's to prove."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from chat_templates.model_folder import ModelFolderUnreadable
from chat_templates.tokenizing import TextUnencodable, Tokenizer
from tests.oracle.folders import OWN, model_folder


def test_special_tokens_are_themselves_and_none_is_added(tmp_path: Path) -> None:
    """A special token in the text is one id, and there is none that is not in the text."""
    tokenizer = Tokenizer.read(model_folder(tmp_path, OWN | {"eos_token": "<|im_end|>"}))
    fox = tokenizer.encode("fox")
    ids = tokenizer.encode("<s>fox<|im_end|>\nfox</s>")
    assert tokenizer.pieces(ids) == ["<s>", *tokenizer.pieces(fox), "<|im_end|>", "\n", *tokenizer.pieces(fox), "</s>"]
    assert tokenizer.encode("") == []


def test_it_is_known_by_its_digest(tmp_path: Path) -> None:
    """The digest is that of tokenizer.json, so that two folders can be compared by it."""
    folder = model_folder(tmp_path, OWN)
    assert Tokenizer.read(folder).sha256 == hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()


def test_half_a_surrogate_pair_has_no_ids(tmp_path: Path) -> None:
    """A str that is no text is refused, not replaced by something else."""
    with pytest.raises(TextUnencodable, match="half a surrogate pair"):
        Tokenizer.read(model_folder(tmp_path, OWN)).encode("a\ud800")


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("tokenizer.json", None, "tokenizer.json: No such file or directory"),
        ("tokenizer.json", "{}", "tokenizer.json: is no tokenizer: "),
        ("tokenizer_config.json", "[", "tokenizer_config.json: is no JSON"),
        ("tokenizer_config.json", {"added_tokens_decoder": []}, "tokenizer_config.json: added_tokens_decoder: "),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}, "tokenizer_config.json: added_tokens_decoder: "),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": {}}}, "tokenizer_config.json: added_tokens_decoder: "),
    ],
)
def test_what_is_no_tokenizer_is_told_by_its_file(tmp_path: Path, file: str, content: Any, complaint: str) -> None:
    """A folder without a usable tokenizer is refused with the file that is to blame."""
    folder = model_folder(tmp_path, OWN)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ModelFolderUnreadable) as problem:
        Tokenizer.read(folder)
    assert f"{folder}/{complaint}" in str(problem.value)
