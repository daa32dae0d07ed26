"""Six of the templates of docs/parity.md on each real engine: nothing is silent, and exact is what the model was given.

`make parity` does it with all 131.
"""

from __future__ import annotations

from collections import Counter

import pytest

from chat_templates.battery import CASES
from chat_templates.tokenizing import Tokenizer
from tests.parity.contracts import contract_of
from tests.parity.corpus import published_templates
from tests.parity.hosts import installed_lmdeploy_sessions
from tests.parity.observation import observations
from tests.parity.run import run
from tests.parity.table import silent
from tests.parity.verdicts import outcome_of
from tests.parity.weights import cut_folder

TEMPLATES = published_templates(6)
SERVED = 150
"""Of the 252 conversations; the rest is refused by templates and rules, or has tools on llama.cpp."""


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("llamacpp", marks=pytest.mark.engine_llamacpp),
        pytest.param("vllm", marks=pytest.mark.engine_vllm),
        pytest.param("lmdeploy", marks=pytest.mark.engine_lmdeploy),
    ],
)
def test_no_prompt_is_silently_another(engine: str) -> None:
    """Of six templates every conversation is served with the contract's prompt, as the model got it, or refused."""
    results = run([engine], TEMPLATES, None, lambda line: None)
    outcomes = Counter(outcome_of(one) for _, observed in results.of(engine) for one in observed)
    assert silent(results) == []
    assert sum(outcomes.values()) == len(TEMPLATES) * len(CASES)
    assert outcomes["exact"] + outcomes["by ids"] >= SERVED


@pytest.mark.engine_lmdeploy
@pytest.mark.timeout(180)
def test_lmdeploy_with_the_template_installed() -> None:
    """LMDeploy, started for a contract as the gateway starts it, makes the prompts that it makes with it sent.

    So the table's way, one server for all templates, shows what an installed template does. Only a last message of the
    assistant is cut off by the installed template's length.
    """
    tokenizer = Tokenizer.read(cut_folder())
    template = TEMPLATES[1]
    (session,) = [
        observations(one, tokenizer) for one in installed_lmdeploy_sessions([contract_of(template, tokenizer)])
    ]
    sent = run(["lmdeploy"], [template], None, lambda line: None).observed["lmdeploy", template]
    assert "same" in {one.alone for one in session}
    prefill = {case.name for case in CASES if "prefill" in case.features}
    assert [one for one in session if one.case not in prefill] == [one for one in sent if one.case not in prefill]
