"""`unigate bench` as people run it, against a server whose truth is planted: it has to be found."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import selftest
from benchmarks.journal import read_journal
from benchmarks.measures import on_one_axis
from benchmarks.records import MEASURED, Row, read_rows
from tests.gateways import ROOT, UNIGATE, until

RUN_S = 50.0
REPORTS = ("summary.json", "report.md", "report.html")


def environ(**added: str) -> dict[str, str]:
    """What the processes here inherit: nothing of this machine but its PATH."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT), **added}


@contextlib.contextmanager
def timed_server(*arguments: str) -> Iterator[str]:
    """A timed server in a process of its own; its base URL."""
    command = [sys.executable, "-m", "benchmarks.timed_server", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ()) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def command(url: str, out: Path, *options: str) -> list[str]:
    """A run against *url*: short answers, no warm-up unless asked for."""
    words = ("--base-url", url, "--model", "m", "--out", str(out), "--input-tokens", "8")
    warm_up = () if "--warm-up" in options else ("--warm-up", "0")
    return [UNIGATE, "bench", "run", *words, *warm_up, *options]


def bench(*arguments: str, added: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command, waited for; never a terminal."""
    return subprocess.run(
        arguments, env=environ(**(added or {})), capture_output=True, text=True, timeout=RUN_S,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


def summary(folder: Path) -> dict[str, Any]:
    """What a run came to."""
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def measured(folder: Path) -> list[Row]:
    """The measured rows of a run."""
    return on_one_axis([row for row in read_rows(folder) if row.phase == MEASURED])


def test_known_times_are_measured(tmp_path: Path) -> None:
    """A server with a TTFT of 100 ms and a TPOT of 20 ms is measured as that: never less, and within 10 ms and 5 %."""
    with timed_server("--ttft", "0.1", "--tpot", "0.02") as url:
        bench(*command(url, tmp_path / "run", "--rate", "20", "--num-prompts", "60", "--output-tokens", "20"))
    told = summary(tmp_path / "run")
    assert (told["completed"], told["failed"]) == (60, 0)
    assert 100 <= told["median_ttft_ms"] <= 110
    assert told["min_ttft_ms"] >= 100
    assert told["median_tpot_ms"] == pytest.approx(20, rel=0.05)
    assert told["total_output_tokens"] == 1200
    assert told["tokens"]["per_chunk"] == 1.0


def test_two_per_cent_of_broken_streams_are_two_per_cent(tmp_path: Path) -> None:
    """Of 200 streams every fiftieth breaks in the middle: 4 failures, which are in the denominator of goodput."""
    options = ("--concurrency", "8", "--num-prompts", "200", "--output-tokens", "10", "--goodput", "e2el:20000")
    with timed_server("--ttft", "0.01", "--tpot", "0.001", "--fail-every", "50") as url:
        done = bench(*command(url, tmp_path / "run", *options))
    told = summary(tmp_path / "run")
    assert told["failures"]["by_kind"] == {"stream_error": 4}
    assert told["failures"]["share"] == 0.02
    assert told["goodput"]["of_all_sent"] == 0.98
    assert "196 answered, 4 failed (2 %)" in done.stdout


def test_a_stall_is_not_hidden_by_waiting_for_it(tmp_path: Path) -> None:
    """A server that is silent for two seconds is seen by everyone who comes then; a closed loop sees it once."""
    stall = ("--ttft", "0.02", "--stall-at", "1", "--stall", "2")
    options = ("--output-tokens", "1", "--num-prompts", "80")
    with timed_server(*stall) as url:
        bench(*command(url, tmp_path / "open", "--rate", "20", "--arrivals", "constant", *options))
    with timed_server(*stall) as url:
        bench(*command(url, tmp_path / "closed", "--concurrency", "1", *options))
    waited = [row.end - row.intended for row in measured(tmp_path / "open")]
    hidden = [row.end - row.sent for row in measured(tmp_path / "closed")]
    # of 80 in 4 s, those of the first second of the stall wait for more than a second: about 20; of a closed loop, 1
    assert 15 <= sum(seconds > 1.0 for seconds in waited) <= 25
    assert max(waited) == pytest.approx(2.0, abs=0.2)
    assert sum(seconds > 1.0 for seconds in hidden) == 1
    assert summary(tmp_path / "open")["loop"] == "open, 20/s, constant"
    assert summary(tmp_path / "closed")["loop"] == "closed, C=1"
    open_mean = summary(tmp_path / "open")["mean_e2el_from_intended_ms"]
    assert open_mean > 5 * summary(tmp_path / "closed")["mean_e2el_ms"]


@contextlib.contextmanager
def crowded_core(pid: int) -> Iterator[None]:
    """Make process *pid* the least of three on one core; the other two never rest."""
    core = min(os.sched_getaffinity(0))
    hog = f"import os\nos.sched_setaffinity(0, [{core}])\nwhile True: pass"
    hogs = [subprocess.Popen([sys.executable, "-c", hog]) for _ in range(2)]
    try:
        os.sched_setaffinity(pid, [core])
        os.setpriority(os.PRIO_PROCESS, pid, 19)
        yield
    finally:
        for process in hogs:
            process.kill()
            process.wait()


def test_a_client_without_cpu_calls_its_run_invalid(tmp_path: Path) -> None:
    """Starved of CPU, the client measures itself: the run is INVALID, says why, and the exit code is 1."""
    out = tmp_path / "run"
    with timed_server("--ttft", "0.02") as url:
        words = command(url, out, "--rate", "30", "--num-prompts", "120", "--output-tokens", "1")
        with subprocess.Popen(words, env=environ(), stdout=subprocess.PIPE, text=True) as process:
            until(lambda: len(measured(out)) > 10, RUN_S, "ten requests have ended")
            with crowded_core(process.pid):
                until(lambda: len(measured(out)) > 50, RUN_S, "forty more have ended")
            said, _ = process.communicate(timeout=RUN_S)
    reasons = summary(out)["validity"]["reasons"]
    assert any(reason.startswith(("late client", "send lag")) for reason in reasons)
    assert "INVALID" in said
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("truth", "options", "reason"),
    [
        (("--others", "3"), (), "other tenants"),
        (("--renamed-after", "10"), (), "changed model"),
        ((), ("--rate", "200", "--max-in-flight", "1", "--arrivals", "constant"), "rate: "),
    ],
)
def test_what_makes_numbers_worthless_is_found(
    tmp_path: Path, truth: tuple[str, ...], options: tuple[str, ...], reason: str
) -> None:
    """Requests of others, another model in the middle, a rate that was not kept: each is a reason."""
    load = options or ("--concurrency", "2")
    with timed_server("--ttft", "0.05", *truth) as url:
        bench(*command(url, tmp_path / "run", *load, "--num-prompts", "40", "--output-tokens", "1"))
    assert [said for said in summary(tmp_path / "run")["validity"]["reasons"] if said.startswith(reason)] != []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_is_gone_on_with(tmp_path: Path, number: signal.Signals) -> None:
    """Whatever ends a run, the rows stay; resumed, every prompt is asked once more only if it has no row."""
    out = tmp_path / "run"
    with timed_server("--ttft", "0.05", "--tpot", "0.01") as url:
        words = command(url, out, "--rate", "40", "--num-prompts", "80", "--output-tokens", "5", "--warm-up", "2")
        with subprocess.Popen(words, env=environ(), stderr=subprocess.PIPE, text=True) as process:
            until(
                lambda: (out / "journal.jsonl").exists() and len(measured(out)) > 10, RUN_S, "ten requests have ended"
            )
            process.send_signal(number)
            _, said = process.communicate(timeout=RUN_S)
        before = measured(out)
        assert 10 < len(before) < 80
        if number != signal.SIGKILL:
            assert process.returncode == 130
            assert f"unigate bench run --resume {out}" in said
        again = bench(UNIGATE, "bench", "run", "--resume", str(out))
    rows = measured(out)
    assert sorted(row.index for row in rows) == list(range(80)), again.stderr
    assert [row.index for row in rows if row.session == 0] == [row.index for row in before]
    told = summary(out)
    assert told["sessions"] == 2
    assert "the run was resumed 1 times; the pauses are left out" in told["validity"]["warnings"]
    assert read_journal(out).is_done


def test_a_finished_run_is_not_begun_again(tmp_path: Path) -> None:
    """A folder that holds a run is not overwritten; resumed, it is only reported."""
    out = tmp_path / "run"
    with timed_server() as url:
        words = command(url, out, "--concurrency", "1", "--num-prompts", "5", "--output-tokens", "1")
        bench(*words)
        content = (out / "requests.jsonl").read_bytes()
        refused = bench(*words)
    assert refused.returncode == 1
    assert f"it holds a run already; go on with it by `unigate bench run --resume {out}`" in refused.stderr
    bench(UNIGATE, "bench", "run", "--resume", str(out))
    assert (out / "requests.jsonl").read_bytes() == content


def test_a_report_made_anew_is_the_same(tmp_path: Path) -> None:
    """`bench report` gives the same files to the byte, from the raw rows alone."""
    out = tmp_path / "run"
    with timed_server("--ttft", "0.01", "--fail-every", "7") as url:
        bench(*command(url, out, "--rate", "50", "--num-prompts", "50", "--output-tokens", "4"))
    first = {name: (out / name).read_bytes() for name in REPORTS}
    for name in REPORTS:
        (out / name).unlink()
    bench(UNIGATE, "bench", "report", str(out))
    assert {name: (out / name).read_bytes() for name in REPORTS} == first


def test_a_sweep_finds_where_a_server_is_full(tmp_path: Path) -> None:
    """Two slots of 20 ms take 100 requests a second: 10 are kept up with, 400 are not; resumed, it is only reported."""
    out = tmp_path / "sweep"
    with timed_server("--ttft", "0.02", "--slots", "2") as url:
        bench(*command(url, out, "--rates", "10,400", "--num-prompts", "40", "--output-tokens", "1"))
        rows = (out / "rate-400" / "requests.jsonl").read_bytes()
        bench(UNIGATE, "bench", "run", "--resume", str(out))
    assert summary(out)["saturated_at"] == 400.0
    assert "keeps up with 10 requests/s" in summary(out)["found"]
    assert (out / "rate-400" / "requests.jsonl").read_bytes() == rows


def test_a_key_goes_into_the_header_and_nowhere_else(tmp_path: Path) -> None:
    """The key comes from the environment; no file of the run and no line on the terminal holds it."""
    out = tmp_path / "run"
    with timed_server() as url:
        done = bench(
            *command(url, out, "--concurrency", "1", "--num-prompts", "3", "--output-tokens", "1"),
            added={"OPENAI_API_KEY": "sk-very-secret"},
        )
    assert summary(out)["completed"] == 3
    said = done.stdout + done.stderr + "".join(path.read_text() for path in out.iterdir())
    assert "sk-very-secret" not in said


def test_a_server_that_answers_nothing_ends_the_warm_up(tmp_path: Path) -> None:
    """When every request of the warm-up fails nothing is measured, and the reason is the server's own."""
    with timed_server() as url:
        pass
    done = bench(*command(url, tmp_path / "run", "--warm-up", "3", "--concurrency", "1", "--num-prompts", "3"))
    assert done.returncode == 1
    assert "the server answers nothing: cannot connect to" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_address_without_its_version_is_noticed(tmp_path: Path) -> None:
    """The most common slip, a base URL without /v1, is a 404 that is explained."""
    with timed_server() as url:
        words = ("--warm-up", "1", "--concurrency", "1", "--num-prompts", "3")
        done = bench(*command(url.removesuffix("/v1"), tmp_path / "run", *words))
    assert done.returncode == 1
    assert "404: no /chat/completions here; an OpenAI-compatible address ends in /v1" in done.stderr


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--rate", "1"), "--num-prompts: missing"),
        (("--rate", "1", "--num-prompts", "3", "--scenario", "none"), "ours are burst, chat"),
        (("--rate", "1", "--num-prompts", "3", "--extra-body", "{"), "--extra-body: not JSON"),
        (("--rate", "1", "--num-prompts", "3", "--goodput", "fast"), "write it as ttft:200"),
        (("--rates", "1,x", "--num-prompts", "3"), "write them as 1,2,4"),
        (("--rate", "1", "--num-prompts", "3", "--resume", "x"), "it takes no other option"),
    ],
)
def test_a_command_that_cannot_be_used_is_told(tmp_path: Path, options: tuple[str, ...], problem: str) -> None:
    """A wrong option is an error with its name and exit code 2, before anything is sent or written."""
    done = bench(*command("http://127.0.0.1:9/v1", tmp_path / "run", *options))
    assert done.returncode == 2
    assert problem in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_this_clients_own_limits_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """`benchmarks.selftest` drives small answers and streams, and knows the true time to the first token."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(selftest, "RATES", (100,))
    monkeypatch.setattr(selftest, "STREAMS", (20,))
    monkeypatch.setattr(selftest, "SECONDS", 0.5)
    small, streams = selftest.steps()
    assert (small.failed, streams.failed) == (0, 0)
    assert small.per_second == pytest.approx(100, rel=0.1)
    assert streams.most_at_once == 20
    assert streams.first_s is not None
    assert 0.5 <= streams.first_s[0] < 0.6


def test_a_certificate_is_checked(tmp_path: Path) -> None:
    """Over TLS an unknown certificate is refused; one that is named is trusted."""
    key, certificate, script = tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "server.py"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    script.write_text(TLS_SERVER)
    words = ("--concurrency", "1", "--num-prompts", "3", "--output-tokens", "1", "--no-stream")
    with subprocess.Popen([sys.executable, script, certificate, key], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = f"https://localhost:{server.stdout.readline().strip()}/v1"
        try:
            bench(*command(url, tmp_path / "refused", *words))
            bench(*command(url, tmp_path / "trusted", *words, "--ca-file", str(certificate)))
            bench(*command(url, tmp_path / "unchecked", *words, "--insecure"))
        finally:
            server.terminate()
    refused = summary(tmp_path / "refused")
    assert refused["failures"]["by_kind"] == {"connection": 3}
    assert "certificate" in refused["failures"]["examples"]["connection"]
    assert summary(tmp_path / "trusted")["completed"] == 3
    assert summary(tmp_path / "unchecked")["completed"] == 3


TLS_SERVER = """
import http.server, json, ssl, sys
class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps({"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.send_error(404)
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
"""
