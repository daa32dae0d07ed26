"""Which rates a sweep tries, and what it concludes."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.plan import Plan, build_plan
from benchmarks.sweeping import (
    MOST_STEPS,
    conclude,
    first_rate,
    next_rate,
    pace_plan,
    step_plan,
    with_verdicts,
)

PLAN = Plan("http://x/v1", "m", num_prompts=100, sweep=True)


def step(rate: float, capacity: float = 70.0, **changes: Any) -> dict[str, Any]:
    """A summary of a server that takes *capacity* requests per second."""
    answered = min(rate, capacity)
    return {
        "request_rate": rate, "request_throughput": answered, "median_ttft_from_intended_ms": 50.0,
        "output_throughput": answered * 10,
        "steady": {"request_throughput": answered, "output_throughput": answered * 10},
        "failures": {"share": 0.0}, "validity": {"is_valid": True}, **changes,
    }  # fmt: skip


def swept(capacity: float, begin: float = 1.0) -> list[dict[str, Any]]:
    """All steps of a sweep of a server that takes *capacity*."""
    steps: list[dict[str, Any]] = []
    while (rate := next_rate(with_verdicts(steps), begin)) is not None:
        steps = sorted([*steps, step(rate, capacity)], key=lambda one: float(one["request_rate"]))
    return with_verdicts(steps)


@pytest.mark.parametrize("capacity", [3.0, 17.0, 70.0, 300.0])
def test_a_sweep_closes_in_on_the_capacity(capacity: float) -> None:
    """The last rate that was kept and the first that was not are within a fifth of the capacity."""
    steps = swept(capacity)
    kept = max(one["request_rate"] for one in steps if not one["sweep"]["is_saturated"])
    full = min(one["request_rate"] for one in steps if one["sweep"]["is_saturated"])
    assert kept <= capacity * 1.06
    assert full >= capacity
    assert full / kept <= 1.26
    assert len(steps) <= MOST_STEPS


def test_a_sweep_goes_down_when_it_began_too_high() -> None:
    """When the first rate is too much already, lower ones are tried."""
    steps = swept(3.0, begin=20.0)
    assert min(one["request_rate"] for one in steps) < 3.0


def test_a_server_that_takes_everything_ends_the_sweep_too() -> None:
    """There is a last step."""
    steps = swept(1e9)
    assert len(steps) == MOST_STEPS
    assert conclude(steps).startswith("Not saturated at 2040 requests/s")


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "ok"),
        ({"validity": {"is_valid": False}}, "INVALID"),
        ({"failures": {"share": 0.06}}, "failures"),
        ({"median_ttft_from_intended_ms": 600.0}, "TTFT 12 times that of the slowest rate"),
        (
            {"steady": {"request_throughput": None, "output_throughput": None}, "request_throughput": 9.0},
            "answers fall behind",
        ),
    ],
)
def test_a_step_is_saturated_for_a_reason(changes: dict[str, Any], verdict: str) -> None:
    """Falling behind, a TTFT ten times that of an idle server, or failures: each is more than the server takes."""
    assert with_verdicts([step(5.0), step(10.0, **changes)])[1]["sweep"]["verdict"] == verdict


def test_a_sweep_that_kept_nothing_says_so() -> None:
    """When every rate was too much, no rate is recommended."""
    assert "keeps up with none of the rates tried" in conclude(with_verdicts([step(100.0), step(200.0)]))


def test_a_sweep_begins_at_half_the_pace_of_one_client() -> None:
    """A server that answers one request in 200 ms is first asked for 2.5 per second."""
    assert first_rate({"mean_e2el_ms": 200.0}) == 2.5
    assert pace_plan(PLAN).concurrency == 1


def test_a_step_may_last_a_time_instead_of_a_number() -> None:
    """With a duration every step is as long, and so asks more at a higher rate."""
    plan = build_plan({"base_url": "http://x/v1", "model": "m", "sweep": True, "duration_s": 30.0})
    assert (pace_plan(plan).prompts, step_plan(plan, 2.0).prompts, step_plan(plan, 8.0).prompts) == (10, 60, 240)


def test_every_step_has_prompts_of_its_own() -> None:
    """What one step asked may be cached by the next: each has another seed, and the same one when it is resumed."""
    first, second = step_plan(PLAN, 3.0), step_plan(PLAN, 6.0)
    assert (first.rate, first.is_sweep) == (3.0, False)
    assert first.seed != second.seed
    assert first == step_plan(PLAN, 3.0)
