"""Trim rules: the whitespace a template takes off a message's text, role by role, so that somebody else can do it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Trim = Literal["none", "both", "left", "right"]

TRIMS: Mapping[Trim, Callable[[str], str]] = {
    "none": str,
    "both": str.strip,
    "left": str.lstrip,
    "right": str.rstrip,
}
"""What may be done to a text. Each is idempotent: a template that trims once more changes nothing."""


@dataclass(frozen=True, slots=True)
class TrimRules:
    """What is cut of the whitespace around a message's content, by its role, before the template sees it."""

    system: Trim = "none"
    user: Trim = "none"
    assistant: Trim = "none"

    def trimmed(self, role: str, content: str) -> str:
        """*content* as the template renders it for *role*."""
        return TRIMS[self.by_role().get(role, "none")](content)

    def by_role(self) -> dict[str, Trim]:
        """The rules as a contract has them."""
        return {"system": self.system, "user": self.user, "assistant": self.assistant}

    @property
    def are_none(self) -> bool:
        """Whether nothing is trimmed."""
        return set(self.by_role().values()) == {"none"}


def all_rules() -> Iterator[TrimRules]:
    """Every set of rules, those that trim fewer roles first."""
    every = [TrimRules(*chosen) for chosen in itertools.product(TRIMS, repeat=3)]
    yield from sorted(every, key=lambda rules: sum(rule != "none" for rule in rules.by_role().values()))
