"""Which requests belong together: those whose prompts begin alike, and would meet in one engine's prefix cache.

In the order of how well each tells a conversation from the others:

1. ``prompt_cache_key`` of the body, which OpenAI has for this very purpose ("Replaces the user field",
   https://platform.openai.com/docs/api-reference/chat/create);
2. a conversation's id in a header: ``x-session-id``, which several clients and gateways send, or Open WebUI's
   ``x-openwebui-chat-id`` (with ENABLE_FORWARD_USER_INFO_HEADERS);
3. ``user``, OpenAI's earlier field for it ("used to boost cache hit rates"), or ``safety_identifier``, its other
   successor: the conversations of one person stay together;
4. the prompt's own beginning: all messages up to the first of the user's, which every later turn of a conversation
   repeats, or the first characters or token ids of a text prompt.

What a client calls its conversations is its own: the same id from two keys means two things, so the key's name counts
too. Only a digest leaves this module.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import orjson

BODY_FIELDS_FIRST = ("prompt_cache_key",)
HEADERS = (b"x-session-id", b"x-openwebui-chat-id")
BODY_FIELDS_LAST = ("user", "safety_identifier")
BEGINNING = 256
"""Characters or token ids of a text prompt. More than a system prompt's first lines, less than most first turns."""

CACHING = frozenset({"chat/completions", "completions"})
"""Endpoints whose engines keep prompts; an embedding leaves nothing behind for the next one."""


def affinity(endpoint: str, body: dict[str, Any], header: Callable[[bytes], bytes | None], caller: str) -> bytes | None:
    """16 bytes that equal those of requests belonging together; None when nothing is known of any such.

    *endpoint* as in ``/v1/{endpoint}``, *header* gives a request header by its lower-case name, *caller* is the name of
    the client's key. *body* is the client's and may hold anything.
    """
    if endpoint not in CACHING:
        return None
    named = _named(body, header)
    if named is not None:
        return _digest(b"named", caller.encode(), named)
    beginning = _beginning(body)
    return _digest(b"beginning", beginning) if beginning is not None else None


def _named(body: dict[str, Any], header: Callable[[bytes], bytes | None]) -> bytes | None:
    for field in BODY_FIELDS_FIRST:
        if isinstance(body.get(field), str) and body[field]:
            return f"{field}={body[field]}".encode()
    for name in HEADERS:
        if value := header(name):
            return name + b"=" + value
    for field in BODY_FIELDS_LAST:
        if isinstance(body.get(field), str) and body[field]:
            return f"{field}={body[field]}".encode()
    return None


def _beginning(body: dict[str, Any]) -> bytes | None:
    messages = body.get("messages")
    if isinstance(messages, list) and messages:
        last = next((index for index, message in enumerate(messages) if _is_users(message)), len(messages) - 1)
        return orjson.dumps(messages[: last + 1])
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        prompt = prompt[0]  # several prompts in one request: the first speaks for all
    if isinstance(prompt, str | list) and prompt:
        return orjson.dumps(prompt[:BEGINNING])
    return None


def _is_users(message: object) -> bool:
    return isinstance(message, dict) and message.get("role") == "user"


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()
