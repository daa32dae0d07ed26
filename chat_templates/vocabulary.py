"""Whether a template and a vocabulary belong together: markers that have to be one token."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from chat_templates.refusals import Refusal
from chat_templates.tokenizing import Tokenizer

_MARKER = re.compile(r"<[|｜][^<>|｜\s]+[|｜]>")


def missing_markers(texts: Iterable[str], tokenizer: Tokenizer) -> Refusal | None:
    """The markers in *texts*, such as ``<|im_start|>``, that the vocabulary takes apart (T11)."""
    return _refusal([marker for marker in _markers(texts) if len(tokenizer.encode(marker)) != 1])


def missing_tokens(texts: Iterable[str], tokens: Collection[str]) -> Refusal | None:
    """The same of a vocabulary of which only its *tokens* are known."""
    return _refusal([marker for marker in _markers(texts) if marker not in tokens])


def _markers(texts: Iterable[str]) -> list[str]:
    return sorted({marker for text in texts for marker in _MARKER.findall(text)})


def _refusal(missing: Sequence[str]) -> Refusal | None:
    if not missing:
        return None
    return Refusal("T11", f"the vocabulary has no token {', '.join(missing)}; is it the tokenizer of this fine-tune?")


def long_stops(stops: Sequence[str], tokenizer: Tokenizer) -> Refusal | None:
    """The stop texts that are more than one token, which LMDeploy drops with a warning (T12).

    lmdeploy/tokenizer.py, `indexes_containing_token`, 0.18.0.
    """
    several = [stop for stop in stops if len(tokenizer.encode(stop)) != 1]
    if not several:
        return None
    return Refusal(
        "T12", f"LMDeploy stops at single tokens only, and these are several: {', '.join(map(repr, several))}"
    )
