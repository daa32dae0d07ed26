"""`unigate pull`: models downloaded now, by the same process that a model's first start would download them with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from backends.completion import read_completion
from backends.downloader import Downloader, DownloadProgress, LocalDownloader
from backends.settings import Timing
from backends.sizes import size_text
from backends.sources import HubSource, OllamaName, SourceRefused, parse_source
from gateway.config import Config

PLAIN_EVERY_PERCENT = 10
"""Where nobody watches a bar, a line for each so many percent."""

Show = Callable[[DownloadProgress], None]


class PullFailed(Exception):
    """Why nothing, or not all, was downloaded: one line for each reason, remedy included."""


def read_sources(words: Iterable[str]) -> tuple[HubSource, ...]:
    """The sources that *words* name, each once. Raises PullFailed for what cannot be downloaded."""
    return tuple(dict.fromkeys(_read_source(word) for word in words))


def _read_source(word: str) -> HubSource:
    try:
        source = parse_source(word)
    except SourceRefused as refusal:
        raise PullFailed(f"{word}: {refusal}; {refusal.remedy}") from refusal
    if isinstance(source, OllamaName):
        raise PullFailed(f"{word}: Ollama fetches its own models; run: ollama pull {source.name}")
    if source is None:
        raise PullFailed(f"{word}: is a path, and nothing to download; a model on a hub is written hf:ORG/NAME")
    return source


def sources_of(config: Config | None) -> tuple[HubSource, ...]:
    """The sources on hubs that the models of *config* have, each once. Raises PullFailed when there are none."""
    if config is None:
        raise PullFailed("name what to download, such as hf:ORG/NAME, or a configuration with -c")
    found = (backend.source for backend in config.backend_settings())
    sources = tuple(dict.fromkeys(source for source in found if isinstance(source, HubSource)))
    if not sources:
        raise PullFailed("no model of the configuration has weights on a hub; name what to download: hf:ORG/NAME")
    return sources


def pull(sources: Sequence[HubSource], models_dir: Path, screen: Console, write: Callable[[str], object]) -> None:
    """Make each of *sources* whole below *models_dir*, one after the other; *write* gets the path of each.

    Blocks for as long as that takes. One that fails does not keep the others. Interrupted, what is there stays and is
    gone on with. Raises PullFailed, KeyboardInterrupt.
    """
    asyncio.run(_pull(sources, models_dir, LocalDownloader(models_dir), screen, write))


async def _pull(
    sources: Sequence[HubSource],
    models_dir: Path,
    downloader: Downloader,
    screen: Console,
    write: Callable[[str], object],
) -> None:
    failures = []
    for source in sources:
        with _shown(source, screen) as show:
            problem = await downloader.fetch(
                source, Timing().download_stall_timeout_s, show, lambda line: screen.print(escape(line), style="dim")
            )
        if problem is not None:
            failures.append(f"{source}: {problem}")
            continue
        whole = read_completion(source, models_dir)
        size = f" ({size_text(whole.size)})" if whole is not None else ""
        screen.print(f"[green]✓[/] {escape(str(source))}{size}")
        write(f"{source.weights(models_dir)}\n")
    if failures:
        raise PullFailed("\n".join(failures))


@contextmanager
def _shown(source: HubSource, screen: Console) -> Iterator[Show]:
    """What shows the download of *source*: a bar on a terminal, else a line now and then."""
    if not screen.is_terminal:
        yield _Lines(source, screen).show
        return
    columns = (
        SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(),
        TransferSpeedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[doing]}", markup=False),
    )  # fmt: skip
    with Progress(*columns, console=screen, transient=True) as bars:
        task = bars.add_task(str(source), total=None, doing="")

        def show(progress: DownloadProgress) -> None:
            doing = "" if progress.phase == "downloading" else progress.phase
            bars.update(task, completed=progress.done, total=progress.total or None, doing=doing)

        yield show


class _Lines:
    """Progress where there is no terminal: each phase, and every tenth of the bytes."""

    def __init__(self, source: HubSource, screen: Console) -> None:
        self._source = source
        self._screen = screen
        self._said: tuple[str, int] = ("", -1)

    def show(self, progress: DownloadProgress) -> None:
        tenth = 100 * progress.done // progress.total // PLAIN_EVERY_PERCENT if progress.total else 0
        if (progress.phase, tenth) != self._said:
            self._said = (progress.phase, tenth)
            self._screen.print(f"… {self._source}: {progress}", markup=False)
