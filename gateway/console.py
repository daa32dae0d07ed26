"""What the command line shows: tables and sentences."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from backends.devices import GIB
from backends.options import Option
from gateway.checking import Finding
from gateway.doctor import Reading
from gateway.engine_list import FoundEngine

PIPED_WIDTH = 200
"""Columns of a table that goes into a pipe or a file: paths are not to be folded there."""

GOOD = Text("ok", style="green")
DOUBTFUL = Text("see", style="yellow")
BAD = Text("problem", style="bold red")
MISSING = Text("missing", style="dim")

RELOAD_LINES = ("restarted", "added", "removed", "adjusted")

STATE_STYLES = {
    "ready": "green",
    "starting": "yellow",
    "backoff": "yellow",
    "recycling": "yellow",
    "yielding": "yellow",
    "failed": "bold red",
}


def findings_table(findings: Iterable[Finding]) -> Table:
    """The table of `unigate check`."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("what", "verdict", "found"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        shown = finding.message if finding.is_good else f"{finding.message}; {finding.remedy}"
        verdict = DOUBTFUL if finding.is_doubtful else GOOD if finding.is_good else BAD
        table.add_row(escape(finding.subject), verdict, escape(shown))
    return table


def readings_table(readings: Iterable[Reading]) -> Table:
    """The table of `unigate doctor`."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("area", "what", "", "found"):
        table.add_column(column, overflow="fold")
    verdicts = {True: GOOD, False: BAD, None: Text("")}
    for reading in readings:
        table.add_row(reading.area, escape(reading.subject), verdicts[reading.is_good], escape(reading.shown))
    return table


def engines_table(engines: Iterable[FoundEngine]) -> Table:
    """The table of `unigate engine list`."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("ENGINE", "USED", "VERSION", "", "FOUND"):
        table.add_column(column, overflow="fold")
    for engine in engines:
        where = f"{engine.source}: {engine.place}" if engine.place else engine.source
        table.add_row(
            engine.engine,
            ("yes" if engine.is_wanted else "default") if engine.is_used else "",
            engine.version or "-",
            GOOD if engine.is_usable else BAD if engine.is_wanted or not engine.is_used else MISSING,
            escape(f"{where}\n{engine.note}" if engine.note else where),
        )
    return table


def options_table(options: Iterable[Option]) -> Table:
    """The table of `unigate engine options`."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("OPTION", "TAKES", "THE ENGINE'S WORD", "WHAT IT IS"):
        table.add_column(column, overflow="fold")
    for option in options:
        table.add_row(option.name, escape(takes(option)), option.flag or "-", escape(option.description))
    return table


def takes(option: Option) -> str:
    """The values of an option: ``a whole number, at least 1``."""
    if option.kind == "choice":
        return ", ".join(str(choice) for choice in option.choices)
    words = {"switch": "true or false", "whole": "a whole number", "number": "a number", "text": "a word"}
    bounds = {"at least": option.least, "more than": option.above, "at most": option.most}
    said = [f"{words_of} {bound:g}" for words_of, bound in bounds.items() if bound is not None]
    return ", ".join([words[option.kind], *said])


def backends_table(backends: Iterable[Mapping[str, Any]]) -> Table:
    """The table of `unigate ps`."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("MODEL", "ENGINE", "STATE", "SINCE", "PID", "BUSY", "WAITING", "RESTARTS", "MEMORY", "IDLE", "NOTE"):
        table.add_column(column, overflow="fold")
    for backend in backends:
        state = str(backend["state"])
        table.add_row(
            escape(backend["name"]),
            backend["engine"],
            Text(state, style=STATE_STYLES.get(state, "")),
            duration(backend["since_s"]),
            str(backend["pid"] or "-"),
            str(backend["leases"]),
            str(backend["waiting"]),
            str(backend["restarts"]),
            memory(backend),
            "-" if backend["idle_s"] is None else duration(backend["idle_s"]),
            escape(note(backend)),
        )
    return table


def reload_text(report: Mapping[str, Any]) -> Text:
    """What `unigate reload` has done, a line for each kind of change."""
    lines = [f"{what}: {', '.join(report[what])}" for what in RELOAD_LINES if report[what]]
    gateway = report["gateway"]
    if gateway["applied"]:
        lines.append(f"applied: {', '.join(f'gateway.{key}' for key in gateway['applied'])}")
    if gateway["needs_restart"]:
        keys = ", ".join(f"gateway.{key}" for key in gateway["needs_restart"])
        lines.append(f"not applied until the gateway is restarted: {keys}")
    if not lines:
        lines.append("nothing has changed")
    if not report["is_complete"]:
        lines.append("still under way; `unigate ps` shows how far it is")
    return Text("\n".join(lines))


def note(backend: Mapping[str, Any]) -> str:
    """What else there is to say of a backend: what it is doing, or why it is not."""
    parts = []
    if backend["phase"]:
        parts.append(backend["phase"])
    if backend["retry_in_s"] is not None:
        parts.append(f"next start in {duration(backend['retry_in_s'])}")
    if backend["diagnosis"] is not None:
        parts.append(f"{backend['diagnosis']['reason']} {backend['diagnosis']['advice']}")
    return "; ".join(parts)


def memory(backend: Mapping[str, Any]) -> str:
    """What a backend was granted: ``12.1G gpu 0,1``, of the host's memory ``0.4G``, and a dash for nothing."""
    gpus = ",".join(map(str, backend["gpus"]))
    pinned = " pinned" if backend["is_pinned"] else ""
    if not backend["memory_bytes"]:
        return "-" + pinned
    return f"{backend['memory_bytes'] / GIB:.1f}G{f' gpu {gpus}' if gpus else ''}{pinned}"


def duration(seconds: float) -> str:
    """``75`` -> ``1m15s``: the two largest units."""
    whole = int(seconds)
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size}{unit}{rest}{smaller}" if rest else f"{whole // size}{unit}"
    return f"{whole}s"


def stdout() -> Console:
    """For what was asked for; plain when it is not a terminal, so that it can be piped."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)


def stderr() -> Console:
    """For what goes wrong."""
    return Console(stderr=True, highlight=False, soft_wrap=True)
