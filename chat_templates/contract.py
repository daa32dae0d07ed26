"""The contract of a fine-tune: everything that fixes its prompt and where its answer ends, as one frozen value.

A contract is made once, when a model is imported, and holds for every engine. Two answers that carry the same hash were
asked for with the same prompt rules, whatever engine gave them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Literal

from chat_templates.conversation import Json, plain
from chat_templates.rendering import DEFAULT, Renderer
from chat_templates.rules import TRANSFORMERS_5_23
from chat_templates.trimming import TrimRules

FORMAT = 1
"""The version of the contract's form; it is part of the hash."""

LIVE: Literal["live"] = "live"
"""A clock that tells the time: the prompt changes from day to day, and cannot be proven for tomorrow."""

Bos = Literal["from_template", "tokenizer", "none"]
Parts = Literal["as_given", "join_newline", "reject"]
NullContent = Literal["drop", "empty", "reject"]
Developer = Literal["as_given", "system", "reject"]
TrailingAssistant = Literal["new_turn", "continue", "reject"]
ReasoningField = Literal["reasoning_content", "reasoning", "thinking", "none"]
ControlTokens = Literal["allow", "escape", "reject"]

SAMPLING: Mapping[str, type[int] | type[float]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
}
"""The defaults a contract may pin, by the names of transformers' generation_config.json and of OpenAI."""


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """Which tokenizer the prompt is for. sha256: of its ``tokenizer.json``, hexadecimal; empty where none was seen.

    bos: who writes the first token. ``from_template``: it is in the prompt's text. ``tokenizer``: the text lacks it and
    the tokenizer has to add it. ``none``: the model is prompted without one. special_tokens: as templates see them.
    """

    sha256: str = ""
    bos: Bos = "none"
    special_tokens: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MessageRules:
    """What happens to messages before the template.

    parts: content as a list of parts. content_null: content that is null. developer: that role. system_default: the
    system message of a conversation that has none; None leaves it to the template. trailing_assistant: a last message
    of the assistant. reasoning_field: where the template looks for earlier reasoning. control_tokens_in_text: special
    tokens that a user wrote out.
    """

    parts: Parts = "join_newline"
    content_null: NullContent = "drop"
    developer: Developer = "system"
    trim: TrimRules = field(default_factory=TrimRules)
    system_default: str | None = None
    trailing_assistant: TrailingAssistant = "new_turn"
    reasoning_field: ReasoningField = "reasoning_content"
    control_tokens_in_text: ControlTokens = "allow"


@dataclass(frozen=True, slots=True)
class Stop:
    """Where an answer ends: token ids, and texts that are no single token. Their order says nothing."""

    token_ids: tuple[int, ...] = ()
    strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_ids", tuple(sorted(set(self.token_ids))))
        object.__setattr__(self, "strings", tuple(sorted(set(self.strings))))


@dataclass(frozen=True, slots=True)
class Contract:
    """One fine-tune's contract.

    templates: Jinja texts by variant, as in `Renderer`. source: which of the files found won, for people. rules and
    jinja2: the renderer's versions. pinned: variables no request may change. free: variables the template reads that a
    request may set; what is in neither is not read. clock: the frozen time, LIVE, or None where nobody asks for it.

    name and source are for people: neither is in the hash.
    """

    name: str
    templates: Mapping[str, str]
    source: str
    rules: str = TRANSFORMERS_5_23.name
    jinja2: str = ""
    pinned: Mapping[str, Json] = field(default_factory=dict)
    free: tuple[str, ...] = ()
    tokenizer: TokenizerFacts = TokenizerFacts()
    messages: MessageRules = MessageRules()
    stop: Stop = Stop()
    sampling: Mapping[str, float | int] = field(default_factory=dict)
    clock: datetime | Literal["live"] | None = None
    hash: str = field(init=False, repr=False, compare=False)
    """64 hexadecimal digits over everything that fixes the prompt and its end."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "pinned", plain(self.pinned, "variables.pinned"))
        object.__setattr__(self, "free", tuple(sorted(set(self.free))))
        numbers = {name: SAMPLING[name](value) for name, value in self.sampling.items()}
        object.__setattr__(self, "sampling", numbers)
        # once: it stands in every answer
        digest = hashlib.sha256(canonical_json(self._fixed()).encode("ascii")).hexdigest()
        object.__setattr__(self, "hash", digest)

    @property
    def template_sha256(self) -> dict[str, str]:
        """The SHA-256 of each variant's UTF-8 text, hexadecimal."""
        return {variant: sha256_of(text) for variant, text in sorted(self.templates.items())}

    @property
    def is_time_dependent(self) -> bool:
        """True if the same conversation gives another prompt on another day."""
        return self.clock == LIVE

    def renderer(self) -> Renderer:
        """What renders this contract's prompts."""
        clock = self.clock if isinstance(self.clock, datetime) else None
        return Renderer(self.templates, self.rules, self.pinned, self.tokenizer.special_tokens, clock)

    def _fixed(self) -> Json:
        return {
            "format": FORMAT,
            "template": self.template_sha256,
            "renderer": {"rules": self.rules, "jinja2": self.jinja2},
            "variables": {"pinned": self.pinned, "free": list(self.free)},
            "tokenizer": asdict(self.tokenizer),
            "messages": asdict(self.messages),
            "stop": asdict(self.stop),
            "sampling": self.sampling,
            "clock": self.clock.isoformat() if isinstance(self.clock, datetime) else self.clock,
        }


def sha256_of(text: str) -> str:
    """The SHA-256 of *text* in UTF-8, hexadecimal."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def canonical_json(value: Json) -> str:
    """The one text that *value* has: keys sorted, no white space, ASCII. Raises ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def variant_file(name: str, variant: str) -> str:
    """What the file of *variant* is called beside the contract called *name*."""
    return f"{name}.jinja" if variant == DEFAULT else f"{name}.{variant}.jinja"
