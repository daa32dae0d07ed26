"""Who may use what: keys of the configuration, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from gateway.errors import MissingKey

BEARER = b"bearer "


@dataclass(frozen=True, slots=True)
class Caller:
    """A client as admission knows it: the key's *name*, never the key. *models* are names or globs."""

    name: str
    models: tuple[str, ...] = ("*",)
    is_admin: bool = False

    def may_use(self, names: Iterable[str]) -> bool:
        """Whether any of a model's *names* is among those the key opens."""
        return any(pattern == "*" or fnmatchcase(name, pattern) for name in names for pattern in self.models)


ANYBODY = Caller("-")
"""The caller where no key is configured: OpenAI clients must send one, so any is taken."""


class Keyring:
    """The configured keys. Only their digests are kept."""

    def __init__(self, keys: Iterable[tuple[str, Caller]]) -> None:
        self._callers = [(_digest(key.encode()), caller) for key, caller in keys]

    def adopt(self, other: Keyring) -> None:
        """Become the *other*, at once: whoever is admitted from now on is by its keys."""
        self._callers = other._callers

    def __bool__(self) -> bool:
        return bool(self._callers)

    def find(self, authorization: bytes | None) -> Caller | None:
        """The caller of an ``Authorization: Bearer KEY`` header; None when the key is not one of ours.

        Every key is compared, so the time taken tells nothing about which one was close.
        """
        if authorization is None or authorization[: len(BEARER)].lower() != BEARER:
            return None
        given = _digest(authorization[len(BEARER) :].strip())
        found = None
        for digest, caller in self._callers:
            if hmac.compare_digest(given, digest):
                found = caller
        return found

    def admit(self, authorization: bytes | None) -> Caller:
        """The caller. Raises MissingKey."""
        if not self._callers:
            return ANYBODY
        caller = self.find(authorization)
        if caller is None:
            message = (
                "no API key was sent; send it as 'Authorization: Bearer KEY'"
                if authorization is None
                else "the API key is not one of this gateway's"
            )
            raise MissingKey(message, headers=[(b"www-authenticate", b"Bearer")])
        return caller


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
