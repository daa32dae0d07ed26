"""How a backend's prompts are to be made, and what its engine's adapter says of making them.

The contract says what a prompt is; these are the seams at which an engine takes part: being given the contract's
template, showing what it makes of a conversation, and being given a prompt that is finished.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from chat_templates.contract import Contract
from chat_templates.parity import Policy
from chat_templates.prompts import Seen

ModeChoice = Literal["auto", "native", "strict"]
"""auto: the engine renders what is proven so, and else is given the finished prompt. native: it renders, or the request
is refused. strict: it is always given the finished prompt."""


@dataclass(frozen=True, slots=True)
class ContractChoice:
    """The contract that an operator has named for one model: nothing was read yet. Fields as in `Prompting`."""

    file: Path
    tokenizer: Path | None = None
    policy: Policy = "enforce"
    mode: ModeChoice = "auto"
    sample: float = 0.01


@dataclass(frozen=True, slots=True)
class Prompting:
    """What an operator says of one model's prompts.

    contract: read from *file*. tokenizer: a folder with the ``tokenizer.json`` that the contract names; None where
    there is none, and then prompts are compared by their texts, and no engine is given ids. sample: the share of served
    chats whose prompts are looked at, where the engine's answers show them.
    """

    contract: Contract
    file: Path
    tokenizer: Path | None = None
    policy: Policy = "enforce"
    mode: ModeChoice = "auto"
    sample: float = 0.01


SeePlan = Generator[Any, Any, Seen]
"""Calls (`backends.adapter.Call`) out, their JSON answers in, without any I/O, as with `TokenizePlan`."""

StopPlan = Generator[Any, Any, frozenset[int]]
"""The ids at which the engine ends an answer by itself."""

TemplatePlan = Generator[Any, Any, str]
"""The template that a running engine says it has."""

VersionPlan = Generator[Any, Any, str]
"""The version that a running engine says it has."""


class CallRefused(Exception):
    """The engine answered a call of a plan with an error: thrown into the plan, and out of it where it knows nothing
    better. *status* is the HTTP status, the message the engine's own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _prompt_tokens(answer: Mapping[str, Any]) -> Seen:
    count = (answer.get("usage") or {}).get("prompt_tokens")
    return Seen(count=count if isinstance(count, int) else None)


@dataclass(frozen=True, slots=True)
class Witness:
    """How an answer of the chat endpoint tells which prompt it was given for.

    fields: put into the request. seen: what the whole answer, in OpenAI's form, says then. fields_of_answer: what they
    add to an answer, on its top level and in each choice, and a client that did not ask must not get. is_exact: it
    shows the ids, and not only how many.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    seen: Callable[[Mapping[str, Any]], Seen] = _prompt_tokens
    fields_of_answer: frozenset[str] = frozenset()
    is_exact: bool = False


USAGE = Witness()
"""That of every engine: the number of tokens in ``usage``."""
