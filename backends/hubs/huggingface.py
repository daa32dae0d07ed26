"""Hugging Face, through huggingface_hub. Facts below name files of huggingface_hub 2.4.0.

Its own `hf_hub_download` cannot go on where another process was: it downloads to a file named for the process, which it
removes when it fails (file_download.py `_download_to_tmp_and_move`). So the library's `http_get`, which takes the size
already there, is given a file of ours, and the content is verified here. HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and
proxies are the library's to read (constants.py, utils/_http.py).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import BlobLfsInfo, RepoFile
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # exported lazily

from backends.completion import content_digest
from backends.diagnosis import Diagnosis
from backends.hub import DownloadFailed, corrupt, gated, network_failed, not_found, refused
from backends.repository import RECORDS, RemoteFile, Repository
from backends.sources import HubSource

CHUNK_BYTES = 1024 * 1024
"""What an interruption loses at most; the library would write 10 MiB at a time (constants.py DOWNLOAD_CHUNK_SIZE)."""

LISTING_TIMEOUT_S = 30.0


class HuggingFace:
    """The client of Hugging Face, or of the mirror that HF_ENDPOINT names."""

    def __init__(self) -> None:
        constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
        self._api = HfApi()

    def repository(self, source: HubSource) -> Repository:
        """The commit, and every file with its size and digests: one request, with some mirrors a few."""
        with _translated(source):
            found = self._api.model_info(
                source.repo, revision=source.revision or None, files_metadata=True, timeout=LISTING_TIMEOUT_S
            )
            commit = found.sha or source.revision
            siblings = found.siblings or []
            if any(sibling.size is None for sibling in siblings):
                # a mirror that does not know files_metadata; this is one request for each thousand files
                tree = self._api.list_repo_tree(source.repo, revision=commit or None, recursive=True)
                entries = [entry for entry in tree if isinstance(entry, RepoFile)]
                return Repository(commit, tuple(_file(e.path, e.size, e.blob_id, e.lfs) for e in entries))
        return Repository(commit, tuple(_file(s.rfilename, s.size or 0, s.blob_id, s.lfs) for s in siblings))

    def fetch(self, source: HubSource, repository: Repository, file: RemoteFile, folder: Path) -> None:
        """By plain HTTP with ranges, which the Hub serves for its Xet files too, up to 50 GB (`http_get`).

        A larger one is left to `hf_hub_download` and Xet, which begins anew after an interruption.
        """
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
            with _translated(source, file):
                try:
                    hf_hub_download(source.repo, file.path, revision=repository.commit, local_dir=folder)
                except ValueError as problem:
                    # without hf_xet, or with HF_HUB_DISABLE_XET
                    raise refused(source, f"{file.path}: {problem}") from problem
            return
        part = _part(file, folder)
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab"):
            pass
        with part.open("r+b") as content:
            if part.stat().st_size > file.size:
                content.truncate(0)
            resume_size = content.seek(0, os.SEEK_END)
            with _translated(source, file):
                http_get(
                    hf_hub_url(source.repo, file.path, revision=repository.commit),
                    content,
                    resume_size=resume_size,
                    headers=build_hf_headers(),
                    expected_size=file.size,
                    displayed_filename=file.path,
                )
            content.flush()
            found = content_digest(content, file)
        if found != file.digest:
            part.unlink()
            raise corrupt(source, file, f"{found[:12]}… instead of {file.digest[:12]}…")
        part.replace(target)

    def partial_bytes(self, file: RemoteFile, folder: Path) -> int:
        """Of our own part, or of what the library itself has on the way."""
        with contextlib.suppress(OSError):
            return _part(file, folder).stat().st_size
        if file.size <= constants.MAX_HTTP_DOWNLOAD_SIZE:
            return 0
        total = 0
        for part in (folder / ".cache" / "huggingface" / "download").rglob("*.incomplete"):
            with contextlib.suppress(OSError):
                total += part.stat().st_blocks * 512
        return total

    def forget_leftovers(self, folder: Path) -> None:
        """Remove what the library itself cannot go on with."""
        shutil.rmtree(folder / ".cache" / "huggingface", ignore_errors=True)


def _file(path: str, size: int, git_oid: str | None, lfs: BlobLfsInfo | None) -> RemoteFile:
    if lfs is not None:
        return RemoteFile(path, size, sha256=lfs.sha256)
    return RemoteFile(path, size, git_oid=git_oid or "")


def _part(file: RemoteFile, folder: Path) -> Path:
    return folder / RECORDS / "parts" / f"{file.digest}.part"


@contextlib.contextmanager
def _translated(source: HubSource, file: RemoteFile | None = None) -> Iterator[None]:
    """The library's exceptions (errors.py), each as the DownloadFailed that it means."""
    try:
        yield
    except GatedRepoError as problem:
        raise gated(source, _said(problem)) from problem
    except RevisionNotFoundError as problem:
        raise not_found(source, f"{source.repo} has no revision {source.revision}") from problem
    except RepositoryNotFoundError as problem:
        # 401, for a repository that is private too: whether it exists is not told to strangers.
        raise not_found(source, f"Hugging Face shows us no model {source.repo}") from problem
    except EntryNotFoundError as problem:
        raise not_found(source, f"{source.repo} has no file {file.path if file else source.file}") from problem
    except OfflineModeIsEnabled as problem:
        reason = f"{source} is not on this machine, and HF_HUB_OFFLINE forbids to download it."
        advice = "Unset HF_HUB_OFFLINE where the gateway is started, or bring the files by other means."
        raise DownloadFailed(Diagnosis("source_offline", reason, advice, permanent=True)) from problem
    except HfHubHTTPError as problem:
        status = problem.response.status_code
        if status in (401, 403):
            raise gated(source, _said(problem)) from problem
        if status == 404:
            raise not_found(source, f"Hugging Face has no model {source.repo}") from problem
        if status in (408, 429) or status >= 500:
            raise network_failed(source, f"it answers with status {status}") from problem
        raise refused(source, _said(problem)) from problem
    except httpx2.HTTPError as problem:
        raise network_failed(source, f"{type(problem).__name__}: {problem}") from problem
    except OSError as problem:
        # `http_get`: "Consistency check failed: file should be of size …". Errors of the disk have a number.
        if problem.errno is not None or file is None:
            raise
        raise corrupt(source, file, str(problem).partition("\n")[0]) from problem


def _said(problem: HfHubHTTPError) -> str:
    return problem.server_message or f"status {problem.response.status_code}"
