"""What downloading needs of a hub, and how a download fails. Nothing here imports a hub's library."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Protocol

from backends.diagnosis import Diagnosis
from backends.repository import RemoteFile, Repository
from backends.sources import HUB_NAMES, Hub, HubSource

NETWORK_FAILED = "network_failed"
"""The code of a failure that may pass by itself: it is tried again, first here, then as every failed start is."""

LIBRARIES = {"hf": "huggingface_hub", "modelscope": "modelscope_hub"}
"""The official library that reads each hub."""
SOURCES_EXTRA = f"{sys.executable} -m pip install 'unigate[sources]'"
"""The command that installs both libraries beside the gateway."""

TOKENS = {"hf": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}
"""The variable each hub's library takes its key from."""
ENDPOINTS = {"hf": "HF_ENDPOINT", "modelscope": "MODELSCOPE_ENDPOINT"}
"""The variable each hub's library takes its address from."""


class DownloadFailed(Exception):
    """A download cannot go on, for the reason that *diagnosis* gives."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        super().__init__(str(diagnosis))
        self.diagnosis = diagnosis


class HubClient(Protocol):
    """One hub, through its official library. Its methods block, and raise DownloadFailed."""

    def repository(self, source: HubSource) -> Repository:
        """The repository of *source* as it is now."""

    def fetch(self, source: HubSource, repository: Repository, file: RemoteFile, folder: Path) -> None:
        """Put *file*, verified, at its path below *folder*. May be called by several threads, for other files each.

        What an earlier call, in whatever process, has left of this content is gone on with.
        """

    def partial_bytes(self, file: RemoteFile, folder: Path) -> int:
        """How much of *file* lies below *folder* unfinished."""

    def forget_leftovers(self, folder: Path) -> None:
        """Remove what a download into *folder* has left that nothing will go on with."""


def not_found(source: HubSource, what: str) -> DownloadFailed:
    """The hub has no such thing, or does not show it to us; *what* says it in a sentence without its full stop."""
    advice = f"Correct the model's weights; for a private model set {TOKENS[source.hub]} to a key that may read it."
    return DownloadFailed(Diagnosis("source_not_found", f"{what}.", advice, permanent=True))


def gated(source: HubSource, said: str) -> DownloadFailed:
    """The hub wants to know who asks, or wants its terms accepted first."""
    reason = f"{HUB_NAMES[source.hub]} does not give {source.repo} to us: {said}"
    advice = (
        f"Accept the model's terms on its page on {HUB_NAMES[source.hub]}, and set {TOKENS[source.hub]} to the key of"
        " that account where the gateway is started."
    )
    return DownloadFailed(Diagnosis("source_gated", _sentence(reason), advice, permanent=True))


def network_failed(source: HubSource, said: str) -> DownloadFailed:
    """The hub could not be reached, broke off, or asked to come back later."""
    hub: Hub = source.hub
    advice = f"The next try goes on where it was. If it stays so, set {ENDPOINTS[hub]} to a mirror, or set a proxy."
    return DownloadFailed(Diagnosis(NETWORK_FAILED, _sentence(f"{HUB_NAMES[hub]} cannot be read: {said}"), advice))


def corrupt(source: HubSource, file: RemoteFile, said: str) -> DownloadFailed:
    """What came is not what the hub says it is; it was thrown away."""
    reason = f"{file.path} of {source.repo} came with other content than {HUB_NAMES[source.hub]} lists: {said}"
    advice = f"The next try fetches it anew; if it stays so, {ENDPOINTS[source.hub]} names a bad mirror."
    return DownloadFailed(Diagnosis("download_corrupt", _sentence(reason), advice))


def refused(source: HubSource, said: str) -> DownloadFailed:
    """The hub refuses for a reason of its own."""
    reason = f"{HUB_NAMES[source.hub]} refuses {source}: {said}"
    return DownloadFailed(Diagnosis("hub_refused", _sentence(reason), "Correct the model's weights.", permanent=True))


def disk_failed(problem: OSError, folder: Path) -> DownloadFailed:
    """This machine's disk, or the rights on it, do not let us write below *folder*."""
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = f"The disk of {folder} became full while the model was downloaded."
        return DownloadFailed(Diagnosis("disk_full", reason, disk_advice(folder), permanent=True))
    reason = f"{problem.filename or folder}: {problem.strerror or problem}."
    advice = "Name a folder that can be written to as gateway.models_dir."
    return DownloadFailed(Diagnosis("folder_refused", reason, advice, permanent=True))


def disk_advice(folder: Path) -> str:
    """What to do about too little room for *folder*."""
    return f"Free space on the disk of {folder}, or name a folder on a larger one as gateway.models_dir."


def _sentence(text: str) -> str:
    line = " ".join(text.split())
    return line if line.endswith((".", "!", "?")) else f"{line}."


LIBRARY_DEFAULTS = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",
    # One hour for each file, however large (modelscope_hub 0.5.1, constants.py); our own clock watches for silence.
    "MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT": str(31 * 86_400),
    # Its locks for single files, in the home; ours is held for the whole folder.
    "MODELSCOPE_DOWNLOAD_FILE_LOCK": "false",
}
"""A download's environment where the operator's does not say otherwise: no bars, no clock on large files."""
