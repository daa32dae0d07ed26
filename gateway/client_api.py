"""APIs other than OpenAI's chat that a client may speak to us.

Each is translated to a chat request here, and its answer back, so that whatever holds for chats (templates, limits,
normalisation, metrics) holds for all of them.

A translation has no I/O and knows no engine. It reads what our own relay writes, so its input is well-formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from gateway.client import Client, Headers, Receive, Scope, Send
from gateway.errors import BadRequest
from gateway.sse import EventSplitter, event_data, is_done

Json = dict[str, Any]

EVENT_STREAM = b"text/event-stream"


class Reply(Protocol):
    """The answer to one request, on its way to becoming another API's."""

    def whole(self, answer: Json) -> Json:
        """A whole chat completion."""

    def chunk(self, chunk: Json) -> Iterator[bytes]:
        """The events that one chunk of a stream becomes, maybe none."""

    def end(self) -> Iterator[bytes]:
        """The events after the last chunk of a stream that is whole."""

    def error(self, status: int, error: Json) -> Json:
        """The body of an answer that is none; *error* as in OpenAI's envelope."""

    def error_events(self, error: Json) -> Iterator[bytes]:
        """The last events of a stream that broke."""


@dataclass(frozen=True, slots=True)
class ClientApi:
    """One API. request: its body as that of the chat it asks for; raises BadRequest. reply: the reply to such a body,
    with an id that is unique, letters and digits. key_header: where its clients put their key, beside OpenAI's place.
    """

    request: Callable[[Json], Json]
    reply: Callable[[Json, str], Reply]
    key_header: bytes = b"authorization"


class TranslatedClient(Client):
    """A client of another API: what is sent to it as OpenAI's chat is translated on its way out.

    Until `reply` is set, only errors can be sent: in the form that *errors* has.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, patience_s: float, errors: Reply) -> None:
        super().__init__(scope, receive, send, patience_s)
        self.reply = errors
        self._splitter = EventSplitter()
        self._is_stream = False
        self._has_ended = False

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head of the answer."""
        self._is_stream = any(name == b"content-type" and value.startswith(EVENT_STREAM) for name, value in headers)
        await super().start(status, headers)

    async def write(self, piece: bytes) -> None:
        """Send what *piece*, OpenAI's events, becomes; nothing where it becomes nothing."""
        if shown := self._translated(piece):
            await super().write(shown)

    async def finish(self, piece: bytes = b"") -> None:
        """Send what the last *piece* becomes."""
        await super().finish(self._translated(piece) if self._is_stream else piece)

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer at once."""
        said = orjson.loads(body)
        shown = self.reply.error(status, said["error"]) if status >= 400 else self.reply.whole(said)
        await super().answer(status, headers, orjson.dumps(shown))

    def _translated(self, piece: bytes) -> bytes:
        return b"".join(shown for event in self._splitter.feed(piece) for shown in self._events(event))

    def _events(self, event: bytes) -> Iterator[bytes]:
        if self._has_ended:
            return
        if is_done(event):
            self._has_ended = True
            yield from self.reply.end()
            return
        data = event_data(event)
        if data is None:
            return
        chunk = orjson.loads(data)
        if isinstance(error := chunk.get("error"), dict):
            self._has_ended = True
            yield from self.reply.error_events(error)
        else:
            yield from self.reply.chunk(chunk)


def named_event(name: str, data: Mapping[str, Any]) -> bytes:
    """One server-sent event with a name, as both APIs write theirs."""
    return b"event: " + name.encode("ascii") + b"\ndata: " + orjson.dumps(data) + b"\n\n"


# reading requests


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object of a request, read field by field; *where* is how a person finds it: ``messages[0]``, or empty."""

    value: Mapping[str, Any]
    where: str = ""

    def at(self, name: str) -> str:
        """Where the field *name* is."""
        return f"{self.where}.{name}" if self.where else name

    def text(self, name: str) -> str:
        """A text that has to be there. Raises BadRequest."""
        value = self.value.get(name)
        if not isinstance(value, str):
            raise self.wrong(name, "must be text")
        return value

    def optional_text(self, name: str) -> str | None:
        """A text, or None where there is none. Raises BadRequest."""
        return None if self.value.get(name) is None else self.text(name)

    def items(self, name: str) -> Iterator[Fields]:
        """The objects of a list; none where there is no list. Raises BadRequest."""
        value = self.value.get(name)
        if value is None:
            return
        if not isinstance(value, list):
            raise self.wrong(name, "must be a list")
        yield from objects(value, self.at(name))

    def object(self, name: str) -> Fields | None:
        """An object, None where there is none. Raises BadRequest."""
        value = self.value.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "must be an object")
        return Fields(value, self.at(name))

    def wrong(self, name: str, what: str, code: str = "invalid_type") -> BadRequest:
        """The error that says *what* of the field *name*."""
        where = self.at(name)
        return BadRequest(f"{where} {what}", param=where, code=code)


def objects(values: list[Any], where: str) -> Iterator[Fields]:
    """The objects in *values*. Raises BadRequest."""
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            raise BadRequest(f"{where}[{number}] must be an object", param=f"{where}[{number}]", code="invalid_type")
        yield Fields(value, f"{where}[{number}]")


def refusal(fields: Fields, name: str, what: str) -> BadRequest:
    """A field or kind that we cannot carry to an engine."""
    return fields.wrong(name, f"{what}; leave it out", code="unsupported_parameter")
