"""The request of a conversation's turn, as the API takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from benchmarks.conversations import Message, as_text
from benchmarks.load.connection import Address, request_head

CHAT = "chat"
COMPLETIONS = "completions"
PATHS = {CHAT: "/chat/completions", COMPLETIONS: "/completions"}


@dataclass(frozen=True, slots=True)
class RequestForm:
    """What all requests of a run have in common."""

    address: Address
    endpoint: str
    model: str
    is_streamed: bool = True
    ignore_eos: bool = False
    temperature: float | None = 0.0
    extra: Mapping[str, Any] | None = None

    def head(self, headers: Mapping[str, str]) -> bytes:
        """The part of the head that does not change; *headers* may hold the key."""
        path = self.address.path + PATHS[self.endpoint]
        return request_head(self.address, "POST", path, {"content-type": "application/json", **headers})

    def body(self, messages: Sequence[Message], max_tokens: int) -> bytes:
        """The JSON of one request."""
        asked: dict[str, Any] = {"model": self.model}
        if self.endpoint == CHAT:
            asked["messages"] = list(messages)
        else:
            asked["prompt"] = as_text(messages)
        asked["max_tokens"] = max_tokens
        if self.temperature is not None:
            asked["temperature"] = self.temperature
        if self.is_streamed:
            asked["stream"] = True
            asked["stream_options"] = {"include_usage": True}
        if self.ignore_eos:
            asked["ignore_eos"] = True
        if self.extra:
            asked.update(self.extra)
        return orjson.dumps(asked)
