"""Each template as the contract of a fine-tune of SmolLM2: its variables pinned, the clock stopped."""

from __future__ import annotations

from datetime import datetime

import jinja2
from jinja2 import TemplateSyntaxError

from chat_templates.contract import Contract, Stop, TokenizerFacts
from chat_templates.conversation import Json
from chat_templates.rendering import DEFAULT
from chat_templates.rules import RULES, TRANSFORMERS_5_23
from chat_templates.template_names import names_in
from chat_templates.tokenizing import Tokenizer
from tests.parity.corpus import Template

NOW = datetime(2024, 7, 26, 12, 30)

PINNED: dict[str, Json] = {"enable_thinking": False, "date_string": "26 Jul 2024"}
"""What is pinned of what a template reads: these two, which llama.cpp otherwise sets by itself (common/chat.cpp).
Thinking is off, which for many templates is not what is so when nothing is said."""


def contract_of(template: Template, tokenizer: Tokenizer) -> Contract:
    """The contract of a fine-tune that was trained with *template*; else what a contract has by default."""
    return Contract(
        template.name,
        {DEFAULT: template.text},
        source=template.source,
        jinja2=jinja2.__version__,
        pinned={name: value for name, value in PINNED.items() if name in _variables(template)},
        tokenizer=TokenizerFacts(tokenizer.sha256, "from_template", dict(tokenizer.special_tokens)),
        stop=Stop((2,)),
        clock=NOW,
    )


def _variables(template: Template) -> frozenset[str]:
    try:
        return names_in(template.text, RULES[TRANSFORMERS_5_23.name]).variables
    except TemplateSyntaxError:
        return frozenset()
