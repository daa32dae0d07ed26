"""What is counted of requests and transitions."""

from __future__ import annotations

from typing import Any

import pytest

from backends.devices import HOST, Device
from backends.diagnosis import Diagnosis
from backends.lifecycle import TRANSITIONS, Event, State
from backends.status import BackendStatus, Transition
from chat_templates.parity import Parity
from gateway.metrics import Metrics
from gateway.observation import STATUS_CLIENT_GONE, Observation

MODEL = {"model": "qwen", "engine": "vllm"}
BACKEND = {**MODEL, "backend": "qwen#1"}


def status(**changes: Any) -> BackendStatus:
    """A READY backend with two leases and three waiting requests."""
    fields: dict[str, Any] = {
        "name": "qwen#1", "engine": "vllm", "state": State.READY, "phase": "", "pid": 1, "address": "", "since_s": 0.0,
        "leases": 2, "waiting": 3, "restarts": 0, "retry_in_s": None, "on_demand": False, "log": "", "diagnosis": None,
        "model": "qwen",
    }  # fmt: skip
    return BackendStatus(**{**fields, **changes})


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(lambda: [status()])


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """One sample, None without it."""
    return metrics.registry.get_sample_value(name, labels)


def observation(**changes: Any) -> Observation:
    """A whole streamed answer."""
    fields: dict[str, Any] = {
        "request_id": "r", "endpoint": "/v1/completions", "received_at": 0.0, "model": "qwen", "engine": "vllm",
        "status": 200, "sent_at": 0.1, "first_byte_at": 0.2, "relayed_at": 0.2, "first_token_at": 0.3, "ended_at": 1.0,
        "prompt_tokens": 7, "completion_tokens": 3,
    }  # fmt: skip
    return Observation(**{**fields, **changes})


def test_a_whole_answer(metrics: Metrics) -> None:
    """An answer adds to requests, durations, tokens and the queue's waits."""
    metrics.account(observation())
    at = {"model": "qwen", "endpoint": "/v1/completions"}
    assert value(metrics, "unigate_requests_total", **at, code="200") == 1
    assert value(metrics, "unigate_request_duration_seconds_sum", **at) == 1.0
    assert value(metrics, "unigate_time_to_first_token_seconds_sum", **MODEL) == 0.3
    assert value(metrics, "unigate_queue_wait_seconds_count", **MODEL) == 1
    assert value(metrics, "unigate_gateway_overhead_seconds_count", endpoint="/v1/completions") == 1
    assert value(metrics, "unigate_tokens_total", **MODEL, kind="prompt") == 7
    assert value(metrics, "unigate_tokens_total", **MODEL, kind="completion") == 3
    assert value(metrics, "unigate_upstream_errors_total", **MODEL, kind="BrokenAnswer") is None


def test_a_refusal_at_the_door(metrics: Metrics) -> None:
    """A request that named no model of ours is counted under a name of our own, and waited in no queue."""
    metrics.account(Observation("r", "/v1/completions", 0.0, status=404, ended_at=0.1))
    assert value(metrics, "unigate_requests_total", model="_unknown", endpoint="/v1/completions", code="404") == 1
    assert value(metrics, "unigate_queue_wait_seconds_count", model="_unknown", engine="_unknown") is None


def test_a_client_that_left_and_an_engine_that_failed(metrics: Metrics) -> None:
    """A departure counts under its phase, a failed exchange under its kind."""
    metrics.account(observation(status=STATUS_CLIENT_GONE, phase="relay", upstream_error="BrokenAnswer"))
    assert value(metrics, "unigate_client_disconnects_total", model="qwen", phase="relay") == 1
    assert value(metrics, "unigate_upstream_errors_total", **MODEL, kind="BrokenAnswer") == 1


def test_gauges_are_read_when_they_are_scraped(metrics: Metrics) -> None:
    """Queue, leases and state are those of the moment of the scrape; exactly one state is 1."""
    metrics.exposition()
    assert value(metrics, "unigate_leases", **BACKEND) == 2
    assert value(metrics, "unigate_queue_depth", **BACKEND) == 3
    states = {state: value(metrics, "unigate_backend_state", **BACKEND, state=state.value) for state in State}
    assert [state for state, is_in in states.items() if is_in] == [State.READY]
    assert None not in states.values()


def transition(before: State, event: Event, after: State, **more: Any) -> Transition:
    """One change of the backend."""
    return Transition("qwen#1", "vllm", before, event, after, more.pop("diagnosis", None), model="qwen", **more)


def test_a_start_that_succeeds(metrics: Metrics) -> None:
    """A start that ends READY is counted with its time."""
    metrics.transition(transition(State.STARTING, Event.BECAME_READY, State.READY, started_in_s=12.0))
    assert value(metrics, "unigate_backend_starts_total", **BACKEND, result="ready") == 1
    assert value(metrics, "unigate_backend_start_seconds_sum", **BACKEND) == 12.0


@pytest.mark.parametrize(
    ("event", "after", "how"), [(Event.DRAINED, State.STOPPING, "stop"), (Event.FELL_ASLEEP, State.SLEEPING, "sleep")]
)
def test_swaps(metrics: Metrics, event: Event, after: State, how: str) -> None:
    """A backend that makes room counts once, by how it does."""
    metrics.transition(transition(State.READY, Event.YIELD_REQUESTED, State.YIELDING))
    metrics.transition(transition(State.YIELDING, event, after))
    assert value(metrics, "unigate_swaps_total", **BACKEND, how=how) == 1


def test_memory() -> None:
    """What was granted, and what the driver tells of each GPU, is read when it is scraped; the host is no GPU."""
    metrics = Metrics(lambda: [status(memory_bytes=7)])
    metrics.exposition([Device(0, "", "", 10, 4), Device(HOST, "", "", 100, 100)])
    assert value(metrics, "unigate_memory_claimed_bytes", **BACKEND) == 7
    assert value(metrics, "unigate_gpu_memory_bytes", gpu="0", kind="used") == 6
    assert value(metrics, "unigate_gpu_memory_bytes", gpu="0", kind="free") == 4
    assert value(metrics, "unigate_gpu_memory_bytes", gpu="-1", kind="free") is None


def test_every_end_of_a_start_has_a_word(metrics: Metrics) -> None:
    """Whatever the lifecycle's table lets happen to a start, the metrics have a word for it."""
    for (before, event), (after, _) in TRANSITIONS.items():
        metrics.transition(transition(before, event, after))
    results = {
        sample.labels["result"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "unigate_backend_starts_total"
    }
    assert results == {"ready", "failed", "crashed", "timed_out", "stopped"}


def test_a_restart_counts_under_its_reason(metrics: Metrics) -> None:
    """A start after a failure is counted under that failure's diagnosis."""
    diagnosis = Diagnosis("killed", "It was killed.", "See dmesg.")
    metrics.transition(transition(State.BACKOFF, Event.BACKOFF_ELAPSED, State.STARTING, diagnosis=diagnosis))
    metrics.transition(transition(State.BACKOFF, Event.BACKOFF_ELAPSED, State.STARTING))
    assert value(metrics, "unigate_backend_restarts_total", **BACKEND, reason="killed") == 1
    assert value(metrics, "unigate_backend_restarts_total", **BACKEND, reason="unknown") == 1


def test_a_backend_that_is_gone_has_no_gauges() -> None:
    """What is no longer there when it is scraped leaves no state behind, not even a zero."""
    there = [status()]
    metrics = Metrics(lambda: there)
    assert b"qwen#1" in metrics.exposition()
    there.clear()
    assert b"qwen#1" not in metrics.exposition()


def test_a_removed_model_is_exported_no_more() -> None:
    """Of a model that is taken out nothing is left, not even of a request that ends later; the others count on."""
    metrics = Metrics(list)
    metrics.keep_only({"qwen", "other"})
    for model in ("qwen", "other"):
        metrics.account(observation(model=model))
        metrics.retried(model, "broke_off")
    metrics.transition(transition(State.STARTING, Event.BECAME_READY, State.READY, started_in_s=1.0))
    metrics.keep_only({"other"})
    metrics.account(observation(status=STATUS_CLIENT_GONE, upstream_error="BrokenAnswer"))
    shown = metrics.exposition()
    assert b"qwen" not in shown
    assert b'unigate_requests_total{code="200",endpoint="/v1/completions",model="other"} 1.0' in shown
    metrics.keep_only({"other", "qwen"})
    metrics.account(observation())
    assert b'unigate_requests_total{code="200",endpoint="/v1/completions",model="qwen"} 1.0' in metrics.exposition()


def test_every_failure_counts_once_under_its_reason(metrics: Metrics) -> None:
    """Each way in which a run fails is counted, with the code of its diagnosis; its way on from there is not."""
    diagnosis = Diagnosis("gpu_out_of_memory", "It was too much.", "Take less.")
    failures = 0
    for (before, event), (after, _) in TRANSITIONS.items():
        is_failure = event in (Event.CRASHED, Event.REJECTED, Event.START_TIMED_OUT, Event.BECAME_UNHEALTHY)
        failures += is_failure and after is not State.STOPPED
        metrics.transition(transition(before, event, after, diagnosis=diagnosis))
    assert failures == 5
    assert value(metrics, "unigate_backend_failures_total", **BACKEND, reason="gpu_out_of_memory") == failures
    metrics.transition(transition(State.READY, Event.CRASHED, State.BACKOFF))
    assert value(metrics, "unigate_backend_failures_total", **BACKEND, reason="unknown") == 1


def test_in_flight_goes_up_and_down(metrics: Metrics) -> None:
    """A request being worked on is in flight until it is not, however it ends."""
    gauge = metrics.in_flight("qwen", "vllm")

    def fail() -> None:
        with gauge.track_inprogress():
            assert value(metrics, "unigate_requests_in_flight", **MODEL) == 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert value(metrics, "unigate_requests_in_flight", **MODEL) == 0


def test_two_gateways_in_one_process_count_apart() -> None:
    """Each Metrics has a registry of its own."""
    one, other = Metrics(list), Metrics(list)
    one.account(observation())
    at = {"model": "qwen", "endpoint": "/v1/completions", "code": "200"}
    assert value(one, "unigate_requests_total", **at) == 1
    assert value(other, "unigate_requests_total", **at) is None


def test_what_is_proven_of_prompts() -> None:
    """A feature is 1 where it is proven in any way on every replica that was asked for its prompts, else 0."""
    whole = Parity("h", "vllm", {"text": ("native", "tokens"), "tools": ("native",)})
    part = Parity("h", "vllm", {"text": ("tokens",)})
    statuses = [status(parity=whole), status(name="qwen#2", parity=part), status(name="qwen#3", parity=None)]
    metrics = Metrics(lambda: statuses)
    metrics.exposition()
    assert value(metrics, "unigate_template_parity", **MODEL, feature="text") == 1
    assert value(metrics, "unigate_template_parity", **MODEL, feature="tools") == 0
    assert value(metrics, "unigate_template_parity", **MODEL, feature="prefill") == 0
    statuses[:] = [status()]
    metrics.exposition()
    assert value(metrics, "unigate_template_parity", **MODEL, feature="text") is None
