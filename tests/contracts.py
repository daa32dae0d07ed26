"""Contracts for tests: small templates, and a tokenizer that needs no network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from chat_templates.contract import Contract, MessageRules, Stop
from chat_templates.contract_file import TOKENIZER_SUFFIX, write_contract
from tests.oracle.folders import OWN, model_folder

TAME = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant{{ '!' if tone == 'loud' }}:{% endif %}"
)
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system message here') }}{% endif %}" + TAME

PLAIN = Contract(
    name="tuned",
    templates={"default": TAME},
    source="test",
    free=("tone",),
    messages=MessageRules(system_default=None),
    stop=Stop((2,), ("<|end|>",)),
    sampling={"temperature": 0.25},
)


def contract_in(folder: Path, name: str, contract: Contract = PLAIN, **changes: Any) -> Path:
    """*contract* called *name*, with *changes*, written below *folder* with its tokenizer beside it; its file."""
    file = write_contract(replace(contract, name=name, **changes), folder)
    model_folder(folder / f"{name}{TOKENIZER_SUFFIX}", OWN)
    return file
