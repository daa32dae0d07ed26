"""How a backend's prompts are to be made, and what its engine's adapter says of making them.

The contract says what a prompt is; these are the seams at which an engine takes part: being given the contract's
template, showing what it makes of a conversation, and being given a prompt that is finished.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Prompting:
    """What an operator says of one model's prompts.

    contract: read from *file*. tokenizer: a folder with the ``tokenizer.json`` that the contract names; None where
    there is none, and then prompts are compared by their texts, and no engine is given ids.
    """

    contract: Contract
    file: Path
    tokenizer: Path | None = None
    policy: Policy = "enforce"
    mode: ModeChoice = "auto"


SeePlan = Generator[Any, Any, Seen]
"""Calls (`backends.adapter.Call`) out, their JSON answers in, without any I/O, as with `TokenizePlan`."""

StopPlan = Generator[Any, Any, frozenset[int]]
"""The ids at which the engine ends an answer by itself."""
