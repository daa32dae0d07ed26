"""Causes put into a running llama.cpp, by templates and by GGUF files that are not the contract's, are named."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from backends.engines.llamacpp import LlamaCpp
from backends.settings import BackendSettings
from chat_templates.comparison import Comparison, Context, compare
from chat_templates.contract import Contract
from chat_templates.contract_file import write_contract
from chat_templates.forms.gguf_file import read_header
from chat_templates.prompts import Prompt
from chat_templates.tokenizing import Tokenizer
from tests.engines.environment import gguf_model, hf_model
from tests.engines.test_real_contracts import FOREIGN, PLAIN, contracts, engine_of
from tests.gateways import Gateway, running_gateway

pytestmark = [pytest.mark.timeout(420), pytest.mark.engine_llamacpp]

OWN = contracts()["own"].templates["default"]
DEFAULT_SYSTEM = "messages[0]['role'] != 'system'"
CONTENT = "message['content']"
ANSWER = "if add_generation_prompt"


@dataclass(frozen=True)
class Mutation:
    """An engine that has *theirs* where the contract has *ours*; *bytes*: how its GGUF file ends a key's entry."""

    theirs: str
    ours: str = OWN
    bytes: tuple[str, bytes] | None = None


MUTATIONS: Mapping[str, Mutation] = {
    "default_system_lost": Mutation(OWN.replace(DEFAULT_SYSTEM, "false")),
    "default_system_added": Mutation(OWN, ours=OWN.replace(DEFAULT_SYSTEM, "false")),
    "missing_generation_prompt": Mutation(OWN.replace(ANSWER, "if false")),
    "content_trimmed": Mutation(OWN.replace(CONTENT, f"({CONTENT} | trim)")),
    "think_prefill_added": Mutation(f"{OWN}{{% {ANSWER} %}}<think>\n\n</think>\n\n{{% endif %}}"),
    "added_bos": Mutation(FOREIGN, ours=FOREIGN, bytes=("tokenizer.ggml.add_bos_token", b"\x01")),
    "other_tokenizer": Mutation(OWN, bytes=("tokenizer.ggml.pre", b"falcon")),
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with a model per mutation, each started when it is asked for, and none beside it for long."""
    folder = tmp_path_factory.mktemp("mutations")
    models = {name: mutated(folder, name, mutation) for name, mutation in MUTATIONS.items()}
    with running_gateway(folder, models) as running:
        yield running
    for weights in folder.glob("*.gguf"):
        weights.unlink()


def contract_of(name: str, template: str) -> Contract:
    return replace(contracts()["own"], name=name, templates={"default": template}, pinned={"mood": "calm"})


def mutated(folder: Path, name: str, mutation: Mutation) -> dict[str, Any]:
    contract = write_contract(contract_of(name, mutation.theirs), folder)
    template = {"contract": str(contract), "tokenizer": str(hf_model()), "parity": "off", "mode": "native"}
    weights = gguf_model() if mutation.bytes is None else with_bytes(folder / f"{name}.gguf", *mutation.bytes)
    section = {"engine": "llamacpp", "weights": str(weights), "context_length": 512, "load": "on_demand"}
    return {**section, "template": template}


def with_bytes(target: Path, key: str, value: bytes) -> Path:
    """The weights in *target*, with *value* at the end of *key*'s entry, as long as what was there."""
    _, end = read_header(gguf_model()).entries[key]
    shutil.copyfile(gguf_model(), target)
    with target.open("r+b") as file:
        file.seek(end - len(value))
        file.write(value)
    return target


def compared(gateway: Gateway, name: str) -> Iterator[Comparison]:
    """What the engine called *name* makes of the plain conversations, beside what its mutation's contract says."""
    contract, tokenizer = contract_of(name, MUTATIONS[name].ours), Tokenizer.read(hf_model())
    renderer = contract.renderer()
    backend = BackendSettings(name, "llamacpp", gguf_model())
    with engine_of(gateway, name) as client:
        for case in PLAIN:
            text = renderer.render(case.conversation).text
            plan = LlamaCpp().see(backend, case.conversation)
            assert plan is not None
            call = next(plan)
            try:
                while True:
                    answer = client.request(call.method, call.target, json=call.body)
                    call = plan.send(answer.raise_for_status().json())
            except StopIteration as end:
                seen = end.value
            prompt = Prompt(text, tuple(tokenizer.encode(text)))
            yield compare(case, prompt, seen, Context(renderer, tokenizer))


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_put_into_llamacpp_is_named(gateway: Gateway, name: str) -> None:
    """Every conversation that differs has that cause, and no other; and some do."""
    gateway.load(name)
    found = list(compared(gateway, name))
    if name == "other_tokenizer":
        # SmolLM2's own is not wholly llama.cpp's (test_real_proofs), so that some conversations may differ anyway
        found = [one for one in found if one.verdict == "mismatch"]
    assert {one.cause for one in found if one.verdict == "mismatch"} == {name}
