"""An engine's answer on its way to the client, scripted piece by piece."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest

from gateway.client import Client
from gateway.errors import GatewayError
from gateway.observation import Observation
from gateway.relaying import ERROR_LIMIT_BYTES, relay
from gateway.sse import DONE
from gateway.upstream_connection import Answer
from gateway.upstream_errors import AnswerTooLong, BrokenAnswer, IdleTimedOut, UpstreamError

OWN = [(b"x-request-id", b"req-1")]
STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"server", b"uvicorn"), (b"set-cookie", b"a=b")]
WHOLE = [(b"content-type", b"application/json"), (b"date", b"now")]
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
BROKEN = BrokenAnswer("unix:/x closed the connection", sent=True, answered=True)


class Script:
    """An answer that comes in the given pieces, and then ends, or fails with an exception among them."""

    def __init__(
        self, *pieces: bytes | Exception, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = STREAM
    ) -> None:
        self.status = status
        self.headers = headers
        self._pieces = pieces

    async def chunks(self) -> AsyncIterator[bytes]:
        """The pieces in their order."""
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def read(self, limit_bytes: int) -> bytes:
        """All pieces, if they are not too long."""
        body = b"".join([piece async for piece in self.chunks()])
        if len(body) > limit_bytes:
            raise AnswerTooLong("too long", sent=True)
        return body


class Relayed:
    """What came of a relay: what was sent, what was seen."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.seen = Observation("req-1", "/v1/chat/completions", 0.0, model="qwen")
        self.gaps_s: list[float] = []
        self.is_good: bool | None = None

    async def run(self, script: Script, *, wants_usage: bool = False) -> Relayed:
        """Relay *script*."""

        async def send(message: Any) -> None:
            self.sent.append(message)

        client = Client({"headers": []}, asyncio.Event().wait, send, 60)  # type: ignore[arg-type]
        self.is_good = await relay(
            cast("Answer", script),
            client,
            OWN,
            self.seen,
            wants_usage=wants_usage,
            observe_gap=self.gaps_s.append,
        )
        return self

    @property
    def body(self) -> bytes:
        """The whole body sent."""
        return b"".join(message["body"] for message in self.sent[1:])

    def error(self) -> dict[str, Any]:
        """The one error event that must end the stream."""
        assert self.body.count(b'"error"') == 1
        assert DONE not in self.body
        assert self.sent[-1]["more_body"] is False
        found: dict[str, Any] = json.loads(self.body.rsplit(b"data: ", 1)[1])["error"]
        return found


async def test_a_stream_is_passed_on_piece_by_piece() -> None:
    """Each piece is sent when it comes; the head holds our headers, the engine's type, and none of its others."""
    relayed = await Relayed().run(Script(TOKEN, TOKEN + TOKEN, DONE))
    assert relayed.is_good
    start, *pieces = relayed.sent
    assert start["headers"] == [
        STREAM[0], (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"), *OWN,
    ]  # fmt: skip
    assert [piece["body"] for piece in pieces] == [TOKEN, TOKEN + TOKEN, DONE, b""]
    assert len(relayed.gaps_s) == 2
    assert relayed.seen.first_token_at is not None


async def test_events_cut_anywhere_come_out_whole() -> None:
    """However the engine's bytes were cut, whole events are sent on, each as soon as it is whole."""
    stream = TOKEN + TOKEN + DONE
    relayed = await Relayed().run(Script(*(stream[i : i + 7] for i in range(0, len(stream), 7))))
    assert relayed.body == stream
    assert [piece["body"] for piece in relayed.sent[1:]] == [TOKEN, TOKEN, DONE, b""]


@pytest.mark.parametrize(
    ("pieces", "code"),
    [
        ([TOKEN, BROKEN], "backend_broke_off"),
        ([BROKEN], "backend_broke_off"),
        ([TOKEN, TOKEN[:10], BROKEN], "backend_broke_off"),
        ([TOKEN, IdleTimedOut("x", sent=True)], "backend_timeout"),
        ([TOKEN], "backend_broke_off"),
        ([TOKEN, DONE[:-1]], "backend_broke_off"),
        ([], "backend_broke_off"),
        ([TOKEN, b"data: " + b"x" * 17_000_000], "backend_garbage"),
    ],
)
async def test_a_stream_that_breaks(pieces: list[bytes | Exception], code: str) -> None:
    """A stream that is cut, falls silent or ends early ends in one error event behind whole events only."""
    relayed = await Relayed().run(Script(*pieces))
    assert relayed.is_good is False
    assert relayed.error()["code"] == code
    assert relayed.seen.error == code
    assert relayed.body.startswith(TOKEN if TOKEN in pieces else b"data: {")


async def test_a_connection_that_breaks_after_the_end_is_no_failure() -> None:
    """A connection cut behind [DONE] took nothing from the client."""
    relayed = await Relayed().run(Script(TOKEN, DONE, BROKEN))
    assert relayed.is_good
    assert relayed.body == TOKEN + DONE
    assert relayed.seen.upstream_error is None


async def test_an_engines_error_in_the_stream() -> None:
    """An engine's own error event ends the stream, in our envelope, and is counted."""
    relayed = await Relayed().run(Script(TOKEN, b'data: {"error":{"message":"broken"}}\n\n', TOKEN, DONE))
    assert relayed.is_good is False
    assert relayed.error()["message"] == "broken"
    assert relayed.seen.upstream_error == "error_in_stream"


async def test_a_whole_answer() -> None:
    """A JSON answer is sent as it is, with its length, and its usage is seen."""
    body = b'{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}'
    relayed = await Relayed().run(Script(body[:10], body[10:], headers=WHOLE))
    assert relayed.is_good
    assert relayed.sent[0]["headers"] == [WHOLE[0], *OWN, (b"content-length", str(len(body)).encode())]
    assert relayed.body == body
    assert (relayed.seen.prompt_tokens, relayed.seen.completion_tokens) == (7, 3)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b"null"])
async def test_a_whole_answer_that_is_none(body: bytes) -> None:
    """A 200 that holds no JSON object is told as garbage, before anything was sent."""
    relayed = Relayed()
    with pytest.raises(GatewayError) as caught:
        await relayed.run(Script(body, headers=WHOLE))
    assert (caught.value.status, caught.value.code) == (502, "backend_garbage")
    assert relayed.sent == []


@pytest.mark.parametrize("status", [204, 301, 304])
async def test_an_answer_of_another_kind(status: int) -> None:
    """A redirect or an empty answer is nothing a client could use."""
    with pytest.raises(GatewayError, match=f"the backend answered {status}") as caught:
        await Relayed().run(Script(status=status))
    assert caught.value.status == 502


async def test_an_engines_refusal_keeps_its_retry_after() -> None:
    """An error keeps status, message and Retry-After, and no other header."""
    headers = [*WHOLE, (b"retry-after", b"7")]
    with pytest.raises(GatewayError, match="busy") as caught:
        await Relayed().run(Script(b'{"error":{"message":"busy"}}', status=429, headers=headers))
    assert caught.value.status == 429
    assert caught.value.headers == ((b"retry-after", b"7"),)


async def test_a_long_refusal_is_still_a_refusal() -> None:
    """An engine that quotes a long request back in its 400 still gives a 400."""
    endless = [b"x" * 100_000] * (2 * ERROR_LIMIT_BYTES // 100_000)
    with pytest.raises(GatewayError) as caught:
        await Relayed().run(Script(b'{"message":"', *endless, status=400, headers=WHOLE))
    assert caught.value.status == 400
    assert len(caught.value.message) <= 2000


async def test_a_break_before_anything_was_sent_is_told_to_the_caller() -> None:
    """A whole answer that breaks is not begun."""
    relayed = Relayed()
    with pytest.raises(UpstreamError):
        await relayed.run(Script(b'{"choi', BROKEN, headers=WHOLE))
    assert relayed.sent == []
