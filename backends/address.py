"""Where an engine listens: a TCP port or a Unix socket."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Address:
    """One HTTP/1.1 listening place; either *uds* or *host* and *port*.

    *base_path* stands in front of every OpenAI path, without a trailing slash: ``/v1`` for every engine we start.
    *tenant* names the one of several backends at this place that is meant: their connections are kept apart, so that
    those of one can be broken off and the others' go on.
    """

    host: str = ""
    port: int = 0
    uds: str = ""
    tls: bool = False
    base_path: str = "/v1"
    tenant: str = ""

    @property
    def authority(self) -> str:
        """The Host header. Loopback for Unix sockets, because Ollama refuses a Host it does not know with 403."""
        if self.uds:
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        default_port = 443 if self.tls else 80
        return host if self.port == default_port else f"{host}:{self.port}"

    def __str__(self) -> str:
        if self.uds:
            return f"unix:{self.uds}"
        return f"{'https' if self.tls else 'http'}://{self.authority}"
