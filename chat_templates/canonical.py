"""From a rendered text to the prompt that a contract says: the ids, and who writes the first of them."""

from __future__ import annotations

from chat_templates.contract import Contract
from chat_templates.prompts import Prompt
from chat_templates.tokenizing import Tokenizer


def prompt_of(contract: Contract, text: str, tokenizer: Tokenizer | None) -> Prompt:
    """The prompt of *contract* whose template rendered *text*; without ids where there is no *tokenizer*.

    Raises TextUnencodable.
    """
    bos = contract.tokenizer.special_tokens.get("bos_token", "") if contract.tokenizer.bos == "tokenizer" else ""
    return Prompt(bos + text, None if tokenizer is None else tuple(tokenizer.encode(bos + text)))
