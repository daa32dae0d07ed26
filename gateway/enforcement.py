"""What the operator decides about prompts, against what a request may ask for.

A client that brings its own chat template gets answers the fine-tune was not trained for, and the engines differ in
which doors they leave open: vLLM refuses `chat_template` unless told to trust it, LMDeploy honours
`chat_template_kwargs.chat_template` from anybody (measured, 0.18.0). Both doors are closed here, for every engine.
"""

from __future__ import annotations

from typing import Any

from gateway.envelope import Envelope
from gateway.errors import BadRequest
from gateway.routing import Route

CLOSED = "a request may not bring its own chat template: the model's is set by the gateway's operator"


def enforce(envelope: Envelope, route: Route) -> dict[str, Any]:
    """The body to forward: the client's, with what the operator decides put in its place. Raises BadRequest."""
    body = envelope.body
    if body.get("chat_template") is not None:
        raise BadRequest(CLOSED, param="chat_template", code="template_not_allowed")
    kwargs = body.get("chat_template_kwargs")
    if isinstance(kwargs, dict) and "chat_template" in kwargs:
        raise BadRequest(CLOSED, param="chat_template_kwargs.chat_template", code="template_not_allowed")
    forwarded = {**body, **route.served.fields, "model": route.served.name}
    if envelope.is_stream:
        # Token counts are ours to account for, whether or not the client wants to see them.
        forwarded["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    else:
        # vLLM refuses stream_options without stream (400); OpenAI ignores it.
        forwarded.pop("stream_options", None)
    return forwarded
