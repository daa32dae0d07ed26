"""The numbers of a run as one JSON object: a superset of what `vllm bench serve --save-result` writes.

The keys and their units are vLLM's (vllm/benchmarks/serve.py, 0.32.0), flat, milliseconds where a name ends in
``_ms``; so what plots its files plots these. What differs in meaning is in `benchmarks.measures`. Ours come after, by
area. A number that is not known is null, never 0.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.distributions import Distribution, needed
from benchmarks.errors import BenchmarkError
from benchmarks.journal import Journal, read_journal, read_recounts
from benchmarks.measures import Numbers, Recounts, measure, on_one_axis
from benchmarks.plan import Plan, load_plan
from benchmarks.records import MEASURED, REQUESTS, Row, read_rows
from benchmarks.validity import Verdict, judge, lag_summary, miscounted

SUMMARY = "summary.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run, read from its files, and what it came to. *rows*: the measured ones, on one axis."""

    folder: Path
    plan: Plan
    rows: tuple[Row, ...]
    journal: Journal
    recounts: Recounts
    numbers: Numbers
    verdict: Verdict

    @property
    def environment(self) -> dict[str, Any]:
        """Where and when it began; empty if it never did."""
        return dict(self.journal.sessions[0].environment) if self.journal.sessions else {}

    @property
    def server(self) -> dict[str, Any]:
        """What the server said of itself before."""
        return dict(self.journal.sessions[0].before) if self.journal.sessions else {}


def read_outcome(folder: Path) -> Outcome:
    """The run in *folder*. Raises BenchmarkError, also when nothing has been measured yet."""
    plan = load_plan(folder)
    rows = on_one_axis([row for row in read_rows(folder) if row.phase == MEASURED])
    if not rows:
        raise BenchmarkError(f"{folder / REQUESTS}: nothing has been measured yet")
    journal = read_journal(folder)
    recounts = read_recounts(folder)
    numbers = measure(
        rows, recounts, plan.goal, is_open=plan.is_open, concurrency=plan.concurrency, is_level=plan.is_level
    )
    notes = journal.sessions[0].environment.get("dataset", {}).get("notes", []) if journal.sessions else []
    verdict = judge(plan, rows, numbers, journal, recounts, notes)
    return Outcome(folder, plan, tuple(rows), journal, recounts, numbers, verdict)


def summarise(outcome: Outcome) -> dict[str, Any]:
    """Everything there is to say, as JSON. The same files give the same object."""
    plan, numbers = outcome.plan, outcome.numbers
    lasted = numbers.duration or None
    environment = outcome.environment

    def per_second(count: float) -> float | None:
        return count / lasted if lasted else None

    result: dict[str, Any] = {
        # vLLM's keys
        "date": environment.get("date"),
        "endpoint_type": "openai-chat" if plan.endpoint == "chat" else "openai",
        "backend": "openai-chat" if plan.endpoint == "chat" else "openai",
        "label": plan.label,
        "model_id": plan.model,
        "tokenizer_id": plan.tokenizer,
        "num_prompts": numbers.sent,
        "request_rate": plan.rate if plan.rate is not None else "inf" if not plan.is_open else None,
        "burstiness": plan.shape if plan.is_open else 1.0,
        "max_concurrency": plan.concurrency or plan.max_in_flight or None,
        "duration": numbers.duration,
        "completed": numbers.completed,
        "failed": numbers.failed,
        "total_input_tokens": numbers.prompt_tokens,
        "total_output_tokens": numbers.output_tokens,
        "request_throughput": per_second(numbers.completed),
        "request_goodput": per_second(numbers.good) if numbers.good is not None else None,
        "output_throughput": per_second(numbers.output_tokens),
        "total_token_throughput": per_second(numbers.prompt_tokens + numbers.output_tokens),
        "max_output_tokens_per_s": numbers.busiest_second,
        "max_concurrent_requests": numbers.most_in_flight,
    }
    if plan.ramp_to is not None:
        result |= {
            "ramp_up_strategy": "linear",
            "ramp_up_start_rps": plan.rate,
            "ramp_up_end_rps": plan.ramp_to,
        }
    nothing = Distribution(0)
    named = {
        "ttft": numbers.ttft,
        "tpot": numbers.tpot,
        "itl": numbers.inter_chunk if numbers.is_one_token_per_chunk else nothing,
        "e2el": numbers.e2e,
        # ours, in the same form
        "inter_chunk": numbers.inter_chunk,
        "ttft_from_intended": numbers.ttft_intended if plan.is_open else nothing,
        "e2el_from_intended": numbers.e2e_intended if plan.is_open else nothing,
        "ttfo": numbers.ttfo,
        "first_chunk": numbers.first_chunk,
        "connect": numbers.connect,
        "send_lag": numbers.lag,
        "held": numbers.held,
    }
    for name, values in named.items():
        result |= in_milliseconds(name, values)
    return {**result, **_areas(outcome)}


def in_milliseconds(name: str, values: Distribution) -> dict[str, float | None]:
    """A distribution of seconds under vLLM's names."""
    found = {
        f"mean_{name}_ms": values.mean,
        f"median_{name}_ms": values.median,
        f"std_{name}_ms": values.std,
        f"min_{name}_ms": values.least,
        f"max_{name}_ms": values.most,
    }
    for percentile, value in values.percentiles:
        found[f"p{percentile:g}_{name}_ms"] = value
    return {key: None if value is None else value * 1000 for key, value in found.items()}


def _areas(outcome: Outcome) -> dict[str, Any]:
    plan, numbers = outcome.plan, outcome.numbers
    differ, compared = miscounted(outcome.rows, outcome.recounts)
    window = numbers.steady
    return {
        "format": FORMAT,
        "loop": plan.loop,
        "is_streamed": plan.stream,
        "validity": {
            "is_valid": outcome.verdict.is_valid,
            "reasons": list(outcome.verdict.reasons),
            "warnings": list(outcome.verdict.warnings),
        },
        "failures": {
            "share": numbers.failed / numbers.sent,
            "by_kind": numbers.errors,
            "examples": examples(outcome.rows),
        },
        "finish_reasons": numbers.finish_reasons,
        "goodput": {
            "asked_ms": dict(plan.goodput),
            "good": numbers.good,
            "of_all_sent": numbers.good / numbers.sent if numbers.good is not None else None,
        },
        "steady": {
            "begins_s": window[0] if window else None,
            "ends_s": window[1] if window else None,
            "request_throughput": numbers.steady_requests,
            "output_throughput": numbers.steady_tokens,
        },
        "tokens": {
            "counted_by": numbers.tokens_from,
            "per_chunk": numbers.tokens_per_chunk,
            "is_one_per_chunk": numbers.is_one_token_per_chunk,
            "recounted": compared,
            "recount_differs_by": differ / compared if compared else None,
            "prompt_cached": numbers.cached_tokens,
            "prompt_length": dataclasses.asdict(numbers.prompt_length),
            "output_length": dataclasses.asdict(numbers.output_length),
        },
        "samples": {
            "requests": numbers.ttft.count,
            "gaps": numbers.inter_chunk.count,
            "needed_for": {f"p{percentile:g}": needed(percentile) for percentile, _ in Distribution(0).percentiles},
        },
        "client": lag_summary(outcome.journal.samples),
        "plan": dataclasses.asdict(plan),
        "environment": outcome.environment,
        "server": outcome.server,
        "sessions": len(outcome.journal.sessions),
    }


def examples(rows: Sequence[Row]) -> dict[str, str]:
    """The first text of each kind of failure."""
    found: dict[str, str] = {}
    for row in rows:
        if row.error_kind is not None:
            found.setdefault(row.error_kind, row.error_text or "")
    return found


def as_text(summary: dict[str, Any]) -> str:
    """The file's content."""
    return json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
