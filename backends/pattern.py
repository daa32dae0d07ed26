"""One thing that an engine's log can tell: a text to look for, and what it means for whoever runs the model."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pattern:
    """One row of a table. *regex* is searched in each line, newest first.

    *reason* may name groups of the match (``{flag}``). *source* says where the text was seen: URL or path, and version.
    *is_symptom*: it tells that something died, not of what; whatever tells that is believed first.
    """

    code: str
    regex: re.Pattern[str]
    reason: str
    advice: str
    source: str
    permanent: bool = True
    is_symptom: bool = False


def pattern(
    code: str,
    regex: str,
    reason: str,
    advice: str,
    *,
    source: str,
    permanent: bool = True,
    is_symptom: bool = False,
) -> Pattern:
    """A Pattern from a regular expression written as text, matched without regard to case."""
    return Pattern(code, re.compile(regex, re.IGNORECASE), reason, advice, source, permanent, is_symptom)
