"""What vLLM shows of its prompts. Sources name files of vLLM 0.32.0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.adapter import Body, Call
from backends.prompting import SeePlan, VersionPlan, Witness
from backends.seen import body_of
from backends.settings import BackendSettings
from chat_templates.conversation import Conversation
from chat_templates.prompts import Seen


def see(backend: BackendSettings, conversation: Conversation) -> SeePlan:
    """The ids, by /tokenize: the chat endpoint's own way from messages to ids (entrypoints/serve/tokenize).

    /v1/chat/completions/render would show the request's checks too, but only with --enable-scale-out.
    """
    body = body_of(backend, conversation)
    messages = [_as_the_chat_endpoint_has_it(one) for one in body["messages"]]
    answer = yield Call("POST", "/tokenize", {**body, "messages": messages, "add_special_tokens": False})
    return Seen(ids=tuple(answer["tokens"]))


def _as_the_chat_endpoint_has_it(message: Body) -> Body:
    """*message* with the one name for reasoning that /tokenize reads.

    The chat endpoint renames ``reasoning_content`` before anything else, /tokenize does not, and drops it
    (entrypoints/openai/chat_completion/protocol.py _normalize_messages_before).
    """
    named = dict(message)
    thought = named.pop("reasoning_content", None)
    if thought is not None and named.get("reasoning") is None:
        named["reasoning"] = thought
    return named


def see_version() -> VersionPlan:
    """``GET /version``."""
    answer = yield Call("GET", "/version")
    return str(answer["version"])


def _prompt_ids(answer: Mapping[str, Any]) -> Seen:
    ids = answer.get("prompt_token_ids")
    return Seen(ids=tuple(ids)) if isinstance(ids, list) else Seen()


WITNESS = Witness({"return_token_ids": True}, _prompt_ids, frozenset({"prompt_token_ids", "token_ids"}), is_exact=True)
"""entrypoints/openai/chat_completion/protocol.py, ``return_token_ids``."""
