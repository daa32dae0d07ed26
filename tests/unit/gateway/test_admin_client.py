"""How the command line finds its gateway, and what it says when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.admin_client import AdminClient, AdminError, find_gateway
from gateway.config_file import ConfigError


def config(folder: Path, gateway: str) -> Path:
    """A configuration file with this ``gateway`` section."""
    path = folder / "unigate.yaml"
    path.write_text(f"gateway: {{{gateway}}}\nmodels: {{q: {{engine: vllm, weights: w}}}}\n")
    return path


@pytest.mark.parametrize(
    ("gateway", "url"),
    [
        ("port: 9000", "http://127.0.0.1:9000"),
        ("host: '::1', port: 9000", "http://[::1]:9000"),
        ("host: 0.0.0.0, allow_unauthenticated: true", "http://127.0.0.1:8080"),
        ("host: '::', allow_unauthenticated: true", "http://[::1]:8080"),
        ("host: 192.0.2.1, allow_unauthenticated: true", "http://192.0.2.1:8080"),
    ],
)
def test_the_address_of_a_configuration(tmp_path: Path, gateway: str, url: str) -> None:
    """The configuration's host and port; every network is reached through loopback."""
    assert find_gateway(None, config(tmp_path, gateway), {}) == url


def test_who_wins(tmp_path: Path) -> None:
    """--url goes before UNIGATE_URL, that before the configuration, that before the default."""
    path = config(tmp_path, "port: 9000")
    environ = {"UNIGATE_URL": "http://env:2/"}
    assert find_gateway("http://given:1/", path, environ) == "http://given:1"
    assert find_gateway(None, path, environ) == "http://env:2"
    assert find_gateway(None, path, {"UNIGATE_URL": ""}) == "http://127.0.0.1:9000"
    assert find_gateway(None, None, {}) == "http://127.0.0.1:8080"


def test_a_scheme_may_be_left_out() -> None:
    """host:port is enough of an address."""
    assert find_gateway("box:8080", None, {}) == "http://box:8080"
    assert find_gateway("https://box", None, {}) == "https://box"


def test_a_configuration_that_cannot_be_used(tmp_path: Path) -> None:
    """A broken configuration is told as such, not passed over for the default."""
    with pytest.raises(ConfigError):
        find_gateway(None, config(tmp_path, "prot: 1"), {})


def test_an_address_that_is_none() -> None:
    """What can be no address is refused with an example of one."""
    with pytest.raises(
        AdminError, match=r"^http://box:x is not an address .*; write it like http://127\.0\.0\.1:8080$"
    ):
        AdminClient("http://box:x")
