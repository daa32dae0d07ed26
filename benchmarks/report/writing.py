"""Writes the reports of a run or a sweep into its folder: ``summary.json``, ``report.md``, ``report.html``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from benchmarks.errors import BenchmarkError
from benchmarks.plan import load_plan
from benchmarks.report.markdown import REPORT as MARKDOWN
from benchmarks.report.markdown import as_markdown, sweep_markdown
from benchmarks.report.page import REPORT as PAGE
from benchmarks.report.page import as_page, sweep_page
from benchmarks.report.summary import SUMMARY, as_text, read_outcome, summarise
from benchmarks.report.terminal import as_table, sweep_table
from benchmarks.sweeping import conclude, step_folders, with_verdicts


@dataclass(frozen=True, slots=True)
class Report:
    """What was written, and what to show. ``is_valid``: of a sweep, whether every step is."""

    shown: RenderableType
    summary: dict[str, Any]
    files: tuple[Path, ...]
    is_valid: bool


def write_report(folder: Path) -> Report:
    """Make the reports of *folder* anew from its raw files. Raises BenchmarkError."""
    if load_plan(folder).is_sweep:
        return _write_sweep(folder)
    outcome = read_outcome(folder)
    summary = summarise(outcome)
    files = _write(folder, as_text(summary), as_markdown(summary), as_page(outcome, summary))
    return Report(as_table(summary), summary, files, outcome.verdict.is_valid)


def _write_sweep(folder: Path) -> Report:
    steps = [write_report(step).summary for step in step_folders(folder)]
    if not steps:
        raise BenchmarkError(f"{folder}: no step of this sweep has been measured yet")
    steps = with_verdicts(steps)
    found = conclude(steps)
    plan = load_plan(folder)
    name = plan.label or plan.model
    summary = {
        "format": 1,
        "loop": plan.loop,
        "found": found,
        "saturated_at": next((step["request_rate"] for step in steps if step["sweep"]["is_saturated"]), None),
        "steps": [{"folder": place.name, **step} for place, step in zip(step_folders(folder), steps, strict=True)],
    }
    files = _write(folder, as_text(summary), sweep_markdown(steps, name, found), sweep_page(steps, name, found))
    is_valid = all(step["validity"]["is_valid"] for step in steps)
    return Report(sweep_table(steps, found), summary, files, is_valid)


def _write(folder: Path, *contents: str) -> tuple[Path, ...]:
    files = tuple(folder / name for name in (SUMMARY, MARKDOWN, PAGE))
    for path, content in zip(files, contents, strict=True):
        try:
            path.write_text(content, encoding="utf-8")
        except OSError as problem:
            raise BenchmarkError(f"{path}: {problem.strerror or problem}") from problem
    return files
