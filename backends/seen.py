"""What all engines that speak OpenAI's API show alike of prompts and of the ends of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.adapter import Body, Call
from backends.prompting import CallRefused, StopPlan
from backends.settings import BackendSettings
from chat_templates.conversation import Conversation
from chat_templates.messages import request_fields

CHAT = "/v1/chat/completions"
FORCING_BIAS = 100
"""OpenAI's largest: no logit is so far above the others."""
FORCED_TOKENS = 3


def body_of(backend: BackendSettings, conversation: Conversation) -> Body:
    """*conversation* as a chat request has it: the arguments of its tool calls are JSON texts."""
    return {"model": backend.model_name, **request_fields(conversation)}


def forced_stops(backend: BackendSettings, *, in_chats: bool = False) -> StopPlan:
    """Which of the contract's stop ids end an answer: each is made the only token there can be.

    in_chats: ask the chat endpoint, of an engine that honours ``logit_bias`` only there. Raises CallRefused where it is
    honoured nowhere.
    """
    assert backend.prompting is not None
    wanted = backend.prompting.contract.stop.token_ids
    unforced = (yield _forced(backend, in_chats, {}))["choices"][0] if wanted else {}
    ends: set[int] = set()
    for id_ in wanted:
        choice = (yield _forced(backend, in_chats, {str(id_): FORCING_BIAS}))["choices"][0]
        if choice["finish_reason"] == "stop":
            ends.add(id_)
        elif _text(choice) == _text(unforced):
            raise CallRefused(200, "logit_bias has no effect")
    return frozenset(ends)


def _forced(backend: BackendSettings, in_chats: bool, bias: Body) -> Call:
    asked: Body = {"model": backend.model_name, "max_tokens": FORCED_TOKENS, "temperature": 0}
    if bias:
        asked["logit_bias"] = bias
    if in_chats:
        return Call("POST", CHAT, {**asked, "messages": [{"role": "user", "content": "Hi"}]})
    return Call("POST", "/v1/completions", {**asked, "prompt": "Hi"})


def _text(choice: Mapping[str, Any]) -> Any:
    return choice.get("text") or (choice.get("message") or {}).get("content")
