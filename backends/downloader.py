"""Downloads as the gateway sees them: each a child process that is watched, shown, and ended when nobody wants it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from backends.completion import read_completion
from backends.diagnosis import Diagnosis
from backends.hub import LIBRARY_DEFAULTS, NETWORK_FAILED, TOKENS
from backends.logs import LineSplitter
from backends.sizes import size_text
from backends.sources import HUB_NAMES, HubSource

KEEP_FREE_BYTES = 1_000_000_000
"""Left free on the disk: logs, compile caches and the system's own needs come on top of the weights."""
RETRY_PAUSES_S = (1.0, 2.0, 4.0, 8.0)
"""Between the tries of a step that brings no byte; after the last the start has failed, and the back-off takes over."""
UNCLOCKED = ("waiting", "finishing")
"""Phases that do not stall: whoever holds the folder has a clock of its own, and a disk takes its time to write."""
EVIDENCE_LINES = 8
READ_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """How a download stands. *phase* is a word of `backends.download`; sizes in bytes, *rate* in bytes per second."""

    phase: str
    done: int = 0
    total: int = 0
    rate: int = 0

    def __str__(self) -> str:
        if self.phase == "listing":
            return "asking for the model's files"
        if self.phase == "checking":
            return f"checking the files that are there ({size_text(self.total)} in all)"
        if self.phase == "finishing":
            return "writing the last of the model to the disk"
        share = f" {100 * self.done // self.total}% of {size_text(self.total)}" if self.total else ""
        rate = f", {size_text(self.rate)}/s" if self.rate else ""
        if self.phase == "waiting":
            return f"waiting for another process that downloads the same model{':' if share else ''}{share}{rate}"
        return f"downloading{share}{rate}"


class Downloader(Protocol):
    """Makes sources whole: on this machine now."""

    async def fetch(
        self,
        source: HubSource,
        stall_timeout_s: float,
        show: Callable[[DownloadProgress], None],
        say: Callable[[str], None],
    ) -> Diagnosis | None:
        """Make *source* whole; see LocalDownloader."""


class LocalDownloader:
    """Downloads below *models_dir*. *secrets* are values that no child may inherit: the keys of the gateway's clients.

    *keep_free_bytes* of the disk are left alone; *retry_pauses_s* are those of `backends.download.Order`.
    """

    def __init__(
        self,
        models_dir: Path,
        secrets: frozenset[str] = frozenset(),
        *,
        keep_free_bytes: int = KEEP_FREE_BYTES,
        retry_pauses_s: tuple[float, ...] = RETRY_PAUSES_S,
    ) -> None:
        self._models_dir = models_dir
        self._secrets = secrets
        self._keep_free_bytes = keep_free_bytes
        self._retry_pauses_s = retry_pauses_s

    async def fetch(
        self,
        source: HubSource,
        stall_timeout_s: float,
        show: Callable[[DownloadProgress], None],
        say: Callable[[str], None],
    ) -> Diagnosis | None:
        """Make *source* whole; None when it is, else why it is not. One that is whole already costs no process.

        *show* gets each change, *say* each line of the library's own words, secrets removed. A download that neither
        reads nor writes for *stall_timeout_s* is ended. Cancelled, it ends the process; the next goes on from there.
        """
        if await asyncio.to_thread(read_completion, source, self._models_dir) is not None:
            return None
        try:
            child = await asyncio.create_subprocess_exec(
                *self._argv(source),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=download_environment(os.environ, self._secrets),
                # Ctrl-C is for us: we end it when we know what to say.
                start_new_session=True,
            )
        except OSError as problem:
            reason = f"The download could not be started: {problem.strerror}."
            return Diagnosis("host_refused", reason, "Free what is short: processes, memory or open files.")
        watch = _Watch(source, child, show, say, tokens_of(os.environ))
        try:
            return await watch.outcome(stall_timeout_s)
        finally:
            if child.returncode is None:
                child.kill()
            await child.wait()

    def _argv(self, source: HubSource) -> list[str]:
        folders = ["--models-dir", str(self._models_dir), "--keep-free-bytes", str(self._keep_free_bytes)]
        pauses = ["--retry-pauses-s", *map(str, self._retry_pauses_s)]
        return [sys.executable, "-P", "-m", "backends.download", *folders, *pauses, "--", str(source)]


NO_MODELS_DIR = LocalDownloader(Path("/nonexistent"))
"""For those who download nothing."""


class _Watch:
    """One child, from its first word to its last."""

    def __init__(
        self,
        source: HubSource,
        child: asyncio.subprocess.Process,
        show: Callable[[DownloadProgress], None],
        say: Callable[[str], None],
        tokens: frozenset[str],
    ) -> None:
        self._source = source
        self._child = child
        self._show = show
        self._say = say
        self._tokens = tokens
        self._said: list[str] = []
        self._is_done = False
        self._failure: Diagnosis | None = None

    async def outcome(self, stall_timeout_s: float) -> Diagnosis | None:
        words = asyncio.create_task(self._hear(), name=f"words {self._source}")
        try:
            await self._follow(stall_timeout_s)
            await self._child.wait()
            await words
        except TimeoutError:
            reason = f"The download of {self._source} made no progress for {stall_timeout_s:g} s."
            advice = f"The next try goes on where it was. See whether {HUB_NAMES[self._source.hub]} can be reached."
            return Diagnosis(NETWORK_FAILED, reason, advice, evidence=tuple(self._said))
        finally:
            words.cancel()
        if self._is_done:
            return None
        return self._failure or self._died()

    async def _follow(self, stall_timeout_s: float) -> None:
        """Every event up to the end of its stdout. Raises TimeoutError when it stalls."""
        assert self._child.stdout is not None
        loop = asyncio.get_running_loop()
        seen: tuple[object, ...] = ()
        async with asyncio.timeout(stall_timeout_s) as clock:
            async for line in self._child.stdout:
                event = json.loads(line)
                signs = (event.get("phase"), event.get("done"), event.get("work"))
                if signs != seen or event.get("phase") in UNCLOCKED:
                    seen = signs
                    clock.reschedule(loop.time() + stall_timeout_s)
                self._take(event)

    def _take(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "progress":
            self._show(DownloadProgress(event["phase"], event["done"], event["total"], event["rate"]))
        elif event["event"] == "done":
            self._is_done = True
        else:
            texts = {name: redacted(str(event[name]), self._tokens) for name in ("reason", "advice")}
            self._failure = Diagnosis(event["code"], **texts, permanent=event["permanent"], evidence=tuple(self._said))

    async def _hear(self) -> None:
        """What the library says on stderr, line by line."""
        assert self._child.stderr is not None
        splitter = LineSplitter()
        while chunk := await self._child.stderr.read(READ_BYTES):
            self._repeat(splitter.feed(chunk))
        self._repeat(splitter.close())

    def _repeat(self, lines: Iterable[str]) -> None:
        for line in lines:
            text = redacted(line, self._tokens)
            self._said = [*self._said, text][-EVIDENCE_LINES:]
            self._say(text)

    def _died(self) -> Diagnosis:
        code = self._child.returncode or 0
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        reason = f"The download of {self._source} ended {how}."
        return Diagnosis("download_died", reason, "The next try goes on where it was.", evidence=tuple(self._said))


def download_environment(inherited: Mapping[str, str], secrets: frozenset[str] = frozenset()) -> dict[str, str]:
    """A download's environment: ours, which holds the hubs' addresses, keys and proxies, less *secrets*."""
    kept = {name: value for name, value in inherited.items() if value not in secrets}
    return {**LIBRARY_DEFAULTS, **kept, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}


def tokens_of(environ: Mapping[str, str]) -> frozenset[str]:
    """The hubs' keys in *environ*, long enough not to be a part of other words."""
    # The second is an older name, which huggingface_hub 2.4 still reads (utils/_auth.py).
    names = (*TOKENS.values(), "HUGGING_FACE_HUB_TOKEN")
    return frozenset(value for name in names if len(value := environ.get(name, "")) >= 8)


def redacted(text: str, tokens: Iterable[str]) -> str:
    """*text* without *tokens*, and without what addresses carry: a user's password, a signature after ``?``."""
    for token in tokens:
        text = text.replace(token, "***")
    text = re.sub(r"(\w+://)[^\s/@]+@", r"\1***@", text)
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]+", r"\1?…", text)
