"""The quick rows of the fault matrix; `make fault` makes all of it."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from tests.fault.matrix.cells import Absent, Broken, Cell, Fault, Outcome, Recovery, Seen
from tests.fault.matrix.engines import ENGINES, LLAMACPP, OLLAMA, REFERENCE, Engine
from tests.fault.matrix.faults import FAULTS
from tests.fault.matrix.run import run_row
from tests.fault.matrix.table import markdown, one_line, terminal_table


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(REFERENCE, id="reference"),
        pytest.param(OLLAMA, id="ollama"),
        pytest.param(LLAMACPP, id="llamacpp", marks=pytest.mark.engine_llamacpp),
    ],
)
def test_every_promise_is_kept(engine: Engine) -> None:
    """Whatever breaks, the client sees what was promised, the model comes back, and nothing is left or lost."""
    cells = run_row(engine, FAULTS, lambda cell, took_s: print(f"[{took_s:5.1f} s] {one_line(cell)}"))
    assert [cell.fault for cell in cells] == sorted(FAULTS, key=lambda fault: fault.needs_port)
    assert [one_line(cell) for cell in cells if cell.complaints()] == []


def never(stage: object) -> Outcome:
    """No fault is injected here."""
    raise AssertionError


FAULT = Fault("fault", "a fault", "one error event", r"200, then one error event \(\w+\)", never)
GOOD = Outcome("200, then one error event (code)", Recovery(1.5), 0, 0, 0)

BAD: dict[str, tuple[Seen, str]] = {
    "client": (
        replace(GOOD, client="200, whole"),
        "the client saw '200, whole', and should have seen: one error event",
    ),
    "orphan": (replace(GOOD, orphans=1), "1 processes live on"),
    "lease": (replace(GOOD, leaked_leases=2), "2 leases or requests stay counted"),
    "line": (replace(GOOD, lost_lines=3), "3 log lines are lost, and nobody was told"),
    "broken": (Broken("no answer any more"), "no answer any more"),
}


@pytest.mark.parametrize(("seen", "complaint"), BAD.values(), ids=BAD)
def test_a_broken_promise_is_red(seen: Seen, complaint: str) -> None:
    """Each count that is not as promised is a complaint of its own, and is shown."""
    cell = Cell("reference", FAULT, seen)
    assert cell.complaints() == [complaint]
    assert complaint in one_line(cell)
    assert complaint in markdown([REFERENCE], [FAULT], [cell], "a machine")


@pytest.mark.parametrize("seen", [GOOD, replace(GOOD, lost_lines=3, is_loss_told=True), Absent("has no child")])
def test_a_kept_promise_is_not(seen: Seen) -> None:
    """A loss that was told and an engine that has nothing to break are no complaint."""
    assert Cell("reference", FAULT, seen).complaints() == []


def test_what_is_written_down() -> None:
    """A row per engine under each fault, absent and missing cells said to be so, and no word of when or where."""
    other = replace(REFERENCE, key="other", title="other engine")
    third = replace(REFERENCE, key="third", title="third engine")
    cells = [Cell("reference", FAULT, GOOD), Cell("other", FAULT, Absent("has no child"))]
    text = markdown([REFERENCE, other, third], [FAULT], cells, "2 CPU cores")
    assert "| fake engine | 200, then one error event (code) | 1.5 s | 0 | 0 | 0 | 0 |" in text
    assert "| other engine | *has no child* | | | | | |" in text
    assert "| third engine | not run | | | | | |" in text
    assert text == markdown([REFERENCE, other, third], [FAULT], cells, "2 CPU cores")
    shown = io.StringIO()
    Console(file=shown, width=200).print(terminal_table([REFERENCE, other, third], [FAULT], cells))
    assert "has no child" in shown.getvalue()
    assert "not run" in shown.getvalue()


def test_the_matrix_is_whole() -> None:
    """Every engine has a key of its own, and every fault."""
    assert len({engine.key for engine in ENGINES.values()}) == len(ENGINES)
    assert len({fault.key for fault in FAULTS}) == len(FAULTS) >= 15
