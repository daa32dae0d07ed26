"""Server-sent events, split as they come, at any byte boundary."""

from __future__ import annotations

_BOM = b"\xef\xbb\xbf"


class EventSplitter:
    """Gives the ``data`` of each event, its lines joined by LF, once its empty line has come.

    Comments and other fields are dropped. LF, CRLF and CR end a line (WHATWG HTML, "server-sent events").
    """

    __slots__ = ("_has_cr", "_is_begun", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._has_cr = False
        self._is_begun = False

    def feed(self, piece: bytes) -> list[bytes]:
        """What events *piece* completes: their data, in order."""
        stream = self._rest + piece if self._rest else piece
        if not self._is_begun:
            if len(stream) < len(_BOM) and _BOM.startswith(stream):
                self._rest = stream
                return []
            self._is_begun = True
            stream = stream.removeprefix(_BOM)
        if self._has_cr or b"\r" in stream:
            self._has_cr = True
            stream = self._with_lf(stream)
            held = stream.endswith(b"\r")  # may be the first half of a CRLF
            *events, rest = stream.removesuffix(b"\r").split(b"\n\n")
            self._rest = rest + b"\r" if held else rest
        else:
            *events, self._rest = stream.split(b"\n\n")
        return [data for event in events if (data := _data_of(event)) is not None]

    def end(self) -> list[bytes]:
        """What was only waiting to see whether an LF follows its last CR."""
        return self.feed(b"\n") if self._rest.endswith(b"\r") else []

    @staticmethod
    def _with_lf(stream: bytes) -> bytes:
        held = stream.endswith(b"\r")
        whole = stream[:-1] if held else stream
        whole = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return whole + b"\r" if held else whole


def _data_of(event: bytes) -> bytes | None:
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    values = [
        value.removeprefix(b" ")
        for field, _, value in (line.partition(b":") for line in event.split(b"\n"))
        if field == b"data"
    ]
    return b"\n".join(values) if values else None
