"""What is proven of an engine: for which kinds of conversation it is given the contract's prompt, and in which way."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from chat_templates.battery import Feature

Mode = Literal["native", "tokens", "text"]
"""Who makes the prompt. native: the engine renders and tokenises, with the contract's template in its own form. tokens:
the gateway does both, and the engine is given ids. text: the gateway renders, and the engine tokenises."""

Policy = Literal["enforce", "warn", "off"]
"""What an unproven contract means. enforce: the backend does not get READY, and a request that needs what is not proven
is refused. warn: it is served, and said. off: nothing is proven."""


@dataclass(frozen=True, slots=True)
class Parity:
    """The outcome of one proof. contract: its hash. modes: by feature, those proven, the preferred one first."""

    contract: str
    engine: str
    modes: Mapping[Feature, tuple[Mode, ...]] = field(default_factory=dict)

    def mode(self, features: Collection[Feature]) -> Mode | None:
        """The preferred way in which all *features* of one conversation are proven; None where there is none."""
        wanted = [self.modes.get(feature, ()) for feature in features]
        every = [mode for mode in wanted[0] if all(mode in modes for modes in wanted)] if wanted else []
        return every[0] if every else None

    def unproven(self, features: Collection[Feature]) -> tuple[Feature, ...]:
        """Those of *features* that are proven in no way, by name."""
        return tuple(sorted(feature for feature in features if not self.modes.get(feature)))
