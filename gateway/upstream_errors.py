"""What can go wrong in an exchange with an engine: one tree, whose messages are meant for people.

UpstreamError            sent: request bytes may have reached the engine
├── ConnectFailed        refused, unreachable, unknown host, TLS
├── ConnectTimedOut
├── FirstByteTimedOut    the whole request went out, no answer head came back
├── IdleTimedOut         the request body was not taken, or the answer's body stopped coming
├── BrokenAnswer         cut before its head (answered=False) or in its body (answered=True)
├── GarbageAnswer        not HTTP/1.1 as we read it
└── AnswerTooLong        more than the caller of read() allowed
"""

from __future__ import annotations

import os
import socket
import ssl


class UpstreamError(Exception):
    """An exchange with an engine failed. The message names the address and is meant for people.

    ``sent``: request bytes may have reached the engine, so it may have begun to work.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class ConnectFailed(UpstreamError):
    """No connection could be made."""


class ConnectTimedOut(UpstreamError):
    """No connection was made within ``connect_s``."""


class FirstByteTimedOut(UpstreamError):
    """The request went out, and no whole answer head came back within ``first_byte_s``."""


class IdleTimedOut(UpstreamError):
    """For ``idle_s`` the engine took nothing of the request body, or sent nothing more of the answer's."""


class BrokenAnswer(UpstreamError):
    """The connection ended before the answer did. ``answered``: its head had come."""

    def __init__(self, message: str, *, sent: bool, answered: bool) -> None:
        super().__init__(message, sent=sent)
        self.answered = answered


class GarbageAnswer(UpstreamError):
    """What came back is not an HTTP/1.1 answer, or one with a head past HEAD_LIMIT_BYTES."""


class AnswerTooLong(UpstreamError):
    """The body is longer than the caller of ``Answer.read`` allowed."""


def reason_of(error: Exception) -> str:
    """What went wrong in the system's words, without Python's decoration."""
    if isinstance(error, OSError) and error.errno and not isinstance(error, (ssl.SSLError, socket.gaierror)):
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
