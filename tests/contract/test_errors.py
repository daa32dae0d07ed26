"""Errors as the official client sees them: the right exception, a plain message, OpenAI's envelope with its source."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.contract.conftest import BODY_LIMIT_BYTES
from tests.contract.test_openai_client import MESSAGES
from tests.gateways import Gateway, fake_model, running_gateway, until


def refusal(problem: openai.APIStatusError) -> dict[str, Any]:
    """The envelope's fields, which the client unwraps."""
    assert isinstance(problem.body, dict)
    assert set(problem.body) - {"diagnosis"} == {"message", "type", "param", "code", "source"}
    return problem.body


def test_an_unknown_model(client: OpenAI) -> None:
    """A misspelt model is NotFoundError with code model_not_found and the nearest name."""
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="caht", messages=MESSAGES)
    assert refusal(caught.value) == {
        "message": "there is no model 'caht'; did you mean 'chat'?",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
        "source": "gateway",
    }


def test_an_unknown_model_in_the_list(client: OpenAI) -> None:
    """Asking for a model that is not there is NotFoundError too, and says where the list is."""
    with pytest.raises(openai.NotFoundError, match="there is no model 'zzz'; GET /v1/models lists those there are"):
        client.models.retrieve("zzz")


async def test_an_unknown_model_streamed(async_client: AsyncOpenAI) -> None:
    """A stream that cannot begin is an error with a status, not an event in a stream."""
    with pytest.raises(openai.NotFoundError):
        await async_client.chat.completions.create(model="caht", messages=MESSAGES, stream=True)


@pytest.mark.parametrize(
    ("body", "param", "code", "message"),
    [
        ({"messages": []}, "model", "missing_model", "the request names no model"),
        ({"model": 7}, "model", "invalid_type", "model must be the name of a model, as text"),
        ({"model": ""}, "model", "invalid_type", "model must be the name of a model, as text"),
        ({"model": "chat", "stream": "yes"}, "stream", "invalid_type", "stream must be true or false"),
        (
            {"model": "chat", "stream": True, "stream_options": 1},
            "stream_options",
            "invalid_type",
            "stream_options must be an object",
        ),
        (
            {"model": "chat", "chat_template": "{{ messages }}"},
            "chat_template",
            "template_not_allowed",
            "a request may not bring its own chat template: the model's is set by the gateway's operator",
        ),
        (
            {"model": "chat", "chat_template_kwargs": {"chat_template": "{{ messages }}"}},
            "chat_template_kwargs.chat_template",
            "template_not_allowed",
            "a request may not bring its own chat template: the model's is set by the gateway's operator",
        ),
    ],
)
def test_a_body_we_cannot_use(client: OpenAI, body: dict[str, Any], param: str, code: str, message: str) -> None:
    """What is wrong with a body is BadRequestError, naming the parameter."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    found = refusal(caught.value)
    assert (found["param"], found["code"], found["message"]) == (param, code, message)
    assert (found["type"], found["source"]) == ("invalid_request_error", "gateway")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the body is not JSON: it is empty"),
        (b'{"model": "chat",', "the body is not JSON: "),
        (b'\xff{"model": "chat"}', "the body is not JSON: "),
        (b'{"model": "\\ud800"}', "the body is not JSON: "),
        (b'["chat"]', "the body must be a JSON object"),
        (b"[" * 5000, "the body is not JSON: "),
    ],
)
def test_malformed_json(gateway: Gateway, content: bytes, message: str) -> None:
    """A body that is no JSON object is 400 with code invalid_json, and says where it breaks."""
    headers = {"content-type": "application/json"}
    answer = gateway.ask("POST", "/v1/chat/completions", content=content, headers=headers)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "invalid_json"
    assert error["message"].startswith(message)


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_wrong_content_type(gateway: Gateway, content_type: str | None) -> None:
    """A body that is not announced as JSON is 415, and the message says what to send."""
    headers = {"content-type": content_type} if content_type else {}
    answer = gateway.ask("POST", "/v1/completions", content=b'{"model": "chat"}', headers=headers)
    assert answer.status_code == 415
    error = answer.json()["error"]
    assert error["code"] == "unsupported_content_type"
    assert error["message"] == (
        f"the body must be sent as 'Content-Type: application/json', not {content_type or 'none'}"
    )


def test_a_content_type_with_parameters(gateway: Gateway) -> None:
    """A charset beside application/json is no error."""
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    content = b'{"model": "chat", "prompt": "hi"}'
    assert gateway.ask("POST", "/v1/completions", content=content, headers=headers).status_code == 200


@pytest.mark.parametrize("size_bytes", [BODY_LIMIT_BYTES, 8 * 1024 * 1024])
def test_a_body_too_large(client: OpenAI, size_bytes: int) -> None:
    """A body past the limit is 413 naming the limit, however much of it the client has still to send."""
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model="chat", prompt="x" * size_bytes)
    assert caught.value.status_code == 413
    assert refusal(caught.value)["code"] == "body_too_large"
    assert f"{BODY_LIMIT_BYTES} bytes that gateway.body_limit_bytes allows" in str(caught.value)


def test_a_body_too_large_of_unknown_length(gateway: Gateway) -> None:
    """The limit holds for a body sent in chunks, whose length nobody announced."""

    def pieces() -> Iterator[bytes]:
        yield b'{"model": "chat", "prompt": "'
        for _ in range(64):
            yield b"x" * 16 * 1024

    answer = gateway.ask("POST", "/v1/completions", content=pieces(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("model", "kind", "status", "message"),
    [
        ("refusing", openai.BadRequestError, 400, "the fake engine answers 400"),
        ("unprocessable", openai.UnprocessableEntityError, 422, "the fake engine answers 422"),
        ("busy", openai.RateLimitError, 429, "the fake engine answers 429"),
        ("locked", openai.InternalServerError, 502, "the fake engine answers 401"),
        ("broken", openai.InternalServerError, 500, "the fake engine answers 500"),
        ("odd-status", openai.InternalServerError, 502, "the fake engine answers 799"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_backends_own_error(
    client: OpenAI, model: str, kind: type[openai.APIStatusError], status: int, message: str, stream: bool
) -> None:
    """An engine's error comes in our envelope with source backend, its status kept unless that is our affair."""
    with pytest.raises(kind) as caught:
        client.chat.completions.create(model=model, messages=MESSAGES, stream=stream)
    assert caught.value.status_code == status
    found = refusal(caught.value)
    assert (found["message"], found["source"]) == (message, "backend")


def test_a_failed_model_is_refused_at_once_and_not_asked_again(gateway: Gateway) -> None:
    """A FAILED model answers 503 with its diagnosis and x-should-retry: false, and the client obeys."""
    gateway.load("failed")
    before = gateway.metric("unigate_requests_total", model="failed", code="503")
    with gateway.openai(max_retries=2) as client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="failed", messages=MESSAGES)
    assert caught.value.status_code == 503
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in caught.value.response.headers
    found = refusal(caught.value)
    assert found["code"] == "model_failed"
    assert found["diagnosis"] == {
        "code": "bad_option",
        "reason": "The engine refused its command line: unrecognized arguments: --no-such-option.",
        "advice": "Correct the model's args or options.",
        "permanent": True,
    }
    assert found["message"] == f"failed has failed: {found['diagnosis']['reason']} Correct the model's args or options."
    until(lambda: gateway.metric("unigate_requests_total", model="failed", code="503") == before + 1)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway where one request may wait, for half a second, for a model that never gets ready."""
    folder: Path = tmp_path_factory.mktemp("narrow")
    models = {
        "never": fake_model(folder, "stall-start", load="on_demand"),
        "chat": fake_model(folder),
    }
    with running_gateway(folder, models, settings={"queue": {"max_waiting": 1, "max_wait_s": 0.5}}) as running:
        yield running


async def test_a_full_queue(narrow: Gateway) -> None:
    """A request too many for the queue is RateLimitError with Retry-After."""
    async with narrow.async_openai() as client:

        async def ask() -> None:
            await client.chat.completions.create(model="never", messages=MESSAGES)

        outcomes = await asyncio.gather(ask(), ask(), return_exceptions=True)
    kinds = {type(outcome): outcome for outcome in outcomes}
    assert set(kinds) == {openai.RateLimitError, openai.InternalServerError}
    limited = kinds[openai.RateLimitError]
    assert isinstance(limited, openai.RateLimitError)
    assert refusal(limited)["code"] == "queue_full"
    assert refusal(limited)["type"] == "rate_limit_error"
    assert refusal(limited)["message"] == "the queue for never is full (1 waiting)"
    assert int(limited.response.headers["retry-after"]) >= 1


def test_a_deadline(narrow: Gateway) -> None:
    """A model that is not ready by the deadline is 503 with Retry-After, and the message says what it is doing."""
    with narrow.openai() as client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="never", messages=MESSAGES)
    assert caught.value.status_code == 503
    assert refusal(caught.value)["code"] == "model_not_ready"
    assert refusal(caught.value)["message"] == "never is starting (loading), and did not become ready within 0.5 s"
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert "x-should-retry" not in caught.value.response.headers


def test_the_list_answers_while_a_model_starts(narrow: Gateway) -> None:
    """GET /v1/models does not wait for a start under way, and shows it."""
    narrow.ask("POST", "/admin/backends/never/load")
    narrow.until_state("never", "starting")
    with narrow.openai() as client:
        statuses = {model.id: model.model_dump()["status"] for model in client.models.list()}
    assert statuses["chat"]["value"] == "loaded"
    assert statuses["never"]["value"] == "loading"
    assert statuses["never"]["phase"]


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.batches.list(),
        lambda client: client.files.list(),
        lambda client: client.images.generate(model="chat", prompt="hi"),
    ],
)
def test_what_is_not_served(client: OpenAI, ask: Callable[[OpenAI], object]) -> None:
    """A part of OpenAI's API that is not here is NotFoundError naming the path."""
    with pytest.raises(openai.NotFoundError, match="nothing is served at /v1/") as caught:
        ask(client)
    assert refusal(caught.value)["code"] == "unknown_path"
