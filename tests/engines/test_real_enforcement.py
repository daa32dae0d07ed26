"""The real engines are given finished prompts by the gateway, and use exactly those, whatever the conversation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from chat_templates.battery import CASES, Case
from chat_templates.canonical import prompt_of
from chat_templates.conversation import ConversationInvalid
from chat_templates.messages import as_requested, ruled
from chat_templates.rendering import TemplateBroken, TemplateRefused
from chat_templates.tokenizing import Tokenizer
from tests.engines.environment import gguf_model, hf_model, lmdeploy_command, vllm_python
from tests.engines.test_real_contracts import QUESTION, START_S, contracts, models
from tests.gateways import Gateway, running_gateway

pytestmark = pytest.mark.timeout(600)

CHAT = "/v1/chat/completions"


@contextmanager
def strict(
    folder: Path, engine: str, weights: Path, name: str, engines: dict[str, Any] | None = None, **settings: Any
) -> Iterator[Gateway]:
    """A gateway with one model under the contract *name*, which is always given finished prompts."""
    section = models(folder, engine, weights, **settings)[name]
    section["template"] |= {"mode": "strict"}
    with running_gateway(folder, {name: section}, engines=engines or {}, is_ready=False) as gateway:
        gateway.until_ready(START_S)
        yield gateway


def wanted(name: str, case: Case) -> list[int] | None:
    """The ids of the contract's prompt of *case*; None where it has none."""
    contract = contracts()[name]
    try:
        text = contract.renderer().render(ruled(contract.messages, case.conversation)).text
    except (ConversationInvalid, TemplateRefused, TemplateBroken):
        return None
    ids = prompt_of(contract, text, Tokenizer.read(hf_model())).ids
    assert ids is not None
    return list(ids)


def asked(gateway: Gateway, name: str, case: Case, **fields: Any) -> tuple[int, dict[str, Any]]:
    """Status and answer to *case* as a chat request."""
    body: dict[str, Any] = {"model": name, "max_tokens": 1, "temperature": 0, **fields}
    body["messages"] = [
        message if "tool_calls" not in message else as_requested([message])[0]
        for message in case.conversation.messages
        if not any(isinstance(call["function"]["arguments"], str) for call in message.get("tool_calls", ()))
    ]
    if case.conversation.tools is not None:
        body["tools"] = list(case.conversation.tools)
    answer = gateway.ask("POST", CHAT, json=body, timeout=120)
    return answer.status_code, answer.json()


CASES_OF_REQUESTS = [case for case in CASES if case.name not in ("tool_arguments_text", "long")]
"""Those that can be written as a request of which nothing changes its kind; the long one takes two cores a minute."""


def answer_to_the_question(gateway: Gateway, name: str, *, stream: bool) -> str:
    """What the model says, greedily."""
    with gateway.openai() as client:
        answer: Any = client.chat.completions.create(
            model=name, messages=QUESTION, temperature=0, max_tokens=8, stream=stream, timeout=120
        )
        if not stream:
            return str(answer.choices[0].message.content)
        return "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)


def takes_as_many_tokens(gateway: Gateway, name: str, *, without_tools: bool) -> int:
    """For every case the engine counts the contract's tokens, or the gateway refuses; how many were counted."""
    compared = 0
    for case in CASES_OF_REQUESTS:
        ids = wanted(name, case)
        status, answer = asked(gateway, name, case)
        if ids is None:
            assert status == 400, case.name
        elif without_tools and case.conversation.tools:
            assert (status, answer["error"]["code"]) == (409, "template_parity_unproven"), case.name
        else:
            assert status == 200, (case.name, answer)
            assert answer["usage"]["prompt_tokens"] == len(ids), case.name
            compared += 1
    return compared


@pytest.mark.engine_vllm
@pytest.mark.parametrize("name", ["own", "foreign"])
def test_vllm_uses_the_ids_it_is_given(tmp_path: Path, name: str) -> None:
    """For every case of the battery the ids that vLLM says it used are the contract's, tools and all."""
    engines = {"vllm": {"command": [str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server"]}}
    settings = {
        "args": {"enforce-eager": True, "enable-auto-tool-choice": True, "tool-call-parser": "hermes"},
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"},
        "start_timeout_s": START_S,
    }
    with strict(tmp_path, "vllm", hf_model(), name, engines, **settings) as gateway:
        compared = 0
        for case in CASES_OF_REQUESTS:
            ids = wanted(name, case)
            status, answer = asked(gateway, name, case, return_token_ids=True)
            if ids is None:
                assert status == 400, case.name
                continue
            assert status == 200, (case.name, answer)
            assert answer["prompt_token_ids"] == ids, case.name
            compared += 1
        assert compared > 20
        assert answer_to_the_question(gateway, name, stream=True) == answer_to_the_question(gateway, name, stream=False)


@pytest.mark.engine_llamacpp
@pytest.mark.parametrize("name", ["own", "foreign"])
def test_llamacpp_uses_the_ids_it_is_given(tmp_path: Path, name: str) -> None:
    """llama.cpp counts the contract's ids for every case, streams the same answer, and is asked for no tools."""
    with strict(tmp_path, "llamacpp", gguf_model(), name) as gateway:
        assert takes_as_many_tokens(gateway, name, without_tools=True) > 20
        said = answer_to_the_question(gateway, name, stream=False)
        assert said
        assert answer_to_the_question(gateway, name, stream=True) == said


@pytest.mark.engine_lmdeploy
def test_lmdeploy_uses_the_ids_it_is_given(tmp_path: Path) -> None:
    """LMDeploy counts the contract's ids for every case, tools included."""
    engines = {"lmdeploy": {"command": lmdeploy_command()}}
    settings = {"env": {"HF_HUB_OFFLINE": "1"}, "options": {"tool_call_parser": "llama3"}}
    with strict(tmp_path, "lmdeploy", hf_model(), "foreign", engines, **settings) as gateway:
        assert takes_as_many_tokens(gateway, "foreign", without_tools=False) > 20
