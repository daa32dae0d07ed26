"""A sweep: prompts of one kind at one rate after the other, until the server takes no more.

Rates double from one that a single client's own pace allows, until a step is saturated; then the gap between the last
that was not and the first that was is halved, twice, because the interesting part of the curve is there. Each step is
a run of its own in a folder of its own, so a sweep is resumed by skipping what is done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.plan import PLAN, Plan

LEAST_ANSWERED = 0.95
MOST_SLOWER = 10.0
MOST_FAILED = 0.05
MOST_STEPS = 12
HALVINGS = 2
PACE_PROMPTS = 10


def step_plan(plan: Plan, rate: float) -> Plan:
    """The run at one *rate* of the sweep *plan*. Its prompts are its own: what was asked before may be cached."""
    return dataclasses.replace(plan, sweep=False, rates=(), rate=rate, seed=plan.seed + round(rate * 1000))


def pace_plan(plan: Plan) -> Plan:
    """The run that finds where to begin: one request at a time."""
    count = min(plan.num_prompts or PACE_PROMPTS, PACE_PROMPTS)
    return dataclasses.replace(plan, sweep=False, rates=(), concurrency=1, num_prompts=count, duration_s=None)


def first_rate(pace: dict[str, Any]) -> float:
    """Where to begin, from the summary of `pace_plan`: half of what one request at a time comes to."""
    seconds = (pace["mean_e2el_ms"] or 1000.0) / 1000
    return rounded(0.5 / seconds)


def rounded(rate: float) -> float:
    """*rate* with three digits: it is a folder's name too."""
    return float(f"{rate:.3g}")


def step_folder(folder: Path, rate: float) -> Path:
    """Where the step at *rate* is kept."""
    return folder / f"rate-{rate:g}"


def step_folders(folder: Path) -> list[Path]:
    """The steps there are, by their rates."""
    found = [path for path in folder.glob("rate-*") if (path / PLAN).exists()]
    return sorted(found, key=lambda path: float(path.name.removeprefix("rate-")))


def is_saturated(step: dict[str, Any], base: dict[str, Any]) -> str:
    """Why a step is more than the server takes, empty if it is not. *base*: the slowest rate's summary."""
    answered = step["steady"]["request_throughput"]
    if answered is None:
        answered = step["request_throughput"]
    if answered is not None and answered < LEAST_ANSWERED * step["request_rate"]:
        return "answers fall behind"
    slower = (step["median_ttft_from_intended_ms"] or 0.0) / (base["median_ttft_from_intended_ms"] or float("inf"))
    if slower > MOST_SLOWER:
        return f"TTFT {slower:.0f} times that of the slowest rate"
    if step["failures"]["share"] > MOST_FAILED:
        return "failures"
    return ""


def with_verdicts(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """*steps*, by rate, each with what the sweep says of it."""
    told = []
    for step in steps:
        why = is_saturated(step, steps[0])
        verdict = why or ("ok" if step["validity"]["is_valid"] else "INVALID")
        told.append({**step, "sweep": {"is_saturated": bool(why), "verdict": verdict}})
    return told


def next_rate(steps: Sequence[dict[str, Any]], begin: float) -> float | None:
    """The rate to try after *steps* (with verdicts, by rate); None when enough is known."""
    if not steps:
        return begin
    if len(steps) >= MOST_STEPS:
        return None
    fine = [step["request_rate"] for step in steps if not step["sweep"]["is_saturated"]]
    full = [step["request_rate"] for step in steps if step["sweep"]["is_saturated"]]
    if not full:
        return rounded(2 * max(fine))
    if not fine:
        return rounded(min(full) / 2)
    low = max((rate for rate in fine if rate < min(full)), default=min(full) / 2)
    if min(full) / low <= 2 ** (1 / 2**HALVINGS) * 1.05:
        return None
    return rounded((low * min(full)) ** 0.5)


def conclude(steps: Sequence[dict[str, Any]]) -> str:
    """What a sweep found, in a sentence."""
    full = [step for step in steps if step["sweep"]["is_saturated"]]
    fine = [step for step in steps if not step["sweep"]["is_saturated"]]
    best = max((step["steady"]["output_throughput"] or step["output_throughput"] or 0.0 for step in steps), default=0.0)
    peak = f"the most output was {best:,.0f} tokens/s".replace(",", "\u2009")
    if not full:
        return f"Not saturated at {steps[-1]['request_rate']:g} requests/s, the highest rate tried; {peak}."
    below = [step["request_rate"] for step in fine if step["request_rate"] < full[0]["request_rate"]]
    kept = f"keeps up with {max(below):g} requests/s" if below else "keeps up with none of the rates tried"
    reason = full[0]["sweep"]["verdict"]
    return f"The server {kept} and is saturated at {full[0]['request_rate']:g} ({reason}); {peak}."
