"""`python -m tests.fault.matrix`: run it, show it, and write it down. Exit code 1 when a cell is not as promised."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console

from tests.fault.matrix.cells import Cell
from tests.fault.matrix.engines import ENGINES, machine
from tests.fault.matrix.faults import FAULTS
from tests.fault.matrix.run import run_row
from tests.fault.matrix.table import markdown, one_line, terminal_table


def main(arguments: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(arguments)
    engines = [ENGINES[key] for key in options.engines or ENGINES]
    faults = [fault for fault in FAULTS if not options.faults or fault.key in options.faults]
    cells: list[Cell] = []
    before = time.monotonic()
    for engine in engines:
        cells += run_row(engine, faults, tell)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(terminal_table(engines, faults, cells))
    if options.write is not None:
        options.write.parent.mkdir(exist_ok=True)
        options.write.write_text(markdown(engines, faults, cells, machine()), encoding="utf-8")
    red = [cell for cell in cells if cell.complaints()]
    for cell in red:
        print(f"RED {one_line(cell)}")
    print(f"{len(cells)} cells, {len(red)} red, {time.monotonic() - before:.0f} s")
    return 1 if red else 0


def tell(cell: Cell, took_s: float) -> None:
    """One line for each cell as it comes."""
    print(f"[{took_s:5.1f} s] {one_line(cell)}", flush=True)


def parser() -> argparse.ArgumentParser:
    """Which part of it, and where to."""
    p = argparse.ArgumentParser(prog="python -m tests.fault.matrix", description=__doc__)
    p.add_argument("--engines", nargs="+", choices=sorted(ENGINES), metavar="ENGINE", help=", ".join(ENGINES))
    p.add_argument("--faults", nargs="+", choices=[fault.key for fault in FAULTS], metavar="FAULT")
    p.add_argument("--write", type=Path, metavar="FILE", help="write the matrix down as Markdown")
    return p


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
