"""Arrival times that were recorded: played back as they were, or faster."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.datasets.files import read_text
from benchmarks.errors import BenchmarkError


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace: at *at* seconds, with its lengths in tokens where the trace has them."""

    at: float
    prompt_tokens: int | None = None
    output_tokens: int | None = None


def read_trace(path: Path, limit: int = 0) -> list[Arrival]:
    """The arrivals in *path*, in order of time, the first *limit* of them (0: all). Raises BenchmarkError.

    One per line: a number of seconds, or an object as in Mooncake's traces (kvcache-ai/Mooncake,
    FAST25-release/traces), ``{"timestamp": MILLISECONDS, "input_length": TOKENS, "output_length": TOKENS}``.
    """
    found = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            found.append(_arrival(line, f"{path}:{number}"))
    if not found:
        raise BenchmarkError(f"--trace {path}: holds no arrival")
    found.sort(key=lambda arrival: arrival.at)
    return found[:limit] if limit else found


def _arrival(line: str, place: str) -> Arrival:
    try:
        said = json.loads(line)
    except ValueError as problem:
        raise BenchmarkError(f"{place}: neither a number of seconds nor a JSON object") from problem
    if _is_time(said):
        return Arrival(float(said))
    if isinstance(said, dict) and _is_time(said.get("timestamp")):
        lengths = [said.get(name) for name in ("input_length", "output_length")]
        if all(length is None or (type(length) is int and length > 0) for length in lengths):
            return Arrival(said["timestamp"] / 1000, lengths[0], lengths[1])
    raise BenchmarkError(f'{place}: has to be seconds, or an object with "timestamp" in milliseconds and whole lengths')


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
