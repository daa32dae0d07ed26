"""The report as a table in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from benchmarks.report.markdown import SWEEP_COLUMNS
from benchmarks.report.wording import COLUMNS, head_rows, latency_rows, title, withheld


def as_table(summary: dict[str, Any]) -> RenderableType:
    """What a run came to."""
    heads = Table(box=None, pad_edge=False, show_header=False)
    heads.add_column(style="dim")
    heads.add_column(overflow="fold")
    for name, text in head_rows(summary):
        heads.add_row(name, escape(text))
    latencies = Table(box=None, pad_edge=False, header_style="bold")
    latencies.add_column("ms")
    for _, name in COLUMNS:
        latencies.add_column(name, justify="right")
    for name, values in latency_rows(summary):
        latencies.add_row(name, *values)
    parts: list[RenderableType] = [Text(title(summary), style="bold"), heads, Text(), latencies]
    if withheld(summary):
        parts.append(Text(withheld(summary), style="dim"))
    if summary["failed"]:
        parts += [Text(), failures(summary)]
    return Group(*parts, Text(), verdict(summary))


def failures(summary: dict[str, Any]) -> Table:
    """What went wrong, by kind."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("failure", "requests", "first"):
        table.add_column(column, overflow="fold")
    for kind, count in summary["failures"]["by_kind"].items():
        table.add_row(kind, str(count), escape(summary["failures"]["examples"].get(kind, "")[:160]))
    return table


def verdict(summary: dict[str, Any]) -> RenderableType:
    """Valid or not, and why."""
    validity = summary["validity"]
    word = Text("VALID", style="bold green") if validity["is_valid"] else Text("INVALID", style="bold red")
    reasons = [Text(f"  {reason}") for reason in validity["reasons"]]
    warnings = [Text(f"  note: {warning}", style="dim") for warning in validity["warnings"]]
    return Group(word, *reasons, *warnings)


def sweep_table(steps: list[dict[str, Any]], found: str) -> RenderableType:
    """What a sweep came to."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, _ in SWEEP_COLUMNS:
        table.add_column(name, justify="right")
    for step in steps:
        table.add_row(*(escape(cell(step)) for _, cell in SWEEP_COLUMNS))
    return Group(table, Text(), Text(found, style="bold"))
