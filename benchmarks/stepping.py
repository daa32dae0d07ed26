"""Runs a plan to its end: one run, or the steps of a sweep one after the other. What is done already is skipped."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.journal import read_journal
from benchmarks.plan import PLAN, Plan, load_plan, save_plan
from benchmarks.report.writing import write_report
from benchmarks.running import Run, Show, prepare, run_to_end
from benchmarks.sweeping import (
    first_rate,
    next_rate,
    pace_plan,
    rounded,
    step_folder,
    step_folders,
    step_plan,
    with_verdicts,
)

PACE = "pace"

Say = Callable[[str], None]


class Interrupted(Exception):
    """Somebody ended the run; everything until then is kept."""


def execute(plan: Plan, folder: Path, show: Show, say: Say) -> None:
    """Run *plan* into *folder*, which holds no run yet. Raises BenchmarkError and Interrupted."""
    if (folder / PLAN).exists():
        raise BenchmarkError(
            f"--out {folder}: it holds a run already; go on with it by `unigate bench run --resume {folder}`, or name "
            "another folder"
        )
    if not plan.is_sweep:
        _run(plan, folder, show)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_plan(plan, folder)
    except OSError as problem:
        raise BenchmarkError(f"--out {folder}: {problem.strerror or problem}") from problem
    _sweep(plan, folder, show, say)


def go_on(folder: Path, show: Show, say: Say) -> None:
    """Do what is left of the run or sweep in *folder*. Raises BenchmarkError and Interrupted."""
    plan = load_plan(folder)
    if plan.is_sweep:
        _sweep(plan, folder, show, say)
    else:
        _run(plan, folder, show)


def _run(plan: Plan, folder: Path, show: Show) -> None:
    resumes = (folder / PLAN).exists()
    if resumes and read_journal(folder).is_done:
        return
    prepared = prepare(plan, folder, resume=resumes)
    if not run_to_end(prepared, show, _listen):
        raise Interrupted


def _listen(run: Run, loop: asyncio.AbstractEventLoop) -> None:
    """The first INT or TERM ends the run in order; the second is Python's own."""

    def interrupt() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        run.interrupt()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)


def _sweep(plan: Plan, folder: Path, show: Show, say: Say) -> None:
    if plan.rates:
        for number, rate in enumerate(sorted(plan.rates), 1):
            say(f"step {number} of {len(plan.rates)}: {rate:g} requests/s")
            _run(step_plan(plan, rounded(rate)), step_folder(folder, rounded(rate)), show)
        return
    begin = 0.0
    if not step_folders(folder):
        say("one request at a time, to know where to begin")
        _run(pace_plan(plan), folder / PACE, show)
        begin = first_rate(write_report(folder / PACE).summary)
    for place in step_folders(folder):
        _run(load_plan(place), place, show)
    while (step := next_rate(_steps(folder), begin)) is not None:
        say(f"{step:g} requests/s")
        _run(step_plan(plan, step), step_folder(folder, step), show)


def _steps(folder: Path) -> Sequence[dict[str, Any]]:
    return with_verdicts([write_report(step).summary for step in step_folders(folder)])
