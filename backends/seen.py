"""What all engines that speak OpenAI's API show alike of prompts and of the ends of answers."""

from __future__ import annotations

from backends.adapter import Body, Call
from backends.prompting import StopPlan
from backends.settings import BackendSettings
from chat_templates.conversation import Conversation
from chat_templates.messages import as_requested

CHAT = "/v1/chat/completions"
FORCING_BIAS = 100
"""OpenAI's largest: no logit is so far above the others."""
FORCED_TOKENS = 3


def body_of(backend: BackendSettings, conversation: Conversation) -> Body:
    """*conversation* as a chat request has it: the arguments of its tool calls are JSON texts."""
    body: Body = {"model": backend.model_name, "messages": as_requested(conversation.messages)}
    if conversation.tools is not None:
        body["tools"] = list(conversation.tools)
    if conversation.continue_final_message:
        body |= {"add_generation_prompt": False, "continue_final_message": True}
    elif not conversation.add_generation_prompt:
        body["add_generation_prompt"] = False
    return body


def forced_stops(backend: BackendSettings) -> StopPlan:
    """Which of the contract's stop ids end an answer: each is made the only token there can be.

    Needs an engine that honours ``logit_bias`` in /v1/completions.
    """
    ends: set[int] = set()
    assert backend.prompting is not None
    for id_ in backend.prompting.contract.stop.token_ids:
        answer = yield Call(
            "POST",
            "/v1/completions",
            {
                "model": backend.model_name,
                "prompt": "Hi",
                "max_tokens": FORCED_TOKENS,
                "temperature": 0,
                "logit_bias": {str(id_): FORCING_BIAS},
            },
        )
        if answer["choices"][0]["finish_reason"] == "stop":
            ends.add(id_)
    return frozenset(ends)
