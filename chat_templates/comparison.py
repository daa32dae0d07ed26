"""Whether an engine made the prompt that a contract says; and where it did not, from which token on, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from chat_templates.battery import Case, Feature
from chat_templates.causes import explain
from chat_templates.conversation import Conversation, ConversationInvalid
from chat_templates.fixes import fixes, meaning
from chat_templates.prompts import Prompt, Refused, Seen
from chat_templates.rendering import Rendered, Renderer, TemplateBroken, TemplateRefused
from chat_templates.tokenizing import TextUnencodable, Tokenizer
from chat_templates.visible import around, parting, visible

Verdict = Literal["exact", "mismatch", "refused"]
"""refused: the contract has no prompt for this conversation, so its client is told, and no engine is asked."""

Basis = Literal["ids", "text", "count"]
"""What was compared. A count that is right proves nothing."""

TOKENS_AROUND = 6
"""How many tokens are shown before and after the first that differs."""

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Context:
    """What a cause is looked for with."""

    renderer: Renderer
    tokenizer: Tokenizer | None = None
    render: Callable[[Renderer, Conversation], Rendered] = Renderer.render


@dataclass(frozen=True, slots=True)
class Window:
    """The tokens about the first that differs: (id, its text) each. begins: the index of the first one shown."""

    begins: int
    expected: Sequence[tuple[int, str]]
    seen: Sequence[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One case compared.

    cause: codes of `chat_templates.fixes`, several joined by ``+``; None where nothing is wrong. detail: in which form.
    first_token: the index of the first that differs, where ids were compared. texts: both prompts about the place where
    they part, whitespace made visible; empty where no text is known. note: what else a person has to know.
    """

    case: str
    features: frozenset[Feature]
    verdict: Verdict
    basis: Basis
    cause: str | None = None
    detail: str = ""
    first_token: int | None = None
    window: Window | None = None
    texts: tuple[str, str] | None = None
    fixes: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**asdict(self), "features": sorted(self.features)}

    def fix(self, engine: str) -> str:
        """What mends it on *engine*; empty where nothing is wrong."""
        return self.fixes.get(engine, self.fixes.get("*", ""))

    def lines(self, engine: str = "*") -> list[str]:
        """For a person, on *engine*: what differs, from where on, why, and what to do."""
        if self.verdict != "mismatch" or self.cause is None:
            return [self.note] if self.note else []
        made = [f"the engine {meaning(self.cause)}" + (f" ({self.detail})" if self.detail else "")]
        if self.window is not None:
            made.append(f"token {self.first_token} is the first that differs:")
            for name, tokens in (("contract", self.window.expected), ("engine", self.window.seen)):
                shown = " ".join(f"{id_}:{visible(text)}".replace("\n", "") for id_, text in tokens)
                made.append(f"  {name:9} {shown or '(nothing more)'}")
        if self.texts is not None:
            for name, text in zip(("contract", "engine"), self.texts, strict=True):
                made.append(f"  {name:9} {text}".replace("\n", "\n            "))
        if self.note:
            made.append(self.note)
        made.append(f"to mend it: {self.fix(engine)}")
        return made


def compare(case: Case, expected: Prompt | Refused, seen: Seen | Refused, context: Context) -> Comparison:
    """What *seen*, which an engine made of *case*, is beside *expected*. Blocks while it renders."""
    features = frozenset(case.features)
    if isinstance(expected, Refused):
        lost = isinstance(seen, Seen) and seen != Seen()
        note = "the engine would have rendered it" if lost else ""
        return Comparison(case.name, features, "refused", "text", note=note)
    if isinstance(seen, Refused):
        return _mismatch(case, "text", "engine_refuses", note=f"it says: {seen.message}")
    if expected.ids is not None and seen.ids is not None:
        return _by_ids(case, expected.text, expected.ids, seen, context)
    if seen.text is not None:
        return _by_text(case, expected.text, seen.text, context)
    is_same = expected.ids is not None and len(expected.ids) == seen.count
    if is_same:
        return Comparison(case.name, features, "exact", "count")
    if expected.ids is None or seen.count is None:
        return _mismatch(case, "count", UNKNOWN, note="nothing of the engine's prompt can be seen")
    note = f"it has {seen.count} tokens, the contract's prompt has {len(expected.ids)}"
    return _mismatch(case, "count", UNKNOWN, note=note)


def _mismatch(case: Case, basis: Basis, cause: str, **more: Any) -> Comparison:
    return Comparison(case.name, frozenset(case.features), "mismatch", basis, cause, fixes=fixes(cause), **more)


def _by_text(case: Case, expected: str, seen: str, context: Context) -> Comparison:
    if expected == seen:
        return Comparison(case.name, frozenset(case.features), "exact", "text")
    cause, detail = _why(case, expected, seen, context)
    return _mismatch(case, "text", cause, detail=detail, texts=_parted(expected, seen))


def _by_ids(case: Case, text: str, expected: Sequence[int], seen: Seen, context: Context) -> Comparison:
    assert seen.ids is not None
    if tuple(expected) == tuple(seen.ids):
        return Comparison(case.name, frozenset(case.features), "exact", "ids")
    first = parting(expected, seen.ids)
    if context.tokenizer is None:
        return _mismatch(case, "ids", UNKNOWN, first_token=first)
    tokenizer, ids = context.tokenizer, seen.ids
    read = _reading(tokenizer, text, expected)
    made = read(ids)
    window = Window(
        max(0, first - TOKENS_AROUND),
        _tokens(expected, first, tokenizer),
        _tokens(ids, first, tokenizer),
    )
    shown: dict[str, Any] = {"first_token": first, "window": window}
    if made == read(expected):
        return _mismatch(case, "ids", _tokenised_otherwise(expected, ids, tokenizer), **shown)
    is_seen = made.__eq__ if read(expected) == text else _having(ids, tokenizer)
    cause, detail = _why(case, text, made, context, is_seen)
    return _mismatch(case, "ids", cause, detail=detail, texts=_parted(text, made), **shown)


def _reading(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> Callable[[Sequence[int]], str]:
    """The way of decoding that gives *text* back for its own *ids*; the usual one where none does.

    SentencePiece's tokenizers put a space in front of a text, and some of them after each special token too. Decoded
    as a whole that one stays; what stands between two special tokens, decoded by itself, has it taken away.
    """
    return tokenizer.decode_between_special if tokenizer.decode_between_special(ids) == text else tokenizer.decode


def _having(ids: Sequence[int], tokenizer: Tokenizer) -> Callable[[str], bool]:
    """Whether a text has just these *ids*, for tokenizers that lose something of their texts."""

    def has(text: str) -> bool:
        try:
            return tokenizer.encode(text) == list(ids)
        except TextUnencodable:
            return False

    return has


def _tokens(ids: Sequence[int], at: int, tokenizer: Tokenizer) -> list[tuple[int, str]]:
    shown = ids[max(0, at - TOKENS_AROUND) : at + TOKENS_AROUND]
    return list(zip(shown, tokenizer.pieces(shown), strict=True))


def _tokenised_otherwise(expected: Sequence[int], seen: Sequence[int], tokenizer: Tokenizer) -> str:
    """One text, two sequences: either special tokens were not known in it, or it is another tokenizer."""
    special = tokenizer.special_ids
    lost = [id_ for id_ in expected if id_ in special]
    kept = [id_ for id_ in seen if id_ in special]
    return "special_text_not_parsed" if len(kept) < len(lost) else "other_tokenizer"


def _parted(expected: str, seen: str) -> tuple[str, str]:
    index = parting(expected, seen)
    return around(expected, index), around(seen, index)


def _why(
    case: Case, expected: str, seen: str, context: Context, is_seen: Callable[[str], bool] | None = None
) -> tuple[str, str]:
    bos = context.renderer.special_tokens.get("bos_token", "")
    front = bos if _lacks_bos(case, expected, context) else ""

    def render(conversation: Conversation) -> str:
        return front + context.render(context.renderer, conversation).text

    found = explain(case.conversation, expected, seen, bos, render, is_seen or seen.__eq__)
    return (UNKNOWN, "") if found is None else (found.code, found.details)


def _lacks_bos(case: Case, expected: str, context: Context) -> bool:
    """Whether the template leaves the BOS, with which *expected* begins, to the tokenizer."""
    try:
        text = context.render(context.renderer, case.conversation).text
    except (TemplateRefused, TemplateBroken, ConversationInvalid):
        return False
    return text != expected and expected.endswith(text)
