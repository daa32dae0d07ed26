"""Server-sent events as bytes: where one ends, what its data is, and the few we write ourselves.

The rules are those of the HTML standard, section "Interpreting an event stream"
(https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation): a line ends with LF, CR or
CR LF, an empty line ends an event. Every engine we know writes LF only, usually one whole event per chunk, so that case
costs a few searches in C and no copy; all others are merely correct.
"""

from __future__ import annotations

import re

DONE = b"data: [DONE]\n\n"

_LF = 0x0A
_CR = 0x0D
_BOM = b"\xef\xbb\xbf"
# Atomic, so that a CR LF is never taken for two line ends.
_LINE_END = re.compile(rb"(?>\r\n|\n|\r)")
_EVENT_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LONGEST_OPEN_END = 3  # CR LF CR: an LF may still follow


class EventTooLong(Exception):
    """An event went on past the splitter's limit without ending."""


class EventSplitter:
    """Cuts a byte stream into events, losing no byte: all events fed out plus ``pending`` are what was fed in.

    The cuts do not depend on how the stream was chopped. For that, an event that ends in a bare CR is held until the
    next byte shows whether an LF belongs to it. An empty line where no event is open is an event of its own, without
    data.
    """

    __slots__ = ("_limit_bytes", "_pending")

    def __init__(self, limit_bytes: int = 16 * 1024 * 1024) -> None:
        self._limit_bytes = limit_bytes
        self._pending = bytearray()

    @property
    def pending(self) -> bytes:
        """The bytes of the event not yet ended; empty between events."""
        return bytes(self._pending)

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the events that *chunk* completes, each with the empty line that ends it.

        Raises EventTooLong when more than ``limit_bytes`` are pending; the splitter is of no further use then.
        """
        if not self._pending and _is_one_event(chunk):
            return [chunk]
        if self._pending and not self._may_complete(chunk):
            self._pending += chunk
            self._check_limit()
            return []
        scan = max(0, len(self._pending) - _LONGEST_OPEN_END)
        stream = bytes(self._pending) + chunk if self._pending else chunk
        events = _events(stream, scan)
        self._pending = bytearray(stream[sum(map(len, events)) :])
        self._check_limit()
        return events

    def _may_complete(self, chunk: bytes) -> bool:
        # Joining only when an event ends keeps the cost linear in the length of a long event.
        if len(self._pending) < _LONGEST_OPEN_END:
            return True
        seam = bytes(self._pending[-_LONGEST_OPEN_END:]) + chunk
        return b"\n\n" in seam or (b"\r" in seam and _EVENT_END.search(seam) is not None)

    def _check_limit(self) -> None:
        if len(self._pending) > self._limit_bytes:
            raise EventTooLong(f"an event is longer than {self._limit_bytes} bytes and has not ended")


def _is_one_event(chunk: bytes) -> bool:
    """Whether *chunk* is exactly one event in the form every engine writes: LF only, at least one line."""
    end = chunk.find(b"\n\n")
    return end > 0 and end == len(chunk) - 2 and chunk[0] != _LF and b"\r" not in chunk


def _events(stream: bytes, scan: int) -> list[bytes]:
    """The complete events at the front of *stream*; no event ends within its first *scan* bytes."""
    next_end = _next_end_any if b"\r" in stream else _next_end_lf
    events = []
    start = 0
    while (end := next_end(stream, start, max(start, scan))) > 0:
        events.append(stream[start:end])
        start = end
    return events


def _next_end_lf(stream: bytes, start: int, scan: int) -> int:
    """Where the event that starts at *start* ends, for a stream without CR; 0 if it has not ended."""
    if start < len(stream) and stream[start] == _LF:
        return start + 1
    found = stream.find(b"\n\n", scan)
    return found + 2 if found >= 0 else 0


def _next_end_any(stream: bytes, start: int, scan: int) -> int:
    """Where the event that starts at *start* ends, whatever its line ends; 0 if it has not, or may go on with an LF."""
    found = _LINE_END.match(stream, start) or _EVENT_END.search(stream, scan)
    if found is None or (found.end() == len(stream) and stream[-1] == _CR):
        return 0
    return found.end()


def event_data(event: bytes) -> bytes | None:
    """The data lines of *event* joined by LF, or None if it has none (a comment, an empty line, other fields only)."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2]
    lines = [_data_of(line) for line in event.removeprefix(_BOM).splitlines()]
    data = [line for line in lines if line is not None]
    return b"\n".join(data) if data else None


def _data_of(line: bytes) -> bytes | None:
    field, _, value = line.partition(b":")
    return value.removeprefix(b" ") if field == b"data" else None


def error_event(payload: bytes) -> bytes:
    """One event whose data is *payload*; a payload of several lines becomes several data lines."""
    return b"".join(b"data: " + line + b"\n" for line in _LINE_END.split(payload)) + b"\n"


def is_done(event: bytes) -> bool:
    """Whether *event* is OpenAI's end mark, ``[DONE]``, however it is spaced."""
    return event == DONE or (b"[DONE]" in event and (event_data(event) or b"").strip() == b"[DONE]")
