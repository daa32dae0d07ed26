"""What the load generator itself can do on this machine, against a server whose times are known.

    python -m benchmarks.selftest

Open loops at rising rates of small answers, and rising numbers of concurrent streams, each a few seconds on loopback,
until this client is no longer fit to measure by its own rules: sent late, or above 80 % of a core. The server takes a
core of its own; on a machine with other work the numbers are those of the machine with that work, so its load is
printed too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.conversations import Conversation
from benchmarks.distributions import quantile
from benchmarks.load.arrivals import at_rate, unit_arrivals
from benchmarks.load.connection import ConnectionPool, read_address
from benchmarks.load.driver import Driver, Limits, Load
from benchmarks.load.requests import CHAT, RequestForm
from benchmarks.measures import ttft
from benchmarks.records import MEASURED, Row
from benchmarks.running import MOST_CONNECTIONS, SPARE_FILES, allow_many_files
from benchmarks.validity import LAG_S, MOST_CPU

RATES = (1000, 2000, 4000, 5000, 6000, 8000, 10_000, 12_000)
STREAMS = (100, 500, 1000, 2000, 3000, 4000)
SECONDS = 4.0
TOKENS_PER_SECOND = 20
FIRST_S = 0.5
SENT_IN_S = 1.0
HOPELESS_S = 0.25


@dataclass(frozen=True, slots=True)
class Measured:
    """How one step went. ``late_s``: the p99 of its lateness; ``first_s``: TTFT, median and p99, where there is one."""

    name: str
    per_second: float
    most_at_once: int
    failed: int
    cpu: float
    late_s: float
    first_s: tuple[float, float] | None

    @property
    def is_fit(self) -> bool:
        """Whether a run like this would be valid."""
        return not self.failed and self.late_s <= LAG_S and self.cpu <= MOST_CPU

    @property
    def is_hopeless(self) -> bool:
        """Whether more would only be worse. Some lateness may be other work's, and is no reason to end."""
        return self.cpu > MOST_CPU or self.late_s > HOPELESS_S


@contextlib.contextmanager
def server(*arguments: str) -> Iterator[str]:
    """A timed server in a process of its own; its base URL."""
    command = [sys.executable, "-m", "benchmarks.timed_server", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - ourselves
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


async def measure(name: str, url: str, times: Sequence[float], *, is_streamed: bool, tokens: int) -> Measured:
    """Send a request at each of *times* and see how this client fares."""
    address = read_address(url)
    pool = ConnectionPool(address)
    form = RequestForm(address, CHAT, "timed", is_streamed=is_streamed)
    question = Conversation("selftest", (({"role": "user", "content": "Are you there?"},),))
    load = Load(
        [question] * len(times),
        range(len(times)),
        MEASURED,
        0,
        tokens,
        times=times,
        concurrency=min(allow_many_files() - SPARE_FILES, MOST_CONNECTIONS),
        keeps_text=False,
    )
    rows: list[Row] = []
    driver = Driver(load, form, form.head({}), pool, rows.append, Limits(total_s=60), time.perf_counter)
    cpu_s, began = time.process_time(), time.perf_counter()
    try:
        await driver.run()
    finally:
        lasted = time.perf_counter() - began
        cpu_s = time.process_time() - cpu_s
        await pool.close()
    firsts = sorted(value for row in rows if (value := ttft(row)) is not None)
    return Measured(
        name,
        len(rows) / lasted,
        driver.counts.most_in_flight,
        driver.counts.failed,
        cpu_s / lasted,
        quantile(sorted(row.sent - row.intended for row in rows), 0.99),
        (quantile(firsts, 0.5), quantile(firsts, 0.99)) if firsts else None,
    )


def steps() -> Iterator[Measured]:
    """Measure until this client is not fit any more, first with small answers, then with streams."""
    with server() as url:
        for rate in RATES:
            times = at_rate(unit_arrivals(int(rate * SECONDS), 1.0, Random(0)), rate)
            step = uvloop.run(measure(f"{rate} small answers/s", url, times, is_streamed=False, tokens=1))
            yield step
            if step.is_hopeless:
                break
    with server("--ttft", str(FIRST_S), "--tpot", str(1 / TOKENS_PER_SECOND)) as url:
        for streams in STREAMS:
            times = at_rate(unit_arrivals(streams, None, Random(0)), streams / SENT_IN_S)
            tokens = int(SECONDS * TOKENS_PER_SECOND)
            name = f"{streams} streams of {TOKENS_PER_SECOND} tokens/s"
            step = uvloop.run(measure(name, url, times, is_streamed=True, tokens=tokens))
            yield step
            if step.is_hopeless:
                break


def main() -> None:
    """Measure, and print a row per step."""
    files = allow_many_files()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("asked")
    for column in ("requests/s", "at once", "failed", "CPU", "late p99 ms", "TTFT p50 ms", "TTFT p99 ms", "fit"):
        table.add_column(column, justify="right")
    before = os.getloadavg()[0]
    for step in steps():
        first = [f"{value * 1000:.1f}" for value in step.first_s] if step.first_s is not None else ["", ""]
        table.add_row(
            step.name, f"{step.per_second:.0f}", str(step.most_at_once), str(step.failed), f"{step.cpu:.0%}",
            f"{step.late_s * 1000:.1f}", *first, "yes" if step.is_fit else "no",
        )  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print(
        f"true TTFT of the streams: {FIRST_S * 1000:.0f} ms; {os.cpu_count()} cores, load {before:.1f} before and "
        f"{os.getloadavg()[0]:.1f} after, {files} files may be open"
    )


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        main()
