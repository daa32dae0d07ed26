"""A request body as far as the gateway reads it: which model, streamed or not, and that it is JSON at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from gateway.errors import BadRequest, WrongContentType


@dataclass(slots=True)
class Envelope:
    """*model* as the client named it; *body* is the client's JSON object, which we do not interpret beyond these."""

    model: str
    is_stream: bool
    wants_usage: bool
    """Whether the client asked for the usage chunk of a stream (``stream_options.include_usage``)."""
    body: dict[str, Any]


def read_envelope(raw: bytes, content_type: bytes | None) -> Envelope:
    """The envelope in *raw*: UTF-8 JSON, an object with a model. Raises BadRequest and WrongContentType."""
    body = read_object(raw, content_type)
    model = body.get("model")
    if not isinstance(model, str) or not model:
        missing = "model" not in body
        message = "the request names no model" if missing else "model must be the name of a model, as text"
        raise BadRequest(message, param="model", code="missing_model" if missing else "invalid_type")
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise BadRequest("stream must be true or false", param="stream", code="invalid_type")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise BadRequest("stream_options must be an object", param="stream_options", code="invalid_type")
    return Envelope(
        model=model,
        is_stream=bool(stream),
        wants_usage=bool(options and options.get("include_usage")),
        body=body,
    )


def read_object(raw: bytes, content_type: bytes | None) -> dict[str, Any]:
    """The JSON object in *raw*. Raises BadRequest and WrongContentType."""
    if content_type is None or content_type.partition(b";")[0].strip().lower() != b"application/json":
        shown = content_type.decode("latin-1")[:100] if content_type else "none"
        raise WrongContentType(f"the body must be sent as 'Content-Type: application/json', not {shown}")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as problem:
        detail = f"{problem.msg} at line {problem.lineno}, column {problem.colno}" if raw else "it is empty"
        raise BadRequest(f"the body is not JSON: {detail}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object", code="invalid_json")
    return body
