"""What can go wrong with a request, and how it is told: always the OpenAI error envelope.

    GatewayError
    ├── BadRequest            400  what the client sent cannot be used
    ├── WrongContentType      415
    ├── BodyTooLarge          413
    ├── MissingKey            401  no key, or not one of ours
    ├── NotAllowed            403  a key that does not open this
    ├── UnknownModel          404  code model_not_found, with the nearest names
    ├── UnknownPath           404
    ├── WrongMethod           405
    ├── ParityUnproven        409  the engine is not known to be given the contract's prompt for this
    ├── QueueFull             429
    ├── Unavailable           503  not ready, failed, draining
    ├── BackendError          as the engine answered, translated
    ├── BadGateway            502  the engine could not be reached, or broke off
    ├── GatewayTimeout        504  the engine took too long
    └── InternalError         500  a mistake of ours

The envelope is OpenAI's (https://platform.openai.com/docs/guides/error-codes) with one field more: ``source`` says who
failed, ``gateway`` or ``backend``. Its types are those of https://github.com/openai/openai-openapi, ``code`` is a short
stable word.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import orjson

from backends.diagnosis import Diagnosis
from backends.dialect import ErrorForm
from backends.lease import BackendUnavailable
from gateway import upstream_errors as upstream

MESSAGE_LIMIT = 2000


class GatewayError(Exception):
    """An answer other than the one asked for. Subclasses fix status, type and code; *message* is for a person."""

    status = 500
    type = "api_error"
    code: str | None = None
    source = "gateway"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        diagnosis: Diagnosis | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code if code is not None else type(self).code
        self.param = param
        self.headers = tuple(headers)
        self.diagnosis = diagnosis

    def body(self) -> bytes:
        """The envelope as JSON."""
        error: dict[str, Any] = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
            "source": self.source,
        }
        if self.diagnosis is not None:
            error["diagnosis"] = {
                "code": self.diagnosis.code,
                "reason": self.diagnosis.reason,
                "advice": self.diagnosis.advice,
                "permanent": self.diagnosis.permanent,
            }
        return orjson.dumps({"error": error})


class BadRequest(GatewayError):
    """What the client sent cannot be used."""

    status = 400
    type = "invalid_request_error"


class WrongContentType(BadRequest):
    """The body is not announced as JSON."""

    status = 415
    code = "unsupported_content_type"


class BodyTooLarge(BadRequest):
    """The body is longer than gateway.body_limit_bytes."""

    status = 413
    code = "body_too_large"


class MissingKey(GatewayError):
    """No key, or not one of ours."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class NotAllowed(GatewayError):
    """A key that does not open this."""

    status = 403
    type = "permission_error"
    code = "model_not_allowed"


class UnknownModel(GatewayError):
    """No model or alias has this name."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class UnknownPath(GatewayError):
    """Nothing is served here."""

    status = 404
    type = "invalid_request_error"
    code = "unknown_path"


class WrongMethod(GatewayError):
    """The path exists, the method does not."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class ParityUnproven(GatewayError):
    """The engine is not proven to be given the contract's prompt for such a request."""

    status = 409
    type = "invalid_request_error"
    code = "template_parity_unproven"


class QueueFull(GatewayError):
    """Too many requests wait for this model."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class Unavailable(GatewayError):
    """The model cannot answer now, or ever, as it stands."""

    status = 503
    type = "service_unavailable_error"


class BackendError(GatewayError):
    """The engine's own refusal in our envelope, its status kept."""

    source = "backend"

    def __init__(self, status: int, message: str, *, type: str, code: str | None, param: str | None) -> None:  # noqa: A002
        super().__init__(message, code=code, param=param)
        self.status = status
        self.type = type


class BadGateway(GatewayError):
    """The engine could not be reached, or broke off."""

    status = 502
    source = "backend"


class GatewayTimeout(GatewayError):
    """The engine took too long."""

    status = 504
    source = "backend"
    code = "backend_timeout"


class InternalError(GatewayError):
    """A mistake of ours; the log has it."""

    code = "internal_error"


def from_unavailable(problem: BackendUnavailable) -> GatewayError:
    """No lease, as the client is told: with Retry-After when waiting helps, with x-should-retry: false when not.

    The OpenAI SDK retries 429 and 5xx, obeys both headers, and does not retry at all past 120 s
    (openai-python src/openai/_base_client.py, 3.54.0).
    """
    if problem.retry_after_s is None:
        headers = [(b"x-should-retry", b"false")]
    else:
        headers = [(b"retry-after", str(max(1, round(problem.retry_after_s))).encode())]
    kind = QueueFull if problem.code == "queue_full" else Unavailable
    return kind(str(problem), code=problem.code, headers=headers, diagnosis=problem.diagnosis)


def from_upstream(problem: upstream.UpstreamError, model: str) -> GatewayError:
    """A failed exchange, as the client is told."""
    retry_soon = [(b"retry-after", b"1")]
    match problem:
        case upstream.ConnectFailed() | upstream.ConnectTimedOut():
            message = f"the backend of {model} cannot be reached"
            return BadGateway(message, code="backend_unreachable", headers=retry_soon)
        case upstream.FirstByteTimedOut():
            return GatewayTimeout(f"the backend of {model} did not answer in time")
        case upstream.IdleTimedOut():
            return GatewayTimeout(f"the backend of {model} fell silent before its answer was complete")
        case upstream.BrokenAnswer():
            message = f"the backend of {model} closed the connection before its answer was complete"
            return BadGateway(message, code="backend_broke_off", headers=retry_soon)
        case upstream.AnswerTooLong():
            message = f"the backend of {model} sent an answer longer than any should be"
            return BadGateway(message, code="backend_garbage")
        case _:
            message = f"the backend of {model} sent something that is not an HTTP answer"
            return BadGateway(message, code="backend_garbage")


_TYPE_OF_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


def translate(status: int, body: bytes, forms: Sequence[ErrorForm] = ()) -> BackendError:
    """An engine's error answer in our envelope. *forms*: what its words tell beyond its status.

    The engines' forms: ``{"error": {...}}`` (vLLM, llama.cpp, Ollama), the same fields without the wrapper (LMDeploy),
    ``{"error": "text"}`` (vLLM's 401, Ollama's native routes), ``{"detail": ...}`` (FastAPI), or plain text. A message
    that is itself such a text (Ollama passes on its runner's) is opened.
    """
    fields = _error_fields(body)
    inner = fields.get("message")
    if isinstance(inner, str) and inner.lstrip().startswith("{"):
        fields = {**fields, **_error_fields(inner.encode())}
    message = fields.get("message") or body[:MESSAGE_LIMIT].decode("utf-8", "replace").strip()
    code, param = _told(f"{fields.get('type')}: {message}"[:MESSAGE_LIMIT], forms)
    code = _word(fields.get("code")) or code
    param = fields.get("param") or param
    # An engine that wants a key is our configuration's affair, not the client's: its own key was in order. And a number
    # that is no HTTP status (RFC 9110 15) cannot be passed on.
    shown = 502 if status in (401, 403) or status > 599 else status
    return BackendError(
        shown,
        str(message)[:MESSAGE_LIMIT] or f"the backend answered {status}",
        type=_TYPE_OF_STATUS.get(shown, "api_error"),
        code=code or ("model_not_found" if status == 404 else None),
        param=param if isinstance(param, str) else None,
    )


def _told(text: str, forms: Sequence[ErrorForm]) -> tuple[str | None, str | None]:
    """Code and parameter as the first form that knows *text* has them."""
    for form in forms:
        if found := form.pattern.search(text):
            return form.code, found.groupdict().get("param")
    return None, None


def _word(code: object) -> str | None:
    """Engines repeat the status as a number in ``code``; OpenAI's is a word."""
    return code if isinstance(code, str) and not code.isdigit() else None


def _error_fields(body: bytes) -> dict[str, Any]:
    parsed: Any = None
    with contextlib.suppress(orjson.JSONDecodeError):
        parsed = orjson.loads(body)
    if not isinstance(parsed, dict):
        return {}
    error = parsed.get("error", parsed.get("detail", parsed))
    if isinstance(error, dict):
        return error
    return {"message": error if isinstance(error, str) else orjson.dumps(error).decode()}
