"""TCP ports for engines that cannot listen on a Unix socket."""

from __future__ import annotations

import os
import socket

FIRST_PORT = 18000
LAST_PORT = 18999
"""Below the ephemeral range (Linux: 32768-60999), from which the kernel could hand out a port between check and use."""


class NoFreePort(Exception):
    """Every port of our range is taken."""


class PortPool:
    """Ports of one host; a port handed out is not handed out again until it is released."""

    def __init__(self, host: str = "127.0.0.1", first: int = FIRST_PORT, last: int = LAST_PORT) -> None:
        self._host = host
        self._range = range(first, last + 1)
        # Not from the first port on: another gateway of this machine would choose the same, and an engine that binds
        # only after its load (LMDeploy) leaves the port looking free for a minute.
        self._next = os.getpid() % len(self._range)
        self._reserved: set[int] = set()

    def __repr__(self) -> str:
        return f"<PortPool {self._range.start}-{self._range.stop - 1}, {len(self._reserved)} reserved>"

    def reserve(self) -> int:
        """A port nobody listens on now. Raises NoFreePort."""
        for step in range(len(self._range)):
            # Round robin: a port just released may still be in TIME_WAIT, or in a client's memory.
            port = self._range[(self._next + step) % len(self._range)]
            if port not in self._reserved and is_free(self._host, port):
                self._next = (self._next + step + 1) % len(self._range)
                self._reserved.add(port)
                return port
        raise NoFreePort(f"no free TCP port between {self._range.start} and {self._range.stop - 1} on {self._host}")

    def release(self, port: int) -> None:
        """Give *port* back. Releasing twice is no error."""
        self._reserved.discard(port)


def is_free(host: str, port: int) -> bool:
    """Whether *port* of *host* can be bound now."""
    try:
        probe_address(host, port)
    except OSError:
        return False
    return True


def probe_address(host: str, port: int) -> None:
    """Bind *port* of *host* and let it go. Raises OSError with the reason when it cannot be bound now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
