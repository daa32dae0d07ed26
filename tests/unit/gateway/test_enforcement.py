"""What is put into a request's body, and the doors through which a client's own template may not come."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backends.adapter import Served
from backends.engines import ADAPTERS
from backends.settings import BackendSettings
from gateway.enforcement import CLOSED, enforce
from gateway.envelope import Envelope
from gateway.errors import BadRequest
from gateway.routing import Route

ROUTE = Route("qwen", ("default",), BackendSettings("qwen", "vllm"), ADAPTERS["vllm"], Served("qwen"))


def envelope(body: dict[str, Any]) -> Envelope:
    """*body* as it was read."""
    options = body.get("stream_options") or {}
    return Envelope("default", bool(body.get("stream")), bool(options.get("include_usage")), body)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"chat_template": ""}, "chat_template"),
        ({"chat_template_kwargs": {"chat_template": "{{ x }}"}}, "chat_template_kwargs.chat_template"),
        ({"chat_template_kwargs": {"chat_template": None}}, "chat_template_kwargs.chat_template"),
    ],
)
def test_both_doors_are_closed(fields: dict[str, Any], param: str) -> None:
    """A template in either place is refused by its place."""
    with pytest.raises(BadRequest) as caught:
        enforce(envelope({"model": "default", **fields}), ROUTE)
    assert (caught.value.message, caught.value.param) == (CLOSED, param)
    assert caught.value.code == "template_not_allowed"


def test_other_template_variables_pass() -> None:
    """Variables for the operator's template are a client's to set, and null in place of a template is none."""
    body = {"model": "default", "chat_template": None, "chat_template_kwargs": {"enable_thinking": False}}
    forwarded = enforce(envelope(body), ROUTE)
    assert forwarded["chat_template_kwargs"] == {"enable_thinking": False}


def test_the_engine_gets_its_own_name_of_the_model() -> None:
    """Whatever alias the client used, the engine is asked for the name it serves; the client's body is not touched."""
    body = {"model": "default", "messages": []}
    assert enforce(envelope(body), ROUTE) == {"model": "qwen", "messages": []}
    assert body["model"] == "default"
    external = replace(ROUTE, served=Served("Qwen2.5-72B"))
    assert enforce(envelope(body), external)["model"] == "Qwen2.5-72B"


def test_fields_that_choose_the_model_are_not_the_clients() -> None:
    """Where an engine tells its models apart by more than a name, a request cannot ask it for another one."""
    chosen = replace(ROUTE, served=Served("base", {"lora": [{"id": 0, "scale": 1.0}]}))
    forwarded = enforce(envelope({"model": "default", "lora": []}), chosen)
    assert forwarded == {"model": "base", "lora": [{"id": 0, "scale": 1.0}]}


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"stream": True}, {"include_usage": True}),
        ({"stream": True, "stream_options": None}, {"include_usage": True}),
        ({"stream": True, "stream_options": {"include_usage": False, "x": 1}}, {"include_usage": True, "x": 1}),
        ({"stream": False, "stream_options": {"include_usage": True}}, None),
        ({"stream_options": {"include_usage": True}}, None),
    ],
)
def test_usage_is_always_asked_of_a_stream(fields: dict[str, Any], options: dict[str, Any] | None) -> None:
    """Every stream is asked for its usage; without a stream there are no stream options, which vLLM would refuse."""
    assert enforce(envelope({"model": "default", **fields}), ROUTE).get("stream_options") == options
