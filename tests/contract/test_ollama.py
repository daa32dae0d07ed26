"""Ollama behind the gateway, as the official client sees it: what its own API would do wrong is done right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from chat_templates.contract import Contract, Stop
from chat_templates.contract_file import write_contract
from tests.gateways import Gateway, running_gateway
from tests.gguf_files import CHATML
from tests.ollamas import ask_daemon, daemon_state, loaded, ollama_engine, ollama_model

HI: Any = [{"role": "user", "content": "Say hi"}]
ENDLESS: Any = [{"role": "user", "content": "never stop"}]
LONG = "a b c d " * 200
TOOL: Any = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
FOREIGN = "{% for m in messages %}### Question ({{ mood }}): {{ m.content }} ### Answer: {% endfor %}<|im_start|>"
"""A template of another fine-tune, which Ollama takes for ChatML all the same."""
DEFAULT_SYSTEM_WORDS = 6
"""Of the template's default system message with its marks: what ChatML alone would lose."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("ollama")
    weights = folder / "folder"
    weights.mkdir()
    rope = {"rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"}}
    (weights / "config.json").write_text(json.dumps(rope))
    (weights / "model.safetensors").write_bytes(b"weights")
    (weights / "tokenizer_config.json").write_text("{}")
    (weights / "chat_template.jinja").write_text(CHATML + "{# tools #}")
    models = {
        "small": ollama_model(folder, "small", context_length=128),
        "twin": ollama_model(folder, "small", context_length=128, args={"temperature": 0}),
        "folder": ollama_model(folder, "folder", weights=str(weights)),
        "pulled": ollama_model(folder, "pulled", weights="ollama:qwen2.5:1b", context_length=64),
    }
    contract = Contract(
        "tuned", {"default": FOREIGN}, "here", pinned={"mood": "calm"}, stop=Stop((), ("<|im_start|>",))
    )
    said = {"contract": str(write_contract(contract, folder)), "parity": "off", "mode": "native"}
    models["tuned"] = ollama_model(folder, "tuned", template=said, context_length=128)
    with running_gateway(folder, models, engines=ollama_engine(folder)) as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[OpenAI]:
    with gateway.openai() as made:
        yield made


def words(text: str) -> int:
    """Tokens, as the fake counts them."""
    return len(text.split())


def test_one_daemon_serves_all_models(gateway: Gateway) -> None:
    """It is shown beside them, they have no process of their own, and each keeps its place in memory."""
    backends = {backend["name"]: backend for backend in gateway.ask("GET", "/admin/backends").json()}
    assert {name: backend["state"] for name, backend in backends.items()} == dict.fromkeys(
        ("ollama", "small", "twin", "folder", "pulled", "tuned"), "ready"
    )
    assert backends["ollama"]["pid"]
    assert backends["small"]["pid"] is None
    assert len(gateway.processes()) == 2 + 4  # the shim, the daemon, and a child for each weights file


def test_the_default_system_message_is_kept(client: OpenAI) -> None:
    """The weights' own template renders, not the ChatML that Ollama guesses."""
    answer = client.chat.completions.create(model="small", messages=HI)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == words(
        "<|im_start|>system You are SmolLM.<|im_end|> <|im_start|>user Say hi<|im_end|> <|im_start|>assistant"
    )
    assert answer.choices[0].message.content == "I'm glad to make your acquaintance."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "small"


def test_a_contract_is_what_renders(gateway: Gateway, client: OpenAI) -> None:
    """The contract's template is in force, with its variable in it, though Ollama takes it for ChatML."""
    client.chat.completions.create(model="tuned", messages=HI)
    (name,) = [name for name in loaded(gateway) if name.startswith("unigate/tuned:")]
    shown = ask_daemon(gateway, "POST", "/api/chat", json={"model": name, "messages": HI, "_debug_render_only": True})
    assert shown["_debug_info"]["rendered_template"] == "### Question (calm): Say hi ### Answer: <|im_start|>"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_refused(client: OpenAI, stream: bool) -> None:
    """It is not cut without a word."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="small", messages=[{"role": "user", "content": LONG}], stream=stream)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="small", prompt=LONG, stream=stream)


def test_an_endless_answer_ends_with_its_context(client: OpenAI) -> None:
    """Without max_tokens it is bounded by the context, where Ollama goes on for ten times that."""
    answer = client.chat.completions.create(model="small", messages=ENDLESS)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 128
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_limit_are_honoured(client: OpenAI, name: str) -> None:
    """Ollama's /v1 ignores the newer one."""
    options: Any = {name: 3}
    answer = client.chat.completions.create(model="small", messages=ENDLESS, **options)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_a_completion_is_sent_as_it_is(client: OpenAI) -> None:
    """No template is applied to it."""
    answer = client.completions.create(model="small", prompt="one two three", logprobs=1)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3


def test_a_stream(client: OpenAI) -> None:
    """One id, one role, a finish reason, and its usage when asked for."""
    stream = client.chat.completions.create(
        model="small", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk.to_dict() for chunk in stream]
    assert len({chunk["id"] for chunk in chunks}) == 1
    choices: list[Any] = [choice for chunk in chunks for choice in chunk["choices"]]  # type: ignore[attr-defined]
    assert [choice["delta"].get("role") for choice in choices].count("assistant") == 1
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    assert text == "I'm glad to make your acquaintance."
    assert choices[-1]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == 8  # type: ignore[index]


def test_ids_do_not_repeat(client: OpenAI) -> None:
    """Ollama's would, soon."""
    ids = {client.chat.completions.create(model="small", messages=HI, max_tokens=1).id for _ in range(20)}
    assert len(ids) == 20


def test_tools(client: OpenAI) -> None:
    """A call finishes with its reason; `none` leaves the tools out; a model without them says so in our envelope."""
    answer = client.chat.completions.create(model="folder", messages=HI, tools=[TOOL])
    assert answer.choices[0].finish_reason == "tool_calls"
    calls: Any = answer.choices[0].message.tool_calls
    assert [json.loads(call.function.arguments) for call in calls] == [{"tz": "UTC"}]
    plain = client.chat.completions.create(model="folder", messages=HI, tools=[TOOL], tool_choice="none")
    assert plain.choices[0].finish_reason == "stop"
    with pytest.raises(openai.BadRequestError, match="does not support tools"):
        client.chat.completions.create(model="small", messages=HI, tools=[TOOL])


def test_an_image_at_an_address(client: OpenAI) -> None:
    """It is refused with the address, before any engine sees it."""
    part: Any = {"type": "image_url", "image_url": {"url": "http://a.b/c.png"}}
    with pytest.raises(openai.BadRequestError, match=r"http://a\.b/c\.png") as caught:
        client.chat.completions.create(model="small", messages=[{"role": "user", "content": [part]}])
    assert caught.value.code == "invalid_image_url"
    assert caught.value.body["source"] == "gateway"  # type: ignore[index]


@pytest.mark.parametrize("asked", [{"n": 2}, {"tool_choice": "required", "tools": [TOOL]}, {"logit_bias": {"1": 1}}])
def test_what_ollama_would_drop_is_refused(client: OpenAI, asked: dict[str, Any]) -> None:
    """By its name."""
    with pytest.raises(openai.BadRequestError, match="does not honour"):
        client.chat.completions.create(model="small", messages=HI, **asked)


def test_embeddings_of_a_chat_model_are_refused(client: OpenAI) -> None:
    """They would start its runner anew."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="small", input="hi")
    assert caught.value.code == "endpoint_not_supported"


def test_no_request_loads_a_model_anew(gateway: Gateway, client: OpenAI) -> None:
    """Chats, completions, streams and health checks of all models leave every runner where it is."""
    before = daemon_state(gateway)["loads"]
    for model in ("small", "twin", "folder", "pulled", "small"):
        client.chat.completions.create(model=model, messages=HI, max_tokens=2)
        client.completions.create(model=model, prompt="hi", max_tokens=2)
        for _ in client.chat.completions.create(model=model, messages=HI, max_tokens=2, stream=True):
            pass
    assert daemon_state(gateway)["loads"] == before
    assert len(loaded(gateway)) == 4


def test_rope_theta_survives_the_import(gateway: Gateway) -> None:
    """A folder of transformers 5 keeps it, where Ollama's converter would take 10,000."""
    names = [tag["name"] for tag in ask_daemon(gateway, "GET", "/api/tags")["models"]]
    (name,) = [name for name in names if name.startswith("unigate/folder:")]
    shown = ask_daemon(gateway, "POST", "/api/show", json={"model": name})
    assert shown["model_info"]["llama.rope.freq_base"] == 100000.0
    assert shown["template"].startswith(CHATML)


def test_its_own_names_are_not_served(client: OpenAI) -> None:
    """Clients know the public names only."""
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="qwen2.5:1b", messages=HI)
