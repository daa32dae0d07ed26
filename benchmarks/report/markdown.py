"""The report as Markdown, for a pull request."""

from __future__ import annotations

from typing import Any

from benchmarks.report.wording import COLUMNS, figure, head_rows, latency_rows, share, title, withheld

REPORT = "report.md"


def as_markdown(summary: dict[str, Any]) -> str:
    """The report of one run."""
    lines = [f"# {_plain(title(summary))}", "", verdict_line(summary), ""]
    lines += [f"- {reason}" for reason in summary["validity"]["reasons"]]
    lines += [f"- note: {warning}" for warning in summary["validity"]["warnings"]]
    lines += ["", "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(text)} |" for name, text in head_rows(summary)]
    lines += ["", "| ms | " + " | ".join(name for _, name in COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
    lines += [f"| {name} | " + " | ".join(values) + " |" for name, values in latency_rows(summary)]
    if withheld(summary):
        lines += ["", withheld(summary)]
    if summary["failed"]:
        lines += ["", "| failure | requests | first |", "|---|---:|---|"]
        for kind, count in summary["failures"]["by_kind"].items():
            lines.append(f"| {kind} | {count} | {_cell(summary['failures']['examples'].get(kind, ''))[:200]} |")
    lines += ["", *(f"- {name}: {_cell(text)}" for name, text in origin_rows(summary)), ""]
    return "\n".join(lines)


def sweep_markdown(steps: list[dict[str, Any]], name: str, found: str) -> str:
    """The report of a sweep."""
    lines = [f"# {_plain(name)} · sweep", "", found, ""]
    names = [head for head, _ in SWEEP_COLUMNS]
    lines += ["| " + " | ".join(names) + " |", "|" + "---:|" * len(names)]
    lines += ["| " + " | ".join(cell(step) for _, cell in SWEEP_COLUMNS) + " |" for step in steps]
    lines += ["", *(f"- {key}: {_cell(text)}" for key, text in origin_rows(steps[0])), ""]
    return "\n".join(lines)


SWEEP_COLUMNS = (
    ("offered/s", lambda step: figure(step["request_rate"])),
    ("answered/s", lambda step: figure(step["request_throughput"])),
    ("output tok/s", lambda step: figure(step["output_throughput"])),
    ("TTFT mean ms", lambda step: figure(step["mean_ttft_ms"])),
    ("TTFT median ms", lambda step: figure(step["median_ttft_ms"])),
    ("TTFT max ms", lambda step: figure(step["max_ttft_ms"])),
    ("TPOT mean ms", lambda step: figure(step["mean_tpot_ms"])),
    ("E2E mean ms", lambda step: figure(step["mean_e2el_from_intended_ms"])),
    ("failed", lambda step: share(step["failures"]["share"])),
    ("verdict", lambda step: step["sweep"]["verdict"]),
)


def verdict_line(summary: dict[str, Any]) -> str:
    """One line: valid or not."""
    return "**VALID**" if summary["validity"]["is_valid"] else "**INVALID**: these numbers are not to be used"


def origin_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Where the numbers are from."""
    environment, server, plan = summary["environment"], summary["server"], summary["plan"]
    client = environment.get("client", {})
    rows = [
        ("when", str(environment.get("date"))),
        ("server", f"{plan['base_url']}, {plan['endpoint']}, {'streamed' if plan['stream'] else 'whole answers'}"),
        ("model", _said(server.get("model")) or plan["model"]),
        ("server version", str(server.get("version") or "not told")),
        ("load", f"{summary['loop']}, seed {plan['seed']}"),
        (
            "prompts",
            f"{environment.get('dataset', {}).get('about')}, sha256 {environment.get('dataset', {}).get('sha256')}",
        ),
        (
            "sampling",
            f"temperature {plan['temperature']}, at most {plan['output_tokens']} tokens"
            f"{', length forced' if plan['ignore_eos'] else ''}",
        ),
        (
            "client",
            f"{client.get('cpu')}, {client.get('cores')} cores, {client.get('system')}, "
            f"Python {environment.get('python')}, unigate {environment.get('unigate')}",
        ),
        (
            "client load",
            f"CPU {share(summary['client']['cpu_mean'])} of a core on average, ticks late by "
            f"{figure(summary['client']['tick_lag_p99_ms'], 'ms')} (p99)",
        ),
    ]
    rows += [("backend", _said(backend)) for backend in server.get("backends") or []]
    if environment.get("tokenizer"):
        rows.append(("tokenizer", _said(environment["tokenizer"])))
    rows += [("GPU", _said(gpu)) for gpu in environment.get("gpus", [])]
    if environment.get("argv"):
        rows.append(("command", " ".join(environment["argv"])))
    return rows


def _said(value: dict[str, Any] | None) -> str:
    return ", ".join(f"{name} {text}" for name, text in (value or {}).items() if text is not None)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _plain(text: str) -> str:
    return text.replace("\n", " ")
