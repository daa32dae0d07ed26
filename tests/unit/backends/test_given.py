"""How each engine is given a finished prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.engines import ADAPTERS
from backends.prompting import Prompting
from backends.settings import BackendSettings
from chat_templates.contract import Contract, TokenizerFacts
from chat_templates.prompts import Prompt

CHAT = "chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
PROMPT = Prompt("<s>hi", (1, 2, 3))
CONTRACT = Contract(
    "c",
    {"default": "x"},
    "jinja",
    pinned={"enable_thinking": False},
    tokenizer=TokenizerFacts("", "none", {"bos_token": "<s>"}),
)


def backend(engine: str) -> BackendSettings:
    return BackendSettings(
        "m", engine, weights=Path("/w"), context_length=64, prompting=Prompting(CONTRACT, Path("c.contract.yaml"))
    )


def given(engine: str, prompt: Prompt = PROMPT, **asked: Any) -> Any:
    body = {"model": "m", "messages": MESSAGES, "temperature": 0, **asked}
    return ADAPTERS[engine].given(backend(engine), CHAT, body, prompt)


def test_vllm_takes_ids_beside_the_messages() -> None:
    """vLLM's chat endpoint takes ids, keeps tools and loses what is about rendering."""
    made = given("vllm", tools=[{}], add_generation_prompt=False, continue_final_message=True)
    assert (made.mode, made.translated) == ("tokens", None)
    assert made.body == {
        "model": "m", "messages": MESSAGES, "temperature": 0, "tools": [{}],
        "kv_transfer_params": {"prompt_token_ids": [1, 2, 3]},
    }  # fmt: skip
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    assert given("vllm", messages=image) is None


def test_lmdeploy_takes_ids_in_the_messages_place() -> None:
    """LMDeploy's chat endpoint takes ids, and is told whether there is thinking to be parsed."""
    made = given("lmdeploy", tools=[{}])
    assert made.mode == "tokens"
    assert made.body == {
        "model": "m", "messages": [], "temperature": 0, "tools": [{}], "input_ids": [1, 2, 3],
        "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip
    asked = given("lmdeploy", chat_template_kwargs={"enable_thinking": True, "tone": "dry"}).body
    assert asked["chat_template_kwargs"] == {"enable_thinking": True}


def test_llamacpp_takes_ids_as_a_completion() -> None:
    """llama.cpp's completions endpoint takes ids; what only its chats can do is not had so."""
    made = given("llamacpp", stream=True, chat_template_kwargs={"tone": "dry"})
    assert (made.mode, made.body) == ("tokens", None)
    assert made.translated.target == "/v1/completions"
    assert made.translated.body == {"model": "m", "temperature": 0, "stream": True, "prompt": [1, 2, 3]}
    assert made.translated.answer.is_stream
    assert given("llamacpp", tools=[{}]) is None


def test_ollama_takes_raw_text() -> None:
    """Ollama's generate endpoint takes text as it is, without the BOS that its runner adds."""
    made = given("ollama")
    assert made.mode == "text"
    assert made.translated.target == "/api/generate"
    assert (made.translated.body["prompt"], made.translated.body["raw"]) == ("hi", True)
    assert (made.translated.body["truncate"], made.translated.body["shift"]) == (False, False)


@pytest.mark.parametrize("engine", ["vllm", "lmdeploy", "llamacpp"])
def test_without_ids_there_is_nothing_to_give(engine: str) -> None:
    """Where no tokenizer is at hand, engines that take ids are given none."""
    assert given(engine, replace(PROMPT, ids=None)) is None


@pytest.mark.parametrize("engine", ["vllm", "lmdeploy", "llamacpp", "ollama"])
def test_only_chats_have_prompts_of_ours(engine: str) -> None:
    """A completion's prompt is its client's own."""
    assert ADAPTERS[engine].given(backend(engine), "completions", {"prompt": "x"}, PROMPT) is None
