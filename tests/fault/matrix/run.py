"""One row of the matrix: an engine, and one fault after the other."""

from __future__ import annotations

import contextlib
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.fault.matrix.cells import Broken, Cell, Fault, Seen
from tests.fault.matrix.engines import Engine
from tests.fault.matrix.stage import Stage, log_disk


def run_row(engine: Engine, faults: Sequence[Fault], tell: Callable[[Cell, float], None]) -> list[Cell]:
    """Every fault on *engine*; *tell* gets each cell as it is known, and how long it took in seconds."""
    cells = []
    for on_port in (False, True):
        chosen = [fault for fault in faults if fault.needs_port is on_port]
        for cell, took_s in _cells(engine, chosen, on_port=on_port):
            cells.append(cell)
            tell(cell, took_s)
    return cells


def _cells(engine: Engine, faults: Sequence[Fault], *, on_port: bool) -> Iterator[tuple[Cell, float]]:
    """The cells of faults that share a gateway, until one breaks: those behind it get another."""
    left = list(faults)
    while left:
        with tempfile.TemporaryDirectory(prefix="unigate-matrix-") as folder:
            stage = Stage(engine, Path(folder), on_port=on_port)
            with log_disk(stage):
                yield from _cells_of_one_stage(stage, left)


def _cells_of_one_stage(stage: Stage, left: list[Fault]) -> Iterator[tuple[Cell, float]]:
    is_whole = True
    try:
        stage.open()
        while left and is_whole:
            fault, before = left.pop(0), time.monotonic()
            seen = _seen(stage, fault)
            is_whole = not isinstance(seen, Broken)
            yield Cell(stage.engine.key, fault, seen), time.monotonic() - before
    finally:
        if is_whole:
            stage.close()
        else:
            # What broke was told already; a second complaint about the same would hide the next.
            with contextlib.suppress(AssertionError):
                stage.close()


def _seen(stage: Stage, fault: Fault) -> Seen:
    try:
        if not fault.is_cold:
            stage.recovery(time.monotonic())
        return fault.inject(stage)
    except Exception as problem:
        return Broken(f"{type(problem).__name__}: {problem}\n{traceback.format_exc(limit=-3)}")
