"""The answer of an engine whose own API was used, as if it had spoken OpenAI's: what `relay` reads in its place."""

from __future__ import annotations

from collections.abc import AsyncIterator

from backends.translation import AnswerTranslation, Untranslatable
from gateway.client import Headers
from gateway.errors import BadGateway
from gateway.upstream_connection import Answer

NOT_FOUND = 404
_KINDS = {True: b"text/event-stream", False: b"application/json"}


class TranslatedAnswer:
    """*answer*, through *translation* when it is good. Valid as long as *answer* is."""

    __slots__ = ("_answer", "_translation", "headers", "status")

    def __init__(self, answer: Answer, translation: AnswerTranslation) -> None:
        self._answer = answer
        self._translation = translation
        # Such a path is ours, and so is the model's name in it: what is not found there is no fault of the client's.
        self.status = 502 if answer.status == NOT_FOUND else answer.status
        self.headers: Headers = answer.headers
        if answer.status == 200:
            kept = [(name, value) for name, value in answer.headers if name not in (b"content-type", b"content-length")]
            self.headers = [(b"content-type", _KINDS[translation.is_stream]), *kept]

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, in whole events. Raises what the answer's own `chunks` raises."""
        async for chunk in self._answer.chunks():
            shown = self._translation.feed(chunk) if self.status == 200 else chunk
            if shown:
                yield shown

    async def read(self, limit_bytes: int) -> bytes:
        """The whole body. Raises BadGateway for one that cannot be read, and what the answer's own `read` raises."""
        body = await self._answer.read(limit_bytes)
        try:
            return self._translation.whole(body) if self.status == 200 else body
        except Untranslatable as problem:
            raise BadGateway(str(problem), code="backend_garbage") from problem
