"""Anthropic's client, and OpenAI's for its newer API, against a gateway: what they ask for, they get."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import httpx
import openai
import pytest
from anthropic import Anthropic
from openai import OpenAI

from tests.contract.conftest import Secrets
from tests.contract.test_openai_client import COMPLETION_TOKENS, PROMPT_TOKENS, TEXT
from tests.gateways import Gateway


@pytest.fixture
def claude(gateway: Gateway) -> Iterator[Anthropic]:
    with Anthropic(api_key="any", base_url=gateway.url, max_retries=0) as client:
        yield client


def test_a_message(claude: Anthropic) -> None:
    """A message is the engine's answer, with its usage and why it ended."""
    message = claude.messages.create(
        model="chat", max_tokens=64, messages=[{"role": "user", "content": "one two three"}]
    )
    assert [block.model_dump()["text"] for block in message.content] == [TEXT]
    assert (message.stop_reason, message.model) == ("end_turn", "chat")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (PROMPT_TOKENS, COMPLETION_TOKENS)


def test_a_message_that_is_streamed(claude: Anthropic) -> None:
    """A streamed message arrives in pieces that add up, with the usage at its end."""
    with claude.messages.stream(
        model="default", max_tokens=64, messages=[{"role": "user", "content": "one two three"}]
    ) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert len(pieces) == COMPLETION_TOKENS
    assert "".join(pieces) == TEXT
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == COMPLETION_TOKENS


def test_a_message_cut_at_its_limit(claude: Anthropic) -> None:
    """An answer that ran into max_tokens says so."""
    message = claude.messages.create(model="chat", max_tokens=2, messages=[{"role": "user", "content": "hi"}])
    assert message.stop_reason == "max_tokens"


def test_tokens_are_counted(claude: Anthropic) -> None:
    """Tokens can be counted before they are paid for."""
    counted = claude.messages.count_tokens(model="chat", messages=[{"role": "user", "content": "one two three"}])
    assert counted.input_tokens > 0


def test_errors_are_anthropics(claude: Anthropic, gateway: Gateway) -> None:
    """Each error is the exception of its kind in Anthropic's client."""
    with pytest.raises(anthropic.NotFoundError, match="there is no model 'nobody'"):
        claude.messages.create(model="nobody", max_tokens=2, messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(anthropic.BadRequestError, match="mcp_servers has no counterpart"):
        claude.messages.create(
            model="chat", max_tokens=2, messages=[{"role": "user", "content": "hi"}], extra_body={"mcp_servers": []}
        )
    answer = httpx.post(f"{gateway.url}/v1/messages", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_the_key_may_be_where_anthropic_has_it(keyed: Gateway, keys: Secrets) -> None:
    """Anthropic's clients send their key in a header of their own."""
    with Anthropic(api_key=keys.guest, base_url=keyed.url, max_retries=0) as client:
        asked = {"max_tokens": 2, "messages": [{"role": "user", "content": "hi"}]}
        assert client.messages.create(model="public-chat", **asked).content  # type: ignore[call-overload]
        with pytest.raises(anthropic.PermissionDeniedError):
            client.messages.create(model="private", **asked)  # type: ignore[call-overload]
    with (
        Anthropic(api_key="sk-wrong", base_url=keyed.url, max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError),
    ):
        client.messages.create(model="public-chat", **asked)  # type: ignore[call-overload]


def test_a_response(client: OpenAI) -> None:
    """A response is the engine's answer, with its usage."""
    response = client.responses.create(model="chat", input="one two three", instructions=None)
    assert (response.output_text, response.status) == (TEXT, "completed")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (PROMPT_TOKENS, COMPLETION_TOKENS)


def test_a_response_that_is_streamed(client: OpenAI) -> None:
    """A streamed response arrives in pieces that add up."""
    with client.responses.stream(model="chat", input="one two three") as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        response = stream.get_final_response()
    assert len(pieces) == COMPLETION_TOKENS
    assert ("".join(pieces), response.output_text) == (TEXT, TEXT)


def test_a_response_that_cannot_be(client: OpenAI) -> None:
    """What refers to stored responses is refused by its name."""
    with pytest.raises(openai.BadRequestError, match="stores no answers") as refusal:
        client.responses.create(model="chat", input="x", previous_response_id="resp_1")
    assert refusal.value.param == "previous_response_id"
