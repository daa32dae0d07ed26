"""ModelScope, through modelscope_hub: what `modelscope` itself downloads with since 1.38, without the rest of that.

Facts below name files of modelscope_hub 0.5.1. It keeps what it has of a file beside it and goes on with that
(_download.py `_download_with_resume`), and verifies size and SHA-256. MODELSCOPE_ENDPOINT (of old MODELSCOPE_DOMAIN),
MODELSCOPE_API_TOKEN and proxies are the library's to read (config.py).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from modelscope_hub import HubApi
from modelscope_hub.errors import (
    APIError,
    AuthenticationError,
    FileIntegrityError,
    HubError,
    NotExistError,
    PermissionDeniedError,
)

from backends.hub import corrupt, gated, network_failed, not_found, refused
from backends.repository import RemoteFile, Repository, listing_digest
from backends.sources import HubSource

MAIN_BRANCH = "master"


class ModelScope:
    """The client of ModelScope, or of the address that MODELSCOPE_ENDPOINT names."""

    def __init__(self) -> None:
        self._api = HubApi()

    def repository(self, source: HubSource) -> Repository:
        """Every file with its size and SHA-256. No commit is told for a branch: the listing's own digest stands in."""
        with _translated(source):
            # modelscope.cn, else modelscope.ai, unless an endpoint is configured (api.py `resolve_endpoint_for_read`)
            self._api = HubApi(endpoint=self._api.resolve_endpoint_for_read(source.repo))
            listed = self._api.list_repo_files(source.repo, "model", revision=source.revision or MAIN_BRANCH)
        files = tuple(
            RemoteFile(found.path, found.size, sha256=(found.sha256 or "").lower())
            for found in listed
            if not found.is_dir
        )
        return Repository(f"{source.revision or MAIN_BRANCH}#{listing_digest(files)[:16]}", files)

    def fetch(self, source: HubSource, repository: Repository, file: RemoteFile, folder: Path) -> None:
        """By the library's own download, of this one file into *folder*."""
        with _translated(source, file):
            self._api.download_file(
                source.repo,
                "model",
                file.path,
                revision=source.revision or MAIN_BRANCH,
                local_dir=folder,
                expected_sha256=file.sha256 or None,
                file_size=file.size,
            )

    def partial_bytes(self, file: RemoteFile, folder: Path) -> int:
        """Of the library's ``NAME.incomplete``, or of its ``NAME_START_END`` when it downloads a file in ranges."""
        target = folder / file.path
        unfinished = re.compile(rf"{re.escape(target.name)}(\.incomplete|\.parallel_tmp|_\d+_\d+)")
        total = 0
        with contextlib.suppress(OSError):
            for entry in target.parent.iterdir():
                if unfinished.fullmatch(entry.name):
                    with contextlib.suppress(OSError):
                        total += entry.stat().st_size
        return total

    def forget_leftovers(self, folder: Path) -> None:
        """The library goes on with all it leaves."""


@contextlib.contextmanager
def _translated(source: HubSource, file: RemoteFile | None = None) -> Iterator[None]:
    """The library's exceptions (errors.py), each as the DownloadFailed that it means."""
    try:
        yield
    except NotExistError as problem:
        what = f"file {file.path} in {source.repo}" if file is not None else f"model {source.repo}"
        revision = f" at revision {source.revision}" if source.revision else ""
        raise not_found(source, f"ModelScope shows us no {what}{revision}") from problem
    except (AuthenticationError, PermissionDeniedError) as problem:
        raise gated(source, problem.message) from problem
    except FileIntegrityError as problem:
        if file is None:
            raise
        raise corrupt(source, file, problem.message) from problem
    except APIError as problem:
        if problem.retryable or (problem.status_code or 500) >= 500:
            raise network_failed(source, f"it answers with status {problem.status_code}") from problem
        raise refused(source, problem.message) from problem
    except HubError as problem:
        raise network_failed(source, problem.message) from problem
    except OSError as problem:
        # requests' exceptions are OSErrors without a number; those of the disk have one.
        if problem.errno is not None:
            raise
        raise network_failed(source, type(problem).__name__) from problem
