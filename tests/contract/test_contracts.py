"""A model with a contract: what its engine is sent, what its client may not change, and where the contract is shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from chat_templates.canonical import prompt_of
from chat_templates.contract import MessageRules
from chat_templates.contract_file import read_contract, tokenizer_folder
from chat_templates.conversation import Conversation
from chat_templates.tokenizing import Tokenizer
from tests.contracts import PLAIN, REFUSING, contract_in
from tests.gateways import Gateway, fake_model, running_gateway

USER = {"role": "user", "content": "How many legs?"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contracts")


@pytest.fixture(scope="module")
def gateway(folder: Path) -> Iterator[Gateway]:
    """*native* and *refusing* render for themselves, *strict* is given ids, *warned* is served though unproven."""
    tuned = str(contract_in(folder, "tuned"))
    refusing = str(contract_in(folder, "refusing", templates={"default": REFUSING}))
    parts = str(contract_in(folder, "parts", messages=MessageRules(parts="as_given")))
    off = {"parity": "off"}
    models = {
        "native": fake_model(folder, template={"contract": tuned, **off}),
        "refusing": fake_model(folder, template={"contract": refusing, **off}),
        "strict": fake_model(folder, template={"contract": tuned, "mode": "strict", **off}),
        "strict-parts": fake_model(folder, template={"contract": parts, "mode": "strict", **off}),
        "warned": fake_model(folder, template={"contract": tuned, "parity": "warn"}),
        "none": fake_model(folder),
    }
    with running_gateway(folder, models) as running:
        yield running


def ids_of(folder: Path, name: str, *messages: Any, **variables: Any) -> list[int]:
    """The ids that the contract called *name* says."""
    file = folder / f"{name}.contract.yaml"
    contract, beside = read_contract(file), tokenizer_folder(file)
    assert beside is not None
    rendered = replace(contract.renderer(), variables=variables).render(Conversation(messages))
    ids = prompt_of(contract, rendered.text, Tokenizer.read(beside)).ids
    assert ids
    return list(ids)


def ask(gateway: Gateway, model: str, *messages: Any, **fields: Any) -> Any:
    with gateway.openai() as client:
        return client.chat.completions.with_raw_response.create(model=model, messages=list(messages), **fields)


def test_an_engine_that_renders_gets_ruled_messages_and_the_contracts_defaults(gateway: Gateway) -> None:
    """Parts are joined, sampling and ends put in, and nothing else is added."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    ask(gateway, "native", {"role": "user", "content": parts}, max_tokens=2)
    sent = gateway.last_body("native")
    assert sent["messages"] == [{"role": "user", "content": "a\nb"}]
    assert (sent["temperature"], sent["stop"], sent["stop_token_ids"]) == (0.25, ["<|end|>"], [2])
    assert set(sent) == {"model", "messages", "max_tokens", "temperature", "stop", "stop_token_ids"}


def test_an_engine_that_is_given_the_prompt_gets_its_ids(gateway: Gateway, folder: Path) -> None:
    """The ids are the contract's, free variables included."""
    ask(gateway, "strict", USER)
    assert gateway.last_body("strict")["kv_transfer_params"] == {"prompt_token_ids": ids_of(folder, "tuned", USER)}
    ask(gateway, "strict", USER, extra_body={"chat_template_kwargs": {"tone": "loud"}})
    loud = ids_of(folder, "tuned", USER, tone="loud")
    assert gateway.last_body("strict")["kv_transfer_params"] == {"prompt_token_ids": loud}
    assert loud != ids_of(folder, "tuned", USER)


def test_streams_are_given_the_prompt_too(gateway: Gateway, folder: Path) -> None:
    """The same ids, and an answer piece by piece."""
    with gateway.openai() as client:
        stream: Any = client.chat.completions.create(model="strict", messages=[USER], stream=True)  # type: ignore[list-item]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text.startswith("word0 ")
    assert gateway.last_body("strict")["kv_transfer_params"] == {"prompt_token_ids": ids_of(folder, "tuned", USER)}


@pytest.mark.parametrize("model", ["native", "strict", "warned"])
@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"kv_transfer_params": {"prompt_token_ids": [1]}}, "kv_transfer_params"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs.enable_thinking"),
        ({"documents": [{"title": "x", "text": "y"}]}, "documents"),
    ],
)
def test_no_request_changes_the_prompt(gateway: Gateway, model: str, extra: Any, param: str) -> None:
    """A parameter that might is refused by its name, in every mode."""
    with pytest.raises(openai.BadRequestError) as caught:
        ask(gateway, model, USER, extra_body=extra)
    assert (caught.value.code, caught.value.param) == ("prompt_is_fixed", param)


def test_without_a_contract_variables_pass(gateway: Gateway) -> None:
    """Only a contract closes these doors."""
    ask(gateway, "none", USER, extra_body={"chat_template_kwargs": {"enable_thinking": True}})
    assert gateway.last_body("none")["chat_template_kwargs"] == {"enable_thinking": True}


@pytest.mark.parametrize("stream", [False, True])
def test_a_template_that_refuses_is_heard(gateway: Gateway, stream: bool) -> None:
    """The template's own message, though the engine would have rendered something."""
    before = gateway.engine_state("refusing")["started"]
    with pytest.raises(openai.BadRequestError, match="no system message here") as caught:
        ask(gateway, "refusing", {"role": "system", "content": "x"}, USER, stream=stream)
    assert caught.value.code == "template_refused"
    assert gateway.engine_state("refusing")["started"] == before
    assert ask(gateway, "refusing", USER).status_code == 200


def test_a_message_that_no_rule_takes_is_named(gateway: Gateway) -> None:
    """The error says which message, and what is wrong with it."""
    with pytest.raises(openai.BadRequestError, match=r"messages\[1\].content\[0\]: is a part of the type 'image_url'"):
        ask(gateway, "native", USER, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]})


def test_what_no_finished_prompt_can_carry_is_a_conflict(gateway: Gateway) -> None:
    """A model that is always to be given ids is asked nothing for which its engine takes none."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.ConflictError, match="vllm takes no finished prompt") as caught:
        ask(gateway, "strict-parts", {"role": "user", "content": [image]})
    assert caught.value.code == "template_parity_unproven"


def test_an_unproven_model_is_served_with_a_warning(gateway: Gateway) -> None:
    """`parity: warn` serves, says so in the log, and counts it."""
    assert ask(gateway, "warned", USER).status_code == 200
    assert "its contract's prompt is not proven on vllm: text" in gateway.until_logged("warned: its contract")
    assert gateway.metric("unigate_prompt_mode_total", model="warned", mode="unproven") >= 1


def test_the_contract_is_shown(gateway: Gateway, folder: Path) -> None:
    """Whole in /v1/models and the metrics, short in the header and the access log."""
    digest = read_contract(folder / "tuned.contract.yaml").hash
    answer = ask(gateway, "strict", USER)
    assert answer.headers["x-unigate-contract"] == digest[:12]
    assert "x-unigate-contract" not in ask(gateway, "none", USER).headers
    shown = {entry["id"]: entry for entry in gateway.ask("GET", "/v1/models").json()["data"]}
    assert shown["strict"]["contract"] == {"hash": digest, "name": "tuned", "policy": "off", "parity": None}
    assert "contract" not in shown["none"]
    assert gateway.metric("unigate_contract_info", model="strict", hash=digest) == 1
    assert gateway.metric("unigate_prompt_mode_total", model="strict", mode="tokens") >= 1
    line = gateway.until_logged(answer.headers["x-request-id"])
    assert f"contract={digest[:12]} prompt=tokens" in line


def test_tokenize_answers_as_the_contract_has_it(gateway: Gateway, folder: Path) -> None:
    """Messages become the contract's ids, without asking the engine; a bare prompt is the engine's to tokenise."""
    answer = gateway.ask("POST", "/tokenize", json={"model": "native", "messages": [USER]})
    assert answer.json()["tokens"] == ids_of(folder, "tuned", USER)
    closed = {"model": "native", "messages": [USER], "add_generation_prompt": False, "add_special_tokens": False}
    assert gateway.ask("POST", "/tokenize", json=closed).json()["count"] < answer.json()["count"]
    assert gateway.ask("POST", "/tokenize", json={"model": "native", "prompt": "a bb"}).json()["tokens"] == [1, 2]


def test_a_text_to_be_completed_is_the_clients_own(gateway: Gateway) -> None:
    """/v1/completions passes the prompt as it is, with the contract's sampling."""
    with gateway.openai() as client:
        client.completions.create(model="strict", prompt="Once", max_tokens=2)
    assert gateway.last_body("strict") == {"model": "strict", "prompt": "Once", "max_tokens": 2, "temperature": 0.25}


def test_a_reload_exchanges_the_contract(tmp_path: Path) -> None:
    """Requests after it are under the new one: its rules, its hash, its metric."""
    file = contract_in(tmp_path, "tuned")
    models = {"m": fake_model(tmp_path, template={"contract": str(file), "parity": "off", "mode": "strict"})}
    with running_gateway(tmp_path, models) as gateway:
        before = ask(gateway, "m", USER).headers["x-unigate-contract"]
        contract_in(tmp_path, "tuned", replace(PLAIN, sampling={"temperature": 0.75}))
        gateway.config.write_text(yaml.safe_dump(yaml.safe_load(gateway.config.read_text())))
        assert gateway.ask("POST", "/admin/reload").status_code == 200
        answer = ask(gateway, "m", USER)
        digest = read_contract(file).hash
        assert answer.headers["x-unigate-contract"] == digest[:12] != before
        assert gateway.last_body("m")["temperature"] == 0.75
        assert gateway.metric("unigate_contract_info", model="m") == 1
        assert gateway.metric("unigate_contract_info", model="m", hash=digest) == 1
