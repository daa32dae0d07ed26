"""Whether an engine made the prompt that a contract says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from chat_templates.battery import Case
from chat_templates.conversation import Conversation
from chat_templates.prompts import Prompt, Refused, Seen
from chat_templates.rendering import Rendered, Renderer
from chat_templates.tokenizing import Tokenizer

Verdict = Literal["exact", "mismatch", "refused"]
Basis = Literal["ids", "text", "count"]


@dataclass(frozen=True, slots=True)
class Context:
    """What a cause is looked for with."""

    renderer: Renderer
    tokenizer: Tokenizer | None = None
    render: Callable[[Renderer, Conversation], Rendered] = Renderer.render


@dataclass(frozen=True, slots=True)
class Comparison:
    """One case compared."""

    case: str
    features: frozenset[str]
    verdict: Verdict
    basis: Basis
    cause: str | None = None
    first_token: int | None = None
    note: str = ""
    shown: tuple[str, ...] = field(default=())

    def fix(self, engine: str) -> str:
        """What to do about it."""
        return ""

    def as_json(self) -> dict[str, Any]:
        """JSON."""
        return {**asdict(self), "features": sorted(self.features)}

    def lines(self) -> list[str]:
        """For a terminal."""
        return list(self.shown)


def compare(case: Case, expected: Prompt | Refused, seen: Seen | Refused, context: Context) -> Comparison:
    """Exact or not."""
    if isinstance(expected, Refused):
        return Comparison(case.name, frozenset(case.features), "refused", "text")
    if isinstance(seen, Refused):
        shown: tuple[str, ...] = (f"the engine refuses: {seen.message}",)
        return Comparison(case.name, frozenset(case.features), "mismatch", "text", "engine_refuses", shown=shown)
    basis: Basis
    if expected.ids is not None and seen.ids is not None:
        one, other, basis = expected.ids, seen.ids, "ids"
    elif seen.text is not None:
        one, other, basis = tuple(map(ord, expected.text)), tuple(map(ord, seen.text)), "text"
    else:
        basis = "count"
        is_same = expected.ids is not None and len(expected.ids) == seen.count
        return Comparison(
            case.name,
            frozenset(case.features),
            "exact" if is_same else "mismatch",
            basis,
            None if is_same else "unknown",
        )
    if one == other:
        return Comparison(case.name, frozenset(case.features), "exact", basis)
    first = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    shown = (f"expected {one[max(0, first - 6) : first + 6]}", f"seen     {other[max(0, first - 6) : first + 6]}")
    return Comparison(case.name, frozenset(case.features), "mismatch", basis, "unknown", first, shown=shown)
