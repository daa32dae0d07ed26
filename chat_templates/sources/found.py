"""What one source says of a prompt: Jinja texts, whatever it was written in, and what else it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chat_templates.battery import FEATURES, Feature
from chat_templates.conversation import Json
from chat_templates.text_files import TextUnreadable, read_utf8

LIMIT_BYTES = 1024 * 1024
"""More than anybody writes; what is longer is something else under the name."""


class SourceUnreadable(Exception):
    """A source cannot be used; the message names the file or the name, says why, and what to do."""


def read_text(path: Path, kind: str) -> str:
    """The UTF-8 text in *path*, which has to be *kind* ("a Modelfile"). Raises SourceUnreadable."""
    try:
        return read_utf8(path, LIMIT_BYTES, f", so it is not {kind}")
    except TextUnreadable as problem:
        raise SourceUnreadable(f"{path}: {problem}") from problem


@dataclass(frozen=True, slots=True)
class Found:
    """What one source says.

    name: how a person names it, as after ``--from`` (``modelfile``, ``llamafactory:qwen``). templates: Jinja by
    variant, as in `Renderer`. origin: the file, or the word for what is no file. stop_strings: texts that end answers,
    in the source's order. special_tokens: those it comes with, by their names in transformers. system_default: the
    system message of a conversation that has none, where the source has one; the templates say it too. pinned:
    variables of the templates that the source fixes. notes: what a person has to know of it, one sentence each.

    speaks_of: the features of a conversation on which the source has a say. Beyond them its templates refuse, or say
    nothing that anybody has trained or served, so there is nothing to disagree about. is_given_bos: the engine that the
    source is written for puts the tokenizer's BOS before the text itself, where the tokenizer is one that wants it.
    """

    name: str
    templates: Mapping[str, str]
    origin: Path | str
    stop_strings: tuple[str, ...] = ()
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    system_default: str | None = None
    pinned: Mapping[str, Json] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    speaks_of: frozenset[Feature] = frozenset(FEATURES)
    is_given_bos: bool = False
