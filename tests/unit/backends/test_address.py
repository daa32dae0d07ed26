"""Where an engine listens."""

from __future__ import annotations

import pytest

from backends.address import Address
from backends.engines.external import address_of

SHOWN = [
    (Address(host="127.0.0.1", port=18000), "127.0.0.1:18000", "http://127.0.0.1:18000"),
    (Address(host="::1", port=18000), "[::1]:18000", "http://[::1]:18000"),
    (Address(host="example.org", port=80), "example.org", "http://example.org"),
    (Address(host="example.org", port=443, tls=True), "example.org", "https://example.org"),
    (Address(host="example.org", port=443), "example.org:443", "http://example.org:443"),
    (Address(host="example.org", port=80, tls=True), "example.org:80", "https://example.org:80"),
    (Address(uds="/run/m.sock"), "localhost", "unix:/run/m.sock"),
]


@pytest.mark.parametrize(("address", "authority", "text"), SHOWN)
def test_authority_and_text(address: Address, authority: str, text: str) -> None:
    """The Host header leaves the default port out and brackets IPv6; a Unix socket is loopback."""
    assert address.authority == authority
    assert str(address) == text


URLS = [
    ("http://127.0.0.1:9000/v1", Address(host="127.0.0.1", port=9000, base_path="/v1")),
    ("http://127.0.0.1:9000/v1/", Address(host="127.0.0.1", port=9000, base_path="/v1")),
    ("http://127.0.0.1:9000", Address(host="127.0.0.1", port=9000, base_path="")),
    ("https://example.org/api/v3", Address(host="example.org", port=443, tls=True, base_path="/api/v3")),
    ("http://example.org/v1", Address(host="example.org", port=80, base_path="/v1")),
    ("http://[::1]:9000/v1", Address(host="::1", port=9000, base_path="/v1")),
]


@pytest.mark.parametrize(("url", "address"), URLS)
def test_address_of_a_url(url: str, address: Address) -> None:
    """An external URL becomes host, port, TLS and the path that stands before ``/chat/completions``."""
    assert address_of(url) == address
