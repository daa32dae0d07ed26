"""The report as one HTML file that needs nothing else: plots inline, light and dark, made to be printed too."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any

from benchmarks.distributions import quantile
from benchmarks.measures import output_tokens, session_offsets, tpot, ttft
from benchmarks.report import series
from benchmarks.report.markdown import SWEEP_COLUMNS, origin_rows
from benchmarks.report.plots import Line, Plot, draw
from benchmarks.report.summary import Outcome
from benchmarks.report.wording import COLUMNS, figure, gap_name, head_rows, latency_rows, title, withheld

REPORT = "report.html"


def as_page(outcome: Outcome, summary: dict[str, Any]) -> str:
    """The report of one run."""
    sections = [
        _header(title(summary), summary),
        _tiles(summary),
        f'<section class="plots">{"".join(draw(plot) for plot in run_plots(outcome, summary))}</section>',
        _tables(summary),
    ]
    return _document(title(summary), sections)


def sweep_page(steps: Sequence[dict[str, Any]], name: str, found: str) -> str:
    """The report of a sweep."""
    head = "".join(f"<th>{escape(column)}</th>" for column, _ in SWEEP_COLUMNS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell(step))}</td>" for _, cell in SWEEP_COLUMNS) + "</tr>" for step in steps
    )
    sections = [
        f"<header><h1>{escape(name)} · sweep</h1><p>{escape(found)}</p></header>",
        f'<section class="plots">{"".join(draw(plot) for plot in sweep_plots(steps))}</section>',
        f'<section><h2>Steps</h2><div class="wide"><table class="numbers"><tr>{head}</tr>{rows}</table></div>'
        "<p>Each step is a run of its own; its report is in its folder.</p></section>",
        _origin(steps[0]),
    ]
    return _document(f"{name} · sweep", sections)


def run_plots(outcome: Outcome, summary: dict[str, Any]) -> list[Plot]:
    """The plots of one run."""
    rows, numbers = outcome.rows, outcome.numbers
    good = [row for row in rows if row.is_good]
    first = [value * 1000 for row in good if (value := ttft(row)) is not None]
    gaps = [gap / 1000 for row in good for gap in row.token_us[1:]]
    each = [value * 1000 for row in good if (value := tpot(row, output_tokens(row, outcome.recounts))) is not None]
    width = series.bucket_s(numbers.duration)
    offsets = session_offsets(rows)
    tokens = series.token_arrivals(rows, dict(outcome.recounts))
    ends = [(row.end, 1.0) for row in good]
    wide = series.bucket_s(numbers.duration * 2.5)
    gap = gap_name(summary)
    plots = []
    if first:
        plots.append(_histogram("Time to first token", first, "ms"))
    if gaps:
        plots.append(_histogram(gap.capitalize(), gaps, "ms"))
    shares = [
        Line("TTFT", series.cumulative(first), 1),
        Line("TPOT", series.cumulative(each), 2),
        Line(gap, series.cumulative(gaps), 3),
        Line("E2E", series.cumulative([(row.end - row.sent) * 1000 for row in good]), 4),
    ]
    plots.append(
        Plot(
            "How many were at most that slow",
            "The share of requests, or of gaps, up to each latency, on a logarithmic scale.",
            "ms",
            "share",
            shares,
            is_log_x=True,
            y_most=1.0,
        )
    )
    plots.append(_latency_over_time(outcome))
    plots.append(
        Plot(
            "Output tokens per second",
            f"Output tokens that came in each {width:g} s.",
            "seconds since the start",
            "tokens/s",
            [Line("", series.rates(tokens, numbers.duration, width), 2, "line")],
            shade=numbers.steady,
        )
    )
    plots.append(
        Plot(
            "Requests per second",
            f"Requests sent and answered in each {wide:g} s.",
            "seconds since the start",
            "requests/s",
            [
                Line("sent", series.rates([(row.sent, 1.0) for row in rows], numbers.duration, wide), 1),
                Line("answered", series.rates(ends, numbers.duration, wide), 2),
                Line("failed", _failures_over_time(outcome, wide), 5),
            ],
            shade=numbers.steady,
        )
    )
    plots += _server_plots(outcome, offsets)
    client = series.client_lines(outcome.journal.samples, offsets)
    plots.append(
        Plot(
            "This client: CPU",
            "The share of one core the load generator used.",
            "seconds since the start",
            "of one core",
            [Line("", client["cpu"], 1)],
            y_most=max([1.0, *(value for _, value in client["cpu"])]),
        )
    )
    plots.append(
        Plot(
            "This client: lateness of its ticks",
            "The latest of the clock ticks between two samples.",
            "seconds since the start",
            "ms",
            [Line("", client["lag"], 5)],
        )
    )
    return plots


def _histogram(name: str, values: Sequence[float], unit: str) -> Plot:
    ordered = sorted(values)
    bars = series.histogram(ordered)
    marks = [(quantile(ordered, 0.5), f"median {figure(quantile(ordered, 0.5))}")]
    above = sum(value > bars[-1][1] for value in ordered)
    notes = (
        [f"The last bar holds the {above} above {figure(bars[-1][1])} {unit}, up to {figure(ordered[-1])}."]
        if above
        else []
    )
    return Plot(
        name,
        f"Histogram of {len(ordered)} values; median {figure(quantile(ordered, 0.5))} {unit}.",
        unit,
        "count",
        bars=[(low, high, float(count)) for low, high, count in bars],
        marks=marks,
        notes=notes,
    )


def _latency_over_time(outcome: Outcome) -> Plot:
    good = [row for row in outcome.rows if row.is_good]
    is_open = outcome.plan.is_open
    begins = [row.intended if is_open else row.sent for row in good]
    whole = [(begin, (row.end - begin) * 1000) for begin, row in zip(begins, good, strict=True)]
    first = [
        (begin, (row.first_token - begin) * 1000)
        for begin, row in zip(begins, good, strict=True)
        if row.first_token is not None
    ]
    since = "from the intended start" if is_open else "from sending"
    return Plot(
        f"Latency over time, {since}",
        "One dot per request: its time to first token, and to its end.",
        "seconds since the start",
        "ms",
        [
            Line("E2E", series.thinned(whole), 4, "dots"),
            Line("TTFT", series.thinned(first), 1, "dots"),
        ],
        is_log_y=True,
        shade=outcome.numbers.steady,
    )


def _failures_over_time(outcome: Outcome, width: float) -> series.Points:
    failures = [(row.end, 1.0) for row in outcome.rows if not row.is_good]
    return series.rates(failures, outcome.numbers.duration, width) if failures else []


def _server_plots(outcome: Outcome, offsets: dict[int, float]) -> list[Plot]:
    lines = series.server_lines(outcome.journal.samples, offsets)
    busy = [Line("under way, as sent", series.in_flight(outcome.rows), 1, "steps")]
    full = []
    colour = 2
    for (name, quantity), points in sorted(lines.items()):
        if quantity == "kv":
            full.append(Line(f"{name}", points, 3))
        else:
            busy.append(Line(f"{name}: {quantity}", points, min(5, colour), is_dashed=quantity == "waiting"))
            colour += 1
    notes = () if lines else ("The server's own metrics could not be read; --metrics-url names another address.",)
    plots = [
        Plot(
            "Requests under way",
            "Requests this client had under way, and what the server's metrics say is running and waiting.",
            "seconds since the start",
            "requests",
            busy,
            shade=outcome.numbers.steady,
            notes=notes,
        )
    ]
    if full:
        plots.append(
            Plot(
                "KV cache in use",
                "How full the engine's KV cache was.",
                "seconds since the start",
                "share",
                full,
                y_most=1.0,
            )
        )
    return plots


def sweep_plots(steps: Sequence[dict[str, Any]]) -> list[Plot]:
    """The plots of a sweep."""

    def over_rate(key: str, *, of: str | None = None) -> list[tuple[float, float]]:
        found = []
        for step in steps:
            value = step[of][key] if of else step[key]
            if value is not None:
                found.append((step["request_rate"], value))
        return found

    offered = over_rate("request_rate")
    return [
        Plot(
            "Time to first token against the rate",
            "Mean, median and longest time to first token, from the intended start, at each offered rate.",
            "offered requests per second",
            "ms",
            [
                Line("mean", over_rate("mean_ttft_from_intended_ms"), 1),
                Line("median", over_rate("median_ttft_from_intended_ms"), 2),
                Line("longest", over_rate("max_ttft_from_intended_ms"), 5, is_dashed=True),
            ],
            is_log_y=True,
        ),
        Plot(
            "Time per output token against the rate",
            "Mean and median time per output token at each offered rate.",
            "offered requests per second",
            "ms",
            [Line("mean", over_rate("mean_tpot_ms"), 1), Line("median", over_rate("median_tpot_ms"), 2)],
        ),
        Plot(
            "Requests answered against the rate",
            "Requests answered per second at each offered rate; the dashed line is all of them.",
            "offered requests per second",
            "requests/s",
            [
                Line("offered", offered, 4, is_dashed=True),
                Line("answered, steady window", over_rate("request_throughput", of="steady"), 2),
                Line("goodput, whole run", over_rate("request_goodput"), 3),
            ],
        ),
        Plot(
            "Output tokens against the rate",
            "Output tokens per second in the steady window at each offered rate.",
            "offered requests per second",
            "tokens/s",
            [Line("", over_rate("output_throughput", of="steady"), 2)],
        ),
    ]


def _header(name: str, summary: dict[str, Any]) -> str:
    validity = summary["validity"]
    word = '<b class="good">VALID</b>' if validity["is_valid"] else '<b class="bad">INVALID</b>'
    reasons = "".join(f'<li class="bad">{escape(reason)}</li>' for reason in validity["reasons"])
    warnings = "".join(f"<li>{escape(warning)}</li>" for warning in validity["warnings"])
    notes = f"<ul>{reasons}{warnings}</ul>" if reasons or warnings else ""
    return f"<header><h1>{escape(name)} {word}</h1>{notes}</header>"


def _tiles(summary: dict[str, Any]) -> str:
    tiles = [
        ("output tokens/s", figure(summary["steady"]["output_throughput"] or summary["output_throughput"])),
        ("requests/s", figure(summary["steady"]["request_throughput"] or summary["request_throughput"])),
        ("TTFT median", figure(summary["median_ttft_ms"], "ms")),
        ("TPOT mean", figure(summary["mean_tpot_ms"], "ms")),
        ("E2E median", figure(summary["median_e2el_ms"], "ms")),
        ("failed", figure(summary["failures"]["share"] * 100, "%")),
    ]
    if summary["goodput"]["of_all_sent"] is not None:
        tiles.append(("kept the goal", figure(summary["goodput"]["of_all_sent"] * 100, "%")))
    return '<section class="tiles">' + "".join(
        f"<div><b>{escape(text)}</b><span>{escape(name)}</span></div>" for name, text in tiles
    ) + "</section>"  # fmt: skip


def _tables(summary: dict[str, Any]) -> str:
    heads = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in head_rows(summary))
    columns = "".join(f"<th>{name}</th>" for _, name in COLUMNS)
    latencies = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(text)}</td>' for text in values)}</tr>"
        for name, values in latency_rows(summary)
    )
    missing = f"<p>{escape(withheld(summary))}</p>" if withheld(summary) else ""
    return (
        f'<section class="two"><div><h2>Numbers</h2><table>{heads}</table></div>'
        f'<div><h2>Latencies, ms</h2><div class="wide"><table class="numbers"><tr><th></th>{columns}</tr>{latencies}'
        f"</table></div>{missing}</div></section>{_failures(summary)}{_origin(summary)}"
    )


def _failures(summary: dict[str, Any]) -> str:
    if not summary["failed"]:
        return ""
    rows = "".join(
        f"<tr><th>{escape(kind)}</th><td>{count}</td>"
        f"<td>{escape(summary['failures']['examples'].get(kind, '')[:300])}</td></tr>"
        for kind, count in summary["failures"]["by_kind"].items()
    )
    head = "<tr><th>kind</th><th>requests</th><th>first</th></tr>"
    return f'<section><h2>Failures</h2><table class="origin">{head}{rows}</table></section>'


def _origin(summary: dict[str, Any]) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in origin_rows(summary))
    return f'<section><h2>Where these numbers are from</h2><table class="origin">{rows}</table></section>'


def _document(name: str, sections: Sequence[str]) -> str:
    style = resources.files("benchmarks.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(name)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<style>{style}</style></head><body><main>{''.join(sections)}</main></body></html>\n"
    )
