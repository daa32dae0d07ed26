"""Errors and their envelope: our own, those of the backends package, and those of engines translated."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backends.diagnosis import Diagnosis
from backends.lease import BackendUnavailable
from gateway import upstream_errors
from gateway.errors import (
    MESSAGE_LIMIT,
    BadRequest,
    GatewayError,
    QueueFull,
    Unavailable,
    from_unavailable,
    from_upstream,
    translate,
)

DIAGNOSIS = Diagnosis("gpu_out_of_memory", "The GPU ran out of memory.", "Free it.", permanent=True, evidence=("x",))


def shown(problem: GatewayError) -> dict[str, Any]:
    """The envelope's inside."""
    envelope = json.loads(problem.body())
    assert set(envelope) == {"error"}
    found: dict[str, Any] = envelope["error"]
    return found


def subclasses(kind: type[GatewayError]) -> list[type[GatewayError]]:
    """Every error there is below *kind*."""
    return [kind, *(deeper for sub in kind.__subclasses__() for deeper in subclasses(sub))]


def test_the_envelope_is_complete() -> None:
    """The five fields are always there; a diagnosis only where there is one, without the log lines it came from."""
    assert shown(BadRequest("no", param="model", code="x")) == {
        "message": "no", "type": "invalid_request_error", "param": "model", "code": "x", "source": "gateway",
    }  # fmt: skip
    assert shown(Unavailable("failed", diagnosis=DIAGNOSIS))["diagnosis"] == {
        "code": "gpu_out_of_memory", "reason": "The GPU ran out of memory.", "advice": "Free it.", "permanent": True,
    }  # fmt: skip


def test_every_kind_has_a_status_a_client_can_be_sent() -> None:
    """Each class of the tree names an error status, a type and a source."""
    for kind in subclasses(GatewayError):
        assert 400 <= kind.status < 600
        assert kind.type
        assert kind.source in ("gateway", "backend")


def test_waiting_helps() -> None:
    """A backend that may come back is told with Retry-After in whole seconds, never 0."""
    for given_s, header in ((10.0, b"10"), (0.2, b"1"), (1.6, b"2")):
        problem = from_unavailable(BackendUnavailable("model_not_ready", "not yet", given_s))
        assert isinstance(problem, Unavailable)
        assert problem.headers == ((b"retry-after", header),)


def test_waiting_does_not_help() -> None:
    """A FAILED backend is told with x-should-retry: false and its diagnosis."""
    problem = from_unavailable(BackendUnavailable("model_failed", "it failed", None, DIAGNOSIS))
    assert problem.headers == ((b"x-should-retry", b"false"),)
    assert shown(problem)["diagnosis"]["code"] == "gpu_out_of_memory"
    assert (problem.status, problem.code) == (503, "model_failed")


def test_a_full_queue_is_a_rate_limit() -> None:
    """queue_full is 429, so that clients treat it as one."""
    problem = from_unavailable(BackendUnavailable("queue_full", "full", 10.0))
    assert isinstance(problem, QueueFull)
    assert (problem.status, problem.type) == (429, "rate_limit_error")


@pytest.mark.parametrize(
    ("problem", "status", "code", "retries"),
    [
        (upstream_errors.ConnectFailed("x", sent=False), 502, "backend_unreachable", True),
        (upstream_errors.ConnectTimedOut("x", sent=False), 502, "backend_unreachable", True),
        (upstream_errors.FirstByteTimedOut("x", sent=True), 504, "backend_timeout", False),
        (upstream_errors.IdleTimedOut("x", sent=True), 504, "backend_timeout", False),
        (upstream_errors.BrokenAnswer("x", sent=True, answered=True), 502, "backend_broke_off", True),
        (upstream_errors.GarbageAnswer("x", sent=True), 502, "backend_garbage", False),
        (upstream_errors.AnswerTooLong("x", sent=True), 502, "backend_garbage", False),
    ],
)
def test_failed_exchanges(problem: upstream_errors.UpstreamError, status: int, code: str, retries: bool) -> None:
    """Each failure of an exchange has its status and code, names the model and never the engine's address."""
    error = from_upstream(problem, "qwen")
    assert (error.status, error.code, error.source) == (status, code, "backend")
    assert "qwen" in error.message
    assert [name for name, _ in error.headers] == ([b"retry-after"] if retries else [])


@pytest.mark.parametrize(
    ("body", "message", "code", "param"),
    [
        # vllm/entrypoints/openai/engine/protocol.py, 0.32.0
        (
            b'{"error":{"message":"m","type":"BadRequestError","param":"temperature","code":400}}',
            "m",
            None,
            "temperature",
        ),
        (b'{"error":{"message":"m","code":"context_length_exceeded"}}', "m", "context_length_exceeded", None),
        # lmdeploy/serve/openai/protocol.py ErrorResponse, 0.18.0
        (b'{"object":"error","message":"m","type":"invalid_request_error","code":400,"param":null}', "m", None, None),
        (b'{"error":"Unauthorized"}', "Unauthorized", None, None),
        (b'{"detail":"Not Found"}', "Not Found", None, None),
        (b'{"detail":[{"loc":["body","n"],"msg":"too big"}]}', '[{"loc":["body","n"],"msg":"too big"}]', None, None),
        (b"Internal Server Error", "Internal Server Error", None, None),
        (b"", "the backend answered 400", None, None),
        (b"[1]", "[1]", None, None),
        (b'{"error":{"message":null}}', '{"error":{"message":null}}', None, None),
        (b'{"error":{"message":"m","code":"400","param":3}}', "m", None, None),
        (b"\xff\xfe", "��", None, None),
    ],
)
def test_what_engines_say(body: bytes, message: str, code: str | None, param: str | None) -> None:
    """Every engine's form of an error comes out as one: its message, its code where it is a word, its parameter."""
    error = translate(400, body)
    assert (error.status, error.message, error.code, error.param) == (400, message, code, param)
    assert (error.type, error.source) == ("invalid_request_error", "backend")


@pytest.mark.parametrize(
    ("status", "shown_status", "kind"),
    [
        (400, 400, "invalid_request_error"),
        (401, 502, "api_error"),
        (403, 502, "api_error"),
        (404, 404, "invalid_request_error"),
        (429, 429, "rate_limit_error"),
        (500, 500, "api_error"),
        (503, 503, "service_unavailable_error"),
        (799, 502, "api_error"),
    ],
)
def test_which_status_is_shown(status: int, shown_status: int, kind: str) -> None:
    """An engine's status is kept, but for a key it wants of us and for a number that is no status."""
    error = translate(status, b'{"error":{"message":"m"}}')
    assert (error.status, error.type) == (shown_status, kind)


def test_a_long_message_is_cut() -> None:
    """An engine that quotes the whole request back is cut short."""
    assert len(translate(400, b'{"message":"' + b"x" * 100_000 + b'"}').message) == MESSAGE_LIMIT
    assert len(translate(400, b"x" * 100_000).message) == MESSAGE_LIMIT
