"""How a run goes, while it goes: one line that is rewritten, or a line now and then where there is no terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from benchmarks.records import WARM_UP
from benchmarks.running import Standing

PLAIN_EVERY_S = 5.0


def line(standing: Standing, per_second: float) -> str:
    """The line: what, how far, how fast, how it is."""
    what = "warming up" if standing.phase == WARM_UP else standing.loop
    first = f", TTFT {standing.last_ttft_s * 1000:.0f} ms" if standing.last_ttft_s is not None else ""
    return (
        f"{what} · {standing.ended}/{standing.asked} · {standing.at:.0f} s · {per_second:.1f} req/s · "
        f"{standing.in_flight} in flight{first} · {standing.failed} errors"
    )


class Progress:
    """Shows standings on *console* from inside ``with``."""

    def __init__(self, console: Console) -> None:
        self._console = console
        # refreshed by hand: a thread of its own would take its turns from the one that measures
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._printed_at = 0.0
        self._before: Standing | None = None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, standing: Standing) -> None:
        """Show how it stands."""
        before = self._before
        is_same = before is not None and before.phase == standing.phase and before.at < standing.at
        began, done = (before.at, before.ended) if is_same and before is not None else (0.0, 0)
        per_second = (standing.ended - done) / (standing.at - began) if standing.at > began else 0.0
        if self._live is not None:
            self._before = standing
            self._live.update(Text(line(standing, per_second), no_wrap=True, overflow="ellipsis"), refresh=True)
        elif time.monotonic() - self._printed_at >= PLAIN_EVERY_S:
            self._before = standing
            self._printed_at = time.monotonic()
            self._console.print(line(standing, per_second), markup=False, highlight=False)
