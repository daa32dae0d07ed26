"""Why an engine's own prompts are not the contract's: the causes, by the code that names them for a proof."""

from __future__ import annotations

from dataclasses import replace

from chat_templates.battery import Case
from chat_templates.comparison import Context, compare
from chat_templates.contract import Contract
from chat_templates.conversation import ConversationInvalid
from chat_templates.messages import ruled
from chat_templates.prompts import Prompt, Seen
from chat_templates.tokenizing import Tokenizer
from tests.parity.observation import Observation, expected_of

REFUSAL_LOST = "refusal_lost"
ENGINE_REFUSES = "engine_refuses"
UNSEEN = "not_shown"


def cause_of(observation: Observation, case: Case, contract: Contract, tokenizer: Tokenizer) -> str:
    """The cause; empty where the engine makes the contract's prompt."""
    if observation.wanted != "prompt":
        return REFUSAL_LOST if observation.alone == "other" else ""
    if observation.other:
        return _named(observation, case, contract, tokenizer)
    if observation.said == "refuses":
        return ENGINE_REFUSES
    return UNSEEN if observation.said == "mismatch" or observation.alone == "other" else ""


def _named(observation: Observation, case: Case, contract: Contract, tokenizer: Tokenizer) -> str:
    try:
        conversation = ruled(contract.messages, case.conversation)
    except ConversationInvalid:
        raise AssertionError(f"{case.name}: what the rules refuse was observed") from None
    expected = expected_of(contract, tokenizer, conversation)
    assert isinstance(expected, Prompt)
    context = Context(contract.renderer(), tokenizer)
    return compare(replace(case, conversation=conversation), expected, Seen(ids=observation.other), context).cause or ""
