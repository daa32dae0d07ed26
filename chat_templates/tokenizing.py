"""Tokenising: from a prompt to the ids, as transformers does after rendering (``add_special_tokens=False``).

What is loaded is ``tokenizer.json`` as it is, and what ``tokenizer_config.json`` adds to it. Some tokenizer classes of
transformers build the tokenizer anew from the vocabulary alone; whether an engine's ids differ for that is a question
for the proof at load, which compares them.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from chat_templates.model_folder import (
    CONFIG_FILE,
    SPECIAL_TOKENS,
    TOKENIZER_FILE,
    ModelFolderUnreadable,
    extra_special_tokens,
    read_config,
    read_special_tokens,
)

_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class TextUnencodable(Exception):
    """The text has no ids; the message says why."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A model's tokenizer. special_tokens: what its templates see. sha256: of ``tokenizer.json``, hexadecimal.

    Safe to use from several threads at once.
    """

    special_tokens: Mapping[str, str]
    sha256: str
    _core: tokenizers.Tokenizer

    @classmethod
    def read(cls, folder: Path) -> Tokenizer:
        """The tokenizer in *folder*; a large one takes a second. Raises ModelFolderUnreadable."""
        path = folder / TOKENIZER_FILE
        try:
            content = path.read_bytes()
        except OSError as problem:
            raise ModelFolderUnreadable(f"{path}: {problem.strerror}") from problem
        try:
            core = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        # the library raises nothing more special
        except Exception as problem:
            raise ModelFolderUnreadable(f"{path}: is no tokenizer: {problem}") from problem
        config, special_tokens = read_config(folder / CONFIG_FILE), read_special_tokens(folder)
        if core.padding is not None:
            special_tokens.setdefault("pad_token", core.padding["pad_token"])
        # what the file says of them is for training; a prompt is never cut, and never filled up
        core.no_truncation()
        core.no_padding()
        core.encode_special_tokens = bool(config.get("split_special_tokens", False))
        added = list(_added_tokens(core, config, special_tokens, path.with_name(CONFIG_FILE)))
        if added:
            core.add_tokens(added)
        return cls(special_tokens, hashlib.sha256(content).hexdigest(), core)

    def encode(self, text: str) -> list[int]:
        """The ids of *text*: special tokens written in it are themselves, none is added. Raises TextUnencodable."""
        try:
            # a quarter faster than `encode`, because it keeps no offsets
            ids: list[int] = self._core.encode_batch_fast([text], add_special_tokens=False)[0].ids
        # a str that is no text: half a surrogate pair, which JSON can write
        except TypeError as problem:
            raise TextUnencodable("it holds half a surrogate pair, which is no character") from problem
        return ids

    @property
    def adds_bos(self) -> bool:
        """Whether the tokenizer puts the BOS before a text that is not a template's."""
        bos = self._core.token_to_id(self.special_tokens.get("bos_token", ""))
        return bos is not None and self._core.encode("x", add_special_tokens=True).ids[:1] == [bos]

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids of the special tokens."""
        return frozenset(id_ for id_, token in self._core.get_added_tokens_decoder().items() if token.special)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of *ids*, special tokens written out."""
        return self._core.decode(list(ids), skip_special_tokens=False)

    def decode_between_special(self, ids: Sequence[int]) -> str:
        """As `decode`, but what stands between two special tokens is decoded by itself."""
        special = self.special_ids
        runs = [list(run) for _, run in itertools.groupby(ids, special.__contains__)]
        parts = [each for run in runs for each in ([[id_] for id_ in run] if run[0] in special else [run])]
        return "".join(self.decode(part) for part in parts)

    @property
    def control_tokens(self) -> frozenset[str]:
        """The texts that are special tokens, and no text, wherever they stand."""
        added = self._core.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if token.special) | frozenset(self.special_tokens.values())

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each id's own text, special tokens written out; a part of a character is shown as U+FFFD."""
        return [self._core.decode([id_], skip_special_tokens=False) for id_ in ids]


def _added_tokens(
    core: tokenizers.Tokenizer, config: Mapping[str, Any], special_tokens: dict[str, str], path: Path
) -> Iterator[tokenizers.AddedToken]:
    """What the configuration knows and ``tokenizer.json`` does not.

    As in transformers 5.23.0, src/transformers/tokenization_utils_tokenizers.py, `TokenizersBackend.__init__`.
    """
    present = core.get_added_tokens_decoder().values()
    shown = {repr(token) for token in present}
    known = {token.content for token in present}
    for token in _configured_tokens(config, path):
        known.add(token.content)
        if repr(token) not in shown:
            token.special = token.special or token.content in special_tokens.values()
            yield token
    # the order gives them their ids: the usual ones in theirs, then the model's own in that of its configuration
    named = {name: special_tokens[name] for name in SPECIAL_TOKENS if name in special_tokens} | special_tokens
    for content in [*named.values(), *extra_special_tokens(config)]:
        if content not in known:
            known.add(content)
            yield tokenizers.AddedToken(content, special=True)


def _configured_tokens(config: Mapping[str, Any], path: Path) -> list[tokenizers.AddedToken]:
    try:
        given = config.get("added_tokens_decoder", {}).items()
        entries = sorted(((int(id_), entry) for id_, entry in given), key=lambda pair: pair[0])
        return [
            tokenizers.AddedToken(entry["content"], **{flag: entry[flag] for flag in _TOKEN_FLAGS if flag in entry})
            for _, entry in entries
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as problem:
        raise ModelFolderUnreadable(
            f"{path}: added_tokens_decoder: is no mapping of ids to tokens: {type(problem).__name__}: {problem}"
        ) from problem
