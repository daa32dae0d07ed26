"""A request to a model with a contract: what it may say, what it is made of, and in which ways it may be asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.dialect import CHAT, COMPLETIONS
from backends.engines import ADAPTERS
from backends.prompting import Prompting
from chat_templates.contract import Contract, MessageRules, Stop
from chat_templates.parity import Parity
from gateway.contracted import (
    PASSING,
    ContractedChat,
    can_refuse,
    contracted_chat,
    unproven,
    ways,
    with_contract_defaults,
)
from gateway.errors import BadRequest

CONTRACT = Contract(
    name="tuned",
    templates={"default": "{{ messages[0].content }}"},
    source="test",
    pinned={"enable_thinking": False, "lang": "en"},
    free=("reasoning_effort", "tone"),
    stop=Stop((2, 7), ("<|end|>",)),
    sampling={"temperature": 0.6, "top_k": 20},
)
PROMPTING = Prompting(CONTRACT, Path("tuned.contract.yaml"))
USER = {"role": "user", "content": "Hi"}


def chat(contract: Contract = CONTRACT, **fields: Any) -> ContractedChat:
    return contracted_chat({"model": "m", "messages": [USER], **fields}, contract)


def refusal(contract: Contract = CONTRACT, **fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        chat(contract, **fields)
    return caught.value


# what a request may say


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"kv_transfer_params": {"prompt_token_ids": [1]}}, "kv_transfer_params"),
        ({"input_ids": [1]}, "input_ids"),
        ({"prompt": "x"}, "prompt"),
        ({"documents": []}, "documents"),
        ({"truncate_prompt_tokens": 4}, "truncate_prompt_tokens"),
        ({"mm_processor_kwargs": {}}, "mm_processor_kwargs"),
        ({"reasoning_format": "none"}, "reasoning_format"),
        ({"generation_prompt": "x"}, "generation_prompt"),
        ({"think": True}, "think"),
        ({"options": {"num_ctx": 64}}, "options"),
        ({"echo": True}, "echo"),
        ({"add_special_tokens": True}, "add_special_tokens"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"enable_thinking": True}, "enable_thinking"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs.enable_thinking"),
        ({"chat_template_kwargs": {"enable_thinking": 0}, "lang": "en"}, "lang"),
        ({"chat_template_kwargs": {"tools_in_user_message": False}}, "chat_template_kwargs.tools_in_user_message"),
    ],
)
def test_what_may_change_the_prompt_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    """A parameter that is not known to leave the prompt alone does not pass, and neither does an unlisted variable."""
    problem = refusal(**fields)
    assert (problem.param, problem.code) == (param, "prompt_is_fixed")
    assert problem.message.startswith(f"leave out {param}: ")


def test_what_has_no_effect_is_left_out() -> None:
    """The values that change nothing are taken, and are not forwarded."""
    made = chat(echo=False, add_special_tokens=False, documents=None, enable_thinking=False, add_generation_prompt=True)
    assert set(made.body) == {"model", "messages"}
    assert chat(chat_template_kwargs={"lang": "en"}).body == made.body


def test_sampling_and_constraints_of_the_answer_pass() -> None:
    """What is about the answer reaches the engine as it is."""
    fields: dict[str, Any] = {
        "temperature": 0,
        "seed": 1,
        "response_format": {"type": "json_object"},
        "return_token_ids": True,
    }
    assert chat(**fields).body == {"model": "m", "messages": [USER], **fields}


def test_free_variables_reach_the_template_in_one_place() -> None:
    """Wherever the client wrote them, engines are told them where all of them look."""
    made = chat(reasoning_effort="low", chat_template_kwargs={"tone": "dry", "lang": "en"})
    assert made.variables == {"reasoning_effort": "low", "tone": "dry"}
    assert made.body["chat_template_kwargs"] == made.variables
    assert "reasoning_effort" not in made.body


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"messages": "x"}, "messages"),
        ({"add_generation_prompt": 1}, "add_generation_prompt"),
    ],
)
def test_what_is_of_another_kind_is_refused(fields: dict[str, Any], param: str) -> None:
    """A value of the wrong kind is the client's error, with its place."""
    problem = refusal(**fields)
    assert (problem.param, problem.code) == (param, "invalid_type")


def test_messages_are_ruled_and_their_refusal_names_them() -> None:
    """The engine that renders is sent what the contract makes of the messages."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).body["messages"] == [{"role": "user", "content": "a\nb"}]
    problem = refusal(messages=[{"role": "user", "content": 7}])
    assert (problem.code, problem.param) == ("invalid_messages", "messages")
    assert problem.message.startswith("messages[0].content: is a number")


def test_a_last_answer_is_continued_where_the_contract_says_so() -> None:
    """An engine that renders is told it in so many words."""
    contract = replace(CONTRACT, messages=MessageRules(trailing_assistant="continue"))
    body = chat(contract, messages=[USER, {"role": "assistant", "content": "He"}]).body
    assert (body["add_generation_prompt"], body["continue_final_message"]) == (False, True)


def test_tools_that_may_not_be_called_are_not_shown() -> None:
    """`tool_choice: none` makes the same prompt on every engine: the one without tools."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert "tools" in chat(tools=tools, tool_choice="auto").features
    made = chat(tools=tools, tool_choice="none", parallel_tool_calls=True)
    assert made.features == {"text"}
    assert set(made.body) == {"model", "messages"}


def test_the_clients_body_is_not_touched() -> None:
    """What was read stays what was read."""
    body = {"messages": [{"role": "developer", "content": None}], "echo": False}
    contracted_chat(body, CONTRACT)
    assert body == {"messages": [{"role": "developer", "content": None}], "echo": False}


@given(name=st.text(min_size=1, max_size=20), value=st.one_of(st.booleans(), st.integers(), st.text(max_size=5)))
def test_no_unlisted_parameter_passes(name: str, value: Any) -> None:
    """Whatever it is called, what is forwarded beside the messages is on the list."""
    try:
        made = contracted_chat({"messages": [USER], name: value}, CONTRACT)
    except BadRequest:
        return
    assert set(made.body) <= PASSING | {"chat_template_kwargs"}


# defaults


def test_the_contracts_sampling_holds_where_the_client_is_silent() -> None:
    """A null is silence; a client's own value stays."""
    made = with_contract_defaults({"temperature": 0, "top_k": None}, CONTRACT, ADAPTERS["vllm"].dialect, CHAT)
    assert (made["temperature"], made["top_k"]) == (0, 20)
    assert with_contract_defaults({"input": "x"}, CONTRACT, ADAPTERS["vllm"].dialect, "embeddings") == {"input": "x"}


@pytest.mark.parametrize("engine", ["vllm", "lmdeploy", "ollama", "llamacpp"])
def test_an_answer_ends_where_the_contract_says(engine: str) -> None:
    """Stop texts go to every engine; ids to the one that has a field for them, beside the client's own."""
    dialect = ADAPTERS[engine].dialect
    made = with_contract_defaults({"stop": "X"}, CONTRACT, dialect, CHAT)
    assert made["stop"] == ["X", "<|end|>"]
    assert ("stop_token_ids" in made) == (engine == "vllm")
    if engine == "vllm":
        asked = {"stop_token_ids": [7, 9]}
        assert with_contract_defaults(asked, CONTRACT, dialect, CHAT)["stop_token_ids"] == [7, 9, 2]


def test_a_text_to_be_completed_ends_where_its_client_says() -> None:
    """The ends of a chat's turns are no ends of a raw text."""
    assert "stop" not in with_contract_defaults({}, CONTRACT, ADAPTERS["vllm"].dialect, COMPLETIONS)


@pytest.mark.parametrize("field", ["stop", "stop_token_ids"])
def test_an_end_of_another_kind_is_refused(field: str) -> None:
    """It cannot be joined with the contract's."""
    with pytest.raises(BadRequest, match=field):
        with_contract_defaults({field: {}}, CONTRACT, ADAPTERS["vllm"].dialect, CHAT)


# ways

BOTH = Parity(CONTRACT.hash, "vllm", {"text": ("native", "tokens"), "tools": ("tokens",), "parts": ("native",)})


@pytest.mark.parametrize(
    ("mode", "features", "expected"),
    [
        ("auto", {"text"}, ("native", "tokens")),
        ("auto", {"text", "tools"}, ("tokens",)),
        ("auto", {"text", "tools", "parts"}, ()),
        ("auto", {"text", "system"}, ()),
        ("native", {"text"}, ("native",)),
        ("native", {"text", "tools"}, ()),
        ("strict", {"text"}, ("tokens",)),
        ("strict", {"text", "parts"}, ()),
    ],
)
def test_a_chat_goes_the_ways_that_are_proven_and_allowed(
    mode: Any, features: set[Any], expected: tuple[str, ...]
) -> None:
    """All its features in one way, or not at all."""
    assert ways(replace(PROMPTING, mode=mode), BOTH, features, has_variables=False) == expected


def test_variables_of_the_client_prefer_the_finished_prompt() -> None:
    """What an engine renders was proven without them."""
    assert ways(PROMPTING, BOTH, {"text"}, has_variables=True) == ("tokens", "native")


@pytest.mark.parametrize("parity", [None, replace(BOTH, contract="0" * 64)])
def test_without_a_proof_of_this_contract_nothing_is_proven(parity: Parity | None) -> None:
    """A proof of another contract is none, and every feature is named."""
    assert ways(PROMPTING, parity, {"text"}, has_variables=False) == ()
    assert unproven(PROMPTING, parity, {"tools", "text"}) == ("text", "tools")


def test_what_is_unproven_is_named() -> None:
    """Only what is missing in every allowed way; all, where each is proven in a way of its own."""
    assert unproven(PROMPTING, BOTH, {"text", "system"}) == ("system",)
    assert unproven(replace(PROMPTING, mode="native"), BOTH, {"text", "tools"}) == ("tools",)
    assert unproven(PROMPTING, BOTH, {"tools", "parts"}) == ("parts", "tools")


@pytest.mark.parametrize(("mode", "expected"), [("auto", "native"), ("native", "native"), ("strict", "tokens")])
def test_where_nothing_is_to_be_proven_the_operator_decides(mode: Any, expected: str) -> None:
    """With the policy off, the engine renders, unless it is never to."""
    prompting = replace(PROMPTING, policy="off", mode=mode)
    assert ways(prompting, None, {"text"}, has_variables=False)[0] == expected


def test_a_template_that_can_refuse_is_known() -> None:
    """It calls `raise_exception` somewhere."""
    assert not can_refuse(CONTRACT)
    assert can_refuse(replace(CONTRACT, templates={"default": "{{ raise_exception('no') }}"}))
