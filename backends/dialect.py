"""How an engine's OpenAI API differs from OpenAI's, as data: one frozen value per engine, each row with its source.

What is not said here is as OpenAI has it (https://github.com/openai/openai-openapi). Nothing here acts: the gateway
reads a dialect to change a request before it is forwarded, and an answer before it is relayed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, Literal

CHAT = "chat/completions"
COMPLETIONS = "completions"
GENERATION = frozenset({CHAT, COMPLETIONS})

ReasoningName = Literal["reasoning_content", "reasoning"]
REASONING: Final = "reasoning_content"
"""Our one name for a model's thinking, in answers: DeepSeek's, which most clients read. Histories may use either."""


class Quirk(Enum):
    """A way in which all answers of an engine differ."""

    IDS_COLLIDE = "two answers may have the same id"
    ROLE_REPEATED = "every delta names the role, which clients that add deltas up then read as one long word"
    STRAY_USAGE = "chunks that carry output carry an empty usage too"
    ALWAYS_FINISHES = "a stream that is whole has named a finish reason; without one, it has failed"


@dataclass(frozen=True, slots=True)
class Renamed:
    """A parameter that the engine knows by another name. *note*: where the two differ, if they do."""

    name: str
    to: str
    source: str
    endpoints: frozenset[str] = GENERATION
    note: str = ""


@dataclass(frozen=True, slots=True)
class Unhonoured:
    """A parameter that the engine drops without a word, or refuses.

    *harmless* are the values that ask for nothing: OpenAI's default, as a rule. Null always is.
    """

    name: str
    source: str
    harmless: tuple[Any, ...] = ()
    endpoints: frozenset[str] = GENERATION


@dataclass(frozen=True, slots=True)
class Withheld:
    """A value the engine would not honour, and whose meaning is kept by leaving out other parameters with it."""

    name: str
    value: Any
    drops: tuple[str, ...]
    source: str
    endpoints: frozenset[str] = GENERATION


@dataclass(frozen=True, slots=True)
class AtLeast:
    """The least value of a parameter in OpenAI's API, below which the engine would do something else."""

    name: str
    least: int
    source: str
    endpoints: frozenset[str] = GENERATION


@dataclass(frozen=True, slots=True)
class Finish:
    """A finish reason that OpenAI does not have. *means* is OpenAI's word for it, None when the answer is not whole."""

    reason: str
    means: str | None
    source: str


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """What an error's words tell beyond its status. *pattern* is searched in ``type: message``.

    Its group ``param``, if it has one, is the parameter at fault. *code* is OpenAI's word, None to leave it open.
    """

    pattern: re.Pattern[str]
    source: str
    code: str | None = None


def error_form(pattern: str, *, source: str, code: str | None = None) -> ErrorForm:
    """An ErrorForm from a regular expression."""
    return ErrorForm(re.compile(pattern), source, code)


@dataclass(frozen=True, slots=True)
class Dialect:
    """One engine's API, where it differs."""

    renamed: tuple[Renamed, ...] = ()
    unhonoured: tuple[Unhonoured, ...] = ()
    withheld: tuple[Withheld, ...] = ()
    minimums: tuple[AtLeast, ...] = ()
    history_reasoning: ReasoningName | None = None
    """The field in which the engine reads an earlier answer's thinking; None for one that reads both."""
    answer_reasoning: ReasoningName = REASONING
    """The field in which it writes it."""
    finishes: tuple[Finish, ...] = ()
    error_forms: tuple[ErrorForm, ...] = ()
    quirks: Mapping[Quirk, str] = field(default_factory=lambda: MappingProxyType({}))
    """Each with its source."""
    sources: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Of the fields that are no rows: field -> source."""

    @property
    def finish_words(self) -> Mapping[str, str | None]:
        """Engine's finish reason -> OpenAI's, None for an answer that is not whole."""
        return MappingProxyType({finish.reason: finish.means for finish in self.finishes})

    @property
    def needs_editing(self) -> bool:
        """Whether every chunk of a stream has to be changed, not only one now and then."""
        return bool(self.quirks.keys() - {Quirk.ALWAYS_FINISHES})


OPENAI = Dialect()
"""No difference at all."""
