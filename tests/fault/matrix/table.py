"""The matrix to look at: on a terminal, and as the Markdown of `docs/fault-matrix.md`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from tests.fault.matrix.cells import Absent, Broken, Cell, Fault
from tests.fault.matrix.engines import Engine

HEAD = """\
# The fault matrix

What a client sees when something breaks, how long it takes until somebody else is served again, and what is left
behind. Made by `make fault` (`python -m tests.fault.matrix`), which fails when a cell breaks its promise. Nobody edits
this file.

- Machine: {machine}.
- Engines: {engines}.

Each engine is the only model of a real `unigate serve`, behind a relay that can bend what passes
(`tests/fault/wire.py`); the engine is a process of its own as always. The clocks are short here, so that a fault is
noticed while one watches: {clocks}. The defaults are longer (`examples/unigate.yaml`): an engine that stands still is
noticed after some 60 s, a start without a sign of life after 300 s.

- **recovery**: seconds from the fault to the first whole answer to a new request, the engine's own start included; for
  a gateway that ended, its restart too.
- **refused**: how many new requests got an error until then, sent one after the other.
- **orphans**: processes of the run, or gateway, that was hit and live on.
- **leases**: leases, requests in flight and requests waiting that stay counted.
- **lost lines**: numbered lines of the engine's log that are not in its files, or not in order.
"""


def one_line(cell: Cell) -> str:
    """A cell for who waits: good, bad or absent."""
    return f"{cell.engine} · {cell.fault.title}: {_summary(cell)}"


def _summary(cell: Cell) -> str:
    seen = cell.seen
    if isinstance(seen, Absent):
        return f"({seen.reason})"
    if isinstance(seen, Broken):
        return f"BROKEN: {seen.problem}"
    counts = f"recovery {seen.recovery.after_s:.1f} s ({seen.recovery.refused} refused), {_counts(cell)}"
    complaints = "; ".join(cell.complaints())
    return f"{seen.client}, {counts}" + (f" — RED: {complaints}" if complaints else "")


def _counts(cell: Cell) -> str:
    seen = cell.seen
    assert not isinstance(seen, Absent | Broken)
    told = " (told)" if seen.lost_lines and seen.is_loss_told else ""
    return f"{seen.orphans} orphans, {seen.leaked_leases} leases, {seen.lost_lines} lost lines{told}"


def terminal_table(engines: Sequence[Engine], faults: Sequence[Fault], cells: Iterable[Cell]) -> Table:
    """Faults down, engines across."""
    found = {(cell.engine, cell.fault.key): cell for cell in cells}
    table = Table("fault", *(engine.title for engine in engines), title="fault matrix", show_lines=True)
    for fault in faults:
        table.add_row(fault.title, *(_text(found.get((engine.key, fault.key))) for engine in engines))
    return table


def _text(cell: Cell | None) -> Text:
    if cell is None:
        return Text("not run", style="dim")
    style = "red" if cell.complaints() else "dim" if isinstance(cell.seen, Absent) else "green"
    return Text(_summary(cell), style=style)


def markdown(engines: Sequence[Engine], faults: Sequence[Fault], cells: Iterable[Cell], machine: str) -> str:
    """The whole document: the same cells and machine give the same bytes."""
    found = {(cell.engine, cell.fault.key): cell for cell in cells}
    versions = ", ".join(f"{engine.title} {engine.version()}" for engine in engines)
    lines = [HEAD.format(machine=machine, engines=versions, clocks=_clocks(engines))]
    for fault in faults:
        lines += [f"\n## {fault.title}\n", f"Promise: {fault.promise}.\n"]
        lines += [
            "| engine | client | recovery | refused | orphans | leases | lost lines |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [_row(engine, found.get((engine.key, fault.key))) for engine in engines]
    return "\n".join(lines) + "\n"


def _clocks(engines: Sequence[Engine]) -> str:
    stalls = sorted({engine.clocks.start_stall_s for engine in engines})
    healths = sorted({engine.clocks.health_timeout_s for engine in engines})
    firsts = sorted({engine.clocks.first_byte_s for engine in engines})
    return (
        f"health checks every 0.5 s with {healths[0]:g} to {healths[-1]:g} s for an answer, three of them; "
        f"`start_stall_timeout_s` {stalls[0]:g} to {stalls[-1]:g}; `first_byte_s` {firsts[0]:g} to {firsts[-1]:g}"
    )


def _row(engine: Engine, cell: Cell | None) -> str:
    if cell is None:
        return f"| {engine.title} | not run | | | | | |"
    seen = cell.seen
    if isinstance(seen, Absent):
        return f"| {engine.title} | *{seen.reason}* | | | | | |"
    if isinstance(seen, Broken):
        return f"| {engine.title} | **broken**: {seen.problem.splitlines()[0]} | | | | | |"
    told = " (told)" if seen.lost_lines and seen.is_loss_told else ""
    red = f" **{'; '.join(cell.complaints())}**" if cell.complaints() else ""
    counts = (seen.recovery.refused, seen.orphans, seen.leaked_leases, f"{seen.lost_lines}{told}")
    return f"| {engine.title} | {seen.client}{red} | {seen.recovery.after_s:.1f} s | {' | '.join(map(str, counts))} |"
