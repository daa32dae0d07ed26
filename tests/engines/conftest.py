"""Engines that no package index has run only where somebody installed them; where not, the run says so."""

from __future__ import annotations

import shutil

import pytest

_LEFT_OUT = pytest.StashKey[int]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the suite of an Ollama that is not here: a skip would look like a test that passed."""
    if shutil.which("ollama"):
        return
    left_out = [item for item in items if item.get_closest_marker("engine_ollama")]
    if left_out:
        config.stash[_LEFT_OUT] = len(left_out)
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line for what was not run."""
    number = config.stash.get(_LEFT_OUT, 0)
    if number:
        terminalreporter.write_line(f"not run here: {number} tests on the real Ollama (no `ollama` on the PATH)")
