"""An answer in an engine's own API, read as if it were OpenAI's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from backends.translation import Untranslatable
from gateway.errors import BadGateway
from gateway.translating import TranslatedAnswer
from gateway.upstream_connection import Answer


class Shouting:
    """A translation that can be seen."""

    def __init__(self, *, is_stream: bool = False) -> None:
        self.is_stream = is_stream

    def whole(self, body: bytes) -> bytes:
        """In capitals. Raises Untranslatable for nothing."""
        if not body:
            raise Untranslatable("there is nothing")
        return body.upper()

    def feed(self, chunk: bytes) -> bytes:
        """In capitals, without dots."""
        return chunk.upper().replace(b".", b"")


class Upstream:
    """An engine's answer in *pieces*."""

    def __init__(self, status: int, *pieces: bytes) -> None:
        self.status = status
        self.headers = [(b"content-type", b"application/x-ndjson"), (b"content-length", b"9"), (b"x-a", b"b")]
        self._pieces = pieces

    async def chunks(self) -> AsyncIterator[bytes]:
        """As they are."""
        for piece in self._pieces:
            yield piece

    async def read(self, limit_bytes: int) -> bytes:
        """All of them."""
        return b"".join(self._pieces)


def translated(upstream: Upstream, *, is_stream: bool = False) -> TranslatedAnswer:
    """*upstream* through the translation."""
    return TranslatedAnswer(cast("Answer", upstream), Shouting(is_stream=is_stream))


async def pieces(answer: TranslatedAnswer) -> list[bytes]:
    """All that it gives."""
    return [piece async for piece in answer.chunks()]


@pytest.mark.parametrize(("is_stream", "kind"), [(True, b"text/event-stream"), (False, b"application/json")])
def test_a_good_answer_has_openais_type(is_stream: bool, kind: bytes) -> None:
    """Its own type and length are gone, all else is kept."""
    answer = translated(Upstream(200), is_stream=is_stream)
    assert answer.headers == [(b"content-type", kind), (b"x-a", b"b")]


async def test_a_good_answer_is_translated() -> None:
    """Whole, or piece by piece without the empty ones."""
    assert await translated(Upstream(200, b"a", b"b")).read(9) == b"AB"
    assert await pieces(translated(Upstream(200, b"a", b".", b"b"), is_stream=True)) == [b"A", b"B"]


async def test_an_error_is_left_as_it_is() -> None:
    """For those who know the engine's errors; that our own model was not found is no fault of the client's."""
    answer: Any = translated(Upstream(400, b"no"), is_stream=True)
    assert (answer.status, await answer.read(9), await pieces(answer)) == (400, b"no", [b"no"])
    assert answer.headers[0] == (b"content-type", b"application/x-ndjson")
    assert translated(Upstream(404)).status == 502


async def test_an_answer_that_cannot_be_read() -> None:
    """It is the backend's garbage."""
    with pytest.raises(BadGateway, match="there is nothing") as caught:
        await translated(Upstream(200)).read(9)
    assert caught.value.code == "backend_garbage"
