"""What people read of a run."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.errors import BenchmarkError
from benchmarks.journal import DONE, began, ended, sampled
from benchmarks.plan import Plan, save_plan
from benchmarks.records import JOURNAL, RecordFile, Row
from benchmarks.report import plots, series
from benchmarks.report.plots import Line, Plot, draw, linear_axis, log_axis
from benchmarks.report.summary import read_outcome, summarise
from benchmarks.report.wording import figure, share
from benchmarks.report.writing import write_report
from tests.unit.benchmarks.rows import failed, row
from tests.unit.benchmarks.test_records import keep
from tests.unit.benchmarks.test_validity import sample

# The keys of `vllm bench serve --save-result` 0.32.0 with its default options, but for the arrays of --save-detailed.
VLLM_KEYS = """date endpoint_type backend label model_id tokenizer_id num_prompts request_rate burstiness
max_concurrency duration completed failed total_input_tokens total_output_tokens request_throughput
request_goodput output_throughput total_token_throughput max_output_tokens_per_s
max_concurrent_requests mean_ttft_ms median_ttft_ms std_ttft_ms p99_ttft_ms mean_tpot_ms
median_tpot_ms std_tpot_ms p99_tpot_ms mean_itl_ms median_itl_ms std_itl_ms p99_itl_ms mean_e2el_ms
median_e2el_ms std_e2el_ms p99_e2el_ms""".split()  # noqa: SIM905 - a list to be read

ENVIRONMENT = {"date": "2026-11-24T08:00:00Z", "dataset": {"about": "synthetic", "sha256": "ab", "notes": ["a note"]},
               "client": {"cpu": "<b>CPU</b>"}, "argv": ["unigate", "bench"], "gpus": [{"name": "RTX", "ecc": None}],
               "tokenizer": {"place": "dir", "sha256": "cd"}}  # fmt: skip


def make_run(folder: Path, rows: list[Row], **plan: Any) -> Path:
    """The folder of a run that wrote *rows*."""
    folder.mkdir(exist_ok=True)
    load = {} if {"concurrency", "sweep", "rates"} & plan.keys() else {"rate": 10.0}
    save_plan(Plan("http://127.0.0.1:8000/v1", "<m>", **{"num_prompts": len(rows), **load, **plan}), folder)
    keep(folder, *rows)
    journal = RecordFile(folder / JOURNAL)
    servers = {"vllm": {"running": 3.0, "waiting": 0.0, "kv": 0.4}}
    journal.add(
        began(0, ENVIRONMENT, {"version": "/version 0.32.0", "model": {"id": "m"}, "backends": [{"engine": "vllm"}]})
    )
    for at in range(12):
        journal.add(sampled(sample(float(at), servers=servers)))
    journal.add(ended(0, DONE, {}, len(rows)))
    journal.close()
    return folder


def some_rows(count: int = 120) -> list[Row]:
    """Requests every 0.1 s, of which every 40th fails."""
    return [
        failed(number, number * 0.1, error_text="<script>alert(1)</script> | x")
        if number % 40 == 39
        else row(number, number * 0.1, first=0.1 + number % 7 / 100)
        for number in range(count)
    ]


class Tags(HTMLParser):
    """Notes tags, and that each is closed."""

    VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_same_files_give_the_same_reports(tmp_path: Path) -> None:
    """Every number is recomputed from the raw files: made anew, the reports are the same to the byte."""
    folder = make_run(tmp_path / "run", some_rows(), goodput={"ttft": 150.0})
    first = [path.read_bytes() for path in write_report(folder).files]
    for path in folder.glob("*.*"):
        if path.name in ("summary.json", "report.md", "report.html"):
            path.unlink()
    assert [path.read_bytes() for path in write_report(folder).files] == first


def test_the_summary_has_all_keys_of_vllm(tmp_path: Path) -> None:
    """What plots the results of `vllm bench serve` finds what it looks for."""
    summary = json.loads(write_report(make_run(tmp_path / "run", some_rows())).files[0].read_text())
    assert [key for key in VLLM_KEYS if key not in summary] == []
    assert (summary["completed"], summary["failed"], summary["num_prompts"]) == (117, 3, 120)
    assert summary["mean_tpot_ms"] == pytest.approx(10.0)
    assert summary["output_throughput"] == pytest.approx(117 * 11 / summary["duration"])
    assert summary["request_goodput"] is None


def test_what_is_not_known_is_null(tmp_path: Path) -> None:
    """A percentile of too few requests, and the first token of answers that came whole, are null and not 0."""
    whole = [row(number, number * 0.1, first_token=None, token_us=()) for number in range(20)]
    summary = summarise(read_outcome(make_run(tmp_path / "run", whole, stream=False)))
    assert (summary["mean_ttft_ms"], summary["p99_e2el_ms"], summary["mean_itl_ms"]) == (None, None, None)
    assert summary["mean_e2el_ms"] > 0


def test_gaps_between_bundles_are_not_called_inter_token(tmp_path: Path) -> None:
    """With two tokens per chunk there is an inter-chunk latency and no ITL."""
    bundled = [row(number, number * 0.1, tokens=10, token_us=(100, 200, 200, 200, 200)) for number in range(20)]
    summary = summarise(read_outcome(make_run(tmp_path / "run", bundled)))
    assert (summary["mean_itl_ms"], summary["mean_inter_chunk_ms"]) == (None, pytest.approx(0.2))


def test_thinking_is_shown_apart(tmp_path: Path) -> None:
    """A model that reasons has a first token and, later, a first output; of others there is one time."""
    thinking = [row(number, number * 0.1, first_output=number * 0.1 + 0.15) for number in range(20)]
    text = write_report(make_run(tmp_path / "thinks", thinking)).files[1].read_text()
    assert "| TTFO, after reasoning | 150 |" in text
    assert "TTFO" not in write_report(make_run(tmp_path / "answers", some_rows())).files[1].read_text()


def test_a_closed_loop_has_no_intended_start(tmp_path: Path) -> None:
    """Without a schedule there is nothing to be late for, and the load is called closed."""
    summary = summarise(read_outcome(make_run(tmp_path / "run", some_rows(), concurrency=4)))
    assert summary["mean_ttft_from_intended_ms"] is None
    assert (summary["loop"], summary["request_rate"], summary["max_concurrency"]) == ("closed, C=4", "inf", 4)


def test_the_page_stands_alone(tmp_path: Path) -> None:
    """One file: no script, nothing fetched, every tag closed, and what others wrote is text."""
    page = write_report(make_run(tmp_path / "run", some_rows())).files[2].read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    names = {tag for tag, _ in tags.seen}
    assert not names & {"script", "link", "img", "iframe", "object"}
    assert not [attributes for _, attributes in tags.seen if {"src", "href", "onload"} & attributes.keys()]
    assert "url(" not in page
    assert "@import" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<b>CPU</b>" not in page
    assert page.count("<svg") == 10
    assert "NaN" not in page


def test_the_markdown_is_a_table_for_a_pull_request(tmp_path: Path) -> None:
    """Verdict, numbers, latencies, failures and origin; what others wrote breaks no table."""
    text = write_report(make_run(tmp_path / "run", some_rows(), goodput={"ttft": 150.0})).files[1].read_text()
    assert "**VALID**" in text
    assert "| TTFT | " in text
    assert "| http | 3 | <script>alert(1)</script> \\| x |" in text
    assert "goodput" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_the_terminal_shows_the_verdict(tmp_path: Path) -> None:
    """An invalid run says so, and why, where its numbers are."""
    late = [row(number, number * 0.1 + 0.05, intended=number * 0.1) for number in range(50)]
    report = write_report(make_run(tmp_path / "run", late))
    console = Console(width=200, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as shown:
        console.print(report.shown)
    assert not report.is_valid
    assert "INVALID" in shown.get()
    assert "send lag" in shown.get()


def test_a_sweep_is_one_report_of_its_steps(tmp_path: Path) -> None:
    """Each step is a run; the sweep's page has the curves and names the rate at which the server is full."""
    folder = tmp_path / "sweep"
    folder.mkdir()
    save_plan(Plan("http://127.0.0.1:8000/v1", "m", num_prompts=100, sweep=True), folder)
    keeping = [row(number, number * 0.1) for number in range(100)]
    behind = [row(number, number * 0.05, first=0.1 + number * 0.05) for number in range(100)]
    make_run(folder / "rate-10", keeping, rate=10.0)
    make_run(folder / "rate-20", behind, rate=20.0)
    summary = write_report(folder).summary
    assert summary["saturated_at"] == 20.0
    assert summary["found"].startswith(
        "The server keeps up with 10 requests/s and is saturated at 20 (answers fall behind)"
    )
    assert [step["folder"] for step in summary["steps"]] == ["rate-10", "rate-20"]
    tags = Tags()
    tags.feed((folder / "report.html").read_text())
    assert tags.open == []
    assert sum(tag == "svg" for tag, _ in tags.seen) == 4


def test_a_run_without_a_row_is_told(tmp_path: Path) -> None:
    """There is no report of nothing."""
    with pytest.raises(BenchmarkError, match="nothing has been measured yet"):
        write_report(make_run(tmp_path / "run", [], num_prompts=3))
    folder = tmp_path / "sweep"
    folder.mkdir()
    save_plan(Plan("http://127.0.0.1:8000/v1", "m", num_prompts=100, sweep=True), folder)
    with pytest.raises(BenchmarkError, match="no step of this sweep"):
        write_report(folder)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0 ms"),
        (0.01234, "0.0123 ms"),
        (1.234, "1.23 ms"),
        (51.23, "51.2 ms"),
        (1234.5, "1\u2009234 ms"),
    ],
)
def test_a_figure_has_three_digits_that_mean_something(value: float | None, text: str) -> None:
    """What is not known is a dash, not a zero."""
    assert figure(value, "ms" if value is not None else "") == text


def test_a_share_is_per_cent() -> None:
    """Two in a hundred are 2 %."""
    assert (share(0.02), share(None), share(1.0)) == ("2 %", "–", "100 %")


@pytest.mark.parametrize(
    ("low", "high", "ends"), [(0.0, 97.0, (0.0, 100.0)), (0.0, 0.0, (0.0, 1.0)), (3.0, 3.0, (0.0, 3.0))]
)
def test_an_axis_ends_on_round_numbers(low: float, high: float, ends: tuple[float, float]) -> None:
    """Whatever the values, the ends and the ticks are round, and there is a span to draw in."""
    axis = linear_axis(low, high)
    assert (axis.low, axis.high) == pytest.approx(ends)
    assert axis.share(axis.high) == 1.0
    assert 2 <= len(axis.ticks) <= 9


def test_a_tick_has_the_digits_of_its_step() -> None:
    """Steps of two and a half are labelled so, not rounded to whole numbers."""
    assert [text for _, text in linear_axis(0.0, 9.0, wanted=4).ticks] == ["0.0", "2.5", "5.0", "7.5", "10.0"]
    assert [text for _, text in linear_axis(0.0, 0.5, wanted=5).ticks][:3] == ["0.0", "0.1", "0.2"]


def test_a_ramp_has_no_steady_window(tmp_path: Path) -> None:
    """Where the load is to change, nothing of it is called steady, and that is no flaw."""
    summary = summarise(read_outcome(make_run(tmp_path / "run", some_rows(), ramp_to=20.0)))
    assert summary["steady"]["request_throughput"] is None
    assert not [text for text in summary["validity"]["warnings"] if "steady" in text]


def test_a_logarithmic_axis_is_of_powers_of_ten() -> None:
    """Its ends are powers of ten around the values; with few of them 2 and 5 stand between."""
    axis = log_axis(3.0, 40.0)
    assert (axis.low, axis.high) == (1.0, 100.0)
    assert [text for _, text in axis.ticks] == ["1", "2", "5", "10", "20", "50", "100"]
    assert axis.share(10.0) == pytest.approx(0.5)


def test_a_plot_without_values_says_so() -> None:
    """An empty plot is a sentence, not an exception."""
    assert "Nothing to draw" in draw(Plot("a", "b", "x", "y", [Line("", [])]))


def test_every_style_of_line_is_drawn_inside_the_frame() -> None:
    """Lines, steps, dots, bars, marks and shade stay between the axes."""
    points = [(float(number), float(number % 5)) for number in range(30)]
    lines = [Line(style, points, style=style) for style in ("line", "steps", "dots")]
    text = draw(Plot("a", "b", "x", "y", lines, bars=[(0.0, 1.0, 2.0)], marks=[(20.0, "here")], shade=(2.0, 8.0)))
    numbers = [float(number) for path in re.findall(r' d="([^"]*)"', text) for number in re.findall(r"\d+\.\d+", path)]
    assert numbers
    assert all(0 <= number <= plots.WIDTH for number in numbers)


def test_rates_add_up() -> None:
    """What is in the buckets is what came."""
    points = series.rates([(0.05, 2.0), (0.95, 1.0), (1.0, 1.0)], 1.0, 0.5)
    assert points == [(0.25, 4.0), (0.75, 4.0)]


@pytest.mark.parametrize(("duration", "width"), [(1.0, 0.1), (15.0, 0.2), (60.0, 1.0), (3600.0, 50.0)])
def test_a_bucket_is_a_round_number(duration: float, width: float) -> None:
    """About a hundred of them make a run."""
    assert series.bucket_s(duration) == pytest.approx(width)


def test_thinning_keeps_every_spike() -> None:
    """Of many points fewer are drawn, the highest and the lowest among them."""
    points = [(float(number), 0.0) for number in range(10_000)]
    points[5003] = (5003.0, 9.0)
    thin = series.thinned(points)
    assert len(thin) <= series.MOST_POINTS + 2
    assert (5003.0, 9.0) in thin


def test_a_histogram_counts_everything_once() -> None:
    """Every value is in one bar, those above the 99th percentile in the last."""
    values = [float(number) for number in range(1000)] + [1e6]
    bars = series.histogram(values)
    assert sum(count for _, _, count in bars) == 1001
    assert bars[-1][1] < 2000
    assert series.histogram([]) == []
    assert sum(count for _, _, count in series.histogram([3.0, 3.0])) == 2


def test_a_cumulative_share_ends_at_one() -> None:
    """All of the values are at most the largest."""
    points = series.cumulative([3.0, 1.0, 2.0])
    assert points == [(1.0, 1 / 3), (2.0, 2 / 3), (3.0, 1.0)]
    assert series.cumulative([]) == []
    assert series.cumulative([float(number) for number in range(9999)])[-1] == (9998.0, 1.0)
