"""Keys and callers: who is found by which header, and which models a key opens."""

from __future__ import annotations

import pytest

from gateway.errors import MissingKey
from gateway.keys import ANYBODY, Caller, Keyring

ME = Caller("me", ("*",), is_admin=True)
GUEST = Caller("guest", ("qwen-*", "default"))
RING = Keyring([("sk-me", ME), ("sk-guest", GUEST)])


@pytest.mark.parametrize(
    ("authorization", "caller"),
    [
        (b"Bearer sk-me", ME),
        (b"bearer sk-guest", GUEST),
        (b"BEARER   sk-guest  ", GUEST),
        (b"Bearer sk-m", None),
        (b"Bearer sk-me2", None),
        (b"Bearer ", None),
        (b"Bearer", None),
        (b"Basic sk-me", None),
        (b"sk-me", None),
        (b"", None),
        (None, None),
        (b"Bearer \xff\xfe", None),
    ],
)
def test_who_a_header_belongs_to(authorization: bytes | None, caller: Caller | None) -> None:
    """A key is found behind "Bearer", whatever its case and spaces, whole or not at all."""
    assert RING.find(authorization) == caller


def test_admission_tells_a_missing_key_from_a_wrong_one() -> None:
    """No header and a wrong key are refused with different words, and with WWW-Authenticate."""
    with pytest.raises(MissingKey, match="no API key was sent") as missing:
        RING.admit(None)
    with pytest.raises(MissingKey, match="not one of this gateway's"):
        RING.admit(b"Bearer nothing")
    assert missing.value.headers == ((b"www-authenticate", b"Bearer"),)
    assert RING.admit(b"Bearer sk-me") == ME


def test_without_keys_anybody_is_admitted_and_nobody_is_found() -> None:
    """Where no key is configured every client is let in as anybody, and none is an administrator."""
    open_ring = Keyring([])
    assert not open_ring
    assert bool(RING)
    for authorization in (None, b"Bearer whatever"):
        assert open_ring.admit(authorization) == ANYBODY
        assert open_ring.find(authorization) is None
    assert not ANYBODY.is_admin
    assert ANYBODY.may_use(["anything"])


@pytest.mark.parametrize(
    ("names", "may"),
    [
        (["qwen-7b"], True),
        (["other", "default"], True),
        (["Qwen-7b"], False),
        (["qwen"], False),
        (["other"], False),
        ([], False),
    ],
)
def test_what_a_key_opens(names: list[str], may: bool) -> None:
    """A key opens a model when one of the model's names matches one of its patterns, case and all."""
    assert GUEST.may_use(names) is may


def test_a_keyring_holds_no_key() -> None:
    """What is kept of a key is its digest."""
    assert "sk-me" not in repr(vars(RING))
