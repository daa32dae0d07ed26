"""Prompts as a person reads them: whitespace made visible, and where two of them part."""

from __future__ import annotations

from collections.abc import Sequence

_MARKS = {" ": "␠", "\n": "⏎\n", "\t": "→", "\r": "␍"}
_TABLE = str.maketrans(_MARKS)

CONTEXT_CHARACTERS = 60
"""How much of a text is shown before and after the place where it parts from another."""


def visible(text: str) -> str:
    """*text* with its spaces, tabs and line ends as marks; other characters that print nothing are escaped."""
    marked = text.translate(_TABLE)
    return "".join(one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode() for one in marked)


def parting(one: Sequence[object], other: Sequence[object]) -> int:
    """The first index at which the two differ; the length of both where they do not."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))


def around(text: str, index: int) -> str:
    """*text* about *index*, visible, with `…` where it was cut."""
    start, end = max(0, index - CONTEXT_CHARACTERS), index + CONTEXT_CHARACTERS
    return ("…" if start else "") + visible(text[start:end]) + ("…" if end < len(text) else "")
