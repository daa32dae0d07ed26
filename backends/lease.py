"""The right to use an endpoint for one exchange, and why there is none to be had."""

from __future__ import annotations

from collections.abc import Callable

from backends.address import Address
from backends.diagnosis import Diagnosis
from backends.settings import BackendSettings
from chat_templates.parity import Parity


class BackendUnavailable(Exception):
    """No lease. *retry_after_s* is an honest guess in seconds, None when asking again is pointless."""

    def __init__(
        self, code: str, message: str, retry_after_s: float | None, diagnosis: Diagnosis | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s
        self.diagnosis = diagnosis


class Lease:
    """The right to use an endpoint for one exchange. Release it where it was taken; twice is no error.

    *served_name* is what the engine calls the backend's model, where only the run could tell; else None. *parity* is
    what was proven of the run; None where there is no contract, or nothing was to be proven.
    """

    __slots__ = ("_release", "address", "authorization", "backend", "engine", "parity", "prompting", "served_name")

    def __init__(
        self,
        backend: BackendSettings,
        address: Address,
        authorization: str,
        release: Callable[[bool, bool], None],
        served_name: str | None = None,
        parity: Parity | None = None,
    ) -> None:
        self.backend = backend.name
        self.engine = backend.engine
        self.address = address
        self.authorization = authorization
        self.served_name = served_name
        self.parity = parity
        self.prompting = backend.prompting
        self._release: Callable[[bool, bool], None] | None = release

    def release(self, *, answered: bool = False, silent: bool = False) -> None:
        """Give the lease back. *answered*: a whole answer came, which is as good as a health check. *silent*: nothing
        came for as long as a request may wait, which casts doubt on whatever the health check says."""
        release, self._release = self._release, None
        if release is not None:
            release(answered, silent)
