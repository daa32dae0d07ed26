"""What engines show of prompts: the calls, and how their answers are read."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from backends.adapter import Call
from backends.engines import ADAPTERS
from backends.prompting import CallRefused, Prompting
from backends.seen import CHAT, body_of, forced_stops
from backends.settings import BackendSettings
from chat_templates.contract import Contract, Stop, TokenizerFacts
from chat_templates.conversation import Conversation
from chat_templates.prompts import Seen

CONTRACT = Contract(
    "c",
    {"default": "{{ messages[0].content }}"},
    "here",
    tokenizer=TokenizerFacts(special_tokens={"bos_token": "<s>"}),
    stop=Stop((2, 7)),
)
HELLO = Conversation([{"role": "user", "content": "Hi"}])


def backend(engine: str) -> BackendSettings:
    return BackendSettings("m", engine, Path("/w"), prompting=Prompting(CONTRACT, Path("/c")))


def driven(plan: Generator[Call, Any, Any] | None, *answers: Any) -> tuple[list[Call], Any]:
    """The calls of *plan*, each answered with the next of *answers*, and what it comes to."""
    assert plan is not None
    calls = [next(plan)]
    for answer in answers:
        try:
            calls.append(plan.throw(answer) if isinstance(answer, Exception) else plan.send(answer))
        except StopIteration as end:
            return calls, end.value
    raise AssertionError(f"it asks for more: {calls[-1]}")


def test_vllm_shows_ids() -> None:
    """/tokenize, to which nothing is added: the chat endpoint adds nothing either."""
    (call,), seen = driven(ADAPTERS["vllm"].see(backend("vllm"), HELLO), {"tokens": [1, 2]})
    assert (call.target, seen) == ("/tokenize", Seen(ids=(1, 2)))
    assert call.body == {"model": "m", "messages": list(HELLO.messages), "add_special_tokens": False}


def test_vllm_is_asked_with_its_name_for_reasoning() -> None:
    """/tokenize would drop `reasoning_content`, which the chat endpoint renames."""
    said = [{"role": "assistant", "content": "A", "reasoning_content": "R"}]
    (call,), _ = driven(ADAPTERS["vllm"].see(backend("vllm"), Conversation(said)), {"tokens": []})
    assert call.body is not None
    assert call.body["messages"] == [{"role": "assistant", "content": "A", "reasoning": "R"}]
    assert "reasoning" not in said[0]


def test_llamacpp_shows_ids_in_two_steps() -> None:
    """The rendered text is tokenised with what the vocabulary adds, as its chat endpoint does."""
    calls, seen = driven(ADAPTERS["llamacpp"].see(backend("llamacpp"), HELLO), {"prompt": "Hi"}, {"tokens": [1, 5]})
    assert [call.target for call in calls] == ["/apply-template", "/tokenize"]
    assert calls[1].body == {"content": "Hi", "add_special": True, "parse_special": True}
    assert seen == Seen(ids=(1, 5))


@pytest.mark.parametrize(("adds_bos", "text"), [(True, "<s>Hi"), (False, "Hi")])
def test_ollama_shows_a_text_without_its_bos(adds_bos: bool, text: str) -> None:
    """The BOS that its tokenizer adds is put before what it shows."""
    shown = {"model_info": {"tokenizer.ggml.add_bos_token": adds_bos}}
    rendered = {"_debug_info": {"rendered_template": "Hi"}}
    calls, seen = driven(ADAPTERS["ollama"].see(backend("ollama"), HELLO), rendered, shown)
    assert [call.target for call in calls] == ["/api/chat", "/api/show"]
    assert calls[0].body is not None
    assert calls[0].body["_debug_render_only"] is True
    assert seen == Seen(text=text)


@pytest.mark.parametrize("engine", ["lmdeploy", "external"])
def test_engines_that_show_nothing(engine: str) -> None:
    """They have no plan, so nothing that they render is ever taken for proven."""
    assert ADAPTERS[engine].see(backend(engine), HELLO) is None


@pytest.mark.parametrize(
    ("engine", "answer", "version"),
    [
        ("vllm", {"version": "0.32.0"}, "0.32.0"),
        ("llamacpp", {"build_info": "b11549-abc"}, "b11549-abc"),
        ("ollama", {"version": "0.33.0"}, "0.33.0"),
    ],
)
def test_versions(engine: str, answer: Any, version: str) -> None:
    """Each engine that knows its version says it."""
    assert driven(ADAPTERS[engine].see_version(), answer)[1] == version


def test_the_template_that_an_engine_says_it_has() -> None:
    """llama.cpp shows the template it was started with; the others show none."""
    assert driven(ADAPTERS["llamacpp"].see_template(), {"chat_template": "{{ x }}"})[1] == "{{ x }}"
    assert all(adapter.see_template() is None for name, adapter in ADAPTERS.items() if name != "llamacpp")


def test_a_build_without_a_number_is_no_version() -> None:
    """The wheel's llama.cpp says b0-unknown whatever it is: no proof may be kept under that."""
    plan = ADAPTERS["llamacpp"].see_version()
    with pytest.raises(CallRefused):
        driven(plan, {"build_info": "b0-unknown"})


def ended(text: str, reason: str) -> dict[str, Any]:
    return {"choices": [{"text": text, "finish_reason": reason}]}


def test_ends_are_forced() -> None:
    """Each stop id is made the only token; those after which the answer is over are ends."""
    calls, ends = driven(
        forced_stops(backend("vllm")), ended("abc", "length"), ended("", "stop"), ended("777", "length")
    )
    assert ends == {2}
    assert [call.body["logit_bias"] for call in calls[1:] if call.body] == [{"2": 100}, {"7": 100}]


def test_a_bias_without_effect_shows_nothing() -> None:
    """An engine that passes the bias over says the same as without it, and so nothing of its ends."""
    with pytest.raises(CallRefused, match="logit_bias has no effect"):
        driven(forced_stops(backend("vllm"), in_chats=True), *[_chat("abc")] * 2)
    plan = ADAPTERS["lmdeploy"].see_stops(backend("lmdeploy"))
    assert plan is not None
    assert next(plan).target == CHAT


def _chat(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}, "finish_reason": "length"}]}


def test_a_conversation_as_a_request_has_it() -> None:
    """Arguments of calls are JSON text; no tools are left out, an empty list of them is not; ends are said."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"città": 1}}}
    conversation = Conversation([{"role": "assistant", "tool_calls": [call]}], [], add_generation_prompt=False)
    body = body_of(backend("vllm"), conversation)
    assert body["messages"][0]["tool_calls"][0]["function"]["arguments"] == '{"città": 1}'
    assert (body["tools"], body["add_generation_prompt"]) == ([], False)
    assert "tools" not in body_of(backend("vllm"), HELLO)
    assert "add_generation_prompt" not in body_of(backend("vllm"), HELLO)
    open_end = Conversation(HELLO.messages, add_generation_prompt=False, continue_final_message=True)
    assert body_of(backend("vllm"), open_end)["continue_final_message"] is True


def test_vllms_witness() -> None:
    """Its answers show the ids that were used; another engine's only how many."""
    witness = ADAPTERS["vllm"].witness
    assert witness.is_exact
    assert witness.seen({"prompt_token_ids": [1, 2]}) == Seen(ids=(1, 2))
    assert witness.seen({}) == Seen()
    assert ADAPTERS["lmdeploy"].witness.seen({"usage": {"prompt_tokens": 7}}) == Seen(count=7)
    assert ADAPTERS["lmdeploy"].witness.seen({}) == Seen()
