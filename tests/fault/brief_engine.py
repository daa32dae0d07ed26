"""An engine that is there at once: few imports, one connection at a time, two answers. For lives, not for bytes.

    python -S -E tests/fault/brief_engine.py --uds PATH [--mood FILE] [ignored...]

FILE holds words that were written for the next start: ``exit`` (exit code 3 before it listens), ``deaf`` (TERM is
ignored), ``child`` (a child that outlives it), ``late`` (it listens a little later), ``mute`` (it never answers).
"""

import os
import signal
import socket
import sys
import time

LATE_S = 0.1
CHILD_LIFE_S = 600
HEALTH = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
TOKEN = b'{"choices": [{"index": 0, "text": "a"}]}'
ANSWER = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(TOKEN), TOKEN)


def main(arguments: list[str]) -> int:
    """Live until a signal ends it."""
    mood = mood_in(option(arguments, "--mood"))
    if "deaf" in mood:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(2, b"brief engine: begun\n")
    if "child" in mood and os.fork() == 0:
        time.sleep(CHILD_LIFE_S)
        return 0
    if "exit" in mood:
        return 3
    if "late" in mood:
        time.sleep(LATE_S)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(option(arguments, "--uds"))
        listener.listen()
        while "mute" in mood:
            signal.pause()
        while True:
            serve(listener.accept()[0])


def serve(connection: socket.socket) -> None:
    """Answer one request."""
    with connection:
        try:
            request = connection.recv(65536)
            connection.sendall(HEALTH if request.startswith(b"GET ") else ANSWER)
        except OSError:
            pass  # whoever asked has gone


def mood_in(file: str) -> list[str]:
    """The words for this start, which the next one will not find."""
    if not file or not os.path.exists(file):  # noqa: PTH110 - pathlib takes longer to import than all the rest
        return []
    with open(file) as words:  # noqa: PTH123
        mood = words.read().split()
    os.unlink(file)  # noqa: PTH108
    return mood


def option(arguments: list[str], name: str) -> str:
    """The value of an option, empty without it."""
    return arguments[arguments.index(name) + 1] if name in arguments else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
