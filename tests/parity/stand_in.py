"""What `chat_templates.comparison` will say; until it is here, in a few lines."""

from __future__ import annotations

from typing import Literal

from chat_templates.prompts import Prompt, Refused, Seen

Said = Literal["exact", "count", "mismatch", "refuses"]


def compared(seen: Seen | Refused, expected: Prompt | Refused) -> tuple[Said, str]:
    """What the engine's account comes to, and the cause of a difference."""
    if isinstance(seen, Refused):
        return "refuses", "" if isinstance(expected, Refused) else "engine_refuses"
    if isinstance(expected, Refused):
        return "mismatch", "refusal_lost"
    if seen.ids is not None:
        return ("exact", "") if seen.ids == expected.ids else ("mismatch", "unknown")
    assert expected.ids is not None
    return ("count", "") if seen.count == len(expected.ids) else ("mismatch", "unknown")
