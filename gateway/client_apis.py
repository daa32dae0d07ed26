"""The APIs that are spoken here beside OpenAI's chats: path -> translation."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gateway import messages_request, responses_request
from gateway.client_api import ClientApi, Json
from gateway.messages_reply import MessagesReply
from gateway.responses_reply import ResponsesReply

MESSAGES = ClientApi(messages_request.chat_request, MessagesReply, key_header=b"x-api-key")
RESPONSES = ClientApi(responses_request.chat_request, ResponsesReply)

COUNT_TOKENS = "/v1/messages/count_tokens"


def _countable(body: Json) -> Json:
    return messages_request.chat_request({"max_tokens": 1, **body})


CLIENT_APIS: Mapping[str, ClientApi] = MappingProxyType(
    {
        "/v1/messages": MESSAGES,
        COUNT_TOKENS: ClientApi(_countable, MessagesReply, key_header=b"x-api-key"),
        "/v1/responses": RESPONSES,
    }
)
