"""What is read of a request body, and how one that cannot be used is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.envelope import read_envelope
from gateway.errors import BadRequest, WrongContentType

JSON = b"application/json"


def read(body: Any) -> Any:
    """The envelope of *body* as JSON."""
    return read_envelope(json.dumps(body).encode(), JSON)


def test_the_rest_of_a_body_is_kept_as_it_is() -> None:
    """Only model, stream and include_usage are looked at; all else passes."""
    body = {"model": "m", "messages": [{"role": "user", "content": "häß"}], "seed": 2**63, "odd": {"deep": [1, None]}}
    envelope = read(body)
    assert (envelope.model, envelope.is_stream, envelope.wants_usage) == ("m", False, False)
    assert envelope.body == body


@pytest.mark.parametrize(
    ("fields", "is_stream", "wants_usage"),
    [
        ({}, False, False),
        ({"stream": None, "stream_options": None}, False, False),
        ({"stream": True}, True, False),
        ({"stream": True, "stream_options": {}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": False}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": True}}, True, True),
    ],
)
def test_stream_and_usage(fields: dict[str, Any], is_stream: bool, wants_usage: bool) -> None:
    """Absent and null mean no; include_usage counts where it is true."""
    envelope = read({"model": "m", **fields})
    assert (envelope.is_stream, envelope.wants_usage) == (is_stream, wants_usage)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "model", "missing_model"),
        ({"model": None}, "model", "invalid_type"),
        ({"model": ""}, "model", "invalid_type"),
        ({"model": ["m"]}, "model", "invalid_type"),
        ({"model": "m", "stream": 1}, "stream", "invalid_type"),
        ({"model": "m", "stream_options": []}, "stream_options", "invalid_type"),
    ],
)
def test_fields_of_the_wrong_kind(body: dict[str, Any], param: str, code: str) -> None:
    """A field of the wrong kind is refused by its name."""
    with pytest.raises(BadRequest) as caught:
        read(body)
    assert (caught.value.param, caught.value.code, caught.value.status) == (param, code, 400)


@pytest.mark.parametrize("raw", [b"", b"{", b"nul", b"\xff", b'{"a":1}x', b'{"a": NaN}', b"[]", b'"m"', b"[" * 100_000])
def test_bodies_that_are_no_object(raw: bytes) -> None:
    """What is no JSON object is refused as such, nested without end or not."""
    with pytest.raises(BadRequest, match=r"the body (is not JSON|must be a JSON object)") as caught:
        read_envelope(raw, JSON)
    assert caught.value.code == "invalid_json"


def test_where_json_breaks() -> None:
    """The refusal says at which line and column the JSON breaks."""
    with pytest.raises(BadRequest, match="at line 3, column 1"):
        read_envelope(b'{"model": "m",\n\n', JSON)


@pytest.mark.parametrize("content_type", [None, b"", b"text/plain", b"application/jsonx", b"multipart/form-data"])
def test_content_types_refused(content_type: bytes | None) -> None:
    """A body under another type is not looked at."""
    with pytest.raises(WrongContentType, match="Content-Type: application/json"):
        read_envelope(b'{"model": "m"}', content_type)


@pytest.mark.parametrize("content_type", [b"application/json", b"Application/JSON ; charset=utf-8"])
def test_content_types_taken(content_type: bytes) -> None:
    """application/json is taken in any case and with parameters."""
    assert read_envelope(b'{"model": "m"}', content_type).model == "m"
