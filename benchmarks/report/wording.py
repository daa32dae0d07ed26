"""How numbers are written, the same in the terminal, in Markdown and on the page."""

from __future__ import annotations

from typing import Any

from benchmarks.distributions import needed

NONE = "–"


def figure(value: float | None, unit: str = "") -> str:
    """Three digits that mean something, and the unit: ``51.2 ms``. A dash for what is not known."""
    if value is None:
        return NONE
    size = abs(value)
    digits = 0 if size >= 100 or value == int(value) else 1 if size >= 10 else 2 if size >= 0.1 else 4
    text = f"{value:,.{digits}f}".replace(",", "\u2009")
    return f"{text} {unit}".rstrip()


def share(value: float | None) -> str:
    """A part as per cent."""
    return NONE if value is None else f"{value * 100:.3g} %"


def gap_name(summary: dict[str, Any]) -> str:
    """What the time between two chunks may be called."""
    return "inter-token latency" if summary["tokens"]["is_one_per_chunk"] else "inter-chunk latency"


LATENCIES = (
    ("ttft", "TTFT"),
    ("ttft_from_intended", "TTFT from intended start"),
    ("ttfo", "TTFO, after reasoning"),
    ("tpot", "TPOT"),
    ("inter_chunk", ""),
    ("e2el", "E2E"),
    ("e2el_from_intended", "E2E from intended start"),
)
COLUMNS = (("mean", "mean"), ("median", "median"), ("p90", "p90"), ("p95", "p95"), ("p99", "p99"), ("max", "max"))


def latency_rows(summary: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """(name, a text per column of COLUMNS) of every latency that was measured."""
    found = []
    for key, name in LATENCIES:
        if key == "ttfo" and summary["mean_ttfo_ms"] == summary["mean_ttft_ms"]:
            continue  # nothing was thought before
        if summary[f"mean_{key}_ms"] is not None:
            values = [figure(summary[f"{column}_{key}_ms"]) for column, _ in COLUMNS]
            found.append((name or gap_name(summary), values))
    return found


def withheld(summary: dict[str, Any]) -> str:
    """Why percentiles are missing, if any are."""
    count = summary["samples"]["requests"] or summary["completed"]
    missing = [name for name in ("p90", "p95", "p99") if count < needed(float(name[1:]))]
    if not missing:
        return ""
    wanted = ", ".join(f"{name} {needed(float(name[1:]))}" for name in missing)
    return f"A percentile is given from 100/(1-p) samples on: {wanted}; there are {count} requests."


def head_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """What comes first: (name, text)."""
    goodput = summary["goodput"]
    rows = [
        (
            "requests",
            f"{summary['completed']} answered, {summary['failed']} failed ({share(summary['failures']['share'])})",
        ),
        ("duration", figure(summary["duration"], "s")),
        ("requests per second", _whole_and_steady(summary, "request_throughput")),
        ("output tokens per second", _whole_and_steady(summary, "output_throughput")),
        ("all tokens per second", figure(summary["total_token_throughput"])),
        (
            "tokens",
            f"{figure(summary['total_input_tokens'])} in, {figure(summary['total_output_tokens'])} out, "
            f"counted by {summary['tokens']['counted_by']}",
        ),
        ("most under way", figure(summary["max_concurrent_requests"])),
    ]
    if goodput["good"] is not None:
        asked = ", ".join(f"{name} ≤ {figure(limit)} ms" for name, limit in goodput["asked_ms"].items())
        kept = f"{figure(summary['request_goodput'])} per second, {share(goodput['of_all_sent'])} of all sent"
        rows.append(("goodput", f"{kept} ({asked})"))
    return rows


def _whole_and_steady(summary: dict[str, Any], key: str) -> str:
    whole, steady = summary[key], summary["steady"][key]
    return figure(whole) if steady is None else f"{figure(whole)} (steady window: {figure(steady)})"


def title(summary: dict[str, Any]) -> str:
    """What the run is called."""
    return f"{summary['label'] or summary['model_id']} · {summary['loop']}"
