"""What engines and gateways say at /metrics."""

from __future__ import annotations

import pytest

from benchmarks.engine_metrics import dialect_named, read_samples, under_way

VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a"} 3.0
vllm:num_requests_running{engine="1",model_name="a"} 2.0
vllm:num_requests_waiting{engine="0",model_name="a"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="a",reason="capacity"} 4.0
vllm:kv_cache_usage_perc{engine="0",model_name="a"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="a"} 0.5
vllm:request_success_total{engine="0",finished_reason="stop",model_name="a"} 10.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="a"} 5.0
"""
LMDEPLOY = """lmdeploy:num_requests_running{engine="0",model_name="a"} 1.0
lmdeploy:num_requests_waiting{engine="0",model_name="a"} 0.0
lmdeploy:gpu_cache_usage_perc{engine="0",model_name="a"} NaN
"""
LLAMACPP = "llamacpp:requests_processing 2\nllamacpp:requests_deferred 1\n"
UNIGATE = """unigate_requests_in_flight{model="a"} 3.0
unigate_requests_in_flight{model="b"} 40.0
unigate_queue_depth{model="a"} 1.0
unigate_requests_total{code="200",model="a",path="/v1/chat/completions"} 7.0
unigate_requests_total{code="503",model="a",path="/v1/chat/completions"} 2.0
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (VLLM, {"vllm": {"running": 5.0, "waiting": 4.0, "kv": 0.5, "finished": 15.0}}),
        (LMDEPLOY, {"lmdeploy": {"running": 1.0, "waiting": 0.0}}),
        (LLAMACPP, {"llamacpp": {"running": 2.0, "waiting": 1.0}}),
        (UNIGATE, {"unigate": {"running": 3.0, "waiting": 1.0, "finished": 9.0}}),
        ("up 1\nvllm:num_requests_running x\nvllm:num_requests_running\n", {}),
        ("", {}),
    ],
)
def test_every_dialect_says_the_same_things(text: str, expected: dict[str, dict[str, float]]) -> None:
    """Running, waiting, KV and finished, by each engine's own names; a gateway's other models do not add up."""
    assert read_samples(text, "a") == expected


@pytest.mark.parametrize(
    ("name", "sample", "expected"),
    [
        ("vllm", {"running": 3.0, "waiting": 1.0}, 4.0),
        ("unigate", {"running": 3.0, "waiting": 1.0}, 3.0),
        ("vllm", {"kv": 0.5}, None),
    ],
)
def test_what_is_under_way_is_counted_once(name: str, sample: dict[str, float], expected: float | None) -> None:
    """The gateway counts those that wait as under way already, the engines do not."""
    assert under_way(dialect_named(name), sample) == expected
