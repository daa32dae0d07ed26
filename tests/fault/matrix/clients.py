"""Clients of a gateway that something is about to happen to: each in a thread, with its story in words."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from tests.gateways import Gateway

CHAT = "/v1/chat/completions"
WHOLE = "200, whole"


class Asking(threading.Thread):
    """One chat request. `events` grows as a stream comes; `story` tells how it ended."""

    def __init__(self, gateway: Gateway, body: Mapping[str, Any], patience_s: float) -> None:
        super().__init__(daemon=True)
        self.events: list[str] = []
        self._url = f"{gateway.url}{CHAT}"
        self._body = body
        self._patience_s = patience_s
        self._came = threading.Condition()
        self._story = ""
        self.start()

    def run(self) -> None:
        """Ask, and listen to the end."""
        story = "no answer"
        try:
            with (
                httpx.Client(timeout=self._patience_s, trust_env=False) as client,
                client.stream("POST", self._url, json=self._body) as answer,
            ):
                story = f"{answer.status_code}, then cut off"
                if answer.status_code == 200 and self._body.get("stream"):
                    for line in answer.iter_lines():
                        self._take(line)
                    story = story_of_stream(self.events)
                else:
                    story = story_of_whole(answer.status_code, answer.read())
        except httpx.TransportError:
            pass
        finally:
            with self._came:
                self._story = story
                self._came.notify_all()

    def until_streaming(self, events: int = 2) -> None:
        """Wait until so many events have come. Fails when the request ends before."""
        with self._came:
            self._came.wait_for(lambda: len(self.events) >= events or self._story, self._patience_s)
            assert len(self.events) >= events, f"only {len(self.events)} events came: {self._story or 'it goes on'}"

    def story(self) -> str:
        """How it ended, once it has."""
        self.join(self._patience_s)
        assert self._story, "the request has no end"
        return self._story

    def _take(self, line: str) -> None:
        if line.startswith("data: "):
            with self._came:
                self.events.append(line.removeprefix("data: "))
                self._came.notify_all()


def story_of_stream(events: list[str]) -> str:
    """A stream that ended in order, told by its events."""
    errors = [json.loads(event)["error"] for event in events if event.startswith('{"error"')]
    if not errors:
        return WHOLE if events[-1:] == ["[DONE]"] else "200, then an end without [DONE] or error"
    is_clean = len(errors) == 1 and events[-1].startswith('{"error"')
    told = f"one error event ({errors[0]['code'] or errors[0]['type']})"
    return f"200, then {told}" if is_clean else f"200, then {len(errors)} error events, or more after the first"


def story_of_whole(status: int, content: bytes) -> str:
    """An answer that is no stream."""
    body = json.loads(content)
    if status != 200:
        return f"{status} {body['error']['code']}"
    return WHOLE if body["choices"][0]["message"]["content"] else "200 without a word"


class Visitor:
    """A client by hand: it can stop, and leave, at any byte."""

    def __init__(self, gateway: Gateway, receive_buffer_bytes: int | None = None) -> None:
        self._socket = socket.socket()
        if receive_buffer_bytes is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self._socket.connect(("127.0.0.1", gateway.port))
        self._host = f"127.0.0.1:{gateway.port}"

    def send(self, body: Mapping[str, Any], share: float = 1.0) -> None:
        """Send a request, or only the first *share* of its body."""
        content = json.dumps(body).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\n\r\n"
        )
        self._socket.sendall(head.encode() + content[: int(len(content) * share)])

    def read(self, size: int = 65536, within_s: float = 30.0) -> bytes:
        """What comes next; empty at the end."""
        self._socket.settimeout(within_s)
        return self._socket.recv(size)

    def leave(self) -> None:
        """Go away at once, with RST."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()


@contextlib.contextmanager
def visiting(gateway: Gateway, receive_buffer_bytes: int | None = None) -> Iterator[Visitor]:
    """A visitor, gone at the latest here."""
    visitor = Visitor(gateway, receive_buffer_bytes)
    try:
        yield visitor
    finally:
        with contextlib.suppress(OSError):
            visitor.leave()
