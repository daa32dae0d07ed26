"""The harness and the gateway: what one measures is what the other counts."""

from __future__ import annotations

import json
from pathlib import Path

from tests.gateways import Gateway


def test_a_run_through_the_gateway_counts_as_the_gateway_does(gateway: Gateway, tmp_path: Path) -> None:
    """Requests, tokens and failures of a run are those in the gateway's own metrics, and its backend is described."""
    before = gateway.metric("unigate_requests_total", model="chat")
    tokens = gateway.metric("unigate_tokens_total", model="chat", kind="completion")
    out = tmp_path / "run"
    done = gateway.command(
        "bench", "run", "--base-url", f"{gateway.url}/v1", "--model", "chat", "--concurrency", "4",
        "--num-prompts", "40", "--output-tokens", "4", "--warm-up", "8", "--out", str(out),
    )  # fmt: skip
    told = json.loads((out / "summary.json").read_text())
    assert (told["completed"], told["failed"]) == (40, 0), done.stderr
    assert gateway.metric("unigate_requests_total", model="chat") - before == 48
    assert gateway.metric("unigate_tokens_total", model="chat", kind="completion") - tokens == 48 * 4
    assert told["total_output_tokens"] == 160
    assert [backend["engine"] for backend in told["server"]["backends"]] == ["vllm"]
    assert told["server"]["servers"]["unigate"]["running"] == 0
    assert not [reason for reason in told["validity"]["reasons"] if "other tenants" in reason or "changed" in reason]


def test_a_model_that_never_starts_ends_the_run_with_the_gateways_reason(gateway: Gateway, tmp_path: Path) -> None:
    """What the gateway says of a failed backend is what the person who measures reads."""
    done = gateway.command(
        "bench", "run", "--base-url", f"{gateway.url}/v1", "--model", "failed", "--concurrency", "1",
        "--num-prompts", "3", "--warm-up", "2", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert done.returncode == 1
    assert "the server answers nothing: 503: " in done.stderr
    assert "--no-such-option" in done.stderr
