"""A run from its beginning to its end, in this process."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.cli import _scenario
from benchmarks.datasets.traces import Arrival
from benchmarks.errors import BenchmarkError
from benchmarks.journal import DONE, INTERRUPTED, Journal, read_journal, read_recounts
from benchmarks.measures import measure, on_one_axis
from benchmarks.plan import Plan, build_plan, load_plan
from benchmarks.progress import Progress, line
from benchmarks.records import MEASURED, WARM_UP, read_rows
from benchmarks.running import Run, Standing, headers_of, prepare, recount, resume, schedule, tls_context
from benchmarks.validity import judge
from tests.unit.benchmarks.serving import timed_server, until
from tests.unit.benchmarks.test_datasets import tokenizer as tokenizer
from tests.unit.benchmarks.test_datasets import write

STANDING = Standing("measured", "closed, C=4", 2.0, 100, 24, 20, 1, 4, 80, 0.1234)


def plan(url: str, **given: Any) -> Plan:
    """A short closed loop of short answers; the server's metrics are not looked for unless asked for."""
    load = {} if {"rate", "sweep"} & given.keys() else {"concurrency": 2}
    asked: dict[str, Any] = {
        "num_prompts": 6,
        "output_tokens": 3,
        "input_tokens": 8,
        "warm_up": 3,
        "sample_s": 0.05,
        **load,
    }
    asked |= {"metrics_url": [f"{url}/nothing"], **given}
    return build_plan({"base_url": url, "model": "m", **asked})


def ignore(standing: Standing) -> None:
    """Show nothing."""


async def go(made: Plan, folder: Path, environ: Mapping[str, str] | None = None, *, resumes: bool = False) -> bool:
    """Run *made* into *folder*; whether it came to its end."""
    return await Run(prepare(made, folder, resume=resumes), environ or {}, ignore).go()


async def test_a_run_leaves_rows_and_a_journal(tmp_path: Path) -> None:
    """Warm-up and measured requests are rows; the server's own metrics are on the same axis; a clean run is done."""
    async with timed_server(ttft_s=0.1) as (server, url):
        assert await go(plan(url, metrics_url=[]), tmp_path / "run")
        assert server.started == 9
    rows = read_rows(tmp_path / "run")
    assert [sum(row.phase == phase for row in rows) for phase in (WARM_UP, MEASURED)] == [3, 6]
    journal = read_journal(tmp_path / "run")
    assert journal.is_done
    (session,) = journal.sessions
    assert session.requests == 6
    assert session.before["servers"]["vllm"] == {"running": 0.0, "waiting": 0.0, "kv": 0.0, "finished": 3.0}
    assert session.after is not None
    assert session.after["servers"]["vllm"]["finished"] == 9.0
    assert max(sample.servers.get("vllm", {}).get("running", 0) for sample in journal.samples) == 2.0
    assert all(0 <= sample.at <= 10 for sample in journal.samples)
    assert load_plan(tmp_path / "run").concurrency == 2


async def test_an_interrupted_run_is_gone_on_with_where_it_was(tmp_path: Path) -> None:
    """What has a row is not asked again, and the second session asks only what is left."""
    folder = tmp_path / "run"
    async with timed_server(ttft_s=0.02) as (server, url):
        made = plan(url, num_prompts=20, warm_up=0, concurrency=1)
        run = Run(prepare(made, folder), {}, ignore)
        going = asyncio.create_task(run.go())
        await until(lambda: server.finished >= 5)
        run.interrupt()
        assert await going is False
        begun = {row.index for row in read_rows(folder)}
        assert 4 <= len(begun) < 20
        left = resume(folder)
        assert set(left.todo) == set(range(20)) - begun
        assert await Run(left, {}, ignore).go()
        assert await Run(resume(folder), {}, ignore).go()
    assert sorted(row.index for row in read_rows(folder)) == list(range(20))
    assert [session.ended for session in read_journal(folder).sessions] == [INTERRUPTED, DONE]


async def test_a_run_that_is_interrupted_in_its_warm_up_can_be_resumed(tmp_path: Path) -> None:
    """Nothing was measured; the plan is there, and the run begins anew."""
    folder = tmp_path / "run"
    async with timed_server(ttft_s=0.05) as (server, url):
        run = Run(prepare(plan(url), folder), {}, ignore)
        going = asyncio.create_task(run.go())
        await until(lambda: server.running == 2)
        run.interrupt()
        assert await going is False
        assert await Run(resume(folder), {}, ignore).go()
    assert read_journal(folder).is_done


async def test_a_run_is_not_resumed_with_other_prompts(tmp_path: Path) -> None:
    """When the dataset has changed since, that is said: half of a run cannot be of one and half of the other."""
    questions = write(tmp_path, "q.txt", "a\nb\nc\n")
    async with timed_server() as (_, url):
        made = plan(url, dataset=str(questions), num_prompts=3, warm_up=0)
        await go(made, tmp_path / "run")
    questions.write_text("a\nb\nd\n")
    with pytest.raises(BenchmarkError, match="the dataset is not the one this run began with"):
        resume(tmp_path / "run")


async def test_a_server_without_metrics_is_not_asked_again(tmp_path: Path) -> None:
    """Where nothing is at /metrics, samples are of this client only."""
    async with timed_server(ttft_s=0.1) as (_, url):
        await go(plan(url), tmp_path / "run")
    samples = read_journal(tmp_path / "run").samples
    assert samples
    assert [sample.servers for sample in samples] == [{}] * len(samples)


async def test_a_trace_is_replayed_with_its_own_lengths(tmp_path: Path) -> None:
    """Each request goes out at its time, as long as the trace says, and is answered as long as it says."""
    trace = write(tmp_path, "t.jsonl", "".join(
        f'{{"timestamp": {at}, "input_length": {length}, "output_length": 2}}\n' for at, length in ((0, 5), (50, 9))
    ))  # fmt: skip
    async with timed_server() as (_, url):
        given = {"arrivals": "trace", "trace": str(trace), "metrics_url": [f"{url}/nothing"]}
        await go(build_plan({"base_url": url, "model": "m", "warm_up": 0}, given), tmp_path / "run")
    rows = on_one_axis(read_rows(tmp_path / "run"))
    assert [(row.intended, row.prompt_tokens, row.output_tokens) for row in rows] == [(0.0, 5, 2), (0.05, 9, 2)]


async def test_answers_are_counted_again_with_our_tokenizer(tmp_path: Path, tokenizer: Any) -> None:
    """A server that charges for more than it sent is found out."""
    library = tmp_path / "tokenizer.json"
    tokenizer._library.save(str(library))
    async with timed_server(miscounts=30) as (_, url):
        prepared = prepare(plan(url, tokenizer=str(library), warm_up=0), tmp_path / "run")
        await Run(prepared, {}, ignore).go()
    recount(prepared)
    counts = read_recounts(tmp_path / "run")
    assert len(counts) == 6
    assert set(counts.values()) == {tokenizer.count("word word word ")}


async def test_more_at_once_than_files_may_be_open_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of this client is an error of this client, not a failure of the server."""
    monkeypatch.setattr("benchmarks.running.allow_many_files", lambda: 300)
    async with timed_server() as (server, url):
        with pytest.raises(BenchmarkError, match="100 requests at once need as many open files"):
            await go(plan(url, concurrency=100), tmp_path / "run")
        assert server.started == 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"rate": 2.0, "arrivals": "constant"}, [0.5, 1.0]),
        ({"rate": 1.0, "ramp_to": 3.0, "arrivals": "constant"}, [0.618034, 1.0]),
    ],
)
def test_a_schedule_is_made_before_anything_is_sent(given: dict[str, Any], expected: list[float] | None) -> None:
    """Constant, on a ramp, or none in a closed loop."""
    times = schedule(plan("http://x/v1", **given), 2)
    assert times == (None if expected is None else pytest.approx(expected))


def test_a_trace_is_a_schedule() -> None:
    """A trace's times, twice as fast."""
    made = Plan("http://x/v1", "m", arrivals="trace", trace="t", trace_speed=2.0)
    assert schedule(made, 2, [Arrival(1.0), Arrival(3.0)]) == [0.0, 1.0]


def test_a_key_that_no_header_can_carry_is_told() -> None:
    """A line end in a key is an error with the variable's name, and the key is not repeated."""
    made = plan("http://x/v1", api_key_env="MY_KEY")
    assert headers_of(made, {"MY_KEY": "k"}) == {"authorization": "Bearer k"}
    assert headers_of(made, {}) == {}
    with pytest.raises(BenchmarkError, match="MY_KEY") as told:
        headers_of(made, {"MY_KEY": "secret\nx: y"})
    assert "secret" not in str(told.value)


def test_certificates_that_are_not_there_are_told(tmp_path: Path) -> None:
    """A CA file that cannot be read is an error before anything is sent."""
    with pytest.raises(BenchmarkError, match="--ca-file"):
        tls_context(plan("https://x/v1", ca_file=str(tmp_path / "none.pem")))


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """An --out below a file is an error with its reason."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchmarkError, match="--out"):
        prepare(plan("http://x/v1"), tmp_path / "file" / "run")


def test_the_line_says_what_how_far_how_fast() -> None:
    """Rate, in flight, TTFT and errors are in the live line."""
    assert line(STANDING, 10.0) == "closed, C=4 · 20/100 · 2 s · 10.0 req/s · 4 in flight, TTFT 123 ms · 1 errors"
    assert line(Standing("warm_up", "", 0.0, 3, 0, 0, 0, 0, 0, None), 0.0).startswith("warming up · 0/3")


def test_progress_is_a_line_now_and_then_without_a_terminal() -> None:
    """In a pipe one line comes at once and the next only after a while; on a terminal it is rewritten."""
    piped, terminal = io.StringIO(), io.StringIO()
    with Progress(Console(file=piped, width=200)) as progress:
        progress.show(STANDING)
        progress.show(STANDING)
    assert piped.getvalue().count("closed, C=4") == 1
    with Progress(Console(file=terminal, width=200, force_terminal=True)) as progress:
        progress.show(STANDING)
    assert "closed, C=4" in terminal.getvalue()


def test_an_option_outweighs_the_scenario() -> None:
    """Another load replaces the scenario's own; without one it stays."""
    assert _scenario(None, {}) == {}
    assert _scenario("chat", {})["rate"] == 1.0
    assert "rate" not in _scenario("chat", {"concurrency": 4})
    assert _scenario("burst", {"rate": 5.0})["burstiness"] == 0.2
    assert "burstiness" not in _scenario("burst", {"concurrency": 5})
    assert "duration_s" not in _scenario("soak", {"num_prompts": 5})


def test_nothing_can_be_judged_of_nothing() -> None:
    """A run without rows is not valid."""
    made = plan("http://x/v1")
    numbers = measure([], {}, made.goal, is_open=False, concurrency=2)
    assert judge(made, [], numbers, Journal((), ()), {}).reasons == ("no request was answered as asked",)
