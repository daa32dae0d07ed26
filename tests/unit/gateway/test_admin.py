"""Who counts as being on this machine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.admin import is_local
from gateway.client import Client

HOST = (b"host", b"127.0.0.1:8080")


async def local(peer: Any, *headers: tuple[bytes, bytes]) -> bool:
    """Whether a request of *peer* with *headers* is local."""
    scope = {"client": peer, "headers": list(headers)}

    async def send(message: Any) -> None:
        raise AssertionError

    return is_local(scope, Client(scope, asyncio.Event().wait, send, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("peer", [("127.0.0.1", 5), ("127.8.8.8", 5), ("::1", 5)])
@pytest.mark.parametrize("host", [b"127.0.0.1:8080", b"localhost", b"localhost:8080", b"[::1]:8080", b"[::1]"])
async def test_this_machine(peer: tuple[str, int], host: bytes) -> None:
    """A loopback peer under a loopback name is local, IPv4 and IPv6."""
    assert await local(peer, (b"host", host))
    assert await local(peer, (b"host", host), (b"origin", b"http://" + host))


@pytest.mark.parametrize("peer", [("192.0.2.1", 5), ("2001:db8::1", 5), ("unix", 0), ("", 0), None])
async def test_another_machine(peer: tuple[str, int] | None) -> None:
    """A peer with another address, or none, is not."""
    assert not await local(peer, HOST)


@pytest.mark.parametrize(
    "header",
    [
        (b"x-forwarded-for", b"127.0.0.1"),
        (b"x-forwarded-for", b""),
        (b"forwarded", b"for=127.0.0.1"),
        (b"x-real-ip", b"203.0.113.7"),
        (b"via", b"1.1 proxy"),
    ],
)
async def test_a_relay(header: tuple[bytes, bytes]) -> None:
    """A request that somebody passed on is not local, whatever it says of its origin."""
    assert not await local(("127.0.0.1", 5), HOST, header)


@pytest.mark.parametrize(
    "origin",
    [b"http://evil.example", b"null", b"http://127.0.0.1:8081", b"http://localhost:8080", b"", b"127.0.0.1:8080"],
)
async def test_a_page_from_elsewhere(origin: bytes) -> None:
    """A browser's request for another origin's page is not local: another port is another origin."""
    assert not await local(("127.0.0.1", 5), HOST, (b"origin", origin))


@pytest.mark.parametrize(
    "host", [b"", b"evil.example", b"127.0.0.1.evil.example", b"localhost.evil.example", b"[::1].evil.example", b"::1"]
)
async def test_another_name(host: bytes) -> None:
    """A name that is not this machine's is not local, even if it resolves to it (DNS rebinding)."""
    assert not await local(("127.0.0.1", 5), (b"host", host))


async def test_no_name_at_all() -> None:
    """A request without a Host is not local."""
    assert not await local(("127.0.0.1", 5))
