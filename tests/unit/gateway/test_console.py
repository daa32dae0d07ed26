"""What the command line shows of backends and findings."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from gateway.checking import Finding
from gateway.console import backends_table, duration, findings_table, memory, note, readings_table
from gateway.doctor import Reading


def backend(**changes: Any) -> dict[str, Any]:
    """A READY backend as the administration sends it."""
    return {
        "name": "qwen", "engine": "vllm", "state": "ready", "phase": "", "pid": 4711, "since_s": 75.4, "leases": 2,
        "waiting": 0, "restarts": 1, "retry_in_s": None, "diagnosis": None,
        "memory_bytes": 0, "gpus": [], "idle_s": None, "is_pinned": False, **changes,
    }  # fmt: skip


def printed(table: Table) -> list[str]:
    """A table's lines on a wide page."""
    page = io.StringIO()
    Console(file=page, width=200).print(table)
    return page.getvalue().splitlines()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0s"), (59.9, "59s"), (60, "1m"), (75, "1m15s"), (3600, "1h"), (3660, "1h1m"), (86_399, "23h59m"),
        (86_400, "1d"), (90_000, "1d1h"), (1_000_000, "11d13h"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    """A duration shows its two largest units."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, ""),
        ({"state": "starting", "phase": "loading weights"}, "loading weights"),
        (
            {"retry_in_s": 12.0, "diagnosis": {"reason": "It crashed.", "advice": "See its log."}},
            "next start in 12s; It crashed. See its log.",
        ),
    ],
)
def test_notes(changes: dict[str, Any], text: str) -> None:
    """A note says what a backend is doing, when it is tried again, and why it is not there."""
    assert note(backend(**changes)) == text


def test_a_line_for_each_backend() -> None:
    """ps shows every backend on a line of its own; brackets in a name are no markup."""
    lines = printed(backends_table([backend(), backend(name="[red]x[/]", state="stopped", pid=None)]))
    assert " ".join(lines[0].split()) == "MODEL ENGINE STATE SINCE PID BUSY WAITING RESTARTS MEMORY IDLE NOTE"
    assert lines[1].split() == ["qwen", "vllm", "ready", "1m15s", "4711", "2", "0", "1", "-", "-"]
    assert lines[2].split() == ["[red]x[/]", "vllm", "stopped", "1m15s", "-", "2", "0", "1", "-", "-"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "-"),
        ({"memory_bytes": 13 * 1024**3}, "13.0G"),
        ({"memory_bytes": 13 * 1024**3, "gpus": [0, 1], "is_pinned": True}, "13.0G gpu 0,1 pinned"),
        ({"is_pinned": True}, "- pinned"),
    ],
)
def test_memory(changes: dict[str, Any], text: str) -> None:
    """What a backend was granted is shown with its GPUs, and that it is pinned."""
    assert memory(backend(**changes)) == text


def test_findings() -> None:
    """check shows verdicts, and a remedy beside what is wrong."""
    good = Finding((), "gateway", True, "127.0.0.1:8080 is free")
    bad = Finding((), "qwen[0]", False, "no weights", "correct it")
    lines = printed(findings_table([good, bad]))
    assert [line.split() for line in lines[1:]] == [
        ["gateway", "ok", "127.0.0.1:8080", "is", "free"],
        ["qwen[0]", "problem", "no", "weights;", "correct", "it"],
    ]


def test_readings() -> None:
    """doctor marks what is good, what is bad, and leaves the rest unmarked."""
    readings = [
        Reading("disk", "state", "1 GiB free", False),
        Reading("python", "version", "3.11", True),
        Reading("memory", "ram", "8 GiB"),
    ]
    lines = printed(readings_table(readings))
    assert [line.split()[:3] for line in lines[1:]] == [
        ["disk", "state", "problem"],
        ["python", "version", "ok"],
        ["memory", "ram", "8"],
    ]
