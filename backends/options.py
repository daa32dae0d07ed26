"""The options of an engine that have a type: what may be written below a model's ``options``, and the flag of each.

What has no type here can still be written below ``args``, as the engine spells it. The same thing in both places is a
contradiction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Option:
    """One option. *name* is our word, *flag* the engine's, without dashes; without one, the adapter acts on it itself.

    *also* are the flag's other spellings. A value of kind ``choice`` is one of *choices*; a number is at least *least*,
    more than *above* and at most *most*, where these are given. *description* says what it is, with its unit.
    """

    name: str
    kind: Literal["switch", "whole", "number", "text", "choice"]
    flag: str
    description: str
    source: str
    also: tuple[str, ...] = ()
    choices: tuple[str | int, ...] = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None
    off: str = ""
    """Of a switch: the flag for false, where the engine's default may be true; without one, false is no flag."""
    words: tuple[str, str] | None = None
    """Of a switch: what the flag is followed by, for true and for false."""
    brings: tuple[str, ...] = ()
    """Flags without which this one would do nothing."""


Options = tuple[Option, ...]
"""An engine's table: one row for each option, in the order of its command line."""
