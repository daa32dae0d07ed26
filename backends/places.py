"""Where the next engine shall listen: Unix sockets in a folder only we can enter, or TCP ports."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from pathlib import Path

from backends.address import Address
from backends.ports import PortPool
from backends.settings import SocketKind

SOCKET_PATH_LIMIT = 107
"""Bytes of a Unix socket's path, less the closing NUL (unix(7))."""


class Places:
    """Listening places of one gateway. A place is reserved until it is released."""

    def __init__(self, socket_folder: Path, ports: PortPool | None = None) -> None:
        self._folder = socket_folder
        self._ports = ports or PortPool()

    def reserve(self, backend: str, kind: SocketKind) -> Address:
        """A place nobody listens at. Raises NoFreePort, or OSError when the socket folder cannot be made."""
        if kind == "tcp":
            return Address(host="127.0.0.1", port=self._ports.reserve())
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._folder.stat().st_uid != os.getuid():
            # In the temporary folder anybody could have made it first, to stand in for our engines.
            raise PermissionError(errno.EPERM, "the folder for sockets belongs to somebody else", str(self._folder))
        digest = hashlib.sha256(backend.encode()).hexdigest()[:12]
        path = self._folder / f"{digest}.sock"
        path.unlink(missing_ok=True)  # left by a run that was killed: binding to it would fail
        return Address(uds=str(path))

    def release(self, address: Address) -> None:
        """Give a place back. Releasing twice is no error."""
        if address.uds:
            Path(address.uds).unlink(missing_ok=True)
        else:
            self._ports.release(address.port)


def socket_folder(state_dir: Path) -> Path:
    """A folder for the sockets of the gateway that owns *state_dir*: beside its state, or where paths are short."""
    folder = state_dir / "sockets"
    if len(os.fsencode(folder)) + len("/0123456789ab.sock") <= SOCKET_PATH_LIMIT:
        return folder
    digest = hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"unigate-{os.getuid()}-{digest}"
