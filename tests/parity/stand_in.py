"""What the gateway's own modules will decide; until they are here, in a few lines."""

from __future__ import annotations

from dataclasses import replace

from backends.adapter import Body, Call
from backends.seen import CHAT
from chat_templates.contract import MessageRules
from chat_templates.conversation import Conversation, ConversationInvalid
from chat_templates.prompts import Prompt, Refused, Seen


def ruled(rules: MessageRules, conversation: Conversation) -> Conversation:
    messages = []
    for one in conversation.messages:
        message = dict(one)
        content = message.get("content")
        if isinstance(content, list):
            message["content"] = "\n".join(part["text"] for part in content)
        elif content is None:
            message.pop("content", None)
        elif not isinstance(content, str):
            raise ConversationInvalid("content is no text")
        if message["role"] == "developer":
            message["role"] = "system"
        messages.append(message)
    return replace(conversation, messages=messages)


def compared(seen: Seen | Refused, expected: Prompt | Refused) -> tuple[str, str]:
    if isinstance(seen, Refused):
        return "refuses", "" if isinstance(expected, Refused) else "engine_refuses"
    if isinstance(expected, Refused):
        return "mismatch", "refusal_lost"
    if seen.ids is not None:
        return ("exact", "") if seen.ids == expected.ids else ("mismatch", "unknown")
    assert expected.ids is not None
    return ("count", "") if seen.count == len(expected.ids) else ("mismatch", "unknown")


def ids_call(engine: str, body: Body, prompt: Prompt) -> Call | None:
    ids = list(prompt.ids or ())
    if engine == "vllm":
        return Call("POST", CHAT, {**body, "kv_transfer_params": {"prompt_token_ids": ids}})
    if engine == "lmdeploy":
        return Call("POST", CHAT, {"model": body["model"], "messages": [], "input_ids": ids})
    if body.get("tools"):
        return None
    return Call("POST", "/v1/completions", {"model": body["model"], "prompt": ids})
