"""The mutation suite: each named cause is put into an engine, and the report of the proof names exactly it.

The engine is the fake one, which makes prompts as vLLM does, with a template or a tokenizer that is not the contract's.
All of them are proven in one gateway, whose policy lets them be served.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chat_templates.contract import Contract, MessageRules, Stop, TokenizerFacts
from chat_templates.contract_file import write_contract
from chat_templates.fixes import MEANINGS
from chat_templates.tokenizing import Tokenizer
from tests.gateways import Gateway, fake_model, running_gateway, weights_in
from tests.oracle.folders import OWN, model_folder

START_S = 240.0
END = 2
"""The id of ``</s>``."""

NONE = "{% if messages[0].role != 'system' %}"
DEFAULT_SYSTEM = NONE + "### system:\nBe kind.</s>\n{% endif %}"
EMPTY_SYSTEM = NONE + "### system:\n</s>\n{% endif %}"
THOUGHT = "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
TOOLS = "{% if tools %}{{ tools | tojson }}\n{% endif %}"
PARTS = (
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content or [] %}{{ p.text }}\n{% endfor %}{% endif %}"
)
HEADER = "### {{ m.role }}:\n"
ANSWER = "{% if add_generation_prompt %}### assistant:\n{% endif %}"


def template(
    *, head: str = "{{ bos_token }}", system: str = DEFAULT_SYSTEM, tools: str = TOOLS, header: str = HEADER,
    thought: str = THOUGHT, content: str = PARTS, footer: str = "</s>\n", answer: str = ANSWER,
) -> str:  # fmt: skip
    """A template of the usual parts, which can be had otherwise one by one."""
    calls = "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
    message = header + thought + content + calls + footer
    return head + system + tools + "{% for m in messages %}" + message + "{% endfor %}" + answer


@dataclass(frozen=True)
class Mutation:
    """An engine that has *theirs*, or tokenizes so, where the contract has *ours*."""

    theirs: str = ""
    ours: str = template()
    flag: str = ""


THINKING = "{% if add_generation_prompt %}### assistant:\n<think>\n{% endif %}"
ONCE = "{% if loop.first or loop.previtem.role != m.role %}"
LAST = "{% if loop.last or loop.nextitem.role != m.role %}"

MUTATIONS: Mapping[str, Mutation] = {
    "double_bos": Mutation(template(head="{{ bos_token }}{{ bos_token }}")),
    "added_bos": Mutation(template(), ours=template(head="")),
    "missing_bos": Mutation(template(head="")),
    "missing_generation_prompt": Mutation(template(answer="")),
    "extra_generation_prompt": Mutation(template(), ours=template(answer="")),
    "default_system_lost": Mutation(template(system="")),
    "default_system_added": Mutation(template(), ours=template(system="")),
    "empty_system_block": Mutation(template(system=EMPTY_SYSTEM), ours=template(system="")),
    "trailing_newline": Mutation(template(answer="{% if add_generation_prompt %}### assistant:\n\n\n{% endif %}")),
    "content_trimmed": Mutation(template(content=PARTS.replace("{{ m.content }}", "{{ m.content | trim }}"))),
    "think_prefill_added": Mutation(template(answer=THINKING)),
    "think_prefill_missing": Mutation(template(), ours=template(answer=THINKING)),
    "history_think_dropped": Mutation(template(thought="")),
    "history_think_kept": Mutation(template(), ours=template(thought="")),
    "date": Mutation(template(head="{{ bos_token }}2024-07-27\n"), ours=template(head="{{ bos_token }}2024-07-26\n")),
    "tools_wrapper": Mutation(
        template(tools="{% if tools %}{{ tools | map(attribute='function') | list | tojson }}\n{% endif %}")
    ),
    "parts_joined": Mutation(template(content=PARTS.replace("{{ p.text }}\n", "{{ p.text }}"))),
    "same_role_merged": Mutation(
        template(header=f"{ONCE}{HEADER}{{% else %}}\n\n{{% endif %}}", footer=f"{LAST}</s>\n{{% endif %}}")
    ),
    "continued_instead_of_new_turn": Mutation(
        template(
            footer="{% if not loop.last or m.role != 'assistant' %}</s>\n{% endif %}",
            answer="{% if add_generation_prompt and messages[-1].role != 'assistant' %}### assistant:\n{% endif %}",
        )
    ),
    "role_header": Mutation(template(header="### {{ 'human' if m.role == 'user' else m.role }}:\n")),
    "system_lost": Mutation(
        template().replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"),
        ours=template(),
    ),
    "special_text_not_parsed": Mutation(flag="tokenizes=plain"),
    "other_tokenizer": Mutation(flag="tokenizes=characters"),
    "missing_stop": Mutation(flag="deaf-ends"),
}  # fmt: skip

WITH_COMPANY: Mapping[str, set[str]] = {
    # a conversation of nothing but a system message is empty without it, which the template refuses
    "system_lost": {"engine_refuses"},
}
"""What else a mutation does to some conversations, of itself."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway with a model per mutation."""
    folder = tmp_path_factory.mktemp("mutations")
    models = {name: mutated(folder, name, mutation) for name, mutation in MUTATIONS.items()}
    with running_gateway(folder, models, is_ready=False) as running:
        running.until_ready(START_S)
        yield running


def mutated(folder: Path, name: str, mutation: Mutation) -> dict[str, Any]:
    model_folder(weights_in(folder), OWN)
    tokenizer = Tokenizer.read(weights_in(folder))
    facts = TokenizerFacts(tokenizer.sha256, "from_template", tokenizer.special_tokens)
    contract = Contract(
        name,
        {"default": mutation.ours},
        "here",
        tokenizer=facts,
        messages=MessageRules(parts="as_given"),
        stop=Stop((END,)),
    )
    path = write_contract(contract, folder)
    flags = [mutation.flag] if mutation.flag else []
    if mutation.theirs:
        other = folder / f"{name}.theirs"
        other.write_text(mutation.theirs, encoding="utf-8")
        flags.append(f"renders={other}")
    return fake_model(folder, *flags, template={"contract": str(path), "parity": "warn", "mode": "native"})


def proof_of(gateway: Gateway, name: str) -> dict[str, Any]:
    (entry,) = gateway.ask("GET", f"/admin/models/{name}/parity").json()
    proof: dict[str, Any] = entry["proof"]
    return proof


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", MUTATIONS)
def test_what_is_put_into_an_engine_is_named(gateway: Gateway, name: str) -> None:
    """The report of an engine with one fault names that cause for every conversation that differs, and no other."""
    proof = proof_of(gateway, name)
    assert proof["problem"]
    causes = {case["cause"] for case in proof["cases"] if case["verdict"] == "mismatch"}
    if name == "missing_stop":
        assert causes == set()
        assert proof["stops"]["missing"] == [END]
        assert "missing_stop" in proof["problem"]
    else:
        assert causes == {name} | (WITH_COMPANY.get(name, set()) & causes)
        assert name in proof["problem"] or name in ("special_text_not_parsed",)


@pytest.mark.timeout(300)
def test_every_cause_with_a_name_is_here(gateway: Gateway) -> None:
    """No cause of a prompt's is left out, but those that no template can have an engine do."""
    elsewhere = {"unknown", "engine_refuses", "new_turn_instead_of_continued", "system_moved_into_user", "tool_calls"}
    assert MUTATIONS.keys() | elsewhere == MEANINGS.keys()
